"""Progress of a pass over text, a line at a time."""

import time


class Progress:
    """Counts text that goes by and prints a line at the start, and one with rate and remaining time now and then."""

    def __init__(self, label: str, total: int = 0, every: float = 10.0) -> None:
        self.label, self.total, self.every = label, total, every
        self.done = 0
        self.start = self._last = time.monotonic()
        print(f"{label}: {total / 1e6:,.1f} MB" if total else f"{label}: begins", flush=True)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.start

    @property
    def rate(self) -> float:
        """MB/s since the start."""
        return self.done / 1e6 / max(self.seconds, 1e-9)

    def add(self, size: int) -> None:
        """Note `size` more bytes."""
        self.done += size
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            print(self.line(), flush=True)

    def line(self) -> str:
        """The current state in one line."""
        text = f"{self.label}: {self.done / 1e6:,.1f} MB, {self.rate:.1f} MB/s"
        if self.total > self.done > 0:
            text += (
                f", {self.done / self.total:.0%}, {(self.total - self.done) / self.done * self.seconds:,.0f} s left"
            )
        return text

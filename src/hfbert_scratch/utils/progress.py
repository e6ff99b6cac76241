"""Report the progress of a pass over text."""

import time


class ProgressReporter:
    """Count processed bytes; print a line at the start and then, now and again, one with rate and remaining time.

    Args:
        label: the beginning of every line.
        total: bytes of the whole pass; 0 if unknown.
        every: seconds between lines.
    """

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
        """Count `size` more bytes."""
        self.done += size
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            print(self.line(), flush=True)

    def line(self) -> str:
        """Describe the current state in one line."""
        text = f"{self.label}: {self.done / 1e6:,.1f} MB, {self.rate:.1f} MB/s"
        if self.total > self.done > 0:
            text += (
                f", {self.done / self.total:.0%}, {(self.total - self.done) / self.done * self.seconds:,.0f} s left"
            )
        return text

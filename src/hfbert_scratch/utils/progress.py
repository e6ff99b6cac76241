"""Report progress: lines about a pass over text, and the bar of a training run on a terminal."""

import shutil
import sys
import textwrap
import time

from tqdm import tqdm


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


class TrainingBar:
    """A progress bar on standard error, where that is a terminal; elsewhere only `print` does anything.

    It takes the terminal's last line: `print` writes above it.

    Args:
        enabled: whether this process may show it.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._parts = {"position": "", "loss": "", "score": ""}

    def start(self, total: float, done: float, position: str) -> None:
        """Show the bar.

        Args:
            total: the end of the run, in any unit.
            done: the run's progress so far, in the same unit.
            position: the text for it beside the bar.
        """
        self._parts["position"] = position
        if self._enabled and self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=self._text,
                bar_format="{percentage:3.0f}%|{bar}| {desc} eta {remaining}",
                dynamic_ncols=True,
                leave=False,
                mininterval=0.2,
            )

    def update(self, done: float, position: str) -> None:
        """Move the bar to `done`; `position` says where that is."""
        if self._bar is not None:
            self.show(position=position)
            self._bar.update(done - self._bar.n)

    def show(self, **parts: str) -> None:
        """Replace parts of the text beside the bar: `position`, `loss`, `score`."""
        self._parts |= parts
        if self._bar is not None:
            self._bar.set_description_str(self._text, refresh=False)

    def print(self, text: str) -> None:
        """Print to standard output, above the bar."""
        if self._bar is None:
            print(text, flush=True)
        else:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @property
    def _text(self) -> str:
        return " ".join(filter(None, self._parts.values()))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def fold(text: str) -> str:
    """Break lines at blanks where standard output is a terminal and they are wider than it."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        line
        if len(line) <= width
        else textwrap.fill(
            line,
            width,
            subsequent_indent="    ",
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )

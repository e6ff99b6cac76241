"""Notes of a task's data: warnings and left-out rows, printed at once and collected for the run's record."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..utils.environment import is_first_process


@dataclass
class Notes:
    """Left-out rows, each with its reason, and warnings, in order."""

    left_out: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


_COLLECTING: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def collect_notes() -> Iterator[Notes]:
    """Collect the reports of `warn` and `leave_out` within the block.

    Yields:
        The notes, filled as they come up.
    """
    notes = Notes()
    token = _COLLECTING.set(notes)
    try:
        yield notes
    finally:
        _COLLECTING.reset(token)


def _print(text: str) -> None:
    # There is no process group yet when data are read.
    if is_first_process():
        print(f"warning: {text}")


def warn(text: str) -> None:
    """Print a warning, once for all processes of a launch, and note it."""
    _print(text)
    if (notes := _COLLECTING.get()) is not None:
        notes.warnings.append(text)


def leave_out(rows: int, text: str) -> None:
    """Print the reason why rows were left out, and note it with their number."""
    _print(text)
    if (notes := _COLLECTING.get()) is not None:
        notes.left_out.append({"rows": rows, "reason": text})

"""The errors a user can cause, each with the exit code a batch system can act on."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path

from hfbert_cli import EXIT_CODES, STOPPED


__all__ = [
    "STOPPED",
    "CheckpointError",
    "DivergenceError",
    "HFBertError",
    "InputError",
    "OutputError",
    "command_line",
    "one_line",
]


class HFBertError(Exception):
    """Base of all errors that end a recipe in one sentence. `exit_code` is the process's."""

    exit_code = 1


class InputError(HFBertError, ValueError):
    """A file, field, value or argument is unusable. The message names it and the remedy."""

    exit_code = 2


class DivergenceError(HFBertError):
    """The loss or the gradient is not finite."""

    exit_code = 5


class CheckpointError(HFBertError):
    """A checkpoint is damaged, or belongs to another run."""

    exit_code = 6


class OutputError(HFBertError, OSError):
    """The output cannot be written: no space, no permission, or another run is writing there."""

    exit_code = 7


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def one_line(error: object) -> str:
    """An exception's message without line breaks, cut to a bearable length."""
    return " ".join(str(error).split())[:600]


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Turn `main` into a program: an `HFBertError` becomes one sentence on stderr and its exit code.

    Any other exception is a bug and keeps its traceback, but for a disk that a library of ours finds full or
    read-only; so does a user error when HFBERT_DEBUG is set or `--debug` is on the command line.
    """

    @wraps(main)
    def program() -> None:
        note = _exit_code_file()
        try:
            _run(main)
        except SystemExit as end:
            _note(note, end.code if isinstance(end.code, int) else int(end.code is not None))
            raise
        except BaseException:
            _note(note, 1)
            raise
        _note(note, 0)

    return program


def _run(main: Callable[[], None]) -> None:
    debug = "--debug" in sys.argv or bool(os.environ.get("HFBERT_DEBUG"))
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
    try:
        main()
    except (HFBertError, OSError) as error:
        if not isinstance(error, HFBertError) and error.errno not in _NO_ROOM:
            raise
        if debug:
            traceback.print_exc()
        remedy = "" if isinstance(error, HFBertError) else "; make room, and start the same command again"
        print(f"error: {error}{remedy}", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", OutputError.exit_code))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def _exit_code_file() -> Path | None:
    """Return the file for this process's exit code, which no launcher passes on to `hfbert`; None without one."""
    directory = os.environ.pop(EXIT_CODES, None)
    if directory is None:
        return None
    path = Path(directory) / os.environ.get("RANK", "0")
    _note(path, "")
    return path


def _note(path: Path | None, code: int | str) -> None:
    if path is not None:
        with suppress(OSError):  # the command that asked may be gone
            path.write_text(str(code), encoding="ascii")

"""The errors a user can cause, each with the exit code a batch system can act on."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps


class HFBertError(Exception):
    """Base of all errors that end a recipe in one sentence. `exit_code` is what the process returns."""

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


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Turn `main` into a program: an `HFBertError` becomes one sentence on stderr and its exit code.

    Any other exception is a bug and keeps its traceback; so does a user error when HFBERT_DEBUG is set or `--debug`
    is on the command line.
    """

    @wraps(main)
    def program() -> None:
        debug = "--debug" in sys.argv or bool(os.environ.get("HFBERT_DEBUG"))
        if "--debug" in sys.argv:
            sys.argv.remove("--debug")
        try:
            main()
        except HFBertError as error:
            if debug:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(130)

    return program

"""Files that are whole or not there, and one sentence for one that cannot be written or read."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from .errors import HFBertError, InputError, OutputError, one_line


@contextmanager
def writing(
    path: str | Path, remedy: str = "free some space or fix the permissions, and start the same command again"
) -> Iterator[None]:
    """Turn the system's errors of writing `path` into an OutputError that names it and the remedy."""
    try:
        yield
    except HFBertError:
        raise
    except Exception as error:
        # safetensors and tokenizers report a full disk in exceptions of their own, with Rust's words.
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        reason = one_line(getattr(error, "strerror", None) or error)
        raise OutputError(f"{path} cannot be written ({reason}); {remedy}") from error


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`, making its directory where there is none; it goes with the process, however it ends.

    Args:
        path: the lock file. It stays when the lock is released, unless its holder removes it while it holds it.
        wait: wait until the lock is free, or give up at once.

    Yields:
        Whether this process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(blocking=wait)
        while not path.exists():  # its last holder removed the file meanwhile
            held.release()
            held.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """Split NAME@REVISION, a name on the Hub with a branch, tag or commit; a path stays as it is, with None."""
    text = str(name)
    hub, separator, revision = text.rpartition("@")
    if not separator or not hub or not revision or Path(text).exists() or text.startswith((".", "/", "~")):
        return text, None
    return hub, revision


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """List the settings that differ between two runs, with both values; empty if they agree."""
    return "; ".join(
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises OutputError."""
    with writing(path), atomic(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all. Raises OutputError."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Parse the JSON file `path`; `what` names its role in the InputError for a bad one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what}: no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what}: {path} is not readable JSON ({error})") from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; `where` names its place in the InputError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(
            f"{where} is not JSON ({error.msg.removesuffix(' at')} at {line}column {error.colno})"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{where} cannot be read ({error})") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply to be read") from None

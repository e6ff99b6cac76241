"""Directories that are complete or absent, and directories that belong to settings."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError, InputError, OutputError
from .files import differences, lock, read_json, write_json, writing


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """Fill a temporary directory beside `target` that replaces it when the block ends without an error.

    Args:
        target: the directory to write. It must be absent or empty.

    Yields:
        The temporary directory. It is removed after an error, and `target` stays as it was.

    Raises:
        InputError: if `target` is a file or not empty.
        OutputError: if the directory cannot be written.
    """
    target = Path(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with writing(target):
            if target.exists() and not target.is_dir():
                raise InputError(f"the output directory {target} is a file")
            if target.is_dir() and any(target.iterdir()):
                raise InputError(f"the output directory {target} is not empty; name a new one")
            partial.mkdir(parents=True)
            yield partial
            if target.is_dir():
                target.rmdir()
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def claim_directory(directory: Path, settings: dict[str, Any], content: str) -> None:
    """Write settings.json, with the settings that everything in a directory shares; later calls must have the same.

    Args:
        directory: made if it is not there.
        settings: what JSON can hold.
        content: what the directory holds, for the error: "a sweep".

    Raises:
        CheckpointError: if the directory belongs to other settings, naming them.
        OutputError: if it cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    path = directory / "settings.json"
    with writing(f"output_dir {directory}", "choose another"):
        directory.mkdir(parents=True, exist_ok=True)
        with lock(directory / ".lock", wait=True):
            if not path.is_file():
                write_json(path, settings)
    there = read_json(path, "the settings of an earlier start")
    if differing := differences(there, settings):
        raise CheckpointError(f"{directory} holds {content} with other settings ({differing}); use another")


@contextmanager
def own_directory(directory: Path) -> Iterator[None]:
    """Keep other runs out of the directory. Raises OutputError if one is there or nothing can be written.

    At the end the lock is gone, and so is the directory of a run that was refused before it wrote anything.
    """
    path, is_new = directory / ".lock", not directory.exists()
    owner = directory / ".lock-owner"  # a locked file cannot be read on every system
    with ExitStack() as stack:
        with writing(f"output_dir {directory}", "choose another"):
            is_free = stack.enter_context(lock(path, wait=False))
            if not is_free:
                name = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "it has just begun"
                raise OutputError(f"another run is writing to {directory} ({name}); stop it first")
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            with suppress(PermissionError):  # of a file that is open, on Windows
                path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # not empty
                    directory.rmdir()

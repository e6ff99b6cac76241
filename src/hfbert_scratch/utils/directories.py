"""Directories that are complete or absent, and directories that belong to settings."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, InputError
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

"""Directories that are complete or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError
from .files import writing


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

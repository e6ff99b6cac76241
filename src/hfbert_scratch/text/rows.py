"""Rows of JSON lines and Parquet files, with one wording for every defect."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError, one_line
from ..utils.files import parse_json
from .streams import open_file


if TYPE_CHECKING:
    import pyarrow.parquet as pq


def parse_row(text: str, place: str) -> dict[str, Any]:
    """Parse one JSON object; `place` names its position in the error.

    Raises:
        InputError: if `text` is not JSON or not an object.
    """
    return require_object(parse_json(text, place), place)


def require_object(row: Any, place: str) -> dict[str, Any]:
    """Return `row`; raise InputError unless it is a JSON object."""
    if not isinstance(row, dict):
        raise InputError(f"{place} is a {type(row).__name__}; every row must be an object with named fields")
    return row


def require_column(column: str, present: Iterable[str], place: str, hint: str = "") -> None:
    """Check that a file has a column.

    Args:
        column: its name.
        present: the columns that are there; the error lists them.
        place: the file, or the row in it, for the error.
        hint: end of the error.

    Raises:
        InputError: if it is not there.
    """
    present = list(present)
    if column not in present:
        raise InputError(f"{place} has no column {column!r}, only {', '.join(map(repr, present)) or 'none'}{hint}")


@contextmanager
def open_parquet(path: Path | str) -> Iterator["pq.ParquetFile"]:
    """Open a Parquet file; Arrow's errors while it is read become InputErrors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(path) as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({one_line(error)})") from None

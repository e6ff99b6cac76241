"""Read files of rows (jsonl, json, csv, tsv, parquet) into Arrow tables with a task's column names."""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ...text.rows import open_parquet, require_object
from ...text.streams import COMPRESSIONS, read_whole
from ...utils.errors import InputError, one_line
from ...utils.files import parse_json
from ..notes import leave_out, warn


_Row = TypeVar("_Row")
# Task column → the names it may have in a file; the first that is there counts.
Columns = Mapping[str, Sequence[str]]

# A packed file can unpack to a thousand times its size, and is read as a whole.
MAX_UNPACKED = 1 << 31
# White space, and what BERT's tokenizers drop as control or format characters: zero-width spaces, soft hyphens…
INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]+")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")


def format_suffix(path: Path) -> str:
    """Return the suffix that names the format of a file, the one before .gz or .zst if it is packed; lower case."""
    packed = path.suffix.lower() in COMPRESSIONS
    return (path.with_suffix("") if packed else path).suffix.lower()


def read_file(
    path: Path,
    columns: Columns,
    optional_columns: Collection[str],
    tsv_header: Sequence[str] = (),
    quotes: bool = False,
) -> pa.Table:
    """Read a jsonl, json, parquet, csv or tsv file (all but parquet also .gz and .zst) into a table.

    A json file holds a list of rows, at the top or under "data". A tsv is read like GLUE's: tabs and line ends
    separate fields, and quotes are text. Only JSON's null is a missing value: "NA" and "null" are words.

    Args:
        path: the file; its suffix is its format.
        columns: task column → names it may have in the file.
        optional_columns: columns that may be absent.
        tsv_header: fields of a tsv without a header.
        quotes: take quotes in a tsv for quotes if a program added them (see `_unquote`).

    Returns:
        The columns that are there, under the task's names.

    Raises:
        InputError: for an unusable file; the message names file and place and, for a missing column, all columns.
    """
    suffix = format_suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path, columns, optional_columns)
    readers: dict[str, Callable[[], dict[str, list]]] = {
        ".jsonl": lambda: columns_of_rows(json_rows(path), columns, optional_columns),
        ".ndjson": lambda: columns_of_rows(json_rows(path), columns, optional_columns),
        ".json": lambda: columns_of_rows(json_rows(path), columns, optional_columns),
        ".csv": lambda: _read_csv(path, columns, optional_columns),
        ".tsv": lambda: _read_tsv(path, columns, optional_columns, tsv_header, quotes),
    }
    if suffix not in readers:
        raise InputError(
            f"{path}: unknown suffix {suffix!r}; it must be one of {', '.join(SUFFIXES)} (save a spreadsheet as .csv)"
        )
    return table_of(readers[suffix](), str(path))


def table_of(values: Mapping[str, list], location: str) -> pa.Table:
    """Make a table of Python values; raise InputError that names the column with values of different types."""
    arrays = {}
    for name, column in values.items():
        try:
            arrays[name] = pa.array(column)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            reason = _odd_value(column) or one_line(error)
            raise InputError(f"{location}: column {name!r} cannot be used: {reason}") from None
    return pa.table(arrays)


def _odd_value(column: list) -> str | None:
    """Name the first value of a column that has another type than the first."""
    row, first = next((row, value) for row, value in enumerate(column) if value is not None)
    for other, value in enumerate(column[row:], start=row):
        if value is not None and type(value) is not type(first):
            return f"row {other} holds {value!r}, other rows {type(first).__name__}"
    for other, value in enumerate(column[row:], start=row):
        try:
            pa.array([first, value])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            beside = f", row {row} {first!r}" if other > row else ""
            return f"row {other} holds {value!r}{beside} ({one_line(error)})"
    return None


def check_strings(values: pa.ChunkedArray | pa.Array, location: str) -> pa.Array:
    """Return `values` as an array of strings; raise InputError that names the first row of another type."""
    if pa.types.is_null(values.type) or values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise InputError(f"{location} is missing (null) in row {row}")
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{location} holds {one_line(values.type)}, not text; row 0 is {values[0].as_py()!r}")
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def warn_of_blanks(texts: pa.Array, location: str) -> None:
    """Warn of texts without a character that can be seen, which leave a model nothing to tell apart."""
    blank = [row for row, text in enumerate(texts.to_pylist()) if not INVISIBLE.sub("", text)]
    if blank:
        warn(f"{location} is blank in {len(blank)} of {len(texts)} rows, first in row {blank[0]}")


def check_single(values: pa.ChunkedArray, location: str) -> pa.ChunkedArray:
    """Return `values` if they are numbers or texts; raise InputError if they are lists or objects."""
    if pa.types.is_nested(values.type):
        raise InputError(f"{location} holds {one_line(values.type)}, not one value a row")
    return values


def read_text(path: Path) -> str:
    """Read a UTF-8 file as `streams.read_whole` does, and refuse a web page in its place.

    Raises:
        InputError: if it cannot be read, unpacked or decoded.
    """
    text = read_whole(path, MAX_UNPACKED)
    if text[:100].lstrip().lower().startswith(("<!doctype html", "<html")):
        raise InputError(f"{path} is a web page, not the data; download the file itself")
    return text


def json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows of a JSON file, with their locations: JSON lines, a list, or the list under "data".

    NaN, which is no JSON but what Python's writer makes of a missing value, is null.

    Raises:
        InputError: if the file is not JSON, or a row is not an object.
    """
    text = read_text(path)
    entries = _json_entries(text, path)
    if entries is not None:
        rows = [(f"{path}: entry {number}", row) for number, row in enumerate(entries)]
    else:
        rows = []
        # Only LF ends a line: U+2028 and the like may be part of a string.
        for number, line in enumerate(text.split("\n"), start=1):
            if line and not line.isspace():
                location = f"{path}: line {number}"
                rows.append((location, parse_json(line, location)))
    if not rows:
        raise InputError(f"{path} holds no rows")
    for location, row in rows:
        require_object(row, location)
    return rows


def _json_entries(text: str, path: Path) -> list | None:
    """Return the entries of a file with a single JSON value, None for JSON lines."""
    text = text.strip()
    if text[:1] == "[":
        return parse_json(text, str(path))
    try:
        first, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # Parse again for the message: a truncated document fails at its end, JSON lines in their first line.
        return parse_json(text, str(path)) if format_suffix(path) == ".json" and text else None
    if end < len(text) or not isinstance(first, dict):
        return None
    if isinstance(first.get("data"), list):
        return first["data"]
    if first and all(
        isinstance(column, dict) and column.keys() == {*map(str, range(len(column)))} for column in first.values()
    ):
        raise InputError(
            f"{path} is one object of columns, as pandas writes it; write a list of rows, by "
            "to_json(…, orient='records', lines=True)"
        )
    return None


def columns_of_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], columns: Columns, optional_columns: Collection[str]
) -> dict[str, list]:
    """Turn rows into columns.

    Args:
        rows: (location, object) of every row, at least one.
        columns: task column → the names it may have in the data.
        optional_columns: task columns that may be missing.

    Returns:
        Task column → its values, one a row; None for a field that a row lacks, and for NaN.

    Raises:
        InputError: if a column is not there, or a row lacks a field that is not optional.
    """
    present = dict.fromkeys(name for _, row in rows for name in row)
    names = choose_columns(present, columns, optional_columns, rows[0][0])
    values: dict[str, list] = {role: [] for role in names}
    for location, row in rows:
        for role, name in names.items():
            if name not in row and role not in optional_columns:
                raise InputError(f"{location} has no field {name!r}, only {listed(row)}")
            value = row.get(name)
            values[role].append(None if value != value else value)
    return values


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a field within the block; the limit is global."""
    limit = csv.field_size_limit(MAX_UNPACKED - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_csv(path: Path, columns: Columns, optional_columns: Collection[str]) -> dict[str, list]:
    text = read_text(path)
    first_line = text.lstrip("\r\n").partition("\n")[0]
    try:
        rows = _csv_rows(text, path)
        header = rows[0][1] if rows else []
        if len(header) > 1 and all(name.startswith(" ") for name in header[1:]):  # a blank after every comma
            rows = _csv_rows(text, path, skipinitialspace=True)
    except csv.Error as error:
        hint = _separator_hint(first_line, path.name) or "; is a quote left open?"
        raise InputError(f"{path}: {error}{hint}") from None
    return _fields(path, rows, columns, optional_columns)


def _csv_rows(text: str, path: Path, **options: Any) -> list[tuple[str, list[str]]]:
    # newline="": only the csv module can tell line ends from those inside quotes.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **options)
    with _any_field_size():
        try:
            return [(f"{path}: line {reader.line_num}", row) for row in reader if row]
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from None


def _separator_hint(first_line: str, name: str) -> str:
    """Name the remedy if the fields of a csv or tsv are not separated as its suffix says."""
    expected, usual = ("\t", "tabs") if ".tsv" in name.lower() else (",", "commas")
    found = next((character for character in ",;\t|" if character in first_line), None)
    if found is None or expected in first_line:
        return ""
    other = {",": "; name it .csv", "\t": "; name it .tsv"}.get(found, "; write it again with commas")
    return f" (fields are separated by {usual}, not by {found!r}{other})"


def _fields(path: Path, rows: list, columns: Columns, optional_columns: Collection[str]) -> dict[str, list]:
    if len(rows) < 2:
        raise InputError(f"{path} holds no rows below its header")
    (_, header), rows = rows[0], rows[1:]
    names = choose_columns(header, columns, optional_columns, str(path))
    rows = _without_headers(rows, lambda row: row[1], header, path)
    for location, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{location} has {len(row)} fields, but the header has {len(header)}; fields that hold commas need "
                "quotes around them"
            )
    return {role: [row[header.index(name)] for _, row in rows] for role, name in names.items()}


def _without_headers(
    rows: list[_Row], fields: Callable[[_Row], list[str]], header: list[str], path: Path
) -> list[_Row]:
    """Leave out rows whose `fields` are the header, as in joined files: they would make a class of their own."""
    if len(header) == 1:  # a text may well be "text"
        return rows
    kept = [row for row in rows if fields(row) != header]
    if len(kept) < len(rows):
        leave_out(len(rows) - len(kept), f"{path}: left out {len(rows) - len(kept)} lines that repeat the header")
    if not kept:
        raise InputError(f"{path} holds no rows below its header")
    return kept


def _unquote(text: str) -> list[list[str]] | None:
    """Parse a tsv whose quotes were added by the program that wrote it; return None for any other.

    They were added if a CSV writer, given the parsed fields, writes the same file again, as pandas does, or if whole
    columns are quoted.
    """
    if not (text.startswith('"') or '\t"' in text or '\n"' in text):
        return None
    text = text.replace("\r\n", "\n")
    try:
        with _any_field_size():
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return None
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows(rows)
    text = text.strip("\n")
    if written.getvalue().strip("\n") == text or _is_quoted_by_columns(text, [row for row in rows if row]):
        return [row for row in rows if row]
    return None


def _is_quoted_by_columns(text: str, rows: list[list[str]]) -> bool:
    """Return whether all or no names of columns are quoted, and in every column all or no values."""
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return False
    header = next((h for q in (True, False) if text.startswith(h := _line(rows[0], [q] * len(rows[0])))), None)
    if header is None:
        return False
    quoted, place = [], len(header) + 1
    for value in rows[1]:
        quoted.append(text[place : place + 1] == '"')
        place += len(_line([value], quoted[-1:])) + 1
    return any(quoted) and text == "\n".join([header, *(_line(row, quoted) for row in rows[1:])])


def _line(values: Sequence[str], quoted: Sequence[bool]) -> str:
    return "\t".join(
        '"' + value.replace('"', '""') + '"' if quote else value for value, quote in zip(values, quoted, strict=True)
    )


def _read_tsv(
    path: Path, columns: Columns, optional_columns: Collection[str], tsv_header: Sequence[str], quotes: bool
) -> dict[str, list]:
    """Read a tsv; skip rows with missing fields, which GLUE's files have, except in test sets: every row counts."""
    text = read_text(path)
    unquoted = _unquote(text)
    if unquoted is not None and not quotes:
        warn(f"{path}: its quotes are read as text, as in GLUE's files; if a program added them, write it as .csv")
    if unquoted is not None and quotes:
        rows = unquoted
    else:
        rows = [line.removesuffix("\r").split("\t") for line in text.split("\n") if line.strip("\r")]
    if rows and tsv_header and len(rows[0]) == len(tsv_header) and not set(rows[0]) & _all_names(columns):
        header = list(tsv_header)
    else:
        header, rows = (rows[0], rows[1:]) if rows else ([], rows)
    if not rows:
        raise InputError(f"{path} holds no rows below its header")
    names = choose_columns(header, columns, optional_columns, str(path))
    rows = _without_headers(rows, lambda row: row, header, path)
    places = {role: header.index(name) for role, name in names.items()}
    width = max(places.values()) + 1
    short = [number for number, row in enumerate(rows) if len(row) < width]
    if short:
        if "test" in path.name or len(short) == len(rows):
            raise InputError(
                f"{path}: {len(short)} rows have too few tab-separated fields ({width} needed), first row {short[0]}"
            )
        leave_out(len(short), f"{path}: skipped {len(short)} of {len(rows)} rows, which have missing fields")
        rows = [row for row in rows if len(row) >= width]
    return {role: [row[place] for row in rows] for role, place in places.items()}


def _read_parquet(path: Path, columns: Columns, optional_columns: Collection[str]) -> pa.Table:
    with open_parquet(path) as parquet:
        names = choose_columns(parquet.schema_arrow.names, columns, optional_columns, str(path))
        table = parquet.read(columns=list(names.values()))
    table = class_names_in_place(table.select(list(names.values())))
    return table.rename_columns(list(names))


def class_names_in_place(table: pa.Table) -> pa.Table:
    """Replace class ids by the names in the schema that `datasets` wrote, and −1 by null."""
    features = datasets.Features.from_arrow_schema(table.schema)
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if not isinstance(inner, datasets.ClassLabel):
            continue
        classes = inner.names
        position = table.schema.get_field_index(name)
        column = table.column(position).to_pylist()
        if inner is feature:
            labels: list[Any] = [None if i is None or i < 0 else classes[i] for i in column]
        else:
            labels = [None if row is None else [classes[i] for i in row] for row in column]
        table = table.set_column(position, name, pa.array(labels))
    return table.replace_schema_metadata(None)


def choose_columns(
    present: Iterable[str], columns: Columns, optional_columns: Collection[str], location: str
) -> dict[str, str]:
    """Match the columns of the task with the columns of the data.

    A column may be written in another case, or with blanks around its name.

    Args:
        present: columns of the data.
        columns: task column → names it may have.
        optional_columns: columns that may be absent.
        location: the data, for messages.

    Returns:
        Task column → its name in the data.

    Raises:
        InputError: if a column is missing, or there are several of its name.
    """
    present = list(present)
    names_in_data = {}
    for role, names in columns.items():
        name = next((name for name in names if name in present), None) or _other_spelling(names, present)
        if name is not None:
            if present.count(name) > 1:
                raise InputError(f"{location} has {present.count(name)} columns {name!r}; rename or remove the others")
            names_in_data[role] = name
        elif role not in optional_columns:
            close = difflib.get_close_matches(names[0], present, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else _name_yours(role)
            if len(present) == 1:
                hint = _separator_hint(present[0], location) or hint
            raise InputError(f"{location} has no column {names[0]!r}, only {listed(present)}{hint}")
    return names_in_data


def _name_yours(role: str) -> str:
    return f"; name yours: --columns {role}=NAME, or add the header if it is missing"


def _other_spelling(names: Sequence[str], present: Sequence[str]) -> str | None:
    folded = {name.casefold() for name in names}
    alike = [name for name in present if isinstance(name, str) and name.strip().casefold() in folded]
    return alike[0] if len(alike) == 1 else None


def _all_names(columns: Columns) -> set[str]:
    return {name for names in columns.values() for name in names}


def listed(names: Iterable[str]) -> str:
    """Name columns or files in a message."""
    return ", ".join(repr(name) for name in names) or "nothing"

"""Read a task's data, from files or the Hub, into Arrow tables with the task's column names."""

import csv
import dataclasses
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..text.rows import open_parquet, require_object
from ..utils.arguments import argument
from ..utils.errors import InputError, one_line
from ..utils.files import parse_json
from .notes import leave_out, warn


# Task column → the names it may have in a file; the first that is there counts.
Columns = Mapping[str, Sequence[str]]

# Split → file names (without suffix), in the Hub's and in GLUE's naming.
SPLIT_FILES = {
    "train": ("train",),
    "validation": ("validation_matched", "validation", "dev_matched", "dev"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test_matched", "test"),
    "test_mismatched": ("test_mismatched",),
}
# A .gz file can unpack to a thousand times its size, and is read as a whole.
MAX_UNPACKED = 1 << 31
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


@dataclasses.dataclass(kw_only=True)
class DataArguments:
    """Sources of a task's data; without any of these the task's own data set on the Hub."""

    data_dir: str | None = argument(
        None, help="directory with the splits as files (train.jsonl, dev.tsv, train-v1.1.json, eng.testa…)"
    )
    train_file: str | None = argument(None, help="jsonl, parquet, csv, tsv or the task's original format")
    validation_file: str | None = argument(None, help="the same for validation")
    test_file: str | None = argument(None, help="the same for prediction; it needs no labels")
    dataset: str | None = argument(None, help="another data set of the Hub, NAME or NAME:CONFIGURATION")
    columns: list[str] = argument(
        [],
        help="names in your data for the task's columns, as text=review label=stars; in a "
        "file of tagged words their numbers, as tokens=2 ner_tags=3",
    )
    # None, not an empty list: a run that was begun without the option continues.
    class_names: list[str] | None = argument(
        None,
        help="names of the classes in the order of their numbers, for data that hold numbers, as O B-PER I-PER; also "
        "names classes that your training data do not show",
    )
    max_train_samples: int = argument(0, help="use so many training examples, evenly spaced over the data; 0 for all")
    max_eval_samples: int = argument(0, help="the same for validation")

    def renamed(self, known: Columns) -> dict[str, Sequence[str]]:
        """Replace names of columns by the user's.

        Args:
            known: task column → names in known files.

        Returns:
            Task column → names, the user's alone where `columns` gives one.

        Raises:
            InputError: for an unknown or malformed entry of `columns`.
        """
        result = dict(known)
        for entry in self.columns:
            role, separator, name = entry.partition("=")
            if not separator or not name:
                raise InputError(f"--columns {entry}: write it as COLUMN=NAME_IN_YOUR_DATA")
            if role not in known:
                raise InputError(f"--columns {entry}: the task has no column {role!r}, only {', '.join(known)}")
            result[role] = (name,)
        return result


def find_files(
    data: DataArguments, splits: Iterable[str], original_files: Mapping[str, Sequence[str]]
) -> dict[str, list]:
    """Find the files of every split, in `data_dir` and by the options that name one; none if no option does.

    `original_files` has glob patterns of the task's original files by split.

    Raises:
        InputError: if a named file is missing, or the directory holds no file of any split.
    """
    splits = list(splits)
    split_files: dict[str, list[Path]] = {}
    if data.data_dir is not None:
        directory = Path(data.data_dir)
        if not directory.is_dir():
            raise InputError(f"--data_dir {directory} is not a directory")
        for split in splits:
            files = _in_directory(directory, split, original_files.get(split, ()))
            if files:
                split_files[split] = files
        if not split_files:
            raise InputError(
                f"--data_dir {directory} holds no file of {', '.join(splits)} (as {splits[0]}.jsonl, .parquet, .csv, "
                f".tsv, or {', '.join(p for patterns in original_files.values() for p in patterns) or 'GLUE names'}); "
                f"it holds {_listed(sorted(path.name for path in directory.iterdir())[:10])}"
            )
    for split, name in (
        ("train", data.train_file),
        ("validation", data.validation_file),
        ("test", data.test_file),
    ):
        if name is None:
            continue
        if split not in splits:
            raise InputError(f"--{split}_file {name}: this task has no such split, only {', '.join(splits)}")
        if not Path(name).is_file():
            raise InputError(f"--{split}_file {name}: no such file")
        split_files[split] = [Path(name)]
    return split_files


def _in_directory(directory: Path, split: str, original_files: Sequence[str]) -> list[Path]:
    for stem in SPLIT_FILES[split]:
        for suffix in (*SUFFIXES, *(suffix + ".gz" for suffix in SUFFIXES)):
            if (directory / f"{stem}{suffix}").is_file():
                return [directory / f"{stem}{suffix}"]
        shards = sorted(directory.glob(f"{stem}-*-of-*.parquet"))
        if shards:
            return shards
    for pattern in original_files:
        matches = sorted(directory.glob(pattern))
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise InputError(f"--data_dir {directory} holds {names}; name one with --{split}_file")
        if matches:
            return matches
    return []


def format_suffix(path: Path) -> str:
    """Return the suffix that names the format of a file, the one before .gz if it is packed."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_file(
    path: Path,
    columns: Columns,
    optional_columns: Collection[str],
    tsv_header: Sequence[str] = (),
    quotes: bool = False,
) -> pa.Table:
    """Read a jsonl, json, parquet, csv or tsv file (all but parquet also .gz) into a table.

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
        ".json": lambda: columns_of_rows(json_rows(path), columns, optional_columns),
        ".csv": lambda: _read_csv(path, columns, optional_columns),
        ".tsv": lambda: _read_tsv(path, columns, optional_columns, tsv_header, quotes),
    }
    if suffix not in readers:
        raise InputError(f"{path}: unknown suffix {suffix!r}; it must be one of {', '.join(SUFFIXES)}")
    return table_of(readers[suffix](), str(path))


def table_of(values: Mapping[str, list], location: str) -> pa.Table:
    """Make a table of Python values; raise InputError that names the column with values of different types."""
    arrays = {}
    for name, column in values.items():
        try:
            arrays[name] = pa.array(column)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            types = [type(value) for value in column if value is not None]
            odd = next(
                (row for row, value in enumerate(column) if value is not None and type(value) is not types[0]), -1
            )
            reason = f"row {odd} holds {column[odd]!r}, other rows {types[0].__name__}"
            raise InputError(
                f"{location}: column {name!r} cannot be used: {reason if odd >= 0 else one_line(error)}"
            ) from None
    return pa.table(arrays)


def check_strings(values: pa.ChunkedArray | pa.Array, location: str) -> pa.Array:
    """Return `values` as an array of strings; raise InputError that names the first row of another type."""
    if pa.types.is_null(values.type) or values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise InputError(f"{location} is missing (null) in row {row}")
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{location} holds {one_line(values.type)}, not text; row 0 is {values[0].as_py()!r}")
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def check_single(values: pa.ChunkedArray, location: str) -> pa.ChunkedArray:
    """Return `values` if they are numbers or texts; raise InputError if they are lists or objects."""
    if pa.types.is_nested(values.type):
        raise InputError(f"{location} holds {one_line(values.type)}, not one value a row")
    return values


def read_text(path: Path) -> str:
    """Read a UTF-8 file, unpacked if it ends in .gz, without a byte order mark.

    Raises:
        InputError: if it cannot be read, unpacked or decoded.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                data = file.read(MAX_UNPACKED + 1)
            if len(data) > MAX_UNPACKED:
                raise InputError(f"{path} unpacks to more than {MAX_UNPACKED} bytes; unpack it, or split it")
        else:
            data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid UTF-8 (byte {error.start}); convert the file first") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged ({one_line(error)})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows of a JSON file, with their locations: JSON lines, a list, or the list under "data".

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
        return parse_json(text, str(path)) if ".json" in path.suffixes[-2:] and text else None
    if end == len(text) and isinstance(first, dict) and isinstance(first.get("data"), list):
        return first["data"]
    return None


def columns_of_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], columns: Columns, optional_columns: Collection[str]
) -> dict[str, list]:
    """Turn rows, pairs of location and object, into columns; raise InputError that names a missing field."""
    names = choose_columns(rows[0][1], columns, optional_columns, rows[0][0])
    values: dict[str, list] = {role: [] for role in names}
    for location, row in rows:
        for role, name in names.items():
            if name not in row and role not in optional_columns:
                raise InputError(f"{location} has no field {name!r}, only {_listed(row)}")
            values[role].append(row.get(name))
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
    # newline="": only the csv module can tell line ends from those inside quotes.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        with _any_field_size():
            for row in reader:
                if row:
                    rows.append((f"{path}: line {reader.line_num}", row))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}; is a quote left open?") from None
    return _fields(path, rows, columns, optional_columns)


def _fields(path: Path, rows: list, columns: Columns, optional_columns: Collection[str]) -> dict[str, list]:
    if len(rows) < 2:
        raise InputError(f"{path} holds no rows below its header")
    (_, header), rows = rows[0], rows[1:]
    names = choose_columns(header, columns, optional_columns, str(path))
    for location, row in rows:
        if len(row) != len(header):
            raise InputError(f"{location} has {len(row)} fields, but the header has {len(header)}")
    return {role: [row[header.index(name)] for _, row in rows] for role, name in names.items()}


def _unquote(text: str) -> list[list[str]] | None:
    """Parse a tsv whose quotes were added by the program that wrote it; return None for any other.

    They were added if a CSV writer, given the parsed fields, writes the same file again, as pandas does, or if every
    field is quoted.
    """
    if not (text.startswith('"') or '\t"' in text or '\n"' in text):
        return None
    text = text.replace("\r\n", "\n")
    try:
        with _any_field_size():
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return None
    for style in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        written = io.StringIO()
        csv.writer(written, delimiter="\t", lineterminator="\n", quoting=style).writerows(rows)
        if written.getvalue().strip("\n") == text.strip("\n"):
            return [row for row in rows if row]
    return None


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
        name = next((name for name in names if name in present), None)
        if name is not None:
            if present.count(name) > 1:
                raise InputError(f"{location} has {present.count(name)} columns {name!r}; rename or remove the others")
            names_in_data[role] = name
        elif role not in optional_columns:
            close = difflib.get_close_matches(names[0], present, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f"; name yours: --columns {role}=NAME"
            if len(present) == 1 and ";" in present[0]:
                hint = " (fields are separated by commas, not by ';')"
            raise InputError(f"{location} has no column {names[0]!r}, only {_listed(present)}{hint}")
    return names_in_data


def _all_names(columns: Columns) -> set[str]:
    return {name for names in columns.values() for name in names}


def load_hub(
    name: str, configuration: str | None, splits: Iterable[str], columns: Columns, optional_columns: Collection[str]
) -> dict[str, pa.Table]:
    """Load the splits of a data set on the Hub, or of a directory that `DatasetDict.save_to_disk` wrote.

    Raises:
        InputError: if the data set cannot be loaded, or has none of the splits.
    """
    try:
        if Path(name).is_dir() and (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, configuration)
    except Exception as error:  # network, missing name, missing configuration: the library's message says which
        raise InputError(
            f"data set {name!r} cannot be loaded from the Hub ({one_line(error)}); offline, name local files with "
            "--data_dir or --train_file and --validation_file"
        ) from None
    tables = {}
    for split in splits:
        hub_split = next((stem for stem in SPLIT_FILES[split] if stem in loaded), None)
        if hub_split is None:
            continue
        part = loaded[hub_split]
        names = choose_columns(part.column_names, columns, optional_columns, f"{name}, split {hub_split},")
        table = class_names_in_place(part.select_columns(list(names.values())).with_format("arrow")[:])
        tables[split] = table.select(list(names.values())).rename_columns(list(names))
    if not tables:
        raise InputError(f"data set {name!r} has none of the splits {', '.join(splits)}, only {', '.join(loaded)}")
    return tables


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"

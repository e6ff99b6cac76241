"""Task data from files or the Hub, as Arrow tables whose columns have the names the task uses."""

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
import pyarrow.parquet as pq

from ..utils.arguments import argument
from ..utils.errors import InputError, one_line
from ..utils.files import parse_json
from .notes import leave_out, warn


# Task column → the names it may have in a file, the first found is taken.
Columns = Mapping[str, Sequence[str]]

# Split → the file names (without suffix) it is looked for under, in the Hub's and in GLUE's naming.
SPLIT_FILES = {
    "train": ("train",),
    "validation": ("validation_matched", "validation", "dev_matched", "dev"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test_matched", "test"),
    "test_mismatched": ("test_mismatched",),
}
# A .gz file can stand for a thousand times its size; it is read as a whole.
MAX_UNPACKED = 1 << 31
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


@dataclasses.dataclass(kw_only=True)
class DataArguments:
    """Where a task's data come from. Without any of these: the task's own data set on the Hub."""

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
        """`known` with the user's names in place; InputError for an unknown or malformed entry of `columns`."""
        result = dict(known)
        for entry in self.columns:
            role, separator, name = entry.partition("=")
            if not separator or not name:
                raise InputError(f"--columns {entry}: write it as COLUMN=NAME_IN_YOUR_DATA")
            if role not in known:
                raise InputError(f"--columns {entry}: the task has no column {role!r}, only {', '.join(known)}")
            result[role] = (name,)
        return result


# ------------------------------------------------------------------------------------------------------ finding files


def find_files(data: DataArguments, splits: Iterable[str], originals: Mapping[str, Sequence[str]]) -> dict[str, list]:
    """Split → its files, from `data_dir` and the options that name one; `originals` are further glob patterns.

    Raises InputError if a named file is missing or the directory holds none of the names looked for.
    """
    splits = list(splits)
    found: dict[str, list[Path]] = {}
    if data.data_dir is not None:
        directory = Path(data.data_dir)
        if not directory.is_dir():
            raise InputError(f"--data_dir {directory} is not a directory")
        for split in splits:
            files = _in_directory(directory, split, originals.get(split, ()))
            if files:
                found[split] = files
        if not found:
            raise InputError(
                f"--data_dir {directory} holds no file of {', '.join(splits)} (as {splits[0]}.jsonl, .parquet, .csv, "
                f".tsv, or {', '.join(p for patterns in originals.values() for p in patterns) or 'GLUE names'}); "
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
        found[split] = [Path(name)]
    return found


def _in_directory(directory: Path, split: str, originals: Sequence[str]) -> list[Path]:
    for stem in SPLIT_FILES[split]:
        for suffix in (*SUFFIXES, *(suffix + ".gz" for suffix in SUFFIXES)):
            if (directory / f"{stem}{suffix}").is_file():
                return [directory / f"{stem}{suffix}"]
        shards = sorted(directory.glob(f"{stem}-*-of-*.parquet"))
        if shards:
            return shards
    for pattern in originals:
        matches = sorted(directory.glob(pattern))
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise InputError(f"--data_dir {directory} holds {names}; name one with --{split}_file")
        if matches:
            return matches
    return []


# ------------------------------------------------------------------------------------------------------ reading files


def read_file(
    path: Path,
    columns: Columns,
    optional: Collection[str],
    headless: Sequence[str] = (),
    quotes: bool = False,
) -> pa.Table:
    """The `columns` of a jsonl, json, parquet, csv or tsv file (all but parquet also .gz), under the task's names.

    Columns in `optional` may be absent. A json file holds a list of rows, alone or under "data". A tsv is read as
    GLUE's are: tabs and line ends rule, quotes are text, unless `quotes` allows them and the file was written with
    them (see `_unquote`). `headless` names the fields of a tsv without a header. Nothing is taken for a missing value
    but JSON's null: "NA" and "null" are words.

    Raises InputError naming the file, the place and, for a missing column, those there are.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        return _read_parquet(path, columns, optional)
    readers: dict[str, Callable[[], dict[str, list]]] = {
        ".jsonl": lambda: columns_of_rows(json_rows(path), columns, optional),
        ".json": lambda: columns_of_rows(json_rows(path), columns, optional),
        ".csv": lambda: _read_csv(path, columns, optional),
        ".tsv": lambda: _read_tsv(path, columns, optional, headless, quotes),
    }
    if suffix not in readers:
        raise InputError(f"{path}: unknown suffix {suffix!r}; it must be one of {', '.join(SUFFIXES)}")
    return table_of(readers[suffix](), str(path))


def table_of(values: Mapping[str, list], where: str) -> pa.Table:
    """A table of Python values; InputError names the column in which they are of different types."""
    arrays = {}
    for name, column in values.items():
        try:
            arrays[name] = pa.array(column)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            kinds = [type(value) for value in column if value is not None]
            other = next(
                (row for row, value in enumerate(column) if value is not None and type(value) is not kinds[0]), -1
            )
            reason = f"row {other} holds {column[other]!r}, other rows {kinds[0].__name__}"
            raise InputError(
                f"{where}: column {name!r} cannot be used: {reason if other >= 0 else one_line(error)}"
            ) from None
    return pa.table(arrays)


def check_strings(values: pa.ChunkedArray | pa.Array, where: str) -> pa.Array:
    """`values` as an array of strings; InputError names the first row that is null or something else."""
    if pa.types.is_null(values.type) or values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise InputError(f"{where} is missing (null) in row {row}")
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{where} holds {one_line(values.type)}, not text; row 0 is {values[0].as_py()!r}")
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def check_single(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """`values` if they are numbers or texts; InputError if they are lists or objects."""
    if pa.types.is_nested(values.type):
        raise InputError(f"{where} holds {one_line(values.type)}, not one value a row")
    return values


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, unpacked if it ends in .gz, without a byte order mark.

    Raises InputError naming what is wrong with it.
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
    """Every row of a JSON file with its place: of JSON lines, of a list, or of the list under "data".

    Raises:
        InputError: if the file is not JSON, or a row is not an object.
    """
    text = read_text(path)
    entries = _json_entries(text, path)
    if entries is not None:
        rows = [(f"{path}: entry {number}", row) for number, row in enumerate(entries)]
    else:
        rows = []
        # Only LF ends a line; U+2028 and the like may stand inside a string.
        for number, line in enumerate(text.split("\n"), start=1):
            if line and not line.isspace():
                where = f"{path}: line {number}"
                rows.append((where, parse_json(line, where)))
    if not rows:
        raise InputError(f"{path} holds no rows")
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where} is a {type(row).__name__}; every row must be an object with named fields")
    return rows


def _json_entries(text: str, path: Path) -> list | None:
    """The entries of a file that is one JSON value; None for JSON lines."""
    text = text.strip()
    if text[:1] == "[":
        return parse_json(text, str(path))
    try:
        first, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # A document that is cut off has its error at its end, JSON lines in their first line.
        return parse_json(text, str(path)) if ".json" in path.suffixes[-2:] and text else None
    if end == len(text) and isinstance(first, dict) and isinstance(first.get("data"), list):
        return first["data"]
    return None


def columns_of_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], columns: Columns, optional: Collection[str]
) -> dict[str, list]:
    """Task column → its values in `rows`, pairs of a place and an object; InputError names a field that is missing."""
    names = choose_columns(rows[0][1], columns, optional, rows[0][0])
    values: dict[str, list] = {role: [] for role in names}
    for where, row in rows:
        for role, name in names.items():
            if name not in row and role not in optional:
                raise InputError(f"{where} has no field {name!r}, only {_listed(row)}")
            values[role].append(row.get(name))
    return values


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a field, which is the process's, for a while."""
    limit = csv.field_size_limit(MAX_UNPACKED - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_csv(path: Path, columns: Columns, optional: Collection[str]) -> dict[str, list]:
    # Line ends are normalized by nobody but the csv module, which must see them to keep those inside quotes.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        with _any_field_size():
            for row in reader:
                if row:
                    rows.append((f"{path}: line {reader.line_num}", row))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}; is a quote left open?") from None
    return _fields(path, rows, columns, optional)


def _fields(path: Path, rows: list, columns: Columns, optional: Collection[str]) -> dict[str, list]:
    if len(rows) < 2:
        raise InputError(f"{path} holds no rows below its header")
    (_, header), rows = rows[0], rows[1:]
    names = choose_columns(header, columns, optional, str(path))
    for where, row in rows:
        if len(row) != len(header):
            raise InputError(f"{where} has {len(row)} fields, but the header has {len(header)}")
    return {role: [row[header.index(name)] for _, row in rows] for role, name in names.items()}


def _unquote(text: str) -> list[list[str]] | None:
    """The rows of a tsv whose quotes are not text but were added by a program that wrote it; None if there are none.

    They were added if a CSV writer, given what the file means with them, writes the same file again (as pandas does),
    or if every field is quoted.
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
    path: Path, columns: Columns, optional: Collection[str], headless: Sequence[str], quotes: bool
) -> dict[str, list]:
    """GLUE's originals hold rows with missing fields; they are skipped, but for test sets, where every row counts."""
    text = read_text(path)
    unquoted = _unquote(text)
    if unquoted is not None and not quotes:
        warn(f"{path}: its quotes are read as text, as in GLUE's files; if a program added them, write it as .csv")
    if unquoted is not None and quotes:
        rows = unquoted
    else:
        rows = [line.removesuffix("\r").split("\t") for line in text.split("\n") if line.strip("\r")]
    if rows and headless and len(rows[0]) == len(headless) and not set(rows[0]) & _all_names(columns):
        header = list(headless)
    else:
        header, rows = (rows[0], rows[1:]) if rows else ([], rows)
    if not rows:
        raise InputError(f"{path} holds no rows below its header")
    names = choose_columns(header, columns, optional, str(path))
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


def _read_parquet(path: Path, columns: Columns, optional: Collection[str]) -> pa.Table:
    try:
        schema = pq.read_schema(path)
        names = choose_columns(schema.names, columns, optional, str(path))
        table = pq.read_table(path, columns=list(names.values()))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({one_line(error)})") from None
    table = class_names_in_place(table.select(list(names.values())))
    return table.rename_columns(list(names))


def class_names_in_place(table: pa.Table) -> pa.Table:
    """`table` with class ids replaced by the names that `datasets` noted in its schema, −1 by null."""
    features = datasets.Features.from_arrow_schema(table.schema)
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if not isinstance(inner, datasets.ClassLabel):
            continue
        classes = inner.names
        at = table.schema.get_field_index(name)
        column = table.column(at).to_pylist()
        if inner is feature:
            named: list[Any] = [None if i is None or i < 0 else classes[i] for i in column]
        else:
            named = [None if row is None else [classes[i] for i in row] for row in column]
        table = table.set_column(at, name, pa.array(named))
    return table.replace_schema_metadata(None)


def choose_columns(present: Iterable[str], columns: Columns, optional: Collection[str], where: str) -> dict[str, str]:
    """Task column → its name in the data; InputError for a missing one lists what there is."""
    present = list(present)
    chosen = {}
    for role, names in columns.items():
        name = next((name for name in names if name in present), None)
        if name is not None:
            if present.count(name) > 1:
                raise InputError(f"{where} has {present.count(name)} columns {name!r}; rename or remove the others")
            chosen[role] = name
        elif role not in optional:
            close = difflib.get_close_matches(names[0], present, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            if len(present) == 1 and ";" in present[0]:
                hint = " (fields are separated by commas, not by ';')"
            raise InputError(f"{where} has no column {names[0]!r}, only {_listed(present)}{hint}")
    return chosen


def _all_names(columns: Columns) -> set[str]:
    return {name for names in columns.values() for name in names}


# ------------------------------------------------------------------------------------------------------------ the Hub


def load_hub(
    name: str, configuration: str | None, splits: Iterable[str], columns: Columns, optional: Collection[str]
) -> dict[str, pa.Table]:
    """Split → table of a data set on the Hub (or of a directory written by `DatasetDict.save_to_disk`)."""
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
        there = next((stem for stem in SPLIT_FILES[split] if stem in loaded), None)
        if there is None:
            continue
        part = loaded[there]
        names = choose_columns(part.column_names, columns, optional, f"{name}, split {there},")
        table = class_names_in_place(part.select_columns(list(names.values())).with_format("arrow")[:])
        tables[split] = table.select(list(names.values())).rename_columns(list(names))
    if not tables:
        raise InputError(f"data set {name!r} has none of the splits {', '.join(splits)}, only {', '.join(loaded)}")
    return tables


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"

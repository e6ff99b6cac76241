"""Read documents from plain text, JSON lines (both also .gz, .zst), Parquet, `datasets` directories and the Hub.

A document is a string whose lines are paragraphs or sentences. In plain text, a blank line or the end of the file ends
a document; in the other formats every row is a document. Lines end with LF or CRLF, or with CR in a file without LF.
Everything is streamed: the longest piece in memory is one row, or `MAX_DOCUMENT` characters of plain text.
"""

import dataclasses
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..utils.errors import InputError, one_line
from ..utils.files import read_json
from .rows import open_parquet, parse_row, require_column
from .streams import COMPRESSIONS, decode, open_file, read_lines, read_pieces


# A longer document (a file without blank lines, one huge line) is cut into several, so that memory stays bounded and
# documents stay small against a shard. A long novel has about one million characters.
MAX_DOCUMENT = 1 << 22
# Plain-text lines are read in pieces of this many bytes; a longer line is cut after a blank.
MAX_LINE = 1 << 20

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
ENCODING_ERRORS = ("strict", "replace")

# Ends of error messages.
_SEE_COLUMN, _OR_REPLACE = "; see --text_column", ", or use --encoding_errors replace"

# Files of rows, which as plain text would be read with their syntax.
_ROWS = (".json", ".csv", ".tsv")
# White space other than LF, and characters without a width.
_BLANK = r"[\t\x0b-\r\x1c- \x85\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]"
_ONLY_BLANK = re.compile(rf"{_BLANK}+")
# Lines of blanks only. Except for a file's first lines, the line end before them makes the search fast.
_LEADING_BLANK_LINES = re.compile(rf"(?:{_BLANK}*\n)+")
_BLANK_LINES = re.compile(rf"\n(?:{_BLANK}*\n)+")
# Other characters that can separate lines, and how often they must occur to be taken for that in a file without LF.
_SEPARATORS = {
    "\u2028": "U+2028",
    "\u2029": "U+2029",
    "\x85": "U+0085",
    "\x0b": "U+000B",
    "\x0c": "U+000C",
    "\x1e": "U+001E",
}
_MIN_SEPARATORS = 10
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A file, a directory saved by `datasets`, or a data set of the Hub, with its format."""

    name: str
    format: str  # "text", "jsonl", "parquet", "datasets" or "hub"
    compression: str | None = None

    @property
    def size(self) -> int:
        """Bytes on disk, 0 for the Hub."""
        return sum(path.stat().st_size for path in self._files())

    def sha256(self) -> str:
        """Hash the bytes on disk (for the Hub, the name)."""
        if self.format == "hub":
            return hashlib.sha256(self.name.encode()).hexdigest()
        digests = []
        for path in self._files():
            with open_file(path) as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _files(self) -> list[Path]:
        path = Path(self.name)
        if self.format == "hub":
            return []
        return sorted(path.rglob("*.arrow")) if path.is_dir() else [path]


@dataclasses.dataclass
class ReadStats:
    """Counts of null texts and cut documents; filled while reading."""

    null_texts: int = 0
    cut_documents: int = 0


def find_sources(paths: Iterable[str]) -> list[TextSource]:
    """Find the text sources named by `paths`.

    Args:
        paths: files (plain text if the suffix is unknown), directories (searched for known suffixes), directories
            written by `Dataset.save_to_disk`, glob patterns (** matches directories), or
            `hub:NAME[:CONFIGURATION[:SPLIT]]`.

    Returns:
        The sources in the given order, sorted within a directory or a pattern.

    Raises:
        InputError: if a path is missing or given twice, a directory holds no text file, or a pattern matches none.
    """
    sources: list[TextSource] = []
    for text in paths:
        path = Path(text)
        if text.startswith("hub:"):
            sources.append(TextSource(text, "hub"))
        elif path.is_dir():
            sources += _in_directory(path)
        elif path.is_file():
            sources.append(file_source(path))
        elif glob.has_magic(text):
            matches = [file_source(Path(match)) for match in sorted(glob.glob(text, recursive=True))]
            sources += [source for source in matches if Path(source.name).is_file()]
            if not matches:
                raise InputError(f"--text {text}: the pattern matches no file")
        elif path.exists():
            raise InputError(f"--text {text} is neither a file nor a directory")
        else:
            raise InputError(
                f"--text {text}: no such file or directory (a data set of the Hugging Face Hub is written hub:{text})"
            )
    if not sources:
        raise InputError("--text names no file")
    doubled = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if doubled:
        raise InputError(f"--text names {doubled[0]} more than once")
    return sources


def describe_sources(sources: Sequence[TextSource]) -> str:
    """Name the sources in a message."""
    return sources[0].name if len(sources) == 1 else f"{sources[0].name} … {sources[-1].name} ({len(sources)} sources)"


def read_documents(
    sources: Iterable[TextSource],
    *,
    text_column: str = "text",
    encoding_errors: str = "strict",
    stats: ReadStats | None = None,
) -> Iterator[str]:
    """Stream the documents of `sources`, with LF line ends and without blank documents.

    Args:
        sources: from `find_sources`.
        text_column: the field or column with the text in JSON lines, Parquet and `datasets`.
        encoding_errors: "strict" refuses bytes that are not UTF-8, "replace" turns them into U+FFFD.
        stats: filled while reading.

    Yields:
        One document after another.

    Raises:
        InputError: if something cannot be read; the message names the file and the line, row or byte.
    """
    if encoding_errors not in ENCODING_ERRORS:
        raise InputError(f"--encoding_errors must be one of {', '.join(ENCODING_ERRORS)}, not {encoding_errors!r}")
    stats = ReadStats() if stats is None else stats
    readers: dict[str, Callable[[TextSource], Iterator[str]]] = {
        "text": lambda source: _read_text(source, encoding_errors, stats),
        "jsonl": lambda source: _read_jsonl(source, text_column, encoding_errors, stats),
        "parquet": lambda source: _read_parquet(source, text_column, encoding_errors, stats),
        "datasets": lambda source: _read_saved_dataset(source, text_column, stats),
        "hub": lambda source: _read_hub(source, text_column, stats),
    }
    for source in sources:
        for document in readers[source.format](source):
            if "\r" in document:
                document = document.replace("\r\n", "\n")
                if "\n" not in document:  # line ends of old Macs; beside an LF, a CR is stray
                    document = document.replace("\r", "\n")
            if document.isspace() or not document:
                continue
            yield from _cut(document, stats)


def file_source(path: Path) -> TextSource:
    """Tell the format and compression of a file by its suffixes.

    Raises:
        InputError: for packed Parquet, and rows in a format that is not read.
    """
    suffix, compression = path.suffix.lower(), None
    if suffix in COMPRESSIONS:
        compression = COMPRESSIONS[suffix]
        suffix = Path(path.stem).suffix.lower()
    kind = FORMATS.get(suffix, "text")
    if kind == "parquet" and compression:
        raise InputError(f"{path}: Parquet compresses by itself; unpack the file first")
    if suffix in _ROWS:
        raise InputError(
            f"{path} holds rows, not plain text; write it as .jsonl (an object on every line) or .parquet, or name it "
            ".txt to read it as it is"
        )
    return TextSource(str(path), kind, compression)


def _in_directory(path: Path) -> list[TextSource]:
    """Return the text files in a directory, or the one data set saved in it."""
    if (path / "dataset_dict.json").is_file():
        content = read_json(path / "dataset_dict.json", "the data set's splits")
        splits = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
            raise InputError(f"{path / 'dataset_dict.json'} names no splits; save the data set again")
        if "train" not in splits:
            raise InputError(
                f"{path} has the splits {', '.join(splits)} but no train; name one, as {path / splits[0]}"
            )
        path = path / "train"
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return [TextSource(str(path), "datasets")]
    try:
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and not file.name.startswith(".")
            and any(suffix.lower() in FORMATS for suffix in file.suffixes[-2:])
        )
    except OSError as error:
        raise InputError(f"--text {path}: cannot list the directory ({error.strerror})") from None
    if not files:
        raise InputError(f"--text {path}: the directory holds no {', '.join(FORMATS)} file (nor .gz or .zst of these)")
    return [file_source(file) for file in files]


def _read_text(source: TextSource, errors: str, stats: ReadStats) -> Iterator[str]:
    held: list[str] = []  # lines of the document so far
    size, number = 0, 1
    unpacked = " of the unpacked text" if source.compression else ""
    for offset, data in read_pieces(source.name, source.compression, MAX_LINE):

        def where(start: int, offset: int = offset, data: bytes = data, number: int = number) -> str:
            line = number + data.count(b"\n", 0, start)
            return f"{source.name}: byte {offset + start}{unpacked}, line {line},"

        text = decode(data, where, errors, _OR_REPLACE)
        if number == 1:
            _refuse_other_separators(text, source.name)
        for index, part in enumerate(_between_blank_lines(text)):
            if index and held:
                yield "".join(held)
                held, size = [], 0
            # One by one only where the document may have to be cut.
            for lines in [part] if size + len(part) <= MAX_DOCUMENT else _LINE.findall(part):
                if held and size + len(lines) > MAX_DOCUMENT:
                    stats.cut_documents += 1
                    yield "".join(held)
                    held, size = [], 0
                if lines:
                    held.append(lines)
                    size += len(lines)
        number += data.count(b"\n")
    if held:
        yield "".join(held)


def _between_blank_lines(text: str) -> list[str]:
    """Split at blank lines; the first and the last part may be empty."""
    parts: list[str] = []
    begin = 0
    leading = _LEADING_BLANK_LINES.match(text)
    if leading:
        parts.append("")
        begin = leading.end()
    for blank in _BLANK_LINES.finditer(text, begin):
        parts.append(text[begin : blank.start() + 1])
        begin = blank.end()
    last_line = text.rfind("\n", begin) + 1
    if _ONLY_BLANK.fullmatch(text, max(begin, last_line)):
        return [*parts, text[begin:last_line], ""]
    return [*parts, text[begin:]]


def _refuse_other_separators(text: str, name: str) -> None:
    """Raise InputError if the beginning of a file has no LF, but many of another separator between its words."""
    if "\n" in text:
        return
    for separator, code in _SEPARATORS.items():
        count = text.count(separator)
        if count >= _MIN_SEPARATORS and not text.isspace():
            raise InputError(
                f"{name} has no line ends, but {count} times {code}; replace them, by "
                f"python -c \"import sys; [print(l) for l in sys.stdin.read().split('\\u{code[2:]}')]\" < FILE"
            )


def _read_jsonl(source: TextSource, column: str, errors: str, stats: ReadStats) -> Iterator[str]:
    for place, line in read_lines(source.name, source.compression, errors, _OR_REPLACE):
        if line.isspace():
            continue
        row = parse_row(line, place)
        require_column(column, row, place, _SEE_COLUMN)
        text = _text_or_none(row[column], place, column, stats)
        if text is not None:
            yield _without_surrogates(text, errors, place)


def _read_parquet(source: TextSource, column: str, errors: str, stats: ReadStats) -> Iterator[str]:
    import pyarrow as pa

    row = 0
    with open_parquet(source.name) as file:
        require_column(column, file.schema_arrow.names, source.name, _SEE_COLUMN)
        kind = file.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{source.name}: column {column!r} holds {one_line(kind)}, not strings{_SEE_COLUMN}")
        for batch in file.iter_batches(batch_size=64, columns=[column]):
            # As bytes: Arrow does not check that its strings are UTF-8.
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                place = f"{source.name}: row {row},"
                row += 1
                if value is None:
                    stats.null_texts += 1
                else:

                    def where(start: int, place: str = place) -> str:
                        return f"{place} byte {start},"

                    yield decode(value, where, errors, _OR_REPLACE)


def _read_saved_dataset(source: TextSource, column: str, stats: ReadStats) -> Iterator[str]:
    import datasets

    try:
        dataset = datasets.load_from_disk(source.name)
    except Exception as error:  # datasets and pyarrow raise many types for a damaged directory
        raise InputError(f"{source.name} is not a readable data set ({one_line(error)})") from None
    require_column(column, dataset.column_names, source.name, _SEE_COLUMN)
    yield from _read_rows(source, dataset.select_columns([column]), column, stats)


def _read_hub(source: TextSource, column: str, stats: ReadStats) -> Iterator[str]:
    import datasets

    name, configuration, split = (source.name.removeprefix("hub:").split(":") + [None, None])[:3]
    try:
        dataset = datasets.load_dataset(name, configuration or None, split=split or "train", streaming=True)
    except Exception as error:  # network, missing name, missing split: the library's message says which
        raise InputError(f"--text {source.name}: cannot be loaded from the Hub ({one_line(error)})") from None
    if dataset.column_names is not None:
        require_column(column, dataset.column_names, source.name, _SEE_COLUMN)
        dataset = dataset.select_columns([column])
    yield from _read_rows(source, dataset, column, stats)


def _read_rows(source: TextSource, rows: Iterable[dict], column: str, stats: ReadStats) -> Iterator[str]:
    for number, row in enumerate(rows):
        place = f"{source.name}: row {number}"
        text = _text_or_none(row[column], place, column, stats)
        if text is not None:
            yield text


def _text_or_none(value: object, place: str, column: str, stats: ReadStats) -> str | None:
    if value is None or value != value:  # NaN stands for a missing value
        stats.null_texts += 1
        return None
    if not isinstance(value, str):
        raise InputError(f"{place}: field {column!r} is a {type(value).__name__}, not a string{_SEE_COLUMN}")
    return value


def _without_surrogates(text: str, errors: str, place: str) -> str:
    """Refuse or replace half surrogate pairs, which JSON can escape and UTF-8 text cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        if errors == "strict":
            raise InputError(
                f"{place} escapes half of a surrogate pair, which is no character; use --encoding_errors replace"
            ) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _cut(document: str, stats: ReadStats) -> Iterator[str]:
    """Cut a document into at most `MAX_DOCUMENT` characters each, after a line if possible, else after a blank."""
    start = 0
    while len(document) - start > MAX_DOCUMENT:
        end = start + MAX_DOCUMENT
        cut = document.rfind("\n", start, end) + 1 or document.rfind(" ", start, end) + 1 or end
        stats.cut_documents += 1
        yield document[start:cut]
        start = cut
    yield document[start:] if start else document

"""Documents from files: plain text, JSON lines (both also .gz, .zst), Parquet, `datasets` directories, the Hub.

A document is a string whose lines are paragraphs or sentences. Plain text: a line with only blanks ends a document,
and so does the end of the file. JSON lines, Parquet and `datasets`: one document a row. Lines end with LF or CRLF, or
with CR where there is no LF. Everything is streamed: the longest piece in memory is one row, or `MAX_DOCUMENT`
characters of plain text.
"""

import dataclasses
import glob
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..utils.errors import InputError, one_line
from ..utils.files import parse_json, read_json
from .streams import ZstdStream, with_lf


# A longer document (a file without blank lines, one huge line) goes on as a new document, so that memory stays bounded
# and documents stay small against a shard. A long novel has about one million characters.
MAX_DOCUMENT = 1 << 22
# Plain-text lines are read in pieces of this many bytes; a longer line is cut at a blank.
MAX_LINE = 1 << 20
# One JSON row has to be parsed at once.
MAX_JSON_LINE = 1 << 28

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ENCODING_ERRORS = ("strict", "replace")

# Lines with only white space; but for the file's first, a line end in front makes them quick to find.
_LEADING_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
# Bytes read at once.
_BLOCK = 1 << 18


@dataclasses.dataclass(frozen=True)
class TextSource:
    """One thing to read documents from: a file, a directory saved by `datasets`, or a data set of the Hub."""

    name: str
    format: str  # "text", "jsonl", "parquet", "datasets" or "hub"
    compression: str | None = None

    @property
    def size(self) -> int:
        """Bytes on disk, 0 for the Hub."""
        return sum(path.stat().st_size for path in self._files())

    def sha256(self) -> str:
        """Digest of the bytes on disk (of the name for the Hub)."""
        if self.format == "hub":
            return hashlib.sha256(self.name.encode()).hexdigest()
        digests = []
        for path in self._files():
            with _open(path) as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _files(self) -> list[Path]:
        path = Path(self.name)
        if self.format == "hub":
            return []
        return sorted(path.rglob("*.arrow")) if path.is_dir() else [path]


@dataclasses.dataclass
class ReadStats:
    """What a pass over the sources met besides good documents; filled while reading."""

    null_texts: int = 0
    cut_documents: int = 0


def find_sources(paths: Iterable[str]) -> list[TextSource]:
    """The sources behind `paths`, in a fixed order: the given one, sorted within a directory or a glob.

    A path is a file (of unknown suffix: plain text), a directory (searched for known suffixes), a directory written
    by `Dataset.save_to_disk`, a glob pattern (** goes into directories), or `hub:NAME[:CONFIGURATION[:SPLIT]]`.

    Raises InputError for a path that is missing, an empty directory, or a pattern that matches nothing.
    """
    sources: list[TextSource] = []
    for text in paths:
        path = Path(text)
        if text.startswith("hub:"):
            sources.append(TextSource(text, "hub"))
        elif path.is_dir():
            sources += _in_directory(path)
        elif path.is_file():
            sources.append(_file_source(path))
        elif glob.has_magic(text):
            matches = [_file_source(Path(match)) for match in sorted(glob.glob(text, recursive=True))]
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
    doubled = [name for name, count in _counts(source.name for source in sources).items() if count > 1]
    if doubled:
        raise InputError(f"--text names {doubled[0]} more than once")
    return sources


def describe_sources(sources: Sequence[TextSource]) -> str:
    """How a message calls all of them."""
    return sources[0].name if len(sources) == 1 else f"{sources[0].name} … {sources[-1].name} ({len(sources)} sources)"


def read_documents(
    sources: Iterable[TextSource],
    *,
    text_column: str = "text",
    encoding_errors: str = "strict",
    stats: ReadStats | None = None,
) -> Iterator[str]:
    """Yield the documents of `sources` one after another, with LF line ends; blank documents are left out.

    `encoding_errors="replace"` turns bytes that are not UTF-8 into U+FFFD instead of refusing the file. `stats` is
    filled while reading.

    Raises InputError naming the file and the line, row or byte for anything that cannot be read.
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
                if "\n" not in document:  # the line ends of old Macs; elsewhere a CR is a stray one
                    document = document.replace("\r", "\n")
            if document.isspace() or not document:
                continue
            yield from _cut(document, stats)


# ---------------------------------------------------------------------------------------------------- finding files


def _file_source(path: Path) -> TextSource:
    suffix, compression = path.suffix.lower(), None
    if suffix in COMPRESSIONS:
        compression = COMPRESSIONS[suffix]
        suffix = Path(path.stem).suffix.lower()
    kind = FORMATS.get(suffix, "text")
    if kind == "parquet" and compression:
        raise InputError(f"{path}: Parquet compresses by itself; unpack the file first")
    return TextSource(str(path), kind, compression)


def _in_directory(path: Path) -> list[TextSource]:
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
    return [_file_source(file) for file in files]


def _counts(names: Iterable[str]) -> dict[str, int]:
    result: dict[str, int] = {}
    for name in names:
        result[name] = result.get(name, 0) + 1
    return result


# ---------------------------------------------------------------------------------------------------- bytes


def _open(path: Path | str) -> io.BufferedReader:
    try:
        return open(path, "rb", buffering=_BLOCK)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _stream(source: TextSource) -> io.BufferedReader:
    file = _open(source.name)
    if source.compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), buffer_size=_BLOCK)  # type: ignore[type-var]
    if source.compression == "zstd":
        return io.BufferedReader(ZstdStream(file), buffer_size=_BLOCK)  # type: ignore[type-var]
    return file


def _pieces(source: TextSource, limit: int, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, lines with their line ends); longer lines than `limit` are cut, or refused if `whole`.

    With `whole` one line at a time, otherwise as many as have been read; a part of a line that was cut comes alone.
    Only LF ends a line: U+2028, U+0085, form feeds and the like stay inside. The byte order mark is dropped. CR, where
    the file begins with lines that end so, becomes LF.
    """
    import zstandard

    offset = 0
    rest = b""
    try:
        with _stream(source) as stream:
            stream = with_lf(stream, source.name, _BLOCK)
            while True:
                end = 0 if rest or whole else stream.peek()[:limit].rfind(b"\n") + 1
                line = stream.read(end) if end else stream.readline(limit)
                if not line:
                    break
                if offset == 0 and not rest and line.startswith(b"\xef\xbb\xbf"):
                    offset, line = 3, line[3:]
                line = rest + line
                if whole and len(line) >= limit and not line.endswith(b"\n"):
                    raise InputError(
                        f"{source.name}: the line at byte {offset} is longer than {limit} bytes; cut the row"
                    )
                cut = len(line) if line.endswith(b"\n") or len(line) < limit else _last_break(line)
                rest = line[cut:]
                if cut:
                    yield offset, line[:cut]
                offset += cut
            if rest:
                yield offset, rest
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{source.name} is truncated or damaged after {offset} bytes of text ({error})") from None
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source.name}: cannot be read ({error.strerror or error})") from None


def _last_break(line: bytes) -> int:
    """Where to cut a line that goes on: behind the last blank, or at least not inside a UTF-8 character."""
    cut = line.rfind(b" ") + 1
    if cut:
        return cut
    cut = len(line)
    while cut and len(line) - cut < 4 and line[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return max(cut - 1, 1)


def _decode(data: bytes, errors: str, where: Callable[[int], str]) -> str:
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where(error.start)} is not valid UTF-8 (byte 0x{data[error.start]:02x}); convert the file, "
            "or use --encoding_errors replace"
        ) from None


# ---------------------------------------------------------------------------------------------------- one per format


def _read_text(source: TextSource, errors: str, stats: ReadStats) -> Iterator[str]:
    held: list[str] = []  # lines of the document so far
    size, number = 0, 1
    unpacked = " of the unpacked text" if source.compression else ""
    for offset, data in _pieces(source, MAX_LINE):

        def where(start: int, offset: int = offset, data: bytes = data, number: int = number) -> str:
            line = number + data.count(b"\n", 0, start)
            return f"{source.name}: byte {offset + start}{unpacked}, line {line},"

        for index, part in enumerate(_between_blank_lines(_decode(data, errors, where))):
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
    """The lines before, between and behind blank ones; before the first and behind the last there may be none ("")."""
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
    if text[max(begin, last_line) :].isspace():
        return [*parts, text[begin:last_line], ""]
    return [*parts, text[begin:]]


def _read_jsonl(source: TextSource, column: str, errors: str, stats: ReadStats) -> Iterator[str]:
    for number, (offset, data) in enumerate(_pieces(source, MAX_JSON_LINE, whole=True), start=1):
        place = f"{source.name}: line {number}"
        line = _decode(data, errors, lambda start, o=offset, p=place: f"{p}, byte {o + start},")
        if line.isspace():
            continue
        row = parse_json(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place} is a {type(row).__name__}; every line must be an object with {column!r}")
        if column not in row:
            raise InputError(f"{place} has no field {column!r}, only {_listed(row)}; see --text_column")
        text = _text_or_none(row[column], place, column, stats)
        if text is not None:
            yield _without_surrogates(text, errors, place)


def _read_parquet(source: TextSource, column: str, errors: str, stats: ReadStats) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(_open(source.name)) as file:
            _check_column(source.name, column, file.schema_arrow.names)
            kind = file.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(
                    f"{source.name}: column {column!r} holds {one_line(kind)}, not strings; see --text_column"
                )
            for batch in file.iter_batches(batch_size=64, columns=[column]):
                # As bytes: Arrow does not check that its strings are UTF-8.
                for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                    place = f"{source.name}: row {row},"
                    row += 1
                    if value is None:
                        stats.null_texts += 1
                    else:
                        yield _decode(value, errors, lambda start, p=place: f"{p} byte {start},")
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source.name} is not a readable Parquet file ({one_line(error)})") from None


def _read_saved_dataset(source: TextSource, column: str, stats: ReadStats) -> Iterator[str]:
    import datasets

    try:
        dataset = datasets.load_from_disk(source.name)
    except Exception as error:  # datasets and pyarrow raise many types for a damaged directory
        raise InputError(f"{source.name} is not a readable data set ({one_line(error)})") from None
    _check_column(source.name, column, dataset.column_names)
    yield from _read_rows(source, dataset.select_columns([column]), column, stats)


def _read_hub(source: TextSource, column: str, stats: ReadStats) -> Iterator[str]:
    import datasets

    name, configuration, split = (source.name.removeprefix("hub:").split(":") + [None, None])[:3]
    try:
        dataset = datasets.load_dataset(name, configuration or None, split=split or "train", streaming=True)
    except Exception as error:  # network, missing name, missing split: the library's message says which
        raise InputError(f"--text {source.name}: cannot be loaded from the Hub ({one_line(error)})") from None
    if dataset.column_names is not None:
        _check_column(source.name, column, dataset.column_names)
        dataset = dataset.select_columns([column])
    yield from _read_rows(source, dataset, column, stats)


def _read_rows(source: TextSource, rows: Iterable[dict], column: str, stats: ReadStats) -> Iterator[str]:
    for number, row in enumerate(rows):
        place = f"{source.name}: row {number}"
        text = _text_or_none(row[column], place, column, stats)
        if text is not None:
            yield text


def _text_or_none(value: object, place: str, column: str, stats: ReadStats) -> str | None:
    if value is None:
        stats.null_texts += 1
        return None
    if not isinstance(value, str):
        raise InputError(f"{place}: field {column!r} is a {type(value).__name__}, not a string; see --text_column")
    return value


def _without_surrogates(text: str, errors: str, place: str) -> str:
    """JSON can escape half a surrogate pair, which no UTF-8 text can hold."""
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
    """Pieces of at most `MAX_DOCUMENT` characters, cut behind a line if there is one, else behind a blank."""
    start = 0
    while len(document) - start > MAX_DOCUMENT:
        end = start + MAX_DOCUMENT
        cut = document.rfind("\n", start, end) + 1 or document.rfind(" ", start, end) + 1 or end
        stats.cut_documents += 1
        yield document[start:cut]
        start = cut
    yield document[start:] if start else document


def _check_column(name: str, column: str, columns: Iterable[str]) -> None:
    if column not in columns:
        raise InputError(f"{name} has no column {column!r}, only {_listed(columns)}; see --text_column")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no fields"

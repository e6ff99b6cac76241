"""Read documents from plain text, JSON lines (both also .gz, .zst), Parquet, `datasets` directories and the Hub.

A document is a string whose lines are paragraphs or sentences. In plain text, a blank line or the end of the file ends
a document; in the other formats every row is a document. Lines end with LF or CRLF, or with CR in a file without LF.
Everything is streamed: the longest piece in memory is one row, or `MAX_DOCUMENT` characters of plain text.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError, one_line
from .rows import open_parquet, parse_row, require_column
from .sources import WHOLE, Part, TextSource
from .streams import decode, open_lines, read_lines, read_pieces


if TYPE_CHECKING:
    import pyarrow.parquet as pq


# A longer document (a file without blank lines, one huge line) is cut into several, so that memory stays bounded and
# documents stay small against a shard. A long novel has about one million characters.
MAX_DOCUMENT = 1 << 22
# Plain-text lines are read in pieces of this many bytes; a longer line is cut after a blank.
MAX_LINE = 1 << 20

# Bytes of a part of a source, of Parquet files in the column of the text.
PART_BYTES = 1 << 26
ENCODING_ERRORS = ("strict", "replace")

# Ends of error messages.
_SEE_COLUMN, _OR_REPLACE = "; see --text_column", ", or use --encoding_errors replace"

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


@dataclasses.dataclass
class ReadStats:
    """Counts of null texts and cut documents; filled while reading."""

    null_texts: int = 0
    cut_documents: int = 0


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
    stats = ReadStats() if stats is None else stats
    for source in sources:
        yield from read_part(source, WHOLE, text_column, encoding_errors, stats)


def read_part(
    source: TextSource, part: Part, text_column: str, encoding_errors: str, stats: ReadStats
) -> Iterator[str]:
    """Stream the documents that begin in a part of a source.

    The parts one after the other have the documents of the whole source, each once.

    Args:
        source: from `find_sources`.
        part: its number, and the number of parts; see `count_parts`.
        text_column: the field or column with the text in JSON lines, Parquet and `datasets`.
        encoding_errors: "strict" refuses bytes that are not UTF-8, "replace" turns them into U+FFFD.
        stats: filled while reading.

    Yields:
        One document after another, with LF line ends and without blank documents.

    Raises:
        InputError: if something cannot be read; the message names the file and the line, row or byte.
    """
    if encoding_errors not in ENCODING_ERRORS:
        raise InputError(f"--encoding_errors must be one of {', '.join(ENCODING_ERRORS)}, not {encoding_errors!r}")
    readers: dict[str, Callable[[], Iterator[str]]] = {
        "text": lambda: _read_text(source, part, encoding_errors, stats),
        "jsonl": lambda: _read_jsonl(source, part, text_column, encoding_errors, stats),
        "parquet": lambda: _read_parquet(source, part, text_column, encoding_errors, stats),
        "datasets": lambda: _read_saved_dataset(source, part, text_column, stats),
        "hub": lambda: _read_hub(source, part, text_column, stats),
    }
    for document in readers[source.format]():
        if "\r" in document:
            document = document.replace("\r\n", "\n")
            if "\n" not in document:  # line ends of old Macs; beside an LF, a CR is stray
                document = document.replace("\r", "\n")
        if document.isspace() or not document:
            continue
        yield from _cut(document, stats)


def count_parts(source: TextSource, text_column: str) -> int:
    """Choose the number of parts of a source: of about `PART_BYTES` each, or one where nobody can start inside.

    Raises:
        InputError: if the source cannot be opened or has no such column.
    """
    most = 1
    size = source.size
    if source.format in ("text", "jsonl") and source.compression is None:
        most = max(size, 1)
    elif source.format == "parquet":
        with open_parquet(source.name) as file:
            column = _parquet_column(source, file, text_column)
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            most, size = len(groups), sum(group.column(column).total_uncompressed_size for group in groups)
    elif source.format == "datasets":
        most = len(_open_saved_dataset(source, text_column))
    elif source.format == "hub":
        return max(_open_hub(source, text_column).num_shards, 1)
    return max(min(most, -(-size // PART_BYTES)), 1)


def _documents_range(source: TextSource, part: Part, blank_lines: bool) -> tuple[int, int | None]:
    """Return the bytes of the documents that begin in a part of a text file: rows, or text between blank lines."""
    if part.total == 1:
        return 0, None
    nominal_begin, nominal_end = source.byte_range(part)
    begin = _find_beginning(source, nominal_begin, nominal_end, blank_lines)
    if begin is None:
        return 0, 0
    size = source.size
    end = None if nominal_end == size else _find_beginning(source, nominal_end, size, blank_lines)
    return begin, size if end is None else end


def _find_beginning(source: TextSource, begin: int, end: int, blank_lines: bool) -> int | None:
    """Find the first line of text that starts at `begin` or later, or the text after the first blank line there.

    None if no such line starts before `end`.
    """
    if begin == 0:
        return 0
    place, at_start = begin - 1, False  # of the line before, only the end counts
    with open_lines(source.name, None, place) as lines:
        while place < end and (line := lines.readline(MAX_LINE)):
            if at_start and not blank_lines:
                return place
            place += len(line)
            complete = line.endswith(b"\n")
            if at_start and complete and _ONLY_BLANK.fullmatch(line.decode("utf-8", "replace")[:-1] or " "):
                return place
            at_start = complete
    return None


def _read_text(source: TextSource, part: Part, errors: str, stats: ReadStats) -> Iterator[str]:
    held: list[str] = []  # lines of the document so far
    size, number = 0, 1
    unpacked = " of the unpacked text" if source.compression else ""
    begin, end = _documents_range(source, part, blank_lines=True)
    for offset, data in read_pieces(source.name, source.compression, MAX_LINE, begin=begin, end=end):

        def where(start: int, offset: int = offset, data: bytes = data, number: int = number) -> str:
            # The lines before the part have not been counted.
            line = "" if begin else f" line {number + data.count(10, 0, start)},"
            return f"{source.name}: byte {offset + start}{unpacked},{line}"

        text = decode(data, where, errors, _OR_REPLACE)
        if number == 1 and begin == 0:
            _refuse_other_separators(text, source.name)
        for index, section in enumerate(_between_blank_lines(text)):
            if index and held:
                yield "".join(held)
                held, size = [], 0
            # One by one only where the document may have to be cut.
            for lines in [section] if size + len(section) <= MAX_DOCUMENT else _LINE.findall(section):
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


def _read_jsonl(source: TextSource, part: Part, column: str, errors: str, stats: ReadStats) -> Iterator[str]:
    begin, end = _documents_range(source, part, blank_lines=False)
    for place, line in read_lines(source.name, source.compression, errors, _OR_REPLACE, begin, end):
        if line.isspace():
            continue
        row = parse_row(line, place)
        require_column(column, row, place, _SEE_COLUMN)
        text = _text_or_none(row[column], place, column, stats)
        if text is not None:
            yield _without_surrogates(text, errors, place)


def _parquet_column(source: TextSource, file: "pq.ParquetFile", column: str) -> int:
    """Return the number of the column with the text; raise InputError if there is none, or it holds no strings."""
    import pyarrow as pa

    require_column(column, file.schema_arrow.names, source.name, _SEE_COLUMN)
    kind = file.schema_arrow.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{source.name}: column {column!r} holds {one_line(kind)}, not strings{_SEE_COLUMN}")
    # Its number among the leaves of all columns.
    return next(number for number in range(len(file.schema)) if file.schema.column(number).path == column)


def _read_parquet(source: TextSource, part: Part, column: str, errors: str, stats: ReadStats) -> Iterator[str]:
    import pyarrow as pa

    with open_parquet(source.name) as file:
        _parquet_column(source, file, column)
        first, last = (file.num_row_groups * number // part.total for number in (part.number, part.number + 1))
        row = sum(file.metadata.row_group(number).num_rows for number in range(first))
        for batch in file.iter_batches(batch_size=64, columns=[column], row_groups=list(range(first, last))):
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


def _open_saved_dataset(source: TextSource, column: str) -> Any:
    import datasets

    try:
        dataset = datasets.load_from_disk(source.name)
    except Exception as error:  # datasets and pyarrow raise many types for a damaged directory
        raise InputError(f"{source.name} is not a readable data set ({one_line(error)})") from None
    require_column(column, dataset.column_names, source.name, _SEE_COLUMN)
    return dataset.select_columns([column])


def _read_saved_dataset(source: TextSource, part: Part, column: str, stats: ReadStats) -> Iterator[str]:
    dataset = _open_saved_dataset(source, column)
    first, last = (len(dataset) * number // part.total for number in (part.number, part.number + 1))
    yield from _read_rows(source, dataset.select(range(first, last)), column, stats, first)


def _open_hub(source: TextSource, column: str) -> Any:
    import datasets

    name = source.hub_name
    revision = source.revision or name.revision
    try:
        dataset = datasets.load_dataset(
            name.repository, name.configuration, split=name.split, streaming=True, revision=revision
        )
    except Exception as error:  # network, missing name, missing split: the library's message says which
        raise InputError(f"--text {source.name}: cannot be loaded from the Hub ({one_line(error)})") from None
    if dataset.column_names is None:
        return dataset
    require_column(column, dataset.column_names, source.name, _SEE_COLUMN)
    return dataset.select_columns([column])


def _read_hub(source: TextSource, part: Part, column: str, stats: ReadStats) -> Iterator[str]:
    dataset = _open_hub(source, column)
    if part.total > 1:
        dataset = dataset.shard(part.total, part.number)
    yield from _read_rows(source, dataset, column, stats)


def _read_rows(
    source: TextSource, rows: Iterable[dict], column: str, stats: ReadStats, first: int = 0
) -> Iterator[str]:
    for number, row in enumerate(rows, start=first):
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

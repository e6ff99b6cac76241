"""Files of tagged words in columns, as the CoNLL shared tasks and those after them write them."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..utils.errors import InputError
from .data import read_text
from .notes import leave_out, warn


OUTSIDE = "O"
TAG = re.compile(r"O|[BIESLUM]-\S+")
# A word's number in its sentence, or CoNLL-U's range of a contraction and its omitted word, which are no words.
_INDEX = re.compile(r"\d+")
_NO_WORD = re.compile(r"\d+[-.]\d+")
_EMPTY = {"_"}
# The types of CoNLL-2000's chunks, which stand before the entities in CoNLL-2003's files.
_CHUNKS = {"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}


class Line(NamedTuple):
    """A line of a file that is not empty: its number, and its fields."""

    number: int
    fields: list[str]


class Layout(NamedTuple):
    """Which column holds what, counted from 0; tags is None for a file without tags."""

    width: int
    indexed: bool
    tokens: int
    tags: int | None


def to_iob2(tags: list[str]) -> list[str]:
    """A sentence's IOB1 tags as IOB2: I- at the beginning of an entity becomes B-. IOB2 stays as it is."""
    result = []
    previous = OUTSIDE
    for tag in tags:
        begins = tag.startswith("I-") and (previous == OUTSIDE or previous[2:] != tag[2:])
        result.append(f"B-{tag[2:]}" if begins else tag)
        previous = tag
    return result


def read_columns(path: Path, chosen: Mapping[str, str]) -> pa.Table:
    """A word per line with its tag, an empty line after a sentence, as the columns tokens, ner_tags and document.

    The first column holds the words and the last their tags; a file with a single column has no tags. Where the first
    column counts the words of each sentence, the second holds them; where two columns of tags nest, the first of them
    counts; `chosen` names other columns by their numbers. -DOCSTART- lines begin a document, lines that begin with #
    before a sentence are comments, unless they have a tag.

    Raises:
        InputError: if lines have different numbers of columns, there are no words, or `chosen` names no column.
    """
    sentences, documents, comments = _parse(read_text(path), path)
    if comments:
        leave_out(len(comments), f"{path}: left out {len(comments)} lines as comments, the first {comments[0]!r}")
    if not sentences:
        raise InputError(f"{path} holds no words")
    layout = _layout(sentences, chosen, path)
    if layout.indexed:
        sentences = [[line for line in lines if not _NO_WORD.fullmatch(line.fields[0])] for lines in sentences]
    columns: dict[str, Any] = {"tokens": [[line.fields[layout.tokens] for line in lines] for lines in sentences]}
    if layout.tags is not None:
        columns["ner_tags"] = [to_iob2([line.fields[layout.tags] for line in lines]) for lines in sentences]
    if documents[-1]:
        columns["document"] = [str(number) for number in documents]
    return pa.table(columns)


def _parse(text: str, path: Path) -> tuple[list[list[Line]], list[int], list[str]]:
    try:
        return _sentences(text, path, _split_at_blanks)
    except InputError:
        # Words that hold blanks stand between tabs.
        with suppress(InputError):
            if "\t" in text:
                return _sentences(text, path, _split_at_tabs)
        raise


def _split_at_blanks(line: str) -> list[str]:
    # Only blanks and tabs part columns: a word may hold other white space.
    return re.split(r"[ \t]+", line.strip(" \t\r"))


def _split_at_tabs(line: str) -> list[str]:
    return [field.strip(" \r") for field in line.strip("\t\r").split("\t")]


def _sentences(
    text: str, path: Path, split: Callable[[str], list[str]]
) -> tuple[list[list[Line]], list[int], list[str]]:
    """The lines of every sentence, the number of its document, and the comments.

    Raises InputError for lines of different widths.
    """
    # Only LF ends a line.
    lines = [Line(number, split(line)) for number, line in enumerate(text.split("\n"), start=1)]
    words = [line for line in lines if line.fields != [""] and line.fields[0] != "-DOCSTART-"]
    plain = [line for line in words if not line.fields[0].startswith("#")] or words
    width = len(plain[0].fields) if plain else 0
    tags = {line.fields[-1] for line in plain}

    def is_word(fields: list[str]) -> bool:
        return len(fields) == width and (width == 1 or fields[-1] in tags or bool(TAG.fullmatch(fields[-1])))

    sentences: list[list[Line]] = [[]]
    documents = [0]
    comments: list[str] = []
    document = 0
    for line in lines:
        fields = line.fields
        starts_document = fields[0] == "-DOCSTART-"
        if fields == [""] or starts_document:
            document += starts_document
            if sentences[-1]:
                sentences.append([])
                documents.append(document)
            documents[-1] = document
            continue
        if fields[0].startswith("#") and not sentences[-1] and not is_word(fields):
            comments.append(" ".join(fields))
            continue
        if len(fields) != width:
            raise InputError(f"{path}: line {line.number} has {len(fields)} columns, but those before have {width}")
        sentences[-1].append(line)
    if not sentences[-1]:
        sentences.pop()
        documents.pop()
    return sentences, documents, comments


def _layout(sentences: list[list[Line]], chosen: Mapping[str, str], path: Path) -> Layout:
    lines = [line for sentence in sentences for line in sentence]
    width = len(lines[0].fields)
    values = [{line.fields[column] for line in lines} for column in range(width)]
    indexed = _is_indexed(sentences) and (width > 2 or not _are_tags(values[-1]))
    tokens = 1 if indexed else 0
    tags = _tag_column(values, tokens, indexed)
    for role, column in chosen.items():
        if not column.isdecimal() or not 1 <= int(column) <= width:
            raise InputError(
                f"--columns {role}={column}: {path} has no names for its columns, but numbers: 1 to {width}"
            )
    tokens = int(chosen.get("tokens", tokens + 1)) - 1
    tags = int(chosen["ner_tags"]) - 1 if "ner_tags" in chosen else tags
    if not chosen and (indexed or tags not in (width - 1, None)):
        source = "no tags" if tags is None else f"the tags from column {tags + 1}"
        warn(
            f"{path}: the words are read from column {tokens + 1}, {source} of {width}; if these are others, name "
            "them with --columns tokens=NUMBER ner_tags=NUMBER"
        )
    return Layout(width, indexed, tokens, tags)


def _is_indexed(sentences: list[list[Line]]) -> bool:
    """Whether the first column counts the words of every sentence, all from 0 or all from 1."""
    firsts = set()
    for lines in sentences:
        numbers = [line.fields[0] for line in lines if not _NO_WORD.fullmatch(line.fields[0])]
        if not numbers or not all(map(_INDEX.fullmatch, numbers)):
            return False
        firsts.add(int(numbers[0]))
        if [int(number) for number in numbers] != list(range(int(numbers[0]), int(numbers[0]) + len(numbers))):
            return False
    return firsts in ({0}, {1}) and max(map(len, sentences)) > 1


def _are_tags(values: set[str]) -> bool:
    return all(map(TAG.fullmatch, values))


def _tag_column(values: list[set[str]], tokens: int, indexed: bool) -> int | None:
    """The column of the tags: the last, unless it is empty (_), or nested in the one before it; None for no tags."""
    last = len(values) - 1
    if last == tokens:
        return None
    if values[last] <= _EMPTY:
        return next((column for column in range(last - 1, tokens, -1) if _are_tags(values[column])), None)
    outer = last - 1
    if outer > tokens and _are_tags(values[outer]) and _are_tags(values[last]):
        types = [{tag[2:] for tag in values[column] if tag != OUTSIDE} for column in (outer, last)]
        if types[0] & types[1] or (indexed and not types[0] <= _CHUNKS):
            return outer
    return last

"""Tagged words: files that hold them in columns, as the CoNLL shared tasks write them, and checks of their tags."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...utils.errors import InputError, one_line
from ..labels import as_number, class_ids
from ..notes import leave_out, warn
from .tables import Columns, check_single, read_text


OUTSIDE = "O"
TAG = re.compile(r"O|[BIESLUM]-\S+")
# Prefixes and suffixes that some files have, but that are not supported.
_LOOSE_TAG = re.compile(r"[BIESLUMW][-_:/.|](?P<prefixed>.+)|(?P<suffixed>.+)[-_:/.|][BIESLUMW]", re.IGNORECASE)
# The number of a word in its sentence; CoNLL-U's numbers of contractions and omitted words, which are not words.
_INDEX = re.compile(r"\d+")
_NO_WORD = re.compile(r"\d+[-.]\d+")
_EMPTY = {"_"}
# Types of CoNLL-2000's chunks: in CoNLL-2003's files their column precedes that of the entities.
_CHUNKS = {"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}


class Line(NamedTuple):
    """A non-empty line of a file: its number and its fields."""

    number: int
    fields: list[str]


class ColumnLayout(NamedTuple):
    """The columns of a file, counted from 0; tags is None for a file without tags."""

    width: int
    indexed: bool
    tokens: int
    tags: int | None


def to_iob2(tags: list[str]) -> list[str]:
    """Convert a sentence's tags from IOB1, or IOB2, to IOB2: I- at the beginning of an entity becomes B-."""
    result = []
    previous = OUTSIDE
    for tag in tags:
        begins = tag.startswith("I-") and (previous == OUTSIDE or previous[2:] != tag[2:])
        result.append(f"B-{tag[2:]}" if begins else tag)
        previous = tag
    return result


def is_in_columns(path: Path, columns: Columns) -> bool:
    """Return whether a .tsv holds a word on every line, not a header that names the task's columns."""
    header = read_text(path).lstrip().partition("\n")[0].split("\t")
    return not {name.casefold() for name in columns["tokens"]} & {name.strip().casefold() for name in header}


def read_columns(path: Path, user_columns: Mapping[str, str]) -> pa.Table:
    """Read a file with a word and its tag on every line, and an empty line after every sentence.

    The first column holds the words and the last their tags; a file with a single column has no tags. Where the first
    column counts the words of each sentence, the second holds them; where two columns of tags nest, the first of them
    counts. -DOCSTART- lines begin a document; lines that begin with # before a sentence are comments, unless they
    have a tag.

    Args:
        path: the file.
        user_columns: tokens, ner_tags → number of the column, counted from 1, where the user knows better.

    Returns:
        A row per sentence, with the columns tokens, ner_tags (if there are tags) and document (if there are several).

    Raises:
        InputError: if lines have different numbers of columns, there are no words, or a number is no column's.
    """
    sentences, documents, comments = _parse(read_text(path), path)
    if comments:
        leave_out(len(comments), f"{path}: left out {len(comments)} lines as comments, the first {comments[0]!r}")
    if not sentences:
        raise InputError(f"{path} holds no words")
    layout = _layout(sentences, user_columns, path)
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
        # Tabs separate the columns if words contain blanks, or fields are empty.
        with suppress(InputError):
            sentences, documents, comments = _sentences(text, path, _split_at_tabs)
            if sentences and len(sentences[0][0].fields) > 1:
                return sentences, documents, comments
        raise


def _split_at_blanks(line: str) -> list[str]:
    # Only blanks and tabs separate columns: a word may contain other white space.
    return re.split(r"[ \t]+", line.strip(" \t\r"))


def _split_at_tabs(line: str) -> list[str]:
    fields = [field.strip(" \r") for field in line.split("\t")]
    return fields if any(fields) else [""]


def _sentences(
    text: str, path: Path, split: Callable[[str], list[str]]
) -> tuple[list[list[Line]], list[int], list[str]]:
    """Parse the lines of every sentence, the number of its document, and the comments.

    Raises:
        InputError: for lines of different widths.
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


def _layout(sentences: list[list[Line]], user_columns: Mapping[str, str], path: Path) -> ColumnLayout:
    """Find the columns of words and tags; warn where the choice is not obvious."""
    lines = [line for sentence in sentences for line in sentence]
    width = len(lines[0].fields)
    values = [{line.fields[column] for line in lines} for column in range(width)]
    indexed = _is_indexed(sentences) and (width > 2 or not _are_tags(values[-1]))
    tokens = 1 if indexed else 0
    if width > 2 and "tokens" not in user_columns:
        _refuse_unlikely_words([[line.fields[tokens] for line in sentence] for sentence in sentences], tokens, path)
    tags = _tag_column(values, tokens, indexed)
    for role, column in user_columns.items():
        if not column.isdecimal() or not 1 <= int(column) <= width:
            raise InputError(
                f"--columns {role}={column}: {path} has no names for its columns, but numbers: 1 to {width}"
            )
    tokens = int(user_columns.get("tokens", tokens + 1)) - 1
    tags = int(user_columns["ner_tags"]) - 1 if "ner_tags" in user_columns else tags
    if not user_columns and (indexed or tags not in (width - 1, None)):
        source = "no tags" if tags is None else f"the tags from column {tags + 1}"
        warn(
            f"{path}: the words are read from column {tokens + 1}, {source} of {width}; if these are others, name "
            "them with --columns tokens=NUMBER ner_tags=NUMBER"
        )
    return ColumnLayout(width, indexed, tokens, tags)


def _is_indexed(sentences: list[list[Line]]) -> bool:
    """Return whether the first column counts the words, of every sentence or of all, from 0 or from 1."""
    every = [line.fields[0] for lines in sentences for line in lines]
    if len(every) > 1 and every in ([str(number + first) for number in range(len(every))] for first in (0, 1)):
        return True
    firsts = set()
    for lines in sentences:
        numbers = [line.fields[0] for line in lines if not _NO_WORD.fullmatch(line.fields[0])]
        if not numbers or not all(map(_INDEX.fullmatch, numbers)):
            return False
        firsts.add(int(numbers[0]))
        if [int(number) for number in numbers] != list(range(int(numbers[0]), int(numbers[0]) + len(numbers))):
            return False
    return firsts in ({0}, {1}) and max(map(len, sentences)) > 1


def _refuse_unlikely_words(sentences: list[list[str]], column: int, path: Path) -> None:
    """Raise InputError if a column of words holds numbers only, or the same word all through every sentence."""
    numbers = all(word.isdecimal() for words in sentences for word in words)
    repeated = all(len(set(words)) == 1 for words in sentences) and max(map(len, sentences)) > 1
    if numbers or repeated:
        what = "only numbers" if numbers else "one value for all words of a sentence"
        raise InputError(
            f"{path}: column {column + 1}, from which the words would be read, holds {what}; name the columns of "
            "words and tags, as --columns tokens=2 ner_tags=3"
        )


def _are_tags(values: set[str]) -> bool:
    return all(map(TAG.fullmatch, values))


def _tag_column(values: list[set[str]], tokens: int, indexed: bool) -> int | None:
    """Return the last column, unless it is empty (_) or nested in the one before it; None for no tags."""
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


def is_tagged(table: pa.Table) -> bool:
    """Return whether any row has tags: hidden ones come as nulls, or as empty lists in every row."""
    if "ner_tags" not in table.column_names or table.column("ner_tags").null_count == table.num_rows:
        return False
    tags, words = table.column("ner_tags"), table.column("tokens")
    if not (pa.types.is_list(tags.type) and pa.types.is_list(words.type)):
        return True
    return bool(pc.sum(pc.list_value_length(tags)).as_py()) or not pc.sum(pc.list_value_length(words)).as_py()


def refuse_numbers(tags: pa.Array, location: str) -> None:
    """Raise InputError if the user's own tags are numbers, which do not tell entities from other words."""
    distinct = [tag for tag in pc.unique(tags).to_pylist() if tag is not None]
    numbers = [as_number(tag) for tag in distinct]
    if distinct and all(number is not None for number in numbers):
        raise InputError(
            f"{location}: column 'ner_tags' holds numbers, {min(numbers)} to {max(numbers)}; name their tags in order "  # type: ignore[type-var]
            "with --class_names, as --class_names O B-PER I-PER"
        )


def list_column(table: pa.Table, name: str, location: str) -> pa.ListArray:
    """Return a column of lists as one array.

    Args:
        table: the rows.
        name: of the column.
        location: the table's place, for errors.

    Raises:
        InputError: for a column that does not hold lists, and for nulls.
    """
    column = table.column(name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InputError(
            f"{location}: column {name!r} holds {one_line(column.type)}, not lists; row 0 is {column[0].as_py()!r}; "
            'write lists, as ["Ann", "Lee"], in jsonl or parquet'
        )
    if column.null_count:
        raise InputError(
            f"{location}: column {name!r} is missing (null) in row {pc.index(column.is_null(), True).as_py()}"
        )
    if pa.types.is_null(column.type.value_type):  # all lists are empty
        column = column.cast(pa.list_(pa.string()))
    return column.combine_chunks().cast(pa.list_(column.type.value_type))


def offsets(lists: pa.ListArray) -> pa.Array:
    """Return the offsets of an array of lists, (rows + 1,), from 0."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())


def tag_ids(tags: pa.ListArray, names: list[str], location: str, by_position: bool) -> np.ndarray:
    """Convert tags, names or numbers, to ids.

    Args:
        tags: the tags of each sentence.
        names: all tags in the order of their ids.
        location: the table's place, for errors.
        by_position: a number is an id, not one of the names.

    Returns:
        (words,) ids of all sentences one after another.

    Raises:
        InputError: for an unknown or missing tag; the message names its row.
    """
    flat = check_single(pa.chunked_array([tags.flatten()]), f"{location}: a tag")
    try:
        ids = class_ids(flat, names, location, by_position=by_position)
        bad = int(np.argmax(ids < 0)) if (ids < 0).any() else -1
    except InputError:
        # class_ids reports the index of a word; translate it to the sentence.
        bad = next(i for i, value in enumerate(flat.to_pylist()) if not _is_tag(value, names, by_position))
    if bad >= 0:
        row = int(np.searchsorted(offsets(tags).to_numpy(), bad, side="right")) - 1
        raise InputError(
            f"{location}, row {row}: unknown tag {flat[bad].as_py()!r}; it must be one of {', '.join(names)}"
        )
    return ids


def _is_tag(value: Any, names: list[str], by_position: bool) -> bool:
    return value in names or (by_position and isinstance(value, int) and 0 <= value < len(names))


def tags_of(tags: dict[str, pa.Array], task: str) -> list[str]:
    """Return the tags of the training split: O first, then by type, B- before I-.

    Raises:
        InputError: if only some tags have a prefix (a header or comment was read as words), or a prefix is unknown.
    """
    split = next((split for split in ("train", "validation") if split in tags), None)
    if split is None:
        raise InputError(
            f"{task} needs a split with tags (name their column: --columns ner_tags=NAME), or a model that names its "
            "classes"
        )
    names = sorted({str(tag) for tag in pc.unique(tags[split]).drop_null().to_pylist()}, key=_by_type)
    odd = [name for name in names if not TAG.fullmatch(name)]
    matches = [match for name in names if (match := _LOOSE_TAG.fullmatch(name))]
    kinds = Counter((match["prefixed"] or match["suffixed"]).casefold() for match in matches)
    loose = max(kinds.values(), default=1) > 1 or any(name != name.strip() for name in odd)
    if odd and (len(odd) < len(names) - (OUTSIDE in names) or loose):
        raise InputError(
            f"{task}, split {split}: the tag {odd[0]!r} is neither {OUTSIDE!r} nor a type with its prefix, as B-PER; "
            "correct it, or check whether it stands in a header, a comment or another column (--columns ner_tags=…)"
        )
    return names


def _by_type(tag: str) -> tuple[bool, str, str]:
    return tag != OUTSIDE, tag[2:], tag

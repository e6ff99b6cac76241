"""Questions in the shapes their files have, and checks of their answers and where they stand."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal
from unicodedata import normalize

from ...utils.errors import InputError


Rows = list[tuple[str, dict[str, Any]]]


def is_nested(rows: Rows) -> bool:
    """Return whether the entries of a JSON file are SQuAD's articles or paragraphs, not single questions."""
    return any("paragraphs" in row or "qas" in row for _, row in rows)


def nested_rows(rows: Rows, location: str) -> dict[str, list]:
    """Flatten SQuAD's nested JSON into a row per question; plausible answers of unanswerable ones are dropped."""
    columns: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
    unlabelled: list[Any] = []
    try:
        for paragraph in _paragraphs(rows):
            for question in paragraph["qas"]:
                impossible = is_impossible(question, f"{location}: question {question['id']!r}")
                if not impossible and "answers" not in question:
                    unlabelled.append(question["id"])
                answers = [] if impossible else question.get("answers", [])
                row = (question["id"], question["question"], paragraph["context"], answers)
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "lies among values of other types"
        raise InputError(
            f"{location} is not in SQuAD's format: question {len(columns['id'])} {what} "
            "(data → paragraphs → context, qas → id, question, answers)"
        ) from None
    if unlabelled and any(columns["answers"]):
        raise InputError(
            f"{location}: {len(unlabelled)} questions have no field 'answers', while others have it; the first is "
            f"{unlabelled[0]!r}"
        )
    if unlabelled:
        del columns["answers"]
    return columns


def _paragraphs(rows: Rows) -> Iterator[dict[str, Any]]:
    for _, row in rows:
        yield from row.get("paragraphs", [row])


def without_plausible_answers(rows: Rows, names: Sequence[str]) -> Rows:
    """Empty the answers of rows with `is_impossible`: theirs are plausible, but wrong."""
    none: dict[str, Any] = {"text": [], "answer_start": []}
    return [
        (location, row | {name: none for name in names if name in row} if is_impossible(row, location) else row)
        for location, row in rows
    ]


# How programs write true and false.
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "none": False, "": False}


def is_impossible(question: Mapping[str, Any], location: str) -> bool:
    """Return whether a question is marked as unanswerable; raise InputError if its mark is neither true nor false."""
    value = question.get("is_impossible")
    truth = _TRUTH.get(str(value).strip().casefold().removesuffix(".0"))
    if truth is None:
        raise InputError(f"{location}: is_impossible is {value!r}; it must be true or false")
    return truth


def has_text(answers: Any) -> bool:
    """Return whether a row's answers contain any text."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    answers = answers if isinstance(answers, list) else [answers]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in answers]
    return any(bool(str(text).strip()) for text in texts if text is not None)


def check_answers(values: Sequence[Any], ids: Sequence[Any], location: str) -> list[dict[str, list]]:
    """Convert answers to {"text": [], "answer_start": []}, from that shape, a list of objects, or JSON of these.

    Args:
        values: the answers of every row; starts may be whole numbers of any type, an empty text is no answer.
        ids: the ids of the questions, for messages.
        location: the data, for messages.

    Raises:
        InputError: if a question's answers have another shape, or are null; the message names field and value.
    """
    result = []
    for name, value in zip(ids, values, strict=True):
        try:
            result.append(_answers(value))
        except _OddAnswersError as error:
            raise InputError(
                f'{location}, question {name!r}: {error}; answers are written as {{"text": ["…"], "answer_start": '
                "[0]}, an empty list for none"
            ) from None
    return result


class _OddAnswersError(Exception):
    """The answers of a question have another shape."""


def _answers(value: Any) -> dict[str, list]:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
        lacking = next((field for answer in value for field in ("text", "answer_start") if field not in answer), None)
        if lacking is not None:
            raise _OddAnswersError(f"answers has no field {lacking!r}, only {', '.join(map(repr, value[0]))}")
        value = {field: [answer[field] for answer in value] for field in ("text", "answer_start")}
    if not isinstance(value, dict):
        raise _OddAnswersError(f"answers is {value!r}, without the places where they stand")
    for field in ("text", "answer_start"):
        if field not in value:
            raise _OddAnswersError(f"answers has no field {field!r}, only {', '.join(map(repr, value)) or 'none'}")
    texts, starts = (field if isinstance(field, list) else [field] for field in (value["text"], value["answer_start"]))
    texts = ["" if text is None else text for text in texts]
    if len(texts) != len(starts):
        raise _OddAnswersError(f"answers has {len(texts)} text, but {len(starts)} answer_start")
    kept = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str):
            raise _OddAnswersError(f"the answer's text is {text!r}, not a string")
        if text.strip():
            kept.append((text, _place(start)))
    return {"text": [text for text, _ in kept], "answer_start": [place for _, place in kept]}


def _place(start: Any) -> int:
    number = start
    if isinstance(start, str) and re.fullmatch(r"-?\d+(\.0*)?", start.strip(), re.ASCII):
        number = float(start)
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1 << 31 or number % 1:
        raise _OddAnswersError(f"answer_start is {start!r}, not a whole number")
    return int(number)


def _stands_in_form(form: Literal["NFC", "NFD"], context: str, text: str, start: int) -> bool:
    return normalize(form, context).startswith(normalize(form, text), start)


# Other ways to count answer_start: name → whether an answer stands at its start by that count. Of equal ones the
# first counts.
_COUNTS: dict[str, Callable[[str, str, int], bool]] = {
    "counts bytes of UTF-8": lambda context, text, start: context.encode().startswith(text.encode(), start),
    "counts UTF-16 units, as JavaScript and Java do": lambda context, text, start: context.encode(
        "utf-16-le"
    ).startswith(text.encode("utf-16-le"), 2 * start),
    "counts every line end as two characters": lambda context, text, start: (
        context.replace("\r\n", "\n").replace("\n", "\r\n").startswith(text, start)
    ),
    "counts the characters of Unicode's form NFC": partial(_stands_in_form, "NFC"),
    "counts the characters of Unicode's form NFD": partial(_stands_in_form, "NFD"),
    "is right, but the text has another case": lambda context, text, start: (
        context[start : start + len(text)].casefold() == text.casefold()
    ),
    "counts from 1": lambda context, text, start: start > 0 and context.startswith(text, start - 1),
}


def explain_misplaced(answers: Iterable[tuple[str, str, int]]) -> str:
    """Explain why answers are not in their contexts at answer_start, if another way to count fits half of them.

    Args:
        answers: context, text and start of each.

    Returns:
        The end of a sentence, empty if nothing fits.
    """
    answers = list(answers)
    fitting = {
        name: sum(start >= 0 and fits(context, text, start) for context, text, start in answers)
        for name, fits in _COUNTS.items()
    }
    name, count = max(fitting.items(), key=lambda entry: entry[1])
    if 2 * count < len(answers):
        return ""
    return f"; in {count} of these, answer_start {name}; count characters from 0, in the context as it is"


def locate(context: str, text: str, start: int) -> tuple[str, int] | None:
    """Find an answer at `start` of its context, tolerating differences in blanks.

    Tolerated are blanks around the text, `start` at blanks before it, runs of blanks that the text has as one, and a
    `start` counted in a context whose blanks were stripped and merged.

    Args:
        context: the text that should hold the answer.
        text: the answer as the data have it.
        start: the answer's first character in the context, from 0.

    Returns:
        The answer as the context has it and its start. None: it is not there.
    """
    if start < 0 or not text.strip():
        return None
    if context.startswith(text, start) and text == text.strip():
        return text, start
    pattern = re.compile(r"\s+".join(map(re.escape, text.split())))
    stripped = start + len(text) - len(text.lstrip())
    for place in (start, stripped, _in_original(context, start)):
        while place < len(context) and context[place].isspace():
            place += 1
        match = pattern.match(context, place)
        if match:
            return match.group(), place
    return None


def _in_original(context: str, start: int) -> int:
    """Convert a position in " ".join(context.split()) to one in `context`."""
    place = 0
    for match in re.finditer(r"\S+", context):
        if start < place + len(match.group()) + 1:
            return match.start() + start - place
        place += len(match.group()) + 1
    return len(context)

"""Questions in the shapes their files have, and checks of their answers and where they stand."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..utils.errors import InputError


Rows = list[tuple[str, dict[str, Any]]]


def is_nested(rows: Rows) -> bool:
    """Return whether the entries of a JSON file are SQuAD's articles or paragraphs, not single questions."""
    return any("paragraphs" in row or "qas" in row for _, row in rows)


def nested_rows(rows: Rows, location: str) -> dict[str, list]:
    """Flatten SQuAD's nested JSON into a row per question; plausible answers of unanswerable ones are dropped."""
    columns: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
    unlabelled = False
    try:
        for paragraph in _paragraphs(rows):
            for question in paragraph["qas"]:
                answers = [] if question.get("is_impossible") else question.get("answers", [])
                row = (question["id"], question["question"], paragraph["context"], answers)
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
                unlabelled |= "answers" not in question
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "lies among values of other types"
        raise InputError(
            f"{location} is not in SQuAD's format: question {len(columns['id'])} {what} "
            "(data → paragraphs → context, qas → id, question, answers)"
        ) from None
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
        (location, row | {name: none for name in names if name in row} if row.get("is_impossible") is True else row)
        for location, row in rows
    ]


def has_text(answers: Any) -> bool:
    """Return whether a row's answers contain any text."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    answers = answers if isinstance(answers, list) else [answers]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in answers]
    return any(bool(str(text).strip()) for text in texts if text is not None)


def check_answers(values: list, location: str) -> list[dict[str, list]]:
    """Convert answers to {"text": [], "answer_start": []}, from that shape or from a list of objects.

    Args:
        values: the answers of every row; starts may be whole numbers of any type, an empty text is no answer.
        location: place of the column, for messages.

    Raises:
        InputError: if a row's answers have another shape, or are null.
    """
    result = []
    for row, value in enumerate(values):
        if isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
            value = {name: [answer.get(name) for answer in value] for name in ("text", "answer_start")}
        texts, starts = (value.get(name) if isinstance(value, dict) else None for name in ("text", "answer_start"))
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if isinstance(texts, list):
            texts = ["" if text is None else text for text in texts]
        places = [_place(start) for start in starts] if isinstance(starts, list) else [None]
        if not (
            isinstance(texts, list)
            and len(texts) == len(places)
            and all(isinstance(text, str) for text in texts)
            and all(place is not None for place, text in zip(places, texts, strict=True) if text.strip())
        ):
            raise InputError(
                f"{location}, row {row}: answers must hold as many text strings as answer_start numbers, "
                'as {"text": ["…"], "answer_start": [0]}'
            )
        kept = [(text, place) for text, place in zip(texts, places, strict=True) if text.strip()]
        result.append({"text": [text for text, _ in kept], "answer_start": [place for _, place in kept]})
    return result


def _place(start: Any) -> int | None:
    if isinstance(start, str) and re.fullmatch(r"-?\d+(\.0*)?", start, re.ASCII):
        start = float(start)
    return int(start) if isinstance(start, int | float) and start == start // 1 else None


def locate(context: str, text: str, start: int) -> tuple[str, int] | None:
    """Find an answer at `start` of its context, tolerating differences in blanks.

    Tolerated are blanks around the text, `start` at blanks before it, runs of blanks that the text has as one, and a
    `start` counted in a context whose blanks were stripped and merged.

    Returns:
        The text as the context has it and its start, or None.
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

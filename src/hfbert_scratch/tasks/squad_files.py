"""Questions in the shapes their files have, and answers where their files say they are."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..utils.errors import InputError


Rows = list[tuple[str, dict[str, Any]]]


def is_nested(rows: Rows) -> bool:
    """Whether the entries of a JSON file are SQuAD's articles or paragraphs, not one question each."""
    return any("paragraphs" in row or "qas" in row for _, row in rows)


def nested_rows(rows: Rows, where: str) -> dict[str, list]:
    """The questions of SQuAD's nested JSON; an unanswerable one has no answers, plausible ones do not count."""
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
            f"{where} is not in SQuAD's format: question {len(columns['id'])} {what} "
            "(data → paragraphs → context, qas → id, question, answers)"
        ) from None
    if unlabelled:
        del columns["answers"]
    return columns


def _paragraphs(rows: Rows) -> Iterator[dict[str, Any]]:
    for _, row in rows:
        yield from row.get("paragraphs", [row])


def without_plausible_answers(rows: Rows, names: Sequence[str]) -> Rows:
    """The rows, with no answers where `is_impossible` says so: those given are plausible, but not right."""
    none: dict[str, Any] = {"text": [], "answer_start": []}
    return [
        (where, row | {name: none for name in names if name in row} if row.get("is_impossible") is True else row)
        for where, row in rows
    ]


def has_text(answers: Any) -> bool:
    """Whether a row's answers say anything."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    answers = answers if isinstance(answers, list) else [answers]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in answers]
    return any(bool(str(text).strip()) for text in texts if text is not None)


def check_answers(values: list, where: str) -> list[dict[str, list]]:
    """Answers as {"text": [], "answer_start": []}, whether they come so or as a list of objects.

    Places may be whole numbers of any type; an empty text is no answer.

    Raises:
        InputError: if a row's answers are something else, or null.
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
                f"{where}, row {row}: answers must hold as many text strings as answer_start numbers, "
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
    """The answer as the context has it, and where; None if it does not stand at `start`, blanks apart.

    Blanks apart: with blanks before or behind the text, with `start` at blanks before it, with runs of blanks that
    the text has as one, and with `start` counted in a context whose blanks were stripped and runs of them made one.
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
    """The place in `context` of a character that is counted in " ".join(context.split())."""
    place = 0
    for match in re.finditer(r"\S+", context):
        if start < place + len(match.group()) + 1:
            return match.start() + start - place
        place += len(match.group()) + 1
    return len(context)

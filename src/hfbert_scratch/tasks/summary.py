"""Summarize a task's data as they were read and tokenized, for the record and for the screen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import datasets

from .notes import Notes
from .task import Task


# Beyond this many classes, counts and scores go to the record only.
_SHOWN = 20
_EXAMPLE_CHARACTERS = 400
# Warn from this share of truncated examples on.
_MANY_TRUNCATED = 0.05


def summarize(
    task: Task,
    raw: Mapping[str, datasets.Dataset],
    features: Mapping[str, datasets.Dataset],
    tokenizer: Any,
    notes: Notes,
) -> dict[str, Any]:
    """Describe the splits in `features` as they were read and tokenized.

    Args:
        task: the task of the splits.
        raw: split → its rows, as `Task.load` returned them.
        features: split → its features, as the model gets them.
        tokenizer: the features' tokenizer.
        notes: what came up while the rows were read.

    Returns:
        `splits` (name → examples, classes with their counts or the range of the labels, tokens, and what
        max_seq_length cut), `left_out` (rows and reasons), `warnings`, and `example`, one input as the model sees it.
    """
    splits = {
        split: {"examples": len(raw[split])}
        | task.describe_targets(raw[split])
        | task.describe_features(raw[split], split_features)
        for split, split_features in features.items()
    }
    first = next(iter(features))
    return (
        {"splits": splits}
        | dataclasses.asdict(notes)
        | {"example": task.decode_example(raw[first], features[first], tokenizer)}
    )


def summary_lines(summary: Mapping[str, Any], max_seq_length: int) -> list[str]:
    """Format a summary for the screen; left-out rows are not repeated, they were printed at once.

    Args:
        summary: of `summarize`.
        max_seq_length: of the features.

    Returns:
        Lines of text.
    """
    lines = []
    for split, entry in summary["splits"].items():
        parts = [f"{entry['examples']} examples"]
        if "windows" in entry:
            parts[0] += f" in {entry['windows']} windows"
        parts.append(_targets(entry))
        parts.append(f"{entry['tokens']['mean']:g} tokens on average, {entry['tokens']['max']} at most")
        parts += _losses(entry, max_seq_length)
        lines.append(f"{split} data: {'; '.join(part for part in parts if part)}")
    for split, entry in summary["splits"].items():
        cut = entry.get("cut_by_max_seq_length", {})
        if cut.get("share", 0) >= _MANY_TRUNCATED:
            lines.append(
                f"warning: {cut['share']:.0%} of {split} lose their ends to max_seq_length {max_seq_length}; the "
                f"longest has {cut['longest']} tokens (--max_seq_length)"
            )
    example = summary["example"]
    if len(example) > _EXAMPLE_CHARACTERS:
        half = _EXAMPLE_CHARACTERS // 2
        example = f"{example[:half]} […] {example[-half:]}"
    return [*lines, f"the first example: {example}"]


def _targets(entry: Mapping[str, Any]) -> str:
    if "labels" in entry:
        return f"labels {entry['labels']['min']:g} to {entry['labels']['max']:g}, mean {entry['labels']['mean']:g}"
    classes = entry.get("classes")
    if classes is None:
        return "no labels"
    shown = ", ".join(f"{name!r} {count}" for name, count in list(classes.items())[:_SHOWN])
    return shown if len(classes) <= _SHOWN else f"{shown} and {len(classes) - _SHOWN} classes more"


def _losses(entry: Mapping[str, Any], max_seq_length: int) -> list[str]:
    parts = []
    if "cut_by_max_seq_length" in entry:
        cut = entry["cut_by_max_seq_length"]
        count = f"{cut['examples']} ({cut['share']:.1%})" if cut["examples"] else "none"
        parts.append(f"{count} cut by max_seq_length {max_seq_length}")
    for name, text in (
        ("words_without_token", "words without a token, which are predicted as O"),
        ("words_of_entities_without_token", "of them in entities"),
        ("questions_cut_by_max_query_length", "questions cut by max_query_length"),
        ("answers_in_no_window", "answers that no window holds"),
    ):
        if entry.get(name):
            parts.append(f"{entry[name]} {text}")
    return parts


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Format a report for the screen.

    Args:
        report: of `Task.report`.

    Returns:
        A line for every class, and one for strict mode; none where there are too many to read.
    """
    classes = report.get("classes", {})
    if not classes or len(classes) > _SHOWN:
        return []
    width = max(len(repr(name)) for name in classes)
    lines = [
        f"  {name!r:{width}}  precision {f['precision']:.4f}  recall {f['recall']:.4f}  f1 {f['f1']:.4f}  "
        f"of {f['support']}"
        for name, f in classes.items()
    ]
    if "strict" in report:
        f = report["strict"]
        lines.append(
            f"  strictly as {f['scheme']}: precision {f['precision']:.4f}  recall {f['recall']:.4f}  f1 {f['f1']:.4f}"
        )
    return lines

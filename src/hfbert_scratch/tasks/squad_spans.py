"""Windows over long contexts, the search for the best answer spans in them, and the answers made of these."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


# Not in the paper; google-research/bert, run_squad.py, and later scripts.
MAX_ANSWER_LENGTH = 30
N_BEST_SIZE = 20


def windows(length: int, max_tokens: int, stride: int) -> list[tuple[int, int]]:
    """Cut a context into overlapping windows.

    The last window is the first that reaches the end. There is always one, even for a length of 0.

    Args:
        length: tokens of the context.
        max_tokens: tokens of a window, at least 1.
        stride: tokens between the starts of two windows, at least 1; a longer one than `max_tokens` counts as that.

    Returns:
        (start, end) of each window, the end exclusive.
    """
    step = min(max_tokens, stride)
    count = 1 + max(0, -(-(length - max_tokens) // step))
    return [(number * step, min(number * step + max_tokens, length)) for number in range(count)]


def max_context_windows(length: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """Find the window with the most context for every token.

    The score of a token in a window is min(tokens to its left, to its right) + 0.01 · the window's length; the first
    of equal windows wins (google-research/bert, `_check_is_max_context`).

    Args:
        length: tokens of the context.
        spans: its `windows`.

    Returns:
        (length,) numbers of the windows.
    """
    best = np.full(length, -np.inf)
    best_window = np.zeros(length, dtype=np.int64)
    for number, (start, end) in enumerate(spans):
        position = np.arange(end - start)
        score = np.minimum(position, position[::-1]) + 0.01 * (end - start)
        better = score > best[start:end]
        best[start:end][better] = score[better]
        best_window[start:end][better] = number
    return best_window


def answer_tokens(starts: np.ndarray, ends: np.ndarray, first: int, last: int) -> tuple[int, int] | None:
    """Find the smallest run of tokens that covers the characters [first, last).

    Args:
        starts: (tokens,) first character of every token, ascending.
        ends: (tokens,) character after every token, ascending.
        first: first character.
        last: character after the last.

    Returns:
        First and last token, inclusive; None if no token touches the characters.
    """
    begin = int(np.searchsorted(ends, first, side="right"))
    end = int(np.searchsorted(starts, last, side="left")) - 1
    return (begin, end) if begin <= end else None


class Span(NamedTuple):
    """Context tokens start … end (inclusive, counted within the window's context) and their two logits."""

    score: float
    start: int
    end: int
    start_logit: float
    end_logit: float


def best_spans(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    may_start: np.ndarray,
    count: int,
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> list[Span]:
    """Find the spans of the highest start + end logit in one window; the search is exhaustive.

    Args:
        start_logits: (context tokens,).
        end_logits: (context tokens,).
        may_start: (context tokens,) bool, where a span may begin.
        count: number of spans.
        max_answer_length: longest span, in tokens.

    Returns:
        Spans, best first; of equal ones the one that starts, then ends, first.
    """
    length = len(start_logits)
    if not may_start.any():
        return []
    width = min(max_answer_length, length)
    start = np.where(may_start, start_logits.astype(np.float64), -np.inf)
    end = np.concatenate([end_logits.astype(np.float64), np.full(width - 1, -np.inf)])
    # (context tokens, width): scores[i, d] is the span from i to i + d.
    scores = (start[:, None] + np.lib.stride_tricks.sliding_window_view(end, width)).ravel()
    kept = min(count, len(scores))
    # Keep all that reach the lowest kept score: the partition must not decide among equals.
    least = np.partition(scores, len(scores) - kept)[len(scores) - kept]
    candidates = np.flatnonzero(scores >= least)
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:kept]
    order = order[np.isfinite(scores[order])]
    first, last = order // width, order // width + order % width
    columns = (scores[order], first, last, start_logits[first], end_logits[last])
    return [Span(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


class NBest(NamedTuple):
    """An entry of an example's n-best list; the probabilities of a list sum to 1."""

    text: str
    probability: float
    start_logit: float
    end_logit: float


@dataclass
class Answers:
    """Predictions for one split, in the order of its rows.

    Args:
        texts: the best span of each context, "" if there is none.
        differences: (rows,) null score minus the score of that span, +inf if there is none.
        n_best: the best answers of each question, best first; in SQuAD 2.0 with "" for no answer.
        unanswerable: the data are SQuAD 2.0, in which a question may have no answer.
        threshold: difference above which a question counts as unanswerable (SQuAD 2.0).
    """

    texts: list[str]
    differences: np.ndarray
    n_best: list[list[NBest]]
    unanswerable: bool
    threshold: float = 0.0

    def final(self) -> list[str]:
        """Return the answers; in SQuAD 2.0 with "" where the difference is above the threshold."""
        if not self.unanswerable:
            return self.texts
        above = self.differences > self.threshold
        return ["" if null else text for text, null in zip(self.texts, above, strict=True)]


def n_best(texts: list[str], spans: list[Span], null: tuple[float, float] | None) -> list[NBest]:
    """Make an example's n-best list.

    Of equal texts the first stays. Probabilities are a softmax over the list.

    Args:
        texts: the text of every span.
        spans: the spans of all windows, best first.
        null: start and end logit of "no answer", which joins the list as "". None: every question has an answer.

    Returns:
        The entries, best first; a single "" with probability 1 if there are none.
    """
    entries: dict[str, tuple[float, float]] = {}
    for text, span in zip(texts, spans, strict=True):
        entries.setdefault(text, (span.start_logit, span.end_logit))
    if null is not None:
        entries.setdefault("", null)
    if not entries:
        return [NBest("", 1.0, 0.0, 0.0)]
    ordered = sorted(entries.items(), key=lambda entry: -sum(entry[1]))
    scores = np.array([sum(logits) for _, logits in ordered])
    weights = np.exp(scores - scores.max())
    return [
        NBest(text, probability, *logits)
        for (text, logits), probability in zip(ordered, (weights / weights.sum()).tolist(), strict=True)
    ]

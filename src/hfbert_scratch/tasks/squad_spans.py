"""SQuAD's arithmetic on token positions: windows over long contexts, and the search for the best spans in them."""

from typing import NamedTuple

import numpy as np


# The paper does not say; google-research/bert's run_squad.py, like the later scripts.
MAX_ANSWER_LENGTH = 30
N_BEST_SIZE = 20


def windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Windows [start, end) of at most `room` tokens over `length` tokens, their starts `stride` apart.

    The last window is the first that reaches the end. There is always one, also for a length of 0.
    """
    step = min(room, stride)
    count = 1 + max(0, -(-(length - room) // step))
    return [(number * step, min(number * step + room, length)) for number in range(count)]


def max_context_windows(length: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """For each of `length` tokens the number of the window in which it has the most context; shape (length,).

    The score of a token in a window is min(tokens to its left, to its right) + 0.01 · the window's length, and of
    equal windows the first wins (google-research/bert, `_check_is_max_context`).
    """
    best = np.full(length, -np.inf)
    chosen = np.zeros(length, dtype=np.int64)
    for number, (start, end) in enumerate(spans):
        position = np.arange(end - start)
        score = np.minimum(position, position[::-1]) + 0.01 * (end - start)
        better = score > best[start:end]
        best[start:end][better] = score[better]
        chosen[start:end][better] = number
    return chosen


def answer_tokens(starts: np.ndarray, ends: np.ndarray, first: int, last: int) -> tuple[int, int] | None:
    """The smallest run of tokens (first, last inclusive) that covers the characters [first, last).

    starts, ends: the tokens' character offsets, ascending. None if no token touches them.
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
    """The `count` spans of the highest start + end logit in one window, best first; every span is looked at.

    start_logits, end_logits, may_start: (context tokens,); a span has at most max_answer_length tokens and begins
    where may_start. Of equal spans the one that starts, then ends, first comes first.
    """
    length = len(start_logits)
    if not may_start.any():
        return []
    width = min(max_answer_length, length)
    start = np.where(may_start, start_logits.astype(np.float64), -np.inf)
    end = np.concatenate([end_logits.astype(np.float64), np.full(width - 1, -np.inf)])
    # scores[i, d]: the span from i to i + d.
    scores = (start[:, None] + np.lib.stride_tricks.sliding_window_view(end, width)).ravel()
    if count == 1:
        order = np.array([scores.argmax()])
    else:
        kept = min(count, len(scores))
        # All that reach the lowest kept score, so that among equals the order and not the partition decides.
        least = np.partition(scores, len(scores) - kept)[len(scores) - kept]
        candidates = np.flatnonzero(scores >= least)
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:kept]
    order = order[np.isfinite(scores[order])]
    first, last = order // width, order // width + order % width
    columns = (scores[order], first, last, start_logits[first], end_logits[last])
    return [Span(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

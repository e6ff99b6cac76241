"""SQuAD's comparison of answers, shared by the metrics of both versions and the threshold search.

Follows the official evaluation scripts (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822), including
the differences between the versions.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case a text, delete ASCII punctuation and articles, and join blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def score_v1(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Score an answer as SQuAD 1.1 does.

    Two answers that normalize to the empty string match exactly but have an F1 of 0.

    Args:
        prediction: the answer.
        golds: the gold answers; without any, both scores are 0.

    Returns:
        Exact match and F1 in [0, 1], each the best over the gold answers.
    """
    return _best(prediction, golds, both_empty_f1=0.0)


def score_v2(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Score an answer as SQuAD 2.0 does.

    Args:
        prediction: the answer; "" for no answer.
        golds: the gold answers. Those that normalize to the empty string are left out; without others "" is right.

    Returns:
        Exact match and F1 in [0, 1], each the best over the gold answers.
    """
    return _best(prediction, [gold for gold in golds if normalize_answer(gold)] or [""], both_empty_f1=1.0)


def _best(prediction: str, golds: Sequence[str], both_empty_f1: float) -> tuple[float, float]:
    normal = normalize_answer(prediction)
    tokens = normal.split()
    exact = f1 = 0.0
    for gold in golds:
        gold_normal = normalize_answer(gold)
        if normal == gold_normal:
            exact = 1.0
            f1 = max(f1, 1.0 if tokens else both_empty_f1)
        else:
            f1 = max(f1, _f1(tokens, gold_normal.split()))
    return exact, f1


def _f1(tokens: list[str], gold: list[str]) -> float:
    same = sum((Counter(tokens) & Counter(gold)).values())
    if not same:
        return 0.0
    precision, recall = same / len(tokens), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def best_threshold(
    differences: np.ndarray, answered: np.ndarray, unanswered: np.ndarray
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Find the threshold with the best mean score, if an example is answered iff its difference ≤ threshold.

    Candidates are −inf (answer nothing) and every difference; equal differences fall on the same side. The lowest of
    equally good candidates wins.

    Args:
        differences: [n], the null score minus the best answer's score.
        answered: [n], the scores of the examples if they are answered.
        unanswered: [n], the scores of the examples if they are not.

    Returns:
        The threshold, its mean score, all candidates in ascending order, and their mean scores.
    """
    order = np.argsort(differences, kind="stable")
    ordered = differences[order]
    gains = np.cumsum((answered - unanswered)[order])
    last_of_ties = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    # A difference of +inf means that there is no span to answer with.
    last_of_ties &= ordered != np.inf
    thresholds = np.concatenate([[-np.inf], ordered[last_of_ties]])
    scores = (unanswered.sum() + np.concatenate([[0.0], gains[last_of_ties]])) / max(len(ordered), 1)
    best = int(np.argmax(scores))
    return float(thresholds[best]), float(scores[best]), thresholds, scores

"""Scores of several labels per text: F1 over all decisions and over classes, and average precision."""

from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_recall_fscore_support,
)


def multilabel_scores(gold: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray) -> dict[str, float]:
    """Score decisions and the probabilities behind them.

    Args:
        gold: (rows, classes) bool.
        probabilities: (rows, classes).
        thresholds: (classes,) a label is predicted from this probability on.

    Returns:
        f1_micro (over all decisions), f1_macro (mean over classes), subset_accuracy (rows without an error), and
        average_precision (mean over the classes that occur; needs no threshold).
    """
    predicted = probabilities >= thresholds
    occurring = gold.any(axis=0)
    precisions = [average_precision_score(gold[:, c], probabilities[:, c]) for c in np.flatnonzero(occurring)]
    return {
        "f1_micro": float(f1_score(gold, predicted, average="micro", zero_division=0.0)),
        "f1_macro": float(f1_score(gold, predicted, average="macro", zero_division=0.0)),
        "subset_accuracy": float(accuracy_score(gold, predicted)),
        "average_precision": float(np.mean(precisions)) if precisions else 0.0,
    }


def per_label_scores(gold: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Score every class by itself.

    Args:
        gold: (rows, classes) bool.
        predicted: (rows, classes) bool.

    Returns:
        For each class precision, recall and f1, 0 to 1, and support, the number of rows that have it. A score without
        a divisor is 0.
    """
    columns = precision_recall_fscore_support(gold, predicted, average=None, zero_division=0.0)
    return [
        {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for precision, recall, f1, support in zip(*columns, strict=True)
    ]


def best_thresholds(gold: np.ndarray, probabilities: np.ndarray, default: float) -> np.ndarray:
    """Find for every class the threshold of the highest F1.

    Args:
        gold: (rows, classes) bool.
        probabilities: (rows, classes).
        default: threshold of a class that no row or every row has: there is nothing to tune on.

    Returns:
        (classes,) thresholds, halfway between the two probabilities that they separate.
    """
    thresholds = np.full(gold.shape[1], default)
    for number in range(gold.shape[1]):
        labels, scores = gold[:, number], probabilities[:, number]
        if labels.all() or not labels.any():
            continue
        precision, recall, candidates = precision_recall_curve(labels, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = candidates[int(f1[:-1].argmax())]
        below = scores[scores < best]
        thresholds[number] = (best + below.max()) / 2 if len(below) else best
    return thresholds

"""Paired differences between two ways of training, with intervals over seeds and examples.

The procedure is MultiBERTs' (Sellam et al. 2021, arXiv:2106.16163): both sides share their seeds and their examples;
a draw resamples the seeds and, independently, the examples, both with replacement and for both sides alike, and its
value is the difference of the mean scores. Two things are added for the few seeds one can pay for. The spread over
seeds is scaled by √(S / (S − 1)), for S resampled values spread less than the values they are drawn from. And the
interval is estimate ± t · (standard deviation of the draws), with the degrees of freedom of Welch and Satterthwaite
for a part that comes from S seeds and one that comes from many examples; with three seeds a percentile interval would
cover about three quarters in place of 95 %. Where a seed's luck differs from example to example, the interval errs on
the long side: that part counts among the seeds and among the examples.

Scores need not be means of examples: an example contributes a row of numbers, and the score is a function of their
sums. So a draw over examples is a product of matrices for accuracy, F1, and correlations alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, t

from ..utils.errors import InputError


CONFIDENCE = 0.95
# Draws: the interval's ends then move by about 2 % of its length from one random seed to another.
DRAWS = 2000
# Draws over examples at a time: bounds the memory for any number of draws.
_CHUNK = 100
# Looked at for how many seeds would decide.
_MOST_SEEDS = 1000


def mean_rows(values: np.ndarray) -> np.ndarray:
    """Return the rows of a score that is a mean over examples.

    Args:
        values: (examples,) the score of each example.

    Returns:
        (examples, 2) float64, for "mean" in FROM_SUMS.
    """
    values = np.asarray(values, dtype=np.float64)
    return np.stack([values, np.ones_like(values)], axis=-1)


def f1_rows(true_positives: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the rows of F1 = 2·TP / (2·TP + FP + FN).

    Args:
        true_positives: (examples,) TP of each example.
        errors: (examples,) FP + FN of each example.

    Returns:
        (examples, 2) float64, for "f1" in FROM_SUMS.
    """
    return np.stack([true_positives, errors], axis=-1).astype(np.float64)


def matthews_rows(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return the rows of the Matthews correlation of two classes.

    Args:
        labels: (examples,) 0 or 1.
        predictions: (examples,) 0 or 1.

    Returns:
        (examples, 6) float64, for "correlation" in FROM_SUMS.
    """
    return pearson_rows(labels, predictions)  # it is their Pearson correlation


def pearson_rows(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return the rows of Pearson's correlation: moments of both, centred for precision.

    Args:
        labels: (examples,) numbers.
        predictions: (examples,) numbers.

    Returns:
        (examples, 6) float64, for "correlation" in FROM_SUMS.
    """
    x, y = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in (labels, predictions))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def spearman_rows(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return the rows of Spearman's correlation; ranks are those among all examples, also in a draw.

    Args:
        labels: (examples,) numbers.
        predictions: (examples,) numbers.

    Returns:
        (examples, 6) float64, for "correlation" in FROM_SUMS.
    """
    return pearson_rows(rankdata(labels), rankdata(predictions))


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _f1(sums: np.ndarray) -> np.ndarray:
    doubled = 2 * sums[..., 0]
    return np.divide(doubled, doubled + sums[..., 1], out=np.zeros_like(doubled), where=doubled > 0)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    covariance, variances = n * xy - x * y, (n * xx - x * x) * (n * yy - y * y)
    constant = variances <= 1e-12 * np.maximum(n * xx * n * yy, 1e-300)
    return np.where(constant, 0.0, covariance / np.sqrt(np.where(constant, 1.0, variances)))


# Metric → score from the sums of the examples' rows, (…, numbers) → (…).
FROM_SUMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _ratio,
    "f1": _f1,
    "correlation": _pearson,
}


@dataclass(frozen=True)
class ExampleScores:
    """The examples' rows of one way of training on one task.

    Args:
        rows: (seeds, examples, numbers).
        metric: one of FROM_SUMS.
    """

    rows: np.ndarray
    metric: str

    def per_seed(self) -> np.ndarray:
        """Return the score of every seed, (seeds,)."""
        return FROM_SUMS[self.metric](self.rows.sum(axis=1))


@dataclass(frozen=True)
class PairedDifference:
    """A difference of mean scores, with its interval and verdict.

    Attributes:
        difference: over all seeds and examples.
        low, high: the ends of its 95 % interval.
        seeds: their number.
        more_seeds: about as many more would decide; 0 if it is decided, None if no number would: the examples are too
            few for so small a difference.
    """

    difference: float
    low: float
    high: float
    seeds: int
    more_seeds: int | None

    @property
    def is_decided(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    pairs: Sequence[tuple[ExampleScores, ExampleScores]], *, draws: int = DRAWS, seed: int = 0
) -> PairedDifference:
    """Compare two ways of training by the mean of their differences over tasks, ours − theirs.

    Args:
        pairs: for each task (ours, theirs), with the same seeds and examples in the same order. Tasks share their
            seeds and nothing else.
        draws: number of draws, at least 2.
        seed: of the draws.

    Returns:
        The difference, its 95 % interval, and the number of further seeds that would decide.

    Raises:
        InputError: for fewer than two seeds, or sides that do not match.
    """
    seeds = {side.rows.shape[0] for pair in pairs for side in pair}
    if len(seeds) != 1 or any(ours.rows.shape != theirs.rows.shape for ours, theirs in pairs):
        raise InputError("paired sides must have the same seeds and examples")
    (count,) = seeds
    if count < 2:
        raise InputError("one seed says nothing about others; give at least two")
    rng = np.random.default_rng(seed)
    # (draws, seeds): the difference of every seed on the draw's examples, and on all of them.
    drawn = np.mean([_over_examples(pair, draws, rng) for pair in pairs], axis=0)
    observed = np.mean([ours.per_seed() - theirs.per_seed() for ours, theirs in pairs], axis=0)
    shares = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
    mean_of_seeds = drawn.mean(axis=1)
    spread = math.sqrt(count / (count - 1)) * ((shares - 1 / count) * drawn).sum(axis=1)
    of_examples, total = mean_of_seeds.var(ddof=1), (mean_of_seeds + spread).var(ddof=1)
    of_seeds = max(total - of_examples, 0.0)
    examples = min(ours.rows.shape[1] for ours, _ in pairs)
    half = _half_width(of_seeds, count, of_examples, examples)
    difference = float(observed.mean())
    return PairedDifference(
        difference=difference,
        low=difference - half,
        high=difference + half,
        seeds=count,
        more_seeds=_more_seeds(abs(difference), of_seeds, count, of_examples, examples),
    )


def _over_examples(pair: tuple[ExampleScores, ExampleScores], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the difference of every seed on resampled examples, (draws, seeds)."""
    count = pair[0].rows.shape[1]
    differences = []
    for begin in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - begin)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        ours, theirs = (
            FROM_SUMS[side.metric](np.einsum("de,sek->dsk", weights, side.rows, optimize=True)) for side in pair
        )
        differences.append(ours - theirs)
    return np.concatenate(differences)


def _half_width(of_seeds: float, seeds: int, of_examples: float, examples: int) -> float:
    """Return half the interval's length from the two parts of the variance."""
    total = of_seeds + of_examples
    if total <= 0:
        return 0.0
    freedom = total**2 / (of_seeds**2 / (seeds - 1) + of_examples**2 / max(examples - 1, 1))
    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(total))


def _more_seeds(difference: float, of_seeds: float, seeds: int, of_examples: float, examples: int) -> int | None:
    """Return how many more seeds would decide if the difference stays as it is; None if none would."""
    for number in range(seeds, _MOST_SEEDS + 1):
        if _half_width(of_seeds * seeds / number, number, of_examples, examples) < difference:
            return number - seeds
    return None

"""The paired bootstrap: a plain reimplementation's numbers, and intervals that cover."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from scipy.stats import t as student
from sklearn.metrics import f1_score, matthews_corrcoef

from hfbert_scratch.metrics.bootstrap import (
    FROM_SUMS,
    ExampleScores,
    f1_rows,
    matthews_rows,
    mean_rows,
    paired_bootstrap,
    pearson_rows,
    spearman_rows,
)
from hfbert_scratch.utils.errors import InputError


def accuracies(rng, seeds, examples, effect, seed_spread=0.02):
    """Right answers of two arms: examples of differing difficulty, seeds of differing luck, a known effect."""
    difficulty = rng.normal(0, 1, examples)
    luck = rng.normal(0, seed_spread, (seeds, 2))
    noise = rng.normal(0, 0.3, (2, seeds, examples))
    thresholds = 0.5 + luck.T[:, :, None] + np.array([effect / 2, -effect / 2])[:, None, None]
    return tuple(ExampleScores(mean_rows(side), "mean") for side in (difficulty + noise < thresholds).astype(float))


def plain_bootstrap(ours, theirs, draws):
    """Loops over draws, seeds and examples, and the interval's formula once more."""
    rng = np.random.default_rng(5)
    seeds, examples, _ = ours.rows.shape

    def score(side, seed, chosen):
        return FROM_SUMS[side.metric](side.rows[seed, chosen].sum(axis=0))

    values, of_examples = [], []
    everyone = range(seeds)
    for _ in range(draws):
        chosen = rng.integers(0, examples, examples)
        differences = [score(ours, seed, chosen) - score(theirs, seed, chosen) for seed in everyone]
        mean = np.mean(differences)
        resampled = np.mean([differences[seed] for seed in rng.integers(0, seeds, seeds)])
        of_examples.append(mean)
        values.append(mean + np.sqrt(seeds / (seeds - 1)) * (resampled - mean))
    whole = range(examples)
    observed = np.mean([score(ours, s, whole) - score(theirs, s, whole) for s in everyone])
    total, example_part = np.var(values, ddof=1), np.var(of_examples, ddof=1)
    seed_part = total - example_part
    freedom = total**2 / (seed_part**2 / (seeds - 1) + example_part**2 / (examples - 1))
    half = student.ppf(0.975, freedom) * np.sqrt(total)
    return observed, observed - half, observed + half


def test_it_is_the_plain_reimplementation():
    ours, theirs = accuracies(np.random.default_rng(0), seeds=4, examples=120, effect=0.1)
    result = paired_bootstrap([(ours, theirs)], draws=4000)
    difference, low, high = plain_bootstrap(ours, theirs, draws=4000)
    assert result.difference == pytest.approx(difference, abs=1e-12)
    length = high - low
    assert result.low == pytest.approx(low, abs=0.08 * length)
    assert result.high == pytest.approx(high, abs=0.08 * length)


@pytest.mark.parametrize(("seeds", "seed_spread"), [(3, 0.15), (3, 0.0), (8, 0.08)])
def test_intervals_cover(seeds, seed_spread):
    """100 worlds with a known effect: 95 % less 3.5 standard errors is 87 %.

    They cover more: noise of a seed on an example counts both among seeds and among examples.
    """
    rng = np.random.default_rng(1)
    # What both arms reach on endlessly many examples and seeds.
    ours, theirs = accuracies(np.random.default_rng(2), 200, 2000, 0.1, seed_spread)
    truth = ours.per_seed().mean() - theirs.per_seed().mean()
    covered = 0
    for _ in range(100):
        result = paired_bootstrap([accuracies(rng, seeds, 100, 0.1, seed_spread)], draws=100)
        covered += result.low <= truth <= result.high
    assert covered >= 87, covered


def test_a_difference_that_seeds_decide_asks_for_about_so_many():
    rng = np.random.default_rng(3)
    undecided = paired_bootstrap([accuracies(rng, 3, 400, 0.3, seed_spread=0.12)])
    assert not undecided.is_decided and undecided.more_seeds > 0
    nothing = paired_bootstrap([accuracies(rng, 3, 50, 0.0001, seed_spread=0.0)])
    assert not nothing.is_decided and nothing.more_seeds != 0
    clear = paired_bootstrap([accuracies(rng, 5, 400, 0.6)])
    assert clear.is_decided and clear.more_seeds == 0 and clear.low > 0


def test_several_tasks_share_the_seeds_and_are_averaged():
    rng = np.random.default_rng(4)
    tasks = [accuracies(rng, 4, examples, 0.2) for examples in (100, 300)]
    apart = [paired_bootstrap([pair]).difference for pair in tasks]
    together = paired_bootstrap(tasks)
    assert together.difference == pytest.approx(np.mean(apart), abs=1e-12)


def test_scores_from_sums_are_the_metrics():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 2, (2, 80))
    numbers, guesses = rng.normal(size=(2, 80)) + 50
    right, wrong = (labels & answers).astype(float), (labels != answers).astype(float)
    for rows, metric, expected in (
        (mean_rows(labels == answers), "mean", np.mean(labels == answers)),
        (f1_rows(right, wrong), "f1", f1_score(labels, answers)),
        (matthews_rows(labels, answers), "correlation", matthews_corrcoef(labels, answers)),
        (pearson_rows(numbers, guesses), "correlation", pearsonr(numbers, guesses).statistic),
        (spearman_rows(numbers, guesses), "correlation", spearmanr(numbers, guesses).statistic),
        (pearson_rows(numbers, np.full(80, 3.0)), "correlation", 0.0),
        (f1_rows(np.zeros(3), np.ones(3)), "f1", 0.0),
    ):
        assert ExampleScores(rows[None], metric).per_seed() == pytest.approx([expected], abs=1e-9)


def test_sides_that_cannot_be_paired_are_refused():
    rng = np.random.default_rng(0)
    three, two, one = (accuracies(rng, seeds, 20, 0.1) for seeds in (3, 2, 1))
    for pair, message in (((three[0], two[0]), "the same seeds"), (one, "at least two")):
        with pytest.raises(InputError, match=message):
            paired_bootstrap([pair])

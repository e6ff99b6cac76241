"""The pictures a run leaves behind. Without matplotlib it leaves none, and says so."""

import gc
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from .files import atomic, writing


Parameters = ParamSpec("Parameters")


def _picture(draw: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Import matplotlib when a picture is drawn, and go on without the picture where it is not installed."""

    @wraps(draw)
    def drawn(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        try:
            import matplotlib

            matplotlib.use("Agg")  # no display needed
        except ModuleNotFoundError:
            path = next(value for value in (*arguments, *options.values()) if isinstance(value, Path))
            print(f"note: no {path.name}, as matplotlib is not installed: pip install matplotlib")
            return
        draw(*arguments, **options)

    return drawn


class LiveCurves:
    """Draw a run's curves while it goes on, in at most a twentieth of its time.

    A call draws when twenty times as much time has passed since the last drawing as that one took. The first import
    of matplotlib and the first drawing take about a second, so that the first 20 seconds of a run draw nothing.

    Args:
        draw: draws the picture.
    """

    SHARE = 20

    def __init__(self, draw: Callable[[], None]) -> None:
        self.draw, self._cost, self._drawn = draw, 1.0, time.monotonic()

    def __call__(self) -> None:
        """Draw, unless it is too early."""
        start = time.monotonic()
        if start - self._drawn >= self.SHARE * self._cost:
            self.draw()
            gc.collect()  # a figure's parts refer to each other, and training leaves the collector little to do
            self._drawn = time.monotonic()
            self._cost = self._drawn - start


@_picture
def draw_curves(history: list[dict[str, Any]], baseline: dict[str, Any], path: Path) -> None:
    """Draw pretraining: MLM loss and accuracy against the unigram baseline, and NSP accuracy where there is NSP.

    Args:
        history: the run's log: entries with `step` and any of the metrics.
        baseline: `loss` in nats and `accuracy`, 0 to 1, of token counts.
        path: the file, a PNG.
    """
    has_nsp = any("eval_next_sentence_accuracy" in entry for entry in history)
    figure, axes = _subplots(1, 2 + has_nsp, figsize=(5 * (2 + has_nsp), 4), layout="constrained")
    # Without NSP the log has one loss in training, which is the MLM loss.
    loss = "masked_lm_loss" if any("masked_lm_loss" in entry for entry in history) else "loss"
    _line(axes[0], history, loss, "training", linewidth=0.8)
    _line(axes[0], history, "eval_masked_lm_loss", "held out", marker="o", markersize=3)
    _line(axes[0], history, "also_masked_lm_loss", "also evaluated", marker="s", markersize=3)
    axes[0].axhline(baseline["loss"], color="grey", linestyle="--", label="unigram")
    axes[0].set(title="masked LM loss (nats)", xlabel="step")
    _line(axes[1], history, "eval_masked_lm_accuracy", "held out", marker="o", markersize=3)
    axes[1].axhline(baseline["accuracy"], color="grey", linestyle="--", label="unigram")
    axes[1].set(title="masked LM accuracy", xlabel="step", ylim=(0, None))
    if has_nsp:
        _line(axes[2], history, "eval_next_sentence_accuracy", "held out", marker="o", markersize=3)
        axes[2].axhline(0.5, color="grey", linestyle="--", label="chance")
        axes[2].set(title="next sentence accuracy", xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


def _subplots(*arguments: Any, **options: Any) -> Any:
    from matplotlib import pyplot

    return pyplot.subplots(*arguments, **options)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with writing(path), atomic(path) as file:  # a viewer never reads half a picture
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def _line(axis: Any, history: list[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, **style)


@_picture
def draw_finetuning_curves(history: list[dict[str, Any]], metric: str, baseline: float, path: Path) -> None:
    """Draw fine-tuning: loss in training and on validation, and the main metric against the most frequent answer.

    Args:
        history: the run's log: entries with `step`, and `loss`, `eval_loss` or `eval_<metric>`.
        metric: name of the main metric.
        baseline: the metric of the most frequent answer.
        path: the file, a PNG.
    """
    figure, axes = _subplots(1, 2, figsize=(10, 4), layout="constrained")
    _line(axes[0], history, "loss", "training", linewidth=0.8)
    _line(axes[0], history, "eval_loss", "validation", marker="o", markersize=3)
    axes[0].set(title="loss", xlabel="step")
    _line(axes[1], history, f"eval_{metric}", "validation", marker="o", markersize=3)
    axes[1].axhline(baseline, color="grey", linestyle="--", label="most frequent answer")
    axes[1].set(title=metric, xlabel="step")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


@_picture
def draw_confusion_matrix(gold: list[str], predicted: list[str], names: list[str], path: Path) -> None:
    """Draw how often each class (row) was predicted as each (column), the share of the row as the shade.

    Args:
        gold: the class of every example.
        predicted: the predicted class of every example.
        names: all classes in the order of rows and columns. Up to 20, cells show counts.
        path: the file, a PNG.
    """
    counts = [[0] * len(names) for _ in names]
    places = {name: number for number, name in enumerate(names)}
    for right, said in zip(gold, predicted, strict=True):
        counts[places[right]][places[said]] += 1
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    size = max(4.0, 0.6 * len(names) + 2)
    figure, axis = _subplots(figsize=(size, size), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:  # more do not leave room for figures
        for row, column in ((row, column) for row in range(len(names)) for column in range(len(names))):
            color = "white" if shares[row][column] > 0.6 else "black"
            axis.text(column, row, str(counts[row][column]), ha="center", va="center", color=color)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="label")
    _save(figure, path)


@_picture
def draw_precision_recall(gold: Any, probabilities: Any, names: list[str], path: Path) -> None:
    """Draw precision against recall of every label that occurs.

    Args:
        gold: (rows, classes) bool.
        probabilities: (rows, classes).
        names: the classes.
        path: the file, a PNG.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axis = _subplots(figsize=(6, 5), layout="constrained")
    for number, name in enumerate(names):
        if gold[:, number].any():
            precision, recall, _ = precision_recall_curve(gold[:, number], probabilities[:, number])
            average = average_precision_score(gold[:, number], probabilities[:, number])
            axis.plot(recall, precision, drawstyle="steps-post", label=f"{name} ({average:.2f})")
    axis.set(xlabel="recall", ylabel="precision", title="validation, average precision in brackets", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    _save(figure, path)


@_picture
def draw_threshold_curve(thresholds: Any, f1: Any, best: float, path: Path) -> None:
    """Draw SQuAD 2.0's F1 against the threshold on the null score's lead, above which there is no answer.

    Args:
        thresholds: (n,) ascending.
        f1: (n,) 0 to 100.
        best: the tuned threshold.
        path: the file, a PNG.
    """
    figure, axis = _subplots(figsize=(6, 4), layout="constrained")
    axis.plot(thresholds, f1, drawstyle="steps-post")
    axis.axvline(0.0, color="grey", linestyle=":", label="0, the default")
    axis.axvline(best, color="black", linestyle="--", label=f"best: {best:.2f} (tuned on these questions)")
    axis.set(xlabel="threshold on null score − best answer's score", ylabel="F1", title="SQuAD 2.0, validation")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


@_picture
def draw_comparison(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the scores of models as points, one a seed, and their means, a panel for each task.

    Args:
        entries: one for each model and task, with `model`, `task`, `metric`, the seeds' `scores`, and their `mean`.
        path: the file, a PNG.
    """
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    size = (4 * len(tasks) + 1, 0.5 * len(models) + 2)
    figure, axes = _subplots(1, len(tasks), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis, task in zip(axes[0], tasks, strict=True):
        for entry in (entry for entry in entries if entry["task"] == task):
            place = models.index(entry["model"])
            axis.plot(entry["scores"], [place] * len(entry["scores"]), "o", color="tab:blue", alpha=0.6)
            axis.vlines(entry["mean"], place - 0.3, place + 0.3, color="black")
            axis.set(title=task, xlabel=entry["metric"])
        axis.set_yticks(range(len(models)), models)
        axis.grid(alpha=0.3)
    axes[0][0].invert_yaxis()  # of all: they share it
    _save(figure, path)


@_picture
def draw_histograms(histograms: dict[str, dict[str, int]], path: Path) -> None:
    """Draw counts by name as bars, a panel for each histogram; `histograms` maps titles to them."""
    figure, axes = _subplots(1, len(histograms), figsize=(5 * len(histograms), 4), layout="constrained", squeeze=False)
    for axis, (title, counts) in zip(axes[0], histograms.items(), strict=True):
        axis.bar(range(len(counts)), list(counts.values()))
        axis.set_xticks(range(len(counts)), list(counts), rotation=60, ha="right")
        axis.set(title=title, ylabel="count")
        axis.grid(axis="y", alpha=0.3)
    _save(figure, path)


@_picture
def draw_sweep(trials: list[dict[str, Any]], metric: str, baseline: float, path: Path) -> None:
    """Draw every trial's score by setting, degenerate ones as crosses, and each setting's mean as a bar.

    Args:
        trials: each with `setting`, `score`, which is None for one that diverged, and `degenerate`.
        metric: name of the score.
        baseline: the score of the most frequent answer.
        path: the file, a PNG.
    """
    settings = list(dict.fromkeys(trial["setting"] for trial in trials))
    figure, axis = _subplots(figsize=(max(6.0, 0.5 * len(settings) + 3), 4.5), layout="constrained")
    for place, setting in enumerate(settings):
        scores = [t["score"] for t in trials if t["setting"] == setting and t["score"] is not None]
        if not scores:
            continue  # all diverged
        axis.hlines(sum(scores) / len(scores), place - 0.3, place + 0.3, color="black")
        for degenerate, marker in ((False, "o"), (True, "x")):
            shown = [t["score"] for t in trials if t["setting"] == setting and t["degenerate"] == degenerate]
            axis.plot([place] * len(shown), shown, marker, color="tab:red" if degenerate else "tab:blue", alpha=0.6)
    axis.axhline(baseline, color="grey", linestyle="--", label="most frequent answer")
    axis.set_xticks(range(len(settings)), settings, rotation=60, ha="right")
    axis.set(ylabel=f"{metric} on validation", title=f"{len(trials)} trials")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


@_picture
def draw_differences(comparisons: list[dict[str, Any]], path: Path) -> None:
    """Draw paired differences with their intervals, filled where one excludes 0, and the paper's as crosses.

    Args:
        comparisons: each with `label`, `difference`, `low` and `high`, in points, and `paper`, which may be None.
        path: the file.
    """
    figure, axis = _subplots(figsize=(8, 0.4 * len(comparisons) + 1.6), layout="constrained")
    for place, comparison in enumerate(comparisons):
        difference, low, high = (comparison[name] for name in ("difference", "low", "high"))
        decided = low > 0 or high < 0
        axis.plot([low, high], [place, place], color="tab:blue")
        axis.plot(difference, place, "o", color="tab:blue", markerfacecolor="tab:blue" if decided else "white")
        if comparison["paper"] is not None:
            axis.plot(comparison["paper"], place, "x", color="tab:red")
    axis.axvline(0.0, color="grey", linestyle="--")
    axis.set_yticks(range(len(comparisons)), [comparison["label"] for comparison in comparisons])
    axis.invert_yaxis()
    axis.set(xlabel="difference in points, 95 % interval\n● decided   ○ undecided   × the paper's")
    axis.grid(alpha=0.3)
    _save(figure, path)


@_picture
def draw_bands(panels: dict[str, dict[str, dict[float, list[float]]]], xlabel: str, path: Path) -> None:
    """Draw scores against a number, one panel a task: a line through the means over seeds, a band to the extremes.

    Args:
        panels: task → line → number → the score of each seed.
        xlabel: the name of the number.
        path: the file.
    """
    figure, axes = _subplots(1, len(panels), figsize=(5 * len(panels), 4), layout="constrained", squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, points in lines.items():
            numbers = sorted(points)
            means = [sum(points[number]) / len(points[number]) for number in numbers]
            axis.plot(numbers, means, marker="o", label=label)
            axis.fill_between(numbers, [min(points[n]) for n in numbers], [max(points[n]) for n in numbers], alpha=0.2)
        axis.set(title=title, xlabel=xlabel)
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


@_picture
def draw_arms(panels: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw the score of every seed of every arm as a point, one panel a task, and the mean of an arm as a line.

    Args:
        panels: task → arm → the score of each seed.
        path: the file.
    """
    arms = list(next(iter(panels.values())))
    size = (4 * len(panels) + 2, 0.4 * len(arms) + 1.6)
    figure, axes = _subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis, (title, scores) in zip(axes[0], panels.items(), strict=True):
        for place, arm in enumerate(arms):
            if scores[arm]:
                axis.plot(scores[arm], [place] * len(scores[arm]), "o", color="tab:blue", alpha=0.6)
                axis.vlines(sum(scores[arm]) / len(scores[arm]), place - 0.3, place + 0.3, color="black")
        axis.set(title=title, xlabel="score; a point a seed, a bar their mean")
        axis.grid(alpha=0.3)
    axes[0][0].set_yticks(range(len(arms)), arms)
    axes[0][0].invert_yaxis()
    _save(figure, path)

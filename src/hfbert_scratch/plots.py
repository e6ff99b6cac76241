"""The pictures a run leaves behind."""

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt  # noqa: E402


def draw_curves(history: list[dict[str, Any]], baseline: dict[str, Any], path: Path) -> None:
    """Draw pretraining: MLM loss and accuracy against the unigram baseline, and NSP accuracy where there is NSP."""
    has_nsp = any("eval_next_sentence_accuracy" in entry for entry in history)
    figure, axes = plt.subplots(1, 2 + has_nsp, figsize=(5 * (2 + has_nsp), 4), layout="constrained")
    _line(axes[0], history, "masked_lm_loss", "training", linewidth=0.8)
    _line(axes[0], history, "eval_masked_lm_loss", "held out", marker="o", markersize=3)
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
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(axis: Any, history: list[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, **style)

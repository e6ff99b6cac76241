"""The records of a finished run, read for its model card."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.configuration_hfbert import HEADS
from ..model.loading import short_name
from ..tasks import get_task
from ..utils.errors import InputError
from ..utils.files import read_json
from .finetunings import TaskScores, read_finetunings


# The Hub's task of each head, https://huggingface.co/tasks.
PIPELINES = {
    "HFBertModel": "feature-extraction",
    "HFBertForPreTraining": "fill-mask",
    "HFBertForMaskedLM": "fill-mask",
    "HFBertForNextSentencePrediction": "text-classification",
    "HFBertForSequenceClassification": "text-classification",
    "HFBertForTokenClassification": "token-classification",
    "HFBertForQuestionAnswering": "question-answering",
    "HFBertForMultipleChoice": "multiple-choice",
}


@dataclass(frozen=True)
class Result:
    """A measured score.

    Attributes:
        metric: the Hub's name of the metric.
        title: task and metric, for people.
        split: the split it was measured on.
        value: the model's score.
        baseline: the score of the most frequent answer, or of token counts alone.
    """

    metric: str
    title: str
    split: str
    value: float
    baseline: float | None = None

    def format(self, value: float | None) -> str:
        """Format a value of this metric: shares in per cent, others with three digits.

        Args:
            value: a share is given from 0 to 1. None: the result is "".
        """
        if value is None:
            return ""
        is_share = self.metric in ("accuracy", "f1", "exact_match", "precision", "recall")
        return f"{100 * value:.1f} %" if is_share else f"{value:.3f}"


@dataclass(frozen=True)
class FinishedRun:
    """A run's records.

    Attributes:
        directory: the run's directory.
        record: record.json.
        results: results.json of a fine-tuning run, None for a pretraining run.
        config: the model's config.json.
        finetunings: scores of the tasks that the model was fine-tuned on.
    """

    directory: Path
    record: dict[str, Any]
    results: dict[str, Any] | None
    config: dict[str, Any]
    finetunings: tuple[TaskScores, ...] = ()

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def head(self) -> str:
        return self.config["architectures"][0]

    @property
    def auto_class(self) -> str:
        return next(auto_class for auto_class, head in HEADS.items() if head == self.head)

    @property
    def start(self) -> str | None:
        """The model that training started from, None for random weights."""
        return self.record["arguments"].get("model")

    @property
    def start_name(self) -> str:
        """The start's name for people."""
        return "random weights" if self.start is None else short_name(self.start)

    @property
    def hub_dataset(self) -> tuple[str, str | None] | None:
        """The Hub's data set and configuration of a known task; None for pretraining and the user's own data."""
        if self.results is None or self.record["arguments"].get("dataset"):
            return None
        return get_task(self.results["task"]).hub

    @property
    def date(self) -> str:
        return self.record["written"][:10]

    @property
    def hours(self) -> float:
        """Hours of training."""
        return self.record["seconds"] / 3600

    @property
    def settings(self) -> dict[str, Any]:
        """The run's arguments, with the hyperparameters a task chose and the steps a schedule by time had."""
        by_time = self.record["arguments"].get("schedule") == "time"
        steps = {"max_steps": self.record["steps"]} if by_time else {}
        return self.record["arguments"] | ((self.results or {}).get("hyperparameters") or {}) | steps

    @property
    def plots(self) -> list[str]:
        """The names of the run's plots: its curves, and what its task draws."""
        names = ["curves.png", None if self.results is None else get_task(self.results["task"]).plot]
        return [name for name in names if name is not None and (self.directory / name).is_file()]

    def held_out_results(self) -> list[Result]:
        """Return all held-out results, the main one first."""
        if self.results is None:
            return _pretraining_results(self.record)
        main, task = self.results["main_metric"], self.results["task"]
        label, baselines = get_task(task).metric_label, self.results["majority_baseline"]
        results = [
            Result(metric, f"{task} {label(metric)}", split, value, baselines[split].get(metric))
            for split, scores in self.results["scores"].items()
            for metric, value in scores.items()
            if metric != "loss"
        ]
        return sorted(results, key=lambda result: (result.metric, result.split) != (main["name"], main["split"]))


def open_run(directory: str | Path, finetunings: Sequence[str] = ()) -> FinishedRun:
    """Read the records of a finished pretraining or fine-tuning run.

    Args:
        directory: the run's output directory.
        finetunings: output directories of fine-tunings of its model.

    Raises:
        InputError: if `directory` is not such a run, if the run is not finished, if it holds no model of ours, or if
            a fine-tuning is not one of this model (see `read_finetunings`).
    """
    path = Path(directory)
    if not (path / "record.json").is_file():
        raise InputError(f"{path} is not the directory of a run: it has no record.json")
    record = read_json(path / "record.json", "the run's record")
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict) or "settings" not in record:
        raise InputError(f"{path / 'record.json'} is not the record of a training run")
    if record.get("status") != "done":
        raise InputError(f"the run in {path} is not finished; start it again with the same command to continue it")
    if not (path / "model" / "config.json").is_file():
        raise InputError(f"{path} has no model/ to publish; this kind of run leaves none")
    config = read_json(path / "model" / "config.json", "the model's configuration")
    heads = config.get("architectures") if isinstance(config, dict) else None
    if not heads or heads[0] not in PIPELINES:
        raise InputError(f"{path / 'model' / 'config.json'} names no model of this package (architectures: {heads})")
    results = None
    if "baseline" not in record:
        results = read_json(path / "results.json", "the results of a fine-tuning run")
    elif "eval_masked_lm_loss" not in record.get("results", {}):
        raise InputError(f"{path / 'record.json'} holds no evaluation; a run without one has no results to publish")
    return FinishedRun(path, record, results, config, read_finetunings(finetunings, path / "model"))


def _pretraining_results(record: dict[str, Any]) -> list[Result]:
    scores, baseline = record["results"], record["baseline"]
    loss, accuracy = scores["eval_masked_lm_loss"], scores["eval_masked_lm_accuracy"]
    perplexity, baseline_perplexity = math.exp(loss), math.exp(baseline["loss"])
    results = [
        Result("accuracy", "masked LM accuracy", "held out", accuracy, baseline["accuracy"]),
        Result("loss", "masked LM loss (nats)", "held out", loss, baseline["loss"]),
        Result("perplexity", "masked LM perplexity", "held out", perplexity, baseline_perplexity),
    ]
    if "eval_next_sentence_accuracy" in scores:
        value = scores["eval_next_sentence_accuracy"]
        results.append(Result("accuracy", "next sentence accuracy", "held out", value, 0.5))
    return results

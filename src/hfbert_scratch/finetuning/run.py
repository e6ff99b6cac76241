"""A fine-tuning run: open, train, score the best step, write the results; or say beforehand what it would take."""

import dataclasses
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..evaluation import (
    Examples,
    TaskData,
    call_model,
    evaluate,
    load_for_task,
    majority_baseline,
    predict,
    run_model,
    task_loss,
    without_warnings,
    write_task_file,
)
from ..model.configuration_hfbert import HFBertConfig
from ..model.loading import check_directory, check_fits
from ..tasks import get_task, report_lines
from ..text.tokenizer import load_any_tokenizer, save_tokenizer, tokenizer_hash
from ..training.arguments import AUTO
from ..training.estimate import Estimate, Rehearsal, Stretch, time_steps
from ..training.fsdp import load_weights, summon_full_params
from ..training.loop import prepare, train
from ..training.micro_batches import fit_micro_batch_size
from ..training.run import Run
from ..utils.environment import hardware, hub_commits, versions
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.plots import LiveCurves, draw_finetuning_curves
from .arguments import FinetuningArguments
from .batches import FinetuningBatches, model_inputs
from .class_weights import class_weights


# Validation examples on which an evaluation is timed.
_TIMED_EXAMPLES = 512


def open_task(arguments: FinetuningArguments) -> TaskData:
    """Load the data of `arguments.task`, with the model's tokenizer.

    Args:
        arguments: the run's.

    Returns:
        The data, for `fine_tune`.

    Raises:
        InputError: for an unknown task, unusable data, or data without a training or a validation split.
    """
    task = get_task(arguments.task)
    if "train" not in task.splits:
        raise InputError(
            f"{task.name} has only a test set; predict it with hfbert evaluate and a model trained on mnli"
        )
    check_directory(arguments.model)
    data = TaskData(task, arguments, load_any_tokenizer(arguments.model), arguments.feature_settings(task))
    data.check_training()
    _check_choices(arguments, data)
    return data


def _check_choices(arguments: FinetuningArguments, data: TaskData) -> None:
    """Refuse class weights and a metric that the task does not have, before any model is opened."""
    if arguments.class_weights:
        class_weights(data, arguments.class_weights)
    if arguments.metric_for_best:
        metrics = [*majority_baseline(data.task, data.raw["train"], data.raw["validation"]), "loss"]
        if arguments.metric_for_best not in metrics:
            raise InputError(
                f"--metric_for_best {arguments.metric_for_best}: {data.task.name} reports {', '.join(metrics)}"
            )


def fine_tune(
    arguments: FinetuningArguments,
    data: TaskData | None = None,
    *,
    save_model: bool = True,
    end_training: bool = True,
) -> dict[str, Any] | None:
    """Fine-tune a checkpoint, keep the step that is best on validation, and write everything to output_dir.

    Args:
        arguments: checkpoint, task, data, hyperparameters, output_dir.
        data: of `open_task`, for several runs on the same data.
        save_model: also write model/, predictions/, plots and results.json; without it only the last step is scored,
            on validation.
        end_training: no run follows in these processes.

    Returns:
        The content of results.json, and `predictions`: split → the task's predictions, None on all but the main
        process. Without `save_model` they are those of the last evaluation, and {} if nothing was left to train. None
        when a signal ended the run, which the same call then continues.

    Raises:
        InputError: for unusable data or checkpoints.
        CheckpointError: if output_dir holds a run that is not this one.
        DivergenceError: if the loss is no longer finite.
        OutputError: if output_dir cannot be written.
    """
    started = time.perf_counter()
    arguments, data, model, new_weights = _open(arguments, data)
    with Run(arguments, _fingerprint(arguments, data), end_training=end_training) as run:
        finetuning = _Finetuning(run, arguments, data, model)
        finetuning.describe(new_weights, with_data=save_model)
        if not finetuning.train(live=save_model):
            run.write_record(status="stopped", data=finetuning.summary)
            return None
        scores = finetuning.score_splits() if save_model else finetuning.last_scores()
        results = finetuning.results(scores, started)
        results["predictions"] = finetuning.write(results) if save_model else finetuning.predictions
        run.write_record(status="done", results=results["scores"], data=finetuning.summary)
        value = results["main_metric"]["value"]
        verdict = ", no better than the most frequent answer" if results["degenerate"] else ""
        run.print(f"{data.task.name}: {finetuning.label} {value:.4f} on validation{verdict}; see {run.directory}")
    return results


def estimate_fine_tuning(
    arguments: FinetuningArguments,
    data: TaskData | None = None,
    *,
    save_model: bool = True,
    end_training: bool = True,
) -> Estimate:
    """Time some steps of a fine-tuning run and a part of an evaluation, and write nothing.

    Args:
        arguments, data, save_model, end_training: as for `fine_tune`.

    Returns:
        What the run would take on this machine, the scoring of predictions left out.

    Raises:
        InputError: for unusable data or checkpoints.
    """
    started = time.perf_counter()
    arguments, data, model, _ = _open(arguments, data)
    with Rehearsal(arguments, _fingerprint(arguments, data), end_training=end_training) as run:
        finetuning = _Finetuning(run, arguments, data, model)
        run.print(finetuning.plan())
        return finetuning.estimate(run, started, save_model)


def _open(
    arguments: FinetuningArguments, data: TaskData | None
) -> tuple[FinetuningArguments, TaskData, PreTrainedModel, list[str]]:
    """Open data and checkpoint; return complete arguments, the data, the model, and the names of its new weights."""
    if data is None:
        data = open_task(arguments)
    else:
        _check_choices(arguments, data)
    task = data.task
    arguments = arguments.resolved(task, len(data.features("train", training=True)))
    model, new_weights = load_for_task(task, arguments.model, data.raw["train"], arguments.seed, arguments.bilstm)
    is_ours = model.config.model_type == HFBertConfig.model_type
    has_bilstm = is_ours and model.config.bilstm
    if has_bilstm and arguments.packing == "true":
        raise InputError("packing does not go with a bilstm, which reads padded sequences; leave it out")
    if arguments.packing == "auto" and (has_bilstm or not (task.can_pack and is_ours)):
        arguments = dataclasses.replace(arguments, packing="false")
    check_fits(model, data.tokenizer, data.settings.max_seq_length)
    return arguments, data, model, new_weights


def _fingerprint(arguments: FinetuningArguments, data: TaskData) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "data": data.raw["train"]._fingerprint,
        "tokenizer_hash": tokenizer_hash(data.tokenizer),
    }
    if arguments.class_weights:  # the file's content; where it lies may change
        facts["class_weights"] = class_weights(data, arguments.class_weights)
    return facts


class _Finetuning:
    """One run: training a model on the data of a task, then scoring its best step."""

    def __init__(self, run: Run, arguments: FinetuningArguments, data: TaskData, model: PreTrainedModel):
        self.run, self.arguments, self.data, self.task = run, arguments, data, data.task
        self.examples = data.examples("train", training=True)
        is_known = arguments.micro_batch_size != AUTO
        if is_known:  # what does not fit is refused before the directory is made
            self.batches = FinetuningBatches(run, self.examples, arguments)
        self.model, self.optimizer, _ = prepare(run, model)
        self.unwrapped = run.accelerator.unwrap_model(self.model)
        self.metric = f"eval_{self.task.main_metric}"
        self.label = self.task.metric_label(self.task.main_metric)
        self.predictions: dict[str, Any] = {}
        self.final_step: int | None = None  # the step whose weights are scored and saved
        best = arguments.metric_for_best or self.task.main_metric
        self.run.best_by = (f"eval_{best}", min if best == "loss" else max)
        self.run.patience = arguments.early_stopping
        weights = run.settings["class_weights"]
        self.class_weights = torch.tensor(list(weights.values()), device=run.device) if weights else None
        if not is_known:
            arguments.micro_batch_size = self._fit_micro_batch()
            self.batches = FinetuningBatches(run, self.examples, arguments)

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The scores of the most frequent answer on validation."""
        return majority_baseline(self.task, self.data.raw["train"], self.data.raw["validation"])

    @property
    def summary(self) -> dict[str, Any]:
        """The data as they were read and tokenized, for the records."""
        return self.data.describe(list(self.data.raw))[0]

    def plan(self) -> str:
        """Describe the run's derived quantities."""
        a, run = self.arguments, self.run
        return (
            f"{self.task.name}: {len(self.examples)} training examples of {self.examples.lengths.mean():.0f} tokens "
            f"on average, {a.max_steps} steps of {a.batch_size} = {a.epochs:g} epochs, {a.warmup_steps} of warm-up, "
            f"peak learning rate {a.learning_rate:g}\n"
            f"{hardware(run.device)}, {run.accelerator.num_processes} process(es), "
            f"precision {run.settings['precision']}"
        )

    def describe(self, new_weights: list[str], with_data: bool) -> None:
        """Print the run's derived quantities, and with `with_data` the summary of the data."""
        a, run = self.arguments, self.run
        if with_data:
            run.print("\n".join(self.data.describe(list(self.data.raw))[1]))
        run.print(
            f"{self.plan()}\n"
            f"{self.label} of the most frequent answer on {len(self.data.raw['validation'])} validation examples: "
            f"{self.baseline[self.task.main_metric]:.4f}"
        )
        pooler = [name for name in new_weights if "pooler" in name]
        if pooler:
            run.print(f"warning: {a.model} has no pooler; {', '.join(pooler)} start from random numbers")

    def train(self, live: bool) -> bool:
        """Train to the end, or to a signal; return whether the end was reached. `live`: draw curves on the way."""
        self.run.start_trackers()
        self.run.bar.show(score=self._short())
        curves = LiveCurves(self._draw_curves) if live else None
        done = train(
            self.run, self.model, self.optimizer, self.batches, evaluate=self._evaluate, draw=curves, **self._how()
        )
        if self.run.is_stale:
            self.run.print(
                f"ended after step {self.run.progress.step}: {self.run.patience} evaluations in a row brought no "
                f"better {self.arguments.metric_for_best or self.label}"
            )
        return done

    def estimate(self, run: Rehearsal, started: float, save_model: bool) -> Estimate:
        """Time some steps and a part of an evaluation. `save_model`: as for `fine_tune`."""
        a, data = self.arguments, self.data
        steps = int(a.max_steps or 0)
        sizes = {split: len(data.features(split)) for split in data.raw if split != "train"}
        rows = np.unique(np.linspace(0, sizes["validation"] - 1, _TIMED_EXAMPLES).astype(int))
        some = Examples(self.task, data.features("validation").select(rows), data.tokenizer.pad_token_id)
        scored = -(-steps // int(a.eval_every or 1)) * sizes["validation"]
        scored += sum(sizes.values()) if save_model else 0
        features = [data.features(split, training=split == "train") for split in data.raw]
        tokens = float(self.examples.tokens.sum()) * steps * int(a.batch_size or 0) / len(self.examples)
        return time_steps(
            run,
            self.model,
            self.optimizer,
            [Stretch(0, steps, self.batches, tokens)],
            evaluate=lambda: run_model(run.accelerator, self.model, some, a.eval_batch_size),
            evaluations=scored / len(some),
            start_seconds=time.perf_counter() - started,
            cache_bytes=sum(split.data.nbytes for split in features),
            **self._how(),
        )

    def _fit_micro_batch(self) -> int:
        """Find and record the largest micro-batch that fits, trained on the longest example."""
        a, run, data = self.arguments, self.run, self.data
        row = int(self.examples.lengths.argmax())

        def inputs(size: int) -> dict[str, Any]:
            return model_inputs(run, self.examples, np.full(size, row), data.settings.max_seq_length)

        features = data.features("validation")
        order = np.argsort(-data.examples("validation").lengths, kind="stable")[: a.eval_batch_size]
        longest = Examples(self.task, features.select(order), data.tokenizer.pad_token_id)
        size = fit_micro_batch_size(
            run,
            self.model,
            int(a.batch_size or 1),
            inputs,
            self._how()["forward"],
            lambda: run_model(run.accelerator, self.model, longest, a.eval_batch_size),
            f"examples of {data.settings.max_seq_length} tokens",
        )
        run.choose_micro_batch_size(size)
        return size

    def _how(self) -> dict[str, Any]:
        """The options of `train` that say how a step is made."""
        weights = sum(m.weight.numel() for m in self.unwrapped.modules() if isinstance(m, nn.Linear))
        config = self.unwrapped.config
        # As throughput.model_flops_per_token, but counted from the layers, for models of any configuration.
        pairs = 12 * config.num_hidden_layers * config.hidden_size

        def forward(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
            outputs = call_model(model, inputs, self.examples.targets)
            targets = {name: inputs[name] for name in self.examples.targets}
            count = totals["num_items_in_batch"]
            outputs["loss"] = task_loss(self.task, outputs, targets, count, self.class_weights)
            return outputs

        return {
            "save_extra": self._save_extra,
            "flops_per_token": lambda length: 6 * weights + pairs * length,
            "forward": forward,
        }

    def _evaluate(self) -> dict[str, float]:
        size = self.arguments.eval_batch_size
        scores, predictions = evaluate(self.run.accelerator, self.model, self.data, "validation", size)
        self.predictions["validation"] = predictions
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.run.print(
            f"validation: {' '.join(f'{self.task.metric_label(name)} {value:.4f}' for name, value in scores.items())}"
            + (" (best so far)" if self.run.is_best_so_far(metrics) else "")
        )
        self.run.bar.show(score=self._short(metrics[self.metric]))
        return metrics

    def _short(self, value: float | None = None) -> str:
        shown = "?" if value is None else f"{value:.4f}"
        return f"{self.label} {shown} (most frequent {self.baseline[self.task.main_metric]:.4f})"

    def _draw_curves(self) -> None:
        name = self.task.main_metric
        draw_finetuning_curves(self.run.history, name, self.baseline[name], self.run.directory / "curves.png")

    def _save_extra(self, directory: Path) -> None:
        save_tokenizer(self.data.tokenizer, directory)
        write_task_file(directory, self.data)

    def last_scores(self) -> dict[str, dict[str, float]]:
        """Return the validation scores of the last step."""
        self.final_step = self.run.progress.step
        last = next(entry for entry in reversed(self.run.history) if self.metric in entry)
        names = [name for name in last if name.startswith("eval_")]
        return {"validation": {name.removeprefix("eval_"): last[name] for name in names}}

    def score_splits(self) -> dict[str, dict[str, float]]:
        """Load the weights of the best step, if there are checkpoints; predict every split, score labelled ones."""
        run, step = self.run, self.run.progress.step
        self.final_step = run.best_step if self.arguments.keep_checkpoints else step
        if self.final_step != step:
            load_weights(self.unwrapped, run.checkpoints / f"step-{self.final_step}" / "model.safetensors")
        scores = {}
        size = self.arguments.eval_batch_size
        with summon_full_params(self.unwrapped):
            for split in [split for split in self.data.raw if split != "train"]:
                if self.task.is_labelled(self.data.raw[split]):
                    scores[split], predictions = evaluate(run.accelerator, self.model, self.data, split, size)
                else:
                    predictions, _ = predict(run.accelerator, self.model, self.data, split, size)
                self.predictions[split] = predictions
        return scores

    def results(self, scores: dict[str, dict[str, float]], started: float) -> dict[str, Any]:
        """Build the content of results.json."""
        run, known, name = self.run, self.data.raw["train"], self.task.main_metric
        baselines = {
            split: self.baseline
            if split == "validation"
            else majority_baseline(self.task, known, self.data.raw[split])
            for split in scores
        }
        value = scores["validation"][name]
        return {
            "task": self.task.name,
            "model": self.arguments.model,
            "scores": scores,
            "main_metric": {"name": name, "split": "validation", "value": value},
            "majority_baseline": baselines,
            # The run learnt only the most frequent answer, as happens on small data sets (paper, section 4.1).
            "degenerate": value <= baselines["validation"][name],
            "best_step": self.final_step,
            "best_by": self.arguments.metric_for_best or name,
            "class_weights": run.settings["class_weights"],
            "steps": run.progress.step,
            "examples": {split: len(raw) for split, raw in self.data.raw.items()},
            "data": self.summary,
            "hyperparameters": dataclasses.asdict(self.arguments),
            "processes": run.accelerator.num_processes,
            "precision": run.precision,
            "hardware": hardware(run.device),
            "versions": versions(),
            "from_hub": hub_commits(),
            "seconds": {"training": round(run.progress.seconds, 2), "all": round(time.perf_counter() - started, 2)},
        }

    def write(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write model/, predictions/, plots and results.json; return the predictions, with tuned values applied."""
        directory, raw, predictions = self.run.directory, self.data.raw, self.predictions
        self.run.save_model(self.model, lambda model: save_tokenizer(self.data.tokenizer, model))
        if not self.run.is_main:
            return predictions
        tuning = self.task.tune(raw["validation"], predictions["validation"])
        tuned = {name: entry["value"] for name, entry in tuning.items()}
        results |= tuning
        # Not to validation, on which the values were tuned: its scores would be flattered.
        for split in predictions.keys() - {"validation"}:
            predictions[split] = self.task.apply_tuned(predictions[split], tuned)
            if tuned and split in results["scores"]:
                results["scores"][split] |= without_warnings(self.task.score, raw[split], predictions[split])
        self.task.save_plots(directory, raw["validation"], predictions["validation"])
        self._draw_curves()
        for split, split_predictions in predictions.items():
            self.task.write_predictions(directory / "predictions", raw[split], split_predictions, split)
        results["report"] = {split: self.task.report(raw[split], predictions[split]) for split in results["scores"]}
        for split, report in results["report"].items():
            if lines := report_lines(report):
                self.run.print("\n".join([f"{split}, class by class:", *lines]))
        write_task_file(directory / "model", self.data, tuned)
        write_json(directory / "results.json", {k: v for k, v in results.items() if k != "predictions"})
        return predictions

"""Fine-tune a checkpoint on a task: arguments with the task's defaults, batches, and the run with its results."""

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from .evaluation import (
    Examples,
    TaskData,
    call_model,
    evaluate,
    load_for_task,
    majority_baseline,
    predict,
    task_loss,
    write_task_file,
)
from .model.configuration_hfbert import HFBertConfig
from .model.loading import check_directory, check_fits
from .model.packing import pack
from .tasks import DataArguments, FeatureSettings, Task, get_task, report_lines
from .text.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from .training.arguments import TrainingArguments
from .training.batches import StepBatch, local_micro_batches
from .training.fsdp import load_weights, summon_full_params
from .training.loop import prepare, train
from .training.run import Run
from .utils.arguments import argument
from .utils.environment import hardware, versions
from .utils.errors import InputError
from .utils.files import write_json
from .utils.plots import draw_finetuning_curves


# google-research/bert, run_classifier.py: warmup_proportion.
WARMUP_SHARE = 0.1
# Batches within which examples are sorted by length, as in transformers' LengthGroupedSampler.
_GROUPED_BATCHES = 50

_FROM_TASK = "default: the task's"


@dataclass(kw_only=True)
class FinetuningArguments(TrainingArguments, DataArguments):
    """Arguments of a fine-tuning run; those that depend on the task or the data are None until `resolved`."""

    task: str = argument(
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, squad_v2, swag, conll2003, custom-…"
    )
    model: str = argument(help="checkpoint to start from: a directory or a name on the Hub, ours or another BERT")
    epochs: float | None = argument(None, help=f"passes over the training data; {_FROM_TASK}", above=0)
    max_steps: int | None = argument(None, help="optimizer steps; default: as many as the epochs have")  # type: ignore
    batch_size: int | None = argument(None, help=f"examples per optimizer step, over all processes; {_FROM_TASK}")  # type: ignore
    micro_batch_size: int | None = argument(  # type: ignore
        None,
        help="examples per forward pass; must divide batch_size; default: a process's share, at most 32",
        at_least=0,
    )
    learning_rate: float | None = argument(None, help=f"peak learning rate; {_FROM_TASK}")  # type: ignore
    warmup_steps: int | None = argument(None, help="steps of linear warm-up, then linear decay to 0; default: 10 %%")
    max_seq_length: int | None = argument(None, help=f"tokens in a sequence, special ones included; {_FROM_TASK}")
    doc_stride: int = argument(128, help="SQuAD: tokens between the starts of a long context's windows")
    max_query_length: int = argument(64, help="SQuAD: tokens of a question, the rest is cut off")
    document_context: bool = argument(False, help="NER: fill up every sentence with its document")
    bilstm: bool = argument(
        False, help="a new bidirectional LSTM between encoder and head, as in the paper's left-to-right ablation"
    )
    group_by_length: bool = argument(True, help="put sequences of similar length together: less padding")
    eval_batch_size: int = argument(64, help="sequences per forward pass in evaluation", at_least=1)
    eval_every: int | None = argument(None, help="steps between evaluations; default: an epoch's", at_least=0)  # type: ignore
    save_every: int | None = argument(None, help="steps between checkpoints; default: eval_every", at_least=0)  # type: ignore
    keep_checkpoints: int = argument(1, help="how many of the newest to keep beside the best; 0: write none")
    log_every: int = argument(20, help="steps between log lines")
    num_proc: int = argument(1, help="processes for tokenization")
    cache_dir: str | None = argument(None, help="of the finished features; default: in the cache of datasets")

    def __post_init__(self) -> None:
        self._spell_switches()
        # Batches have too many shapes to record graphs of, and most runs end before compiling pays off.
        self._require("cuda_graphs", self.cuda_graphs in ("auto", "false"), "false for fine-tuning")
        self.cuda_graphs = "false"
        if self.compile == "auto":
            self.compile = "false"
        decided = ("max_steps", "batch_size", "micro_batch_size", "learning_rate", "eval_every", "save_every")
        if any(getattr(self, name) is None for name in decided):
            return
        super().__post_init__()
        if self.keep_checkpoints and self.eval_every % self.save_every:  # type: ignore[operator]
            raise InputError(
                f"eval_every {self.eval_every} is not a multiple of save_every {self.save_every}; it must be, so that "
                "there is a checkpoint of the best evaluation"
            )

    def resolved(self, task: Task, rows: int) -> "FinetuningArguments":
        """Fill in the values that depend on the task and the data.

        Args:
            task: the task.
            rows: number of training features.

        Returns:
            Complete arguments.

        Raises:
            InputError: if values do not fit each other.
        """
        defaults = task.defaults
        batch_size = defaults.batch_sizes[0] if self.batch_size is None else self.batch_size
        self._require("batch_size", batch_size >= 1, "at least 1")
        epochs = defaults.epochs[0] if self.epochs is None else self.epochs
        # Batches cross the ends of epochs, as in the original code; an incomplete last batch is dropped.
        max_steps = max(1, int(rows * epochs / batch_size)) if self.max_steps is None else self.max_steps
        learning_rate = defaults.learning_rates[0] if self.learning_rate is None else self.learning_rate
        eval_every = self.eval_every or -(-rows // batch_size)
        return dataclasses.replace(
            self,
            epochs=epochs if self.max_steps is None else round(max_steps * batch_size / rows, 4),
            max_steps=max_steps,
            batch_size=batch_size,
            micro_batch_size=self.micro_batch_size or _default_micro_batch(batch_size),
            learning_rate=learning_rate,
            warmup_steps=int(WARMUP_SHARE * max_steps) if self.warmup_steps is None else self.warmup_steps,
            max_seq_length=self.max_seq_length or defaults.max_seq_length,
            eval_every=eval_every,
            save_every=self.save_every or eval_every,
        )

    def feature_settings(self, task: Task) -> FeatureSettings:
        """Return the settings of the features, with the task's defaults."""
        return FeatureSettings(
            max_seq_length=task.defaults.max_seq_length if self.max_seq_length is None else self.max_seq_length,
            doc_stride=self.doc_stride,
            max_query_length=self.max_query_length,
            document_context=self.document_context,
            num_proc=self.num_proc,
            cache_dir=self.cache_dir,
        )


def _default_micro_batch(batch_size: int) -> int:
    share = batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    return next((size for size in range(min(share, 32), 0, -1) if batch_size % size == 0), 1)


class FinetuningBatches:
    """The batches of a run, from its current step on: a function of the seed and the step.

    Permutations of all examples follow each other in a stream, which is divided into batches, with `group_by_length`
    into batches of similar lengths. Every process knows the whole batch and pads its own micro-batches.

    Args:
        run: the run.
        examples: the training features.
        arguments: complete arguments (`FinetuningArguments.resolved`).

    Raises:
        InputError: if the processes cannot divide the micro-batches evenly, or packing does not fit the task.
    """

    def __init__(self, run: Run, examples: Examples, arguments: FinetuningArguments):
        self.run, self.examples, self.arguments = run, examples, arguments
        if run.packing and not examples.task.can_pack:
            raise InputError(
                f"packing does not fit {arguments.task}, which chooses among the positions or choices of padded rows; "
                "leave it out"
            )
        self.start, self.count = local_micro_batches(run.accelerator, arguments.batch_size, arguments.micro_batch_size)  # type: ignore

    def __iter__(self) -> Iterator[StepBatch]:
        block, batches = -1, np.empty((0, 0), dtype=np.int64)
        for step in range(self.run.progress.step, self.arguments.max_steps):  # type: ignore[arg-type]
            if step // _GROUPED_BATCHES != block:
                block = step // _GROUPED_BATCHES
                batches = self.block(block)
            yield self._step_batch(batches[step % _GROUPED_BATCHES])

    def block(self, number: int) -> np.ndarray:
        """Return the examples of _GROUPED_BATCHES batches (fewer at the end), (batches, batch_size)."""
        size, seed, rows = int(self.arguments.batch_size), self.arguments.seed, len(self.examples)  # type: ignore
        first = number * _GROUPED_BATCHES
        count = min(_GROUPED_BATCHES, int(self.arguments.max_steps) - first)  # type: ignore[arg-type]
        places = np.arange(first * size, (first + count) * size)
        epochs = range(places[0] // rows, places[-1] // rows + 1)
        stream = np.concatenate([np.random.default_rng([seed, epoch]).permutation(rows) for epoch in epochs])
        examples = stream[places - epochs[0] * rows]
        if not self.arguments.group_by_length:
            batches = examples.reshape(count, size)
            order = np.argsort(self.examples.lengths[batches], axis=1, kind="stable")
            return np.take_along_axis(batches, order, axis=1)
        examples = examples[np.argsort(self.examples.lengths[examples], kind="stable")]
        return examples.reshape(count, size)[np.random.default_rng([seed, number, 1]).permutation(count)]

    def _step_batch(self, rows: np.ndarray) -> StepBatch:
        parts = rows.reshape(-1, int(self.arguments.micro_batch_size))  # type: ignore
        parts = parts[self.start : self.start + self.count]
        length = int(self.examples.lengths[rows].max()) if self.examples.task.pads_to_batch else None
        tokens = self.examples.tokens[parts.ravel()]
        return StepBatch(
            micro_batches=[self._inputs(part, length) for part in parts],
            start=self.start,
            counts={"num_items_in_batch": self.examples.count_targets(parts.ravel())},
            num_tokens=int(tokens.sum()),
            squared_lengths=int((tokens.astype(np.int64) ** 2).sum()),
            cursor=None,
            examples={"feature": rows},
        )

    def _inputs(self, rows: np.ndarray, length: int | None) -> dict[str, Any]:
        batch = self.examples.batch(rows, length)
        return pack(batch, self.examples.padding["input_ids"]) if self.run.packing else batch


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
            f"{task.name} has only a test set; predict it with evaluate_model.py and a model trained on mnli"
        )
    check_directory(arguments.model)
    data = TaskData(task, arguments, load_tokenizer(arguments.model), arguments.feature_settings(task))
    data.check_training()
    return data


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
        The content of results.json and, on the main process, `predictions` (split → the task's predictions; without
        `save_model` those of the last evaluation, none if nothing was left to train). None when a signal ended the
        run, which the same call then continues.

    Raises:
        InputError: for unusable data or checkpoints.
        CheckpointError: if output_dir holds a run that is not this one.
        DivergenceError: if the loss is no longer finite.
        OutputError: if output_dir cannot be written.
    """
    started = time.perf_counter()
    data = open_task(arguments) if data is None else data
    task = data.task
    examples = data.examples("train", training=True)
    arguments = arguments.resolved(task, len(examples))
    model, new_weights = load_for_task(task, arguments.model, data.raw["train"], arguments.seed, arguments.bilstm)
    is_ours = model.config.model_type == HFBertConfig.model_type
    has_bilstm = is_ours and model.config.bilstm
    if has_bilstm and arguments.packing == "true":
        raise InputError("packing does not go with a bilstm, which reads padded sequences; leave it out")
    if arguments.packing == "auto" and (has_bilstm or not (task.can_pack and is_ours)):
        arguments = dataclasses.replace(arguments, packing="false")
    check_fits(model, data.tokenizer, data.settings.max_seq_length)
    fingerprint = {"data": data.raw["train"]._fingerprint, "tokenizer_hash": tokenizer_hash(data.tokenizer)}
    with Run(arguments, fingerprint, last=end_training) as run:
        finetuning = _Finetuning(run, arguments, data, examples, model)
        finetuning.describe(new_weights, with_data=save_model)
        if not finetuning.train():
            run.write_record(status="stopped", data=finetuning.summary)
            return None
        scores = finetuning.score_splits() if save_model else finetuning.last_scores()
        results = finetuning.results(scores, started)
        results["predictions"] = finetuning.write(results) if save_model else finetuning.predictions
        run.write_record(status="done", results=results["scores"], data=finetuning.summary)
        main = results["main_metric"]
        verdict = ", no better than the most frequent answer" if results["degenerate"] else ""
        run.print(f"{task.name}: {main['name']} {main['value']:.4f} on validation{verdict}; see {run.directory}")
    return results


class _Finetuning:
    """One run: training a model on the data of a task, then scoring its best step."""

    def __init__(
        self, run: Run, arguments: FinetuningArguments, data: TaskData, examples: Examples, model: PreTrainedModel
    ):
        self.run, self.arguments, self.data, self.examples, self.task = run, arguments, data, examples, data.task
        self.batches = FinetuningBatches(run, examples, arguments)
        self.model, self.optimizer, _ = prepare(run, model)
        self.unwrapped = run.accelerator.unwrap_model(self.model)
        self.metric = f"eval_{self.task.main_metric}"
        self.baseline = majority_baseline(self.task, data.raw["train"], data.raw["validation"])
        self.summary, self._summary_lines = data.describe(list(data.raw))
        self.predictions: dict[str, Any] = {}
        self.final_step: int | None = arguments.max_steps  # the step whose weights are scored and saved
        self.run.best_by = (self.metric, max)

    def describe(self, new_weights: list[str], with_data: bool) -> None:
        """Print the run's derived quantities, and with `with_data` the summary of the data."""
        a, run = self.arguments, self.run
        if with_data:
            run.print("\n".join(self._summary_lines))
        mean = self.examples.lengths.mean()
        run.print(
            f"{self.task.name}: {len(self.examples)} training examples of {mean:.0f} tokens on average, "
            f"{a.max_steps} steps of {a.batch_size} = {a.epochs:g} epochs, {a.warmup_steps} of warm-up, "
            f"peak learning rate {a.learning_rate:g}\n"
            f"{hardware(run.device)}, {run.accelerator.num_processes} process(es), "
            f"precision {run.settings['precision']}\n"
            f"{self.task.main_metric} of the most frequent answer on {len(self.data.raw['validation'])} validation "
            f"examples: {self.baseline[self.task.main_metric]:.4f}"
        )
        pooler = [name for name in new_weights if "pooler" in name]
        if pooler:
            run.print(f"warning: {a.model} has no pooler; {', '.join(pooler)} start from random numbers")

    def train(self) -> bool:
        """Train to the end, or to a signal; return whether the end was reached."""
        self.run.start_trackers()
        weights = sum(m.weight.numel() for m in self.unwrapped.modules() if isinstance(m, nn.Linear))
        config = self.unwrapped.config

        def forward(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
            outputs = call_model(model, inputs, self.examples.targets)
            targets = {name: inputs[name] for name in self.examples.targets}
            outputs["loss"] = task_loss(self.task, outputs, targets, totals["num_items_in_batch"])
            return outputs

        return train(
            self.run,
            self.model,
            self.optimizer,
            self.batches,
            evaluate=self._evaluate,
            save_extra=self._save_extra,
            # As throughput.model_flops_per_token, but counted from the layers, for models of any configuration.
            flops_per_token=lambda length: 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * length,
            forward=forward,
        )

    def _evaluate(self) -> dict[str, float]:
        size = self.arguments.eval_batch_size
        scores, predictions = evaluate(self.run.accelerator, self.model, self.data, "validation", size)
        self.predictions["validation"] = predictions
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        earlier = [entry[self.metric] for entry in self.run.history if self.metric in entry]
        self.run.print(
            f"validation: {' '.join(f'{name} {value:.4f}' for name, value in scores.items())}"
            + (" (best so far)" if metrics[self.metric] > max(earlier, default=-math.inf) else "")
        )
        return metrics

    def _save_extra(self, directory: Path) -> None:
        save_tokenizer(self.data.tokenizer, directory)
        write_task_file(directory, self.data)

    def last_scores(self) -> dict[str, dict[str, float]]:
        """Return the validation scores of the last step."""
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
            "steps": run.progress.step,
            "examples": {split: len(raw) for split, raw in self.data.raw.items()},
            "data": self.summary,
            "hyperparameters": dataclasses.asdict(self.arguments),
            "processes": run.accelerator.num_processes,
            "precision": run.precision,
            "hardware": hardware(run.device),
            "versions": versions(),
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
        self.task.save_plots(directory, raw["validation"], predictions["validation"])
        draw_finetuning_curves(
            self.run.history, self.task.main_metric, self.baseline[self.task.main_metric], directory / "curves.png"
        )
        for split, split_predictions in predictions.items():
            self.task.write_predictions(directory / "predictions", raw[split], split_predictions, split)
        results["report"] = {split: self.task.report(raw[split], predictions[split]) for split in results["scores"]}
        for split, report in results["report"].items():
            if lines := report_lines(report):
                self.run.print("\n".join([f"{split}, class by class:", *lines]))
        write_task_file(directory / "model", self.data, tuned)
        write_json(directory / "results.json", {k: v for k, v in results.items() if k != "predictions"})
        return predictions

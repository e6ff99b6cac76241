"""Pretraining on top of the training loop: batches of a run, and evaluation against a unigram baseline."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .corpus.arguments import PretrainingDataArguments
from .corpus.masking import collate
from .corpus.mixture import MixedCursor, MixedSampler, parts_of
from .corpus.segment_pairs import Cursor, Instances
from .model.kernels_hfbert import IGNORED_LABEL
from .model.layout_hfbert import pack
from .training.arguments import check_divides
from .training.batches import StepBatch, local_micro_batches
from .training.run import Progress, Run


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one sequence length.

    Args:
        max_seq_length: tokens of an instance, special ones included.
        batch_size: instances per optimizer step, over all processes.
        micro_batch_size: instances per forward pass; divides `batch_size`.
        last_step: optimizer steps of the run when the phase ends.
    """

    max_seq_length: int
    batch_size: int
    micro_batch_size: int
    last_step: int

    def __post_init__(self) -> None:
        check_divides(self.batch_size, self.micro_batch_size)


class PretrainingBatches:
    """Iterate over the optimizer steps of a run from `progress` on, through its phases.

    A batch is a function of the seed and the step. Every process samples the same global batches (spans, 40 bytes per
    instance) and gathers the token ids of its own micro-batches, a contiguous part of the global batch.

    Args:
        run: its device and options decide shapes, packing and the local micro-batches.
        documents: the train split of a corpus or a mixture.
        tokenizer: the corpus's.
        phases: in order.
        arguments: options of pairs and masks.
        progress: the steps done so far, and the cursor of a resumed run.

    Raises:
        InputError: if the processes cannot share a phase's micro-batches evenly.
    """

    def __init__(
        self,
        run: Run,
        documents: Any,
        tokenizer: Any,
        phases: list[Phase],
        arguments: PretrainingDataArguments,
        progress: Progress,
    ):
        self.phases = phases
        self.progress = progress
        # Shapes independent of the data suit devices that run ahead of the host, and compiled graphs. A CPU gains
        # nothing from them and would compute the padded predictions.
        self.static_shapes = run.device.type != "cpu" or bool(run.compile)
        self.pin = run.device.type == "cuda"
        self.packing = run.packing
        self.pad_token_id = tokenizer.pad_token_id
        self.samplers = [arguments.mixed_sampler(documents, phase.max_seq_length) for phase in phases]
        self.collators = [arguments.collator(tokenizer, phase.max_seq_length) for phase in phases]
        self.own = [local_micro_batches(run.accelerator, phase.batch_size, phase.micro_batch_size) for phase in phases]

    def __iter__(self) -> Iterator[StepBatch]:
        step, saved = self.progress.step, self.progress.cursor
        for number, phase in enumerate(self.phases):
            if step >= phase.last_step:
                continue
            start = saved["cursor"] if saved and saved["phase"] == number else None
            for instances, cursor in self._stream(number, start):
                yield self._step_batch(number, instances, cursor)
                step += 1
                if step == phase.last_step:
                    break

    def _stream(self, number: int, saved: list[Any] | None) -> Iterator[tuple[Instances, Cursor | MixedCursor]]:
        sampler, batch_size = self.samplers[number], self.phases[number].batch_size
        if isinstance(sampler, MixedSampler):
            return sampler.batches(batch_size, MixedCursor.restore(saved) if saved else None)
        return sampler.batches(batch_size, Cursor(*saved) if saved else None)

    def _step_batch(self, number: int, instances: Instances, cursor: Cursor | MixedCursor) -> StepBatch:
        phase, sampler, collator = self.phases[number], self.samplers[number], self.collators[number]
        first, share = self.own[number]
        own = instances[first * phase.micro_batch_size : (first + share) * phase.micro_batch_size]
        batch, lengths = collate(sampler, collator, own)
        if not self.static_shapes:
            batch.pop("masked_positions", None)
        counts = {"num_items_in_batch": int((batch["labels"] != IGNORED_LABEL).sum())}
        if "next_sentence_label" in batch:
            counts["num_sequences_in_batch"] = len(own)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
        splits = {name: tensor.split(phase.micro_batch_size) for name, tensor in tensors.items()}
        micro_batches = [{name: parts[index] for name, parts in splits.items()} for index in range(share)]
        if self.packing:
            shape = (phase.micro_batch_size, phase.max_seq_length)
            multiple_of = packed_multiple(*shape) if self.static_shapes else 1
            micro_batches = [pack(inputs, self.pad_token_id, multiple_of) for inputs in micro_batches]
        if self.pin:
            micro_batches = [pinned(inputs) for inputs in micro_batches]
        return StepBatch(
            micro_batches=micro_batches,
            start=first,
            counts=counts,
            num_tokens=int(lengths.sum()),
            squared_lengths=int((lengths.astype(np.int64) ** 2).sum()),
            cursor={"phase": number, "cursor": list(cursor)},
            examples={"epoch": instances.epoch.copy(), "index": instances.index.copy()},
        )


def loss_without_logits(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
    """Return a pretraining model's outputs without the logits, which training does not read."""
    return model(**inputs, **totals, skip_logits=True)


def packed_multiple(rows: int, max_seq_length: int) -> int:
    """Return the multiple to round packed rows up to, so that their shapes are few: 1/32 of the padded batch's tokens.

    Half of a multiple is padding on average; a run with many sequences per batch sees two or three shapes.
    """
    return -(-rows * max_seq_length // 32)


def pinned(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copy tensors to pinned memory, from which a GPU copies without blocking the host."""
    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


class PretrainingEvaluation:
    """Evaluate MLM and NSP on held-out documents, with the same instances and masks every time.

    `baseline` is the result of the training text's token counts on the same positions: the loss of predicting by
    frequency, and the accuracy of always answering the most frequent token. A model that uses context beats both.

    Args:
        run: its accelerator shares the batches among the processes.
        train_documents: the train split, for the baseline.
        documents: the validation split; of a mixture, every corpus has its share of the instances.
        tokenizer: the corpus's.
        arguments: options of pairs and masks; the seed is fixed to 0.
        max_seq_length: tokens of an instance.
        batch_size: instances per forward pass.
        max_rows: most instances to evaluate.
    """

    def __init__(
        self,
        run: Run,
        train_documents: Any,
        documents: Any,
        tokenizer: Any,
        arguments: PretrainingDataArguments,
        *,
        max_seq_length: int,
        batch_size: int,
        max_rows: int,
    ):
        self.run = run
        # Validation does not change with the run's seed, so that runs can be compared.
        collator = arguments.collator(tokenizer, max_seq_length, seed=0)
        self.batches: list[dict[str, torch.Tensor]] = []
        self.sources: list[str] = []  # of a mixture, the names of its corpora
        self._source_of_batch: list[int] = []
        rows = 0
        for number, (name, part, share) in enumerate(parts_of(documents)):
            sampler = arguments.sampler(part, max_seq_length, seed=0)
            self.sources.append(name)
            most, own = max(1, round(share * max_rows)), 0
            for instances, _ in sampler.batches(batch_size, epochs=1):
                instances = instances[: most - own]
                batch, _ = collate(sampler, collator, instances)
                batch.pop("masked_positions", None)
                tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
                self.batches.append(tensors)
                self._source_of_batch.append(number)
                own += len(instances)
                if own >= most:
                    break
            rows += own
        self.baseline = self._unigram_baseline(train_documents, len(tokenizer)) | {"rows": rows}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate `model`.

        Returns:
            `eval_masked_lm_loss` (nats), `eval_perplexity`, `eval_masked_lm_accuracy`, and with next-sentence
            prediction `eval_next_sentence_loss` and `eval_next_sentence_accuracy`. For a mixture also
            `eval_masked_lm_loss_NAME` of every corpus.
        """
        accelerator = self.run.accelerator
        unwrapped = accelerator.unwrap_model(model)
        unwrapped.eval()
        sums = torch.zeros((len(self.sources), 6), dtype=torch.float64, device=self.run.device)
        own = slice(accelerator.process_index, None, accelerator.num_processes)
        with torch.no_grad(), accelerator.autocast():
            for batch, source in zip(self.batches[own], self._source_of_batch[own], strict=False):
                inputs = {name: tensor.to(self.run.device) for name, tensor in batch.items()}
                sums[source] += self._sums(unwrapped, inputs)
        sums = accelerator.reduce(sums, reduction="sum")
        loss, right, count, pair_loss, pairs_right, pairs = sums.sum(0).tolist()
        metrics = {
            "eval_masked_lm_loss": loss / count,
            "eval_perplexity": math.exp(min(loss / count, 700.0)),
            "eval_masked_lm_accuracy": right / count,
        }
        if pairs:
            metrics["eval_next_sentence_loss"] = pair_loss / pairs
            metrics["eval_next_sentence_accuracy"] = pairs_right / pairs
        if len(self.sources) > 1:
            for name, (loss, _, count, *_) in zip(self.sources, sums.tolist(), strict=True):
                if count:
                    metrics[f"eval_masked_lm_loss_{name}"] = loss / count
        return metrics

    def shorten(self, batches: int = 8) -> float:
        """Evaluate on no more than `batches` batches of each process from now on; return how many times fewer."""
        before = len(self.batches)
        self.batches = self.batches[: batches * self.run.accelerator.num_processes]
        return before / len(self.batches)

    def is_past_plateau(self, metrics: dict[str, float]) -> bool:
        """Tell whether the model clearly beats token counts: twice their accuracy, and half a nat less loss."""
        return (
            metrics.get("eval_masked_lm_accuracy", 0.0) >= 2 * self.baseline["accuracy"]
            and metrics["eval_masked_lm_loss"] <= self.baseline["loss"] - 0.5
        )

    def describe(self, metrics: dict[str, float]) -> str:
        """Describe the metrics beside the unigram baseline in one line."""
        times = metrics["eval_masked_lm_accuracy"] / max(self.baseline["accuracy"], 1e-9)
        text = (
            f"held-out: MLM loss {metrics['eval_masked_lm_loss']:.3f} (unigram {self.baseline['loss']:.3f}), "
            f"accuracy {100 * metrics['eval_masked_lm_accuracy']:.1f} % = {times:.1f} × unigram"
        )
        if "eval_next_sentence_accuracy" in metrics:
            text += f", NSP accuracy {100 * metrics['eval_next_sentence_accuracy']:.1f} %"
        keys = {name: f"eval_masked_lm_loss_{name}" for name in self.sources}
        parts = [f"{name} {metrics[key]:.3f}" for name, key in keys.items() if key in metrics]
        return text + (f"; MLM loss on {', '.join(parts)}" if parts else "")

    def short(self, metrics: dict[str, float]) -> str:
        """Describe the accuracy beside the unigram baseline in three words; `metrics` may be empty."""
        accuracy = metrics.get("eval_masked_lm_accuracy")
        shown = "?" if accuracy is None else f"{100 * accuracy:.1f} %"
        return f"accuracy {shown} (unigram {100 * self.baseline['accuracy']:.1f} %)"

    def _sums(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")
        next_sentence_label = batch.pop("next_sentence_label", None)
        predicted = (labels != IGNORED_LABEL).flatten().nonzero().squeeze(1)
        outputs = model.bert(**batch, read_positions=predicted)
        # Only predicted positions pass the head: a dense head would compute vocab_size logits for every token.
        logits = model.cls.predictions(outputs.last_hidden_state).float()
        sums = [*_loss_and_right(logits, labels.flatten()[predicted])]
        if next_sentence_label is None:
            sums += [sums[0].new_zeros(())] * 3
        else:
            sums += _loss_and_right(model.cls.seq_relationship(outputs.pooler_output).float(), next_sentence_label)
        return torch.stack(sums)

    def _unigram_baseline(self, documents: Any, vocab_size: int) -> dict[str, float]:
        counts = documents.token_counts(vocab_size) + 1.0  # add-one smoothing: a held-out token may be new
        targets = np.concatenate([batch["labels"][batch["labels"] != IGNORED_LABEL].numpy() for batch in self.batches])
        return {
            "loss": float(-np.log(counts / counts.sum())[targets].mean()),
            "accuracy": float((targets == counts.argmax()).mean()),
            "most_frequent_token": int(counts.argmax()),
        }


def _loss_and_right(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    loss = F.cross_entropy(logits, targets, reduction="sum").double()
    right = (logits.argmax(-1) == targets).sum().double()
    return [loss, right, right.new_tensor(len(targets))]

"""Batches of a pretraining run's optimizer steps, and of its held-out documents."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..corpus.arguments import PretrainingDataArguments
from ..corpus.masking import collate
from ..corpus.mixture import MixedCursor, MixedSampler
from ..corpus.segment_pairs import Cursor, Instances
from ..model.kernels_hfbert import IGNORED_LABEL
from ..model.layout_hfbert import pack
from ..training.batches import StepBatch, local_micro_batches
from ..training.estimate import Stretch
from ..training.run import Progress, Run
from .arguments import Phase


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


def stretches_of(
    run: Run, documents: Any, tokenizer: Any, phases: list[Phase], arguments: PretrainingDataArguments
) -> list[Stretch]:
    """Return the phases of the run as parts to time, with the arguments of `PretrainingBatches`."""
    stretches, first = [], 0
    for phase in phases:
        batches = PretrainingBatches(run, documents, tokenizer, [phase], arguments, Progress(step=first))
        stretches.append(Stretch(first, phase.last_step - first, batches))
        first = phase.last_step
    return stretches


def packed_multiple(rows: int, max_seq_length: int) -> int:
    """Return the multiple to round packed rows up to, so that their shapes are few: 1/32 of the padded batch's tokens.

    Half of a multiple is padding on average; a run with many sequences per batch sees two or three shapes.

    Args:
        rows: sequences of a micro-batch.
        max_seq_length: tokens of the longest sequence, special ones included.

    Returns:
        A number of tokens, rounded up.
    """
    return -(-rows * max_seq_length // 32)


def pinned(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copy tensors to pinned memory, from which a GPU copies without blocking the host."""
    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def full_length_inputs(
    run: Run, arguments: PretrainingDataArguments, tokenizer: Any, max_seq_length: int, size: int
) -> dict[str, Any]:
    """Make a micro-batch without padding, for measuring its memory.

    Args:
        run: its device and options decide shapes and packing.
        arguments: options of pairs and masks.
        tokenizer: the corpus's.
        max_seq_length: tokens of every instance, special ones included.
        size: instances of the micro-batch.

    Returns:
        The model's inputs and labels by name, host tensors; one packed row if the run packs.
    """
    ids = np.full((size, max_seq_length), tokenizer.unk_token_id, dtype=np.int64)
    rows: dict[str, np.ndarray] = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "lengths": np.full(size, max_seq_length, dtype=np.int32),
        "epoch": np.zeros(size, dtype=np.int64),
        "index": np.arange(size, dtype=np.int64),
    }
    if not arguments.no_nsp:
        rows["next_sentence_label"] = np.zeros(size, dtype=np.int64)
    batch = arguments.collator(tokenizer, max_seq_length)(rows)
    if run.device.type == "cpu" and not run.compile:
        batch.pop("masked_positions", None)
    tensors: dict[str, Any] = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
    return pack(tensors, tokenizer.pad_token_id) if run.packing else tensors


def held_out_batches(
    documents: Any,
    tokenizer: Any,
    arguments: PretrainingDataArguments,
    max_seq_length: int,
    batch_size: int,
    max_rows: int,
) -> list[dict[str, np.ndarray]]:
    """Make the batches of held-out documents on which runs are compared: they do not depend on a run's seed.

    Args:
        documents: the validation split.
        tokenizer: the corpus's.
        arguments: options of pairs and masks; the seed is fixed to 0.
        max_seq_length: tokens of an instance.
        batch_size: instances of a batch.
        max_rows: most instances of all batches.

    Returns:
        The collator's batches, at most one pass over the documents, without `masked_positions`.
    """
    sampler = arguments.sampler(documents, max_seq_length, seed=0)
    collator = arguments.collator(tokenizer, max_seq_length, seed=0)
    batches: list[dict[str, np.ndarray]] = []
    rows = 0
    for instances, _ in sampler.batches(batch_size, epochs=1):
        instances = instances[: max_rows - rows]
        batch, _ = collate(sampler, collator, instances)
        batch.pop("masked_positions", None)
        batches.append(batch)
        rows += len(instances)
        if rows >= max_rows:
            break
    return batches

"""The batches of a fine-tuning run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..evaluation import (
    Examples,
)
from ..model.layout_hfbert import pack
from ..training.batches import StepBatch, local_micro_batches
from ..training.run import Run
from ..utils.errors import InputError
from .arguments import FinetuningArguments


# Batches within which examples are sorted by length, as in transformers' LengthGroupedSampler.
_GROUPED_BATCHES = 50


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
            micro_batches=[model_inputs(self.run, self.examples, part, length) for part in parts],
            start=self.start,
            counts={"num_items_in_batch": self.examples.count_targets(parts.ravel())},
            num_tokens=int(tokens.sum()),
            squared_lengths=int((tokens.astype(np.int64) ** 2).sum()),
            cursor=None,
            examples={"feature": rows},
        )


def model_inputs(run: Run, examples: Examples, rows: np.ndarray, length: int | None) -> dict[str, Any]:
    """Make a micro-batch as the run gives it to the model: padded, or one packed row.

    Args:
        run: decides about packing.
        examples: the features.
        rows: (batch,) numbers of the features.
        length: tokens to pad to; None: those of the longest.

    Returns:
        The model's inputs and targets by name, host tensors.
    """
    batch = examples.batch(rows, length)
    if not run.packing:
        return batch
    return pack(batch, examples.padding["input_ids"], per_row=examples.numbers)

"""The batches of optimizer steps: their parts for this process, made ahead of the loop, moved to the device."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from ..utils.errors import InputError


Item = TypeVar("Item")


@dataclass
class StepBatch:
    """This process's share of one optimizer step.

    Attributes:
        micro_batches: inputs of the model, host tensors and plain numbers.
        start: number of the first micro-batch in the global batch; it seeds the dropout.
        counts: terms of this process's loss sums, under the names that the model's forward takes
            (`num_items_in_batch`…). Their sums over all processes normalise the loss.
        num_tokens: real tokens of this process.
        squared_lengths: sum of the squared sequence lengths of this process, for the FLOPs of attention.
        cursor: JSON that continues the data after this step.
        examples: columns that identify the examples of the global batch, for the report on a gradient that is not
            finite.
    """

    micro_batches: list[dict[str, Any]]
    start: int
    counts: dict[str, int]
    num_tokens: int
    squared_lengths: int
    cursor: Any
    examples: dict[str, np.ndarray]


def local_micro_batches(accelerator: Accelerator, batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Share the micro-batches of a global batch among the processes.

    Args:
        accelerator: the processes.
        batch_size: examples of the global batch, of all processes together.
        micro_batch_size: examples of a micro-batch; it divides `batch_size`.

    Returns:
        The number of this process's first micro-batch in the global batch, and the count of its micro-batches.

    Raises:
        InputError: if the processes cannot share the micro-batches evenly, or `micro_batch_size` is below 1.
    """
    if micro_batch_size < 1:
        raise InputError("micro_batch_size auto is not for this kind of run; name a number")
    micro_batches, processes = batch_size // micro_batch_size, accelerator.num_processes
    count, rest = divmod(micro_batches, processes)
    if rest:
        noun = "micro-batch" if micro_batches == 1 else "micro-batches"
        raise InputError(
            f"{micro_batches} {noun} (batch_size {batch_size}, micro_batch_size {micro_batch_size}) cannot be "
            f"shared by {processes} processes; change one of them"
            + (f": --micro_batch_size {batch_size // processes}, say" if batch_size % processes == 0 else "")
        )
    return accelerator.process_index * count, count


def on_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a model's inputs to a device; a compiled model treats a packed row's length as dynamic."""
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    if "cu_seq_lens_q" in inputs:
        for name in ("input_ids", "token_type_ids", "labels"):
            if name in moved and moved[name].dim() == 2:
                torch._dynamo.maybe_mark_dynamic(moved[name], 1)
    return moved


def prefetch(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """Yield `items`, computed ahead in a thread; NumPy and PyTorch release the interpreter lock meanwhile.

    Args:
        items: iterated over in the thread. Its errors are raised here.
        depth: most items that wait.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(entry: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put((None, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()

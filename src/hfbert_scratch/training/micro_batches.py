"""The largest micro-batch that fits into memory, found before step 0.

A micro-batch changes only memory and time: the loss of a step is a sum over its micro-batches, divided by the global
count of targets. So the size may be whatever fits.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ..utils.errors import InputError
from .batches import on_device
from .hardware import memory
from .run import Run


# What is left free: for fragments, recorded passes, the logs and checkpoints of the run, and other programs.
_MARGIN = 0.85
# AdamW's and LAMB's moments, which come with the first step.
_MOMENTS = 2


def fit_micro_batch_size(
    run: Run,
    model: nn.Module,
    batch_size: int,
    inputs: Callable[[int], dict[str, Any]],
    forward: Callable[[nn.Module, dict[str, Any], dict[str, torch.Tensor]], Any],
    evaluate: Callable[[], Any],
    what: str,
) -> int:
    """Find the largest micro-batch whose training pass fits into the memory of every process.

    Forward and backward pass are run for growing sizes, each only if the growth so far says that it fits. No weight
    changes.

    Args:
        run: before its first step.
        model: as `prepare` returned it.
        batch_size: examples per optimizer step, over all processes.
        inputs: makes inputs of so many of the longest examples.
        forward: as for `train`.
        evaluate: evaluates a batch of the longest examples.
        what: names the examples in messages.

    Returns:
        A divisor of each process's share of the batch.

    Raises:
        InputError: if a batch of evaluation or a single example does not fit, or memory is shared out (FSDP).
    """
    accelerator = run.accelerator
    share, rest = divmod(batch_size, accelerator.num_processes)
    if rest or accelerator.is_fsdp2:
        raise InputError(
            f"micro_batch_size auto needs a batch_size ({batch_size}) that the {accelerator.num_processes} processes "
            "share evenly, and no FSDP; name a number"
        )
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    budget = _MARGIN * memory.free_memory(run.device) - _MOMENTS * weights
    totals = {name: torch.ones((), device=run.device) for name in ("num_items_in_batch", "num_sequences_in_batch")}

    def one_pass(size: int) -> None:
        with accelerator.no_sync(model):
            accelerator.backward(forward(model, on_device(inputs(size), run.device), totals).loss)

    model.train()
    if not _fits(run, model, evaluate, budget):
        raise InputError(f"an evaluation of {what} does not fit into memory; lower --eval_batch_size or the length")
    model.train()
    fitting, growth = 0, [0.0]
    for size in [size for size in range(1, share + 1) if share % size == 0]:
        expected = growth[-1] * size / fitting if fitting else 0.0
        if not _fits(run, model, lambda size=size: one_pass(size), budget, expected, growth):  # type: ignore[misc]
            break
        fitting = size
    if not fitting:
        raise InputError(
            f"not even one of {what} fits into memory; shorten max_seq_length, take a smaller model, or "
            "gradient_checkpointing true"
        )
    return fitting


def _fits(
    run: Run,
    model: nn.Module,
    step: Callable[[], Any],
    budget: float,
    expected: float = 0.0,
    growth: list[float] | None = None,
) -> bool:
    """Run a step on all processes unless it is expected not to fit; return whether it fitted on all of them."""
    fits = expected <= budget
    if all(gather_object([fits])):
        try:
            used = memory.growth(run.device, step)
            fits = used <= budget
            if growth is not None:
                growth.append(used)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            fits = False
        model.zero_grad(set_to_none=not run.cuda_graphs)
        return all(gather_object([fits]))
    return False

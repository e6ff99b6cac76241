"""The largest micro-batch that fits into memory, found before step 0; and one sentence for a run that runs out.

A micro-batch changes only memory and time: the loss of a step is a sum over its micro-batches, divided by the global
count of targets. So the size may be whatever fits.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate.utils import gather_object
from torch import nn

from ...utils.environment import release_freed_memory
from ...utils.errors import InputError, one_line
from ..batches import on_device


if TYPE_CHECKING:  # a run ends with the sentence made here
    from ..run import Run


# What is left free: for fragments, recorded passes, the logs and checkpoints of the run, and other programs.
_MARGIN = 0.85
# AdamW's and LAMB's moments, which come with the first step.
_MOMENTS = 2
_SAMPLE_SECONDS = 0.002


def fit_micro_batch_size(
    run: "Run",
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
    budget = _MARGIN * _free_memory(run.device) - _MOMENTS * weights
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
    run: "Run",
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
            used = _growth(run.device, step)
            fits = used <= budget
            if growth is not None:
                growth.append(used)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        model.zero_grad(set_to_none=not run.cuda_graphs)
        return all(gather_object([fits]))
    return False


def _growth(device: torch.device, step: Callable[[], Any]) -> float:
    """Return the most bytes that the memory of the device, or of this process, grew by during a step."""
    release_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return float(torch.cuda.max_memory_allocated(device) - before)
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        step()
    finally:
        peak = max(peak, process.memory_info().rss)
        done.set()
        thread.join()
    return float(peak - before)


def _free_memory(device: torch.device) -> float:
    """Return the bytes this process may still take: of its GPU, or its share of the host or the container."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text(encoding="ascii").strip()).isdecimal():
        free = min(free, float(most) - float(used.read_text(encoding="ascii")))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error says that the memory of the device or the host did not suffice."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def out_of_memory(run: "Run", error: BaseException) -> InputError:
    """Return the sentence for a run that ran out of memory."""
    size = run.arguments.micro_batch_size
    return InputError(
        f"out of memory on {run.device} after step {run.progress.step} with micro_batch_size {size}; lower "
        "micro_batch_size (auto finds the largest that fits; the losses stay the same), then eval_batch_size or "
        f"max_seq_length, or set gradient_checkpointing true ({one_line(error)[:200]})"
    )

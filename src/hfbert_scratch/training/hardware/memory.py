"""Memory of the device or the host: what is free, what a step takes, and one sentence for a run that runs out."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from ...utils.environment import release_freed_memory
from ...utils.errors import InputError, one_line


_SAMPLE_SECONDS = 0.002


def growth(device: torch.device, step: Callable[[], Any]) -> float:
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


def free_memory(device: torch.device) -> float:
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


def out_of_memory(device: torch.device, step: int, micro_batch_size: int, error: BaseException) -> InputError:
    """Make the error for a run that ran out of memory.

    Args:
        device: the device that is full; a CPU for the host.
        step: optimizer steps that were done.
        micro_batch_size: examples of a micro-batch.
        error: the library's error; its beginning is quoted.

    Returns:
        The error, to be raised by the caller.
    """
    return InputError(
        f"out of memory on {device} after step {step} with micro_batch_size {micro_batch_size}; lower "
        "micro_batch_size (auto finds the largest that fits; the losses stay the same), then eval_batch_size or "
        f"max_seq_length, or set gradient_checkpointing true ({one_line(error)[:200]})"
    )

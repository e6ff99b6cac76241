"""Accelerate for a launch: devices, processes and the precision they compute in."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from ..utils.environment import process_count
from ..utils.errors import InputError
from . import fsdp
from .distributed import TIMEOUT_SECONDS, first_process_says, join_processes
from .hardware.throughput import peak_flops


# The precisions a run can have, and Accelerate's names for them.
_ACCELERATE_NAMES = {torch.float32: "no", torch.bfloat16: "bf16"}


def best_device() -> torch.device:
    """Return the kind of device a launch computes on: CUDA, ROCm (which is called cuda), XPU, MPS…, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def local_device() -> torch.device:
    """Return this process's device, for computing before the processes of a launch meet."""
    device = best_device()
    return device if device.type == "cpu" else torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type of sums over many steps or examples: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_bfloat16(device: torch.device) -> bool:
    """Return True if the device has native bfloat16 matrix products; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    cpu_check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and cpu_check is not None and cpu_check()


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the type that a launch computes in: float32, or bfloat16 by autocast."""
    return _dtype(accelerator.mixed_precision)


def _dtype(accelerate_name: str) -> torch.dtype:
    return next(dtype for dtype, name in _ACCELERATE_NAMES.items() if name == accelerate_name)


def precision_name(dtype: torch.dtype) -> str:
    """Return a precision as --precision and the records spell it."""
    return str(dtype).removeprefix("torch.")


@cache
def fastest_precision(device: torch.device) -> str:
    """Return the precision whose matrix products are faster on `device`: "bfloat16" or "float32".

    On CPUs both are timed, for a processor may have instructions for bfloat16 and still be slower with them: an Intel
    Xeon with AVX512-BF16 and without AMX makes 170 GFLOP/s with them and 300 in float32. All processes take what the
    first one finds, and a process asks once.
    """
    if not has_bfloat16(device):
        return "float32"
    if device.type != "cpu":
        return "bfloat16"
    return first_process_says(
        lambda: "bfloat16" if _peak(device, torch.bfloat16) > _peak(device, torch.float32) else "float32"
    )


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    return peak_flops(device, dtype)[0]


def _check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker that Accelerate does not know, or would leave out as it is not installed."""
    known, available = LoggerType.list(), [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise InputError(f"trackers is {name}; it must be {', '.join(known)} or none")
        if name not in (*available, LoggerType.ALL):
            extra = '"hfbert-scratch[trackers]"' if name in ("trackio", "wandb") else name
            raise InputError(f"the tracker {name} is not installed: pip install {extra}, or choose --trackers none")


def create_accelerator(
    precision: str,
    trackers: Sequence[str] = (),
    directory: Path | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Accelerator:
    """Create the Accelerator of this launch, on the device that PyTorch and Accelerate find: a GPU, or CPUs.

    Args:
        precision: float32, bfloat16, or auto for the faster one.
        trackers: names of Accelerate's trackers.
        directory: where trackers write.
        timeout_seconds: seconds a process waits for another one before it gives up.

    Raises:
        InputError: if the launched processes do not find each other, or a tracker is not installed.
    """
    # Packed rows differ in length: segments that grow serve them all, where fixed ones would fragment. PyTorch reads
    # this once, at the first allocation on a GPU.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Without a GPU, accelerate must be told so, or several launched processes become independent runs.
    device = best_device()
    cpu = device.type == "cpu"
    trackers = [name for name in trackers if name != "none"]
    _check_trackers(trackers)
    if device.type in ("cpu", "cuda"):  # Accelerate connects the others
        join_processes(cpu, timeout_seconds)
    if precision == "auto":
        # Accelerate has one precision a process: a second accelerator takes the first one's.
        in_use = AcceleratorState._shared_state.get("_mixed_precision")
        precision = precision_name(_dtype(in_use)) if in_use else fastest_precision(device)
    sharded = fsdp.is_enabled()
    if sharded and cpu:
        fsdp.enable_on_cpu()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=_ACCELERATE_NAMES[getattr(torch, precision)],
            gradient_accumulation_steps=1,
            log_with=trackers or None,
            project_dir=None if directory is None else str(directory),
            # The only buffer is position_ids, which never changes; gradients in the buckets need no copy of their own.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
    except ValueError as error:
        raise InputError(f"the launch or its trackers {trackers} do not work here: {error}") from error
    if sharded:
        fsdp.check_settings(accelerator)
    asked = process_count()
    if accelerator.num_processes != asked:
        raise InputError(
            f"{asked} processes were launched but {accelerator.num_processes} joined the run; "
            "launch with accelerate launch --multi_gpu --num_processes N (also on CPUs)"
        )
    return accelerator

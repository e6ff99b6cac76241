"""Where a run happens: processes and precision through Accelerate, the device, the versions of what is installed."""

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import distributed, nn

from ..model.configuration_hfbert import HFBertConfig
from ..model.modeling_hfbert import UNPADDED
from ..training import fsdp as sharding
from ..training.distributed import TIMEOUT_SECONDS, join_processes
from ..training.throughput import peak_flops
from .errors import InputError


# Accelerate's names for what is computed in, and ours.
PRECISIONS = {"no": "float32", "bf16": "bfloat16"}
# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def versions() -> dict[str, str]:
    """What the run was made with."""
    names = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "hfbert-scratch")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware(device: torch.device) -> str:
    """One line: the GPU's name, or the processor and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are native, rather than emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu_check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and cpu_check is not None and cpu_check()


@cache
def fastest_precision(device: torch.device) -> str:
    """Return the precision whose matrix products are faster on `device`: "bfloat16" or "float32".

    On CPUs both are timed, for a processor may have instructions for bfloat16 and still be slower with them: an Intel
    Xeon with AVX512-BF16 and without AMX makes 170 GFLOP/s with them and 300 in float32. All processes take what the
    first one finds, and a process asks once.
    """
    if not has_bfloat16(device):
        return "float32"
    if device.type == "cuda":
        return "bfloat16"
    found = ["float32"]
    if int(os.environ.get("RANK", "0")) == 0 and _peak(device, torch.bfloat16) > _peak(device, torch.float32):
        found = ["bfloat16"]
    if distributed.is_initialized():
        distributed.broadcast_object_list(found)
    return found[0]


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    return peak_flops(device, dtype)[0]


def fastest_attention(
    model: nn.Module, device: torch.device, precision: str, dropout: float, packing: bool = False
) -> str:
    """The attention implementation for `model` on `device`, as measured on CPUs by benchmarks/pretraining_step.py.

    On a CPU our own models compute on real tokens alone, except for answers to questions, whose softmax is over all
    positions, padding too, and in a compiled graph, whose shapes must not depend on the data. For others, PyTorch's
    fused attention has no dropout and a slow bfloat16 backward pass there.
    """
    if device.type != "cpu":
        return UNPADDED if packing else "sdpa"
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    if model.config.model_type == HFBertConfig.model_type and not (hasattr(model, "qa_outputs") or compiled):
        return UNPADDED
    return "eager" if precision == "bf16" or dropout > 0 else "sdpa"


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, instead of handing every large tensor back to the system and
    having each of its pages cleared again (a sixth of a step of 4 layers of 256 in bfloat16; elsewhere no effect).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))


def create_accelerator(
    precision: str,
    trackers: Sequence[str] = (),
    directory: Path | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Accelerator:
    """Accelerate for this launch: GPUs where there are any, else CPUs, in float32, bfloat16 or what auto comes to.

    `timeout_seconds`: how long a process waits for another one before it gives up.
    Raises InputError when the processes that were launched do not find each other, or a tracker is not installed.
    """
    # Packed rows differ in length: segments that grow serve them all, where fixed ones would fragment. PyTorch reads
    # this once, at the first allocation on a GPU.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Without a GPU, accelerate must be told so, or several launched processes become independent runs.
    cpu = not torch.cuda.is_available()
    device = torch.device("cpu" if cpu else "cuda")
    trackers = [name for name in trackers if name != "none"]
    join_processes(cpu, timeout_seconds)
    if precision == "auto":
        # Accelerate has one precision a process: a second accelerator takes the first one's.
        in_use = AcceleratorState._shared_state.get("_mixed_precision")
        precision = PRECISIONS[in_use] if in_use else fastest_precision(device)
    sharded = sharding.is_asked_for()
    if sharded and cpu:
        sharding.allow_on_cpu()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=next(theirs for theirs, ours in PRECISIONS.items() if ours == precision),
            gradient_accumulation_steps=1,
            log_with=trackers or None,
            project_dir=None if directory is None else str(directory),
            # The only buffer is position_ids, which never changes; gradients in the buckets need no copy of their own.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
    except ValueError as error:
        raise InputError(f"the launch or its trackers {trackers} do not work here: {error}") from error
    if sharded:
        sharding.check_settings(accelerator)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise InputError(
            f"{asked} processes were launched but {accelerator.num_processes} joined the run; "
            "launch with accelerate launch --multi_gpu --num_processes N (also on CPUs)"
        )
    return accelerator

"""Where a run happens: processes and precision through Accelerate, the device, the versions of what is installed."""

import ctypes
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil
import torch
import torch.nn.functional as F
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


Answer = TypeVar("Answer")

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
    return first_process_says(
        lambda: "bfloat16" if _peak(device, torch.bfloat16) > _peak(device, torch.float32) else "float32"
    )


def first_process_says(ask: Callable[[], Answer]) -> Answer:
    """Return what `ask` answers on the first process of a job. All of them must call this; one alone asks."""
    found = [ask() if int(os.environ.get("RANK", "0")) == 0 else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    return peak_flops(device, dtype)[0]


def fastest_attention(
    model: nn.Module,
    device: torch.device,
    precision: str,
    dropout: float,
    packing: bool = False,
    training: bool = False,
) -> str:
    """Return the attention implementation for `model` on `device`.

    On a CPU our own models compute on real tokens alone, except for answers to questions, whose softmax is over all
    positions, padding too, and in a compiled graph, whose shapes must not depend on the data. For the training of
    others a process times both there. Without gradients PyTorch's fused attention reads and writes least.
    """
    if device.type != "cpu":
        return UNPADDED if packing else "sdpa"
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    if model.config.model_type == HFBertConfig.model_type and not (hasattr(model, "qa_outputs") or compiled):
        return UNPADDED
    if not training:
        return "sdpa"
    return _fastest_padded_attention(torch.bfloat16 if precision == "bf16" else torch.float32, dropout)


@cache
def _fastest_padded_attention(dtype: torch.dtype, dropout: float) -> str:
    """Time both passes of stock attention on the CPU, a padded batch of the base size: "eager" or "sdpa".

    The two take turns, and the best of each counts. PyTorch's fused attention must be beaten by more than chance.
    """
    shape = (4, 12, 128, 64)
    query, key, value = (torch.ones(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.zeros(shape[0], 1, shape[2], shape[2], dtype=dtype)
    gradient = torch.ones(shape, dtype=dtype)

    def eager() -> torch.Tensor:
        scores = torch.matmul(query, key.transpose(2, 3)) * shape[-1] ** -0.5 + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
        return torch.matmul(F.dropout(weights, dropout), value)

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def seconds(attend: Callable[[], torch.Tensor]) -> float:
        start = time.perf_counter()
        torch.autograd.grad(attend(), (query, key, value), gradient)
        return time.perf_counter() - start

    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        turns = [(seconds(eager), seconds(fused)) for _ in range(4)]
    eager_seconds, fused_seconds = (min(times) for times in zip(*turns, strict=True))
    return "eager" if 1.1 * eager_seconds < fused_seconds else "sdpa"


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

"""The machine and what is installed on it, for records and bug reports."""

import ctypes
import gc
import importlib.metadata
import os
import platform
from pathlib import Path

import psutil
import torch


# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def is_first_process() -> bool:
    """Return whether this is the first of the launch's processes, or the only one; known before they meet."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """Return how many processes the launch has; known before they meet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def versions() -> dict[str, str]:
    """Return the versions of Python, the libraries and this package."""
    names = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "hfbert-scratch")
    installed = {"python": platform.python_version()}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


# Name on the Hub → commit, of what this process opened.
_from_hub: dict[str, str] = {}


def note_commit(name: str, commit: str | None) -> None:
    """Remember the commit of a checkpoint or data set that was opened by its name on the Hub; None: a local one."""
    if commit:
        _from_hub[name] = commit


def hub_commits() -> dict[str, str]:
    """Return the commits of the checkpoints and data sets that this process opened by their names on the Hub."""
    return dict(_from_hub)


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


def disable_malloc_trim() -> None:
    """Have glibc keep what is freed for the next step, instead of handing every large tensor back to the system and
    having each of its pages cleared again (a sixth of a step of 4 layers of 256 in bfloat16; elsewhere no effect).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))


def peak_host_bytes() -> int:
    """Return the most memory that this process has taken so far."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def release_freed_memory() -> None:
    """Hand freed memory back to the system, where glibc manages it, so that the process's size is what it uses."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)

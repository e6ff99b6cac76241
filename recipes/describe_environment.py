# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Print what a bug report needs: versions, system, GPUs, a run's choices.

    hfbert env

Supports: machines on which torch or this package cannot be imported; the
reason is printed. Nothing is sent anywhere, and no token, user name or path
is printed.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


# Variables that change what a run does. None of them holds a secret.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "HF_HUB_OFFLINE", "NCCL_DEBUG")


def packages() -> Iterator[tuple[str, str]]:
    """Installed versions of this package and of all it can use, without an import."""
    requirements = importlib.metadata.requires("hfbert-scratch") or []
    names = dict.fromkeys(re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements)
    for name in ("hfbert-scratch", *names):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def system() -> Iterator[tuple[str, str]]:
    """Python, the system, the processor and its memory."""
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", f"{platform.platform()}, {' '.join(platform.libc_ver())}".rstrip(", ")
    yield "processor", processor()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{usable} usable of {os.cpu_count()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    for name in VARIABLES:
        if name in os.environ:
            yield name, os.environ[name] or "(empty)"


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerators() -> Iterator[tuple[str, str]]:
    """The GPUs as torch sees them, and its builds."""
    import torch

    yield "threads of torch", str(torch.get_num_threads())
    yield "CUDA of torch", f"{torch.version.cuda or 'none'}, cuDNN {torch.backends.cudnn.version() or 'none'}"
    if not torch.cuda.is_available():
        yield "GPUs", "none that torch can use"
        return
    yield "NCCL", ".".join(map(str, torch.cuda.nccl.version()))
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield (
            f"GPU {number}",
            f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB",
        )


def choices() -> Iterator[tuple[str, str]]:
    """What a run with the default options would choose, as far as it is cheap to say."""
    import torch

    from hfbert_scratch.model.layout_hfbert import has_varlen_kernel
    from hfbert_scratch.training.accelerator import best_device, fastest_precision, has_bfloat16

    device = best_device()
    native = has_bfloat16(device)
    timed = native and device.type == "cpu"
    yield "precision auto", "the faster of bfloat16 and float32, timed" if timed else fastest_precision(device)
    yield "bfloat16", "native" if native else "emulated"
    yield "varlen attention", "yes" if has_varlen_kernel(device, torch.bfloat16, 64) else "no"


def main() -> None:
    """Print each part; a part that fails says why and does not hide the others."""
    parser = argparse.ArgumentParser(
        prog=f"hfbert {name}" if (name := os.environ.pop("HFBERT_COMMAND", None)) else None,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _, unknown = parser.parse_known_args()
    if unknown:
        print(f"error: unknown argument {unknown[0]!r}; there is only --help", file=sys.stderr)
        sys.exit(2)
    parts: tuple[Callable[[], Iterator[tuple[str, str]]], ...] = (system, packages, accelerators, choices)
    for part in parts:
        try:
            for name, value in part():
                print(f"{name:<24}{value}")
        except Exception as error:  # whatever is broken here is what the report is about
            print(f"{part.__name__:<24}not available: {type(error).__name__}: {error}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

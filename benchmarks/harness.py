"""A/B timing in one process: the two sides take turns, so that a machine that drifts slows both, and ratios hold."""

import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from hfbert_scratch.utils.environment import hardware, versions


# BENCHMARK_RESULTS names another file, such as one in a folder that is brought back from another machine.
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results.json")


def compare(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    pairs: int,
    warmup: int = 2,
    before: tuple[Callable[[], Any], Callable[[], Any]] = (lambda: None, lambda: None),
) -> dict[str, float]:
    """Time `ours` and `theirs` alternately. Returns median seconds of each, and the median, lowest and highest of the
    ratios theirs/ours taken pair by pair: above 1, ours is faster. `before`: what precedes either side, untimed.
    """
    times: list[tuple[float, float]] = []
    for number in range(-warmup, pairs):
        seconds = []
        for prepare, side in zip(before, (ours, theirs), strict=True):
            prepare()
            seconds.append(_seconds(side))
        if number >= 0:
            times.append((seconds[0], seconds[1]))
    ratios = sorted(their_time / our_time for our_time, their_time in times)
    return {
        "ours_seconds": statistics.median(our_time for our_time, _ in times),
        "theirs_seconds": statistics.median(their_time for _, their_time in times),
        "ratio": statistics.median(ratios),
        "ratio_lowest": ratios[0],
        "ratio_highest": ratios[-1],
        "pairs": pairs,
    }


def memory_as_usual() -> None:
    """Undo `disable_malloc_trim`: glibc's own thresholds as they are in a process that has freed large tensors before
    (mallopt(3): they rise to these).
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20)):
            ctypes.CDLL(None).mallopt(parameter, value)


def peak_memory_above(prepare: Callable[..., tuple[Callable[[], Any], Callable[[], Any]]], *arguments: Any) -> float:
    """MiB that a step takes above what is there before it, in a process of its own.

    `prepare(*arguments)`, of a module's top level, returns a small step, which makes weights and optimizer state, and
    the step to measure. NaN where the system does not tell (Linux does).
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_above, (prepare, arguments))


def _peak_above(prepare: Callable[..., tuple[Callable[[], Any], Callable[[], Any]]], arguments: tuple) -> float:
    clear = Path("/proc/self/clear_refs")
    small, step = prepare(*arguments)
    small()
    if not clear.exists():
        return float("nan")
    before = psutil.Process().memory_info().rss
    clear.write_text("5")  # the peak is counted from now on
    step()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024 - before / 2**20


def record(name: str, result: dict[str, Any]) -> None:
    """Print a result and keep it in results.json under `name`, with date, hardware and versions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = result | {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(device),
        "versions": versions(),
    }
    everything = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    everything[name] = result
    RESULTS.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    figures = ", ".join(f"{key} {value:.4g}" for key, value in result.items() if isinstance(value, int | float))
    print(f"{name}: {figures}", flush=True)


def _seconds(function: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

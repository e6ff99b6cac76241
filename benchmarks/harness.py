"""A/B timing in one process: the two sides take turns, so that a machine that drifts slows both, and ratios hold."""

import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hfbert_scratch.environment import hardware, versions


RESULTS = Path(__file__).parent / "results.json"


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, warmup: int = 2) -> dict[str, float]:
    """Time `ours` and `theirs` alternately. Returns median seconds of each, and the median, lowest and highest of the
    ratios theirs/ours taken pair by pair: above 1, ours is faster.
    """
    for _ in range(warmup):
        ours()
        theirs()
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        times.append((_seconds(ours), _seconds(theirs)))
    ratios = sorted(their_time / our_time for our_time, their_time in times)
    return {
        "ours_seconds": statistics.median(our_time for our_time, _ in times),
        "theirs_seconds": statistics.median(their_time for _, their_time in times),
        "ratio": statistics.median(ratios),
        "ratio_lowest": ratios[0],
        "ratio_highest": ratios[-1],
        "pairs": pairs,
    }


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

"""For work on data: both sides on one core, the slower one on a part of the data, its time scaled to all of them."""

import os
from collections.abc import Callable
from typing import Any

from harness import compare


def use_one_core() -> None:
    """Keep this process and its children on one core, whatever number of threads their libraries start."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def compare_with_part(
    ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, scale: float
) -> dict[str, float]:
    """`compare` for two sides that take time in proportion to their data, of which ours has `scale` times as much.

    The result is that for all data on both sides; nothing runs to warm up.
    """
    result = compare(ours, theirs, pairs, warmup=0)
    return result | {key: result[key] * scale for key in ("theirs_seconds", "ratio", "ratio_lowest", "ratio_highest")}

"""One integer hash for all that is decided by numbers: masks, dropout seeds, the documents held out."""

from typing import Any

import numpy as np


GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(state: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64, a bijection of uint64 that looks random.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    # In place where it can be: a training batch spends a good part of its time here.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = state >> np.uint64(shift)
        mixed ^= state
        if factor != 1:
            mixed *= np.uint64(factor)
        state = mixed
    return state


def hash64(*values: Any) -> np.ndarray:
    """Mix integers, or arrays that broadcast together, into uniform uint64 (SplitMix64's finaliser, chained)."""
    golden = np.uint64(GOLDEN)
    state: Any = np.uint64(0)  # an array once a value is one
    with np.errstate(over="ignore"):
        for value in values:
            state = splitmix64(state + (np.asarray(value).astype(np.uint64, copy=False) * golden + golden))
    return state

"""Write counts and sizes in the unit that suits them, and scores with their spread."""

import statistics
from collections.abc import Sequence


def count_text(number: float, digits: int = 1) -> str:
    """Write a count: exactly below a million, then in millions (M) or billions (B).

    Args:
        number: 812345 is "812,345", 1234567 is "1.2 M", 3.3e9 is "3.3 B".
        digits: decimal places of millions and billions.
    """
    if number < 1e6:
        return f"{round(number):,}"
    return f"{number / 1e9:.{digits}f} B" if number >= 999.95e6 else f"{number / 1e6:.{digits}f} M"


def size_text(num_bytes: float) -> str:
    """Write a size in kB, MB, GB or TB, powers of 1000.

    Args:
        num_bytes: 512_000 is "512 kB", 3.9e9 is "3.9 GB".
    """
    for unit, digits in (("kB", 0), ("MB", 1), ("GB", 1)):
        num_bytes /= 1000
        if num_bytes < 999.95:
            return f"{num_bytes:.{digits}f} {unit}"
    return f"{num_bytes / 1000:.1f} TB"


def mean_and_deviation(scores: Sequence[float]) -> str:
    """Write the mean of one score or more, ± the standard deviation where there are several, each to one digit."""
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.1f}{spread}"

"""Training beside other work on a CPU: threads that wait for each other spin for a shorter time.

OpenMP's threads wait for the next parallel operation in a loop, for milliseconds, before they sleep. Beside another
training the thread that is waited for has no core meanwhile, and both trainings come nearly to a stop. Figures:
benchmarks/busy_machine.py.
"""

import os
import threading
import time
from pathlib import Path

import psutil
import torch


# Cores' worth of other work, above which it wants the cores that this process computes on.
_OTHER_WORK = 0.3
# Seconds from one look at the machine to the next: the system counts in hundredths.
_PERIOD = 2.0
# Whoever sets one of these has decided how threads wait.
USERS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES", "KMP_BLOCKTIME")


class Spinning:
    """Shortens how long OpenMP's threads spin, as long as other processes want the same cores.

    GCC's OpenMP, which PyTorch has on Linux, lets them spin 300,000 times, but only 1,000 times while a process has
    more OpenMP threads than cores (its manual, GOMP_SPINCOUNT). A thread that owns idle ones brings that about,
    and its end takes it back. An operation is divided among as many threads either way, so no sum changes in any bit.
    """

    def __init__(self, device: torch.device):
        threads, cores = torch.get_num_threads(), usable_cores()
        gnu = any("libgomp" in line for line in mapped_files())
        own = any(name in os.environ for name in USERS_OWN)
        # With one thread there is nobody to wait for.
        self.possible = device.type == "cpu" and 1 < threads <= len(cores) and gnu and not own
        self._cores = cores
        self._looked, self._others, self._own = 0.0, 0.0, 0.0
        self._end: threading.Event | None = None

    @property
    def is_short(self) -> bool:
        """Return True while threads spin for a shorter time."""
        return self._end is not None

    def look(self) -> str | None:
        """Look at the machine every few seconds, and change how long threads spin. Returns a line for the log or None.

        To be called between steps.
        """
        now = time.monotonic()
        if not self.possible or now - self._looked < _PERIOD:
            return None
        busy, own = busy_seconds(self._cores), time.process_time()
        passed, first = now - self._looked, not self._looked
        others = (busy - self._others - (own - self._own)) / passed
        self._looked, self._others, self._own = now, busy, own
        wanted = others + torch.get_num_threads() > len(self._cores) + _OTHER_WORK
        if first or wanted == self.is_short:
            return None
        self.shorten() if wanted else self.restore()
        if wanted:
            return f"other work takes {others:.1f} of {len(self._cores)} cores: threads spin for a shorter time"
        return "the other work is over: threads spin as before"

    def shorten(self) -> None:
        """Let threads spin for a shorter time."""
        if self._end is None:
            self._end, started = threading.Event(), threading.Event()
            threading.Thread(target=_own_threads, args=(started, self._end), name="spinning", daemon=True).start()
            started.wait()

    def restore(self) -> None:
        """Let threads spin as before."""
        if self._end is not None:
            self._end.set()
            self._end = None


def _own_threads(started: threading.Event, end: threading.Event) -> None:
    torch.ones(1 << 18).add_(1.0)  # large enough to be divided among threads
    started.set()
    end.wait()


def usable_cores() -> list[int]:
    """Return the numbers of the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def mapped_files() -> list[str]:
    """Return the lines of the process's memory map, which name its libraries; none where there is no /proc."""
    maps = Path("/proc/self/maps")
    return maps.read_text().splitlines() if maps.is_file() else []


def busy_seconds(cores: list[int]) -> float:
    """Return the seconds these cores have worked for all processes since the system started."""
    times = psutil.cpu_times(percpu=True)
    return sum(each.user + each.nice + each.system for number, each in enumerate(times) if number in cores)

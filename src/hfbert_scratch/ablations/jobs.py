"""Runs that depend on each other, done once: by one process or by several that share a directory."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.hardware.throughput import clock
from ..utils.errors import DivergenceError
from ..utils.files import lock, read_json, write_json, writing


RESULTS = "results.json"
# Seconds between looks at what other processes have finished.
PATIENCE = 2.0


@dataclass(frozen=True)
class Job:
    """A run in a directory of its own; it is done when results.json is there.

    Args:
        directory: of the run.
        needs: directories of jobs that must be done before.
        run: returns the content of results.json, or None when a signal stopped it.
    """

    directory: Path
    needs: Sequence[Path]
    run: Callable[[], dict[str, Any] | None]

    @property
    def is_done(self) -> bool:
        """Return whether the results are there."""
        return (self.directory / RESULTS).is_file()


def results_of(directory: Path) -> dict[str, Any]:
    """Read the results of a finished job; {"diverged": reason} for one without any."""
    return read_json(directory / RESULTS, "results")


def run_jobs(jobs: Sequence[Job], root: Path) -> bool:
    """Do all jobs that are open, and wait for the jobs of other processes.

    A run that diverges is a result, and so is a run that would start from it.

    Args:
        jobs: in the order of their needs.
        root: the directory that all lie in, for the log.

    Returns:
        False when a signal stopped this process's run.
    """
    before, started = {job.directory for job in jobs if job.is_done}, time.monotonic()
    while waiting := [job for job in jobs if not job.is_done]:
        ready = [job for job in waiting if all((needed / RESULTS).is_file() for needed in job.needs)]
        did = False
        for job in ready:
            with writing(job.directory), lock(job.directory / ".claim", wait=False) as free:
                if not free or job.is_done:
                    continue
                did = True
                if not _run(job, root):
                    return False
            done = sum(other.is_done for other in jobs)
            print(f"{done} of {len(jobs)} runs are done, eta {_eta(jobs, before, started)}", flush=True)
            break  # others may have become ready, and earlier ones first
        if not did:
            time.sleep(PATIENCE)
    return True


def _eta(jobs: Sequence[Job], before: set[Path], started: float) -> str:
    """Say how long the jobs that are left take, at the pace of all processes since `started`.

    Jobs that need others, such as fine-tunings, take other times than those that do not, such as pretrainings.

    Args:
        jobs: all of them.
        before: directories of the jobs that were done at `started`.
        started: by the monotonic clock, in seconds.
    """
    took: dict[bool, list[float]] = {False: [], True: []}  # seconds of finished jobs that do not and do need others
    worked = 0.0
    for job in jobs:
        if job.is_done:
            seconds = results_of(job.directory).get("seconds", 0.0)
            took[bool(job.needs)].append(seconds)
            worked += seconds * (job.directory not in before)
    left = [bool(job.needs) for job in jobs if not job.is_done]
    seconds = sum(statistics.fmean(took[kind]) for kind in left if took[kind])
    at_once = max(1.0, worked / max(time.monotonic() - started, 1e-3))
    return ("about " if all(took[kind] for kind in left) else "more than ") + clock(seconds / at_once)


def _run(job: Job, root: Path) -> bool:
    name = job.directory.relative_to(root)
    lost = next((needed for needed in job.needs if "diverged" in results_of(needed)), None)
    if lost is not None:
        write_json(job.directory / RESULTS, {"diverged": f"it starts from {lost.relative_to(root)}, which diverged"})
        return True
    print(f"== {name}", flush=True)
    start = time.monotonic()
    try:
        results = job.run()
    except DivergenceError as error:
        print(f"{name} diverged: {error}", flush=True)
        results = {"diverged": str(error)}
    if results is None:
        return False
    content = json.loads(json.dumps(results | {"seconds": round(time.monotonic() - start, 1)}))
    write_json(job.directory / RESULTS, content)
    return True

"""Share numbered work among processes, tasks and hosts that see the same directory.

A number is claimed by creating a file, which only one process can. It makes no difference who does which number: the
result depends on the number alone. A task holds a lock while it runs, so what a task that ended had claimed is found,
and done by another. Where a file system does not tell the locks of other hosts, a number may be done twice.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ...utils.errors import OutputError
from ...utils.files import atomic, lock


# Seconds between two looks at what other tasks have done.
_POLL = 0.5


class WorkQueue:
    """The numbers from 0 to `count` − 1, each to be done once by any task.

    Args:
        directory: of the claims and the locks of the tasks.
        stage: a name for this work.
        count: how many numbers.
        is_done: tells whether a number is done.
        task: the number of this task, which holds its lock (`task_lock`).
    """

    def __init__(self, directory: Path, stage: str, count: int, is_done: Callable[[int], bool], task: int) -> None:
        self.directory, self.stage, self.count, self.is_done, self.task = directory, stage, count, is_done, task
        self._seen = [False] * count
        self._unseen = count
        self._left = list(range(count))
        self.running: set[int] = set()

    def claim(self, start: int) -> int | None:
        """Claim the first free number from `start` on, or before it; None if there is none."""
        number = start % max(self.count, 1)
        while self._unseen:
            if not self._seen[number]:
                self._seen[number] = True
                self._unseen -= 1
                if not self.is_done(number) and self._create(number):
                    self.running.add(number)
                    return number
            number = (number + 1) % self.count
        return None

    def left(self) -> list[int]:
        """List the numbers that are not done."""
        self._left = [number for number in self._left if not self.is_done(number)]
        return self._left

    def take_over(self, number: int) -> bool:
        """Claim a number whose task has ended without doing it; return whether that succeeds."""
        claim = self._claim(number)
        try:
            owner = int(claim.read_text(encoding="ascii") or self.task)
        except FileNotFoundError:
            owner = self.task
        if owner == self.task:
            free = number not in self.running
        else:
            with lock(task_lock(self.directory, owner), wait=False) as free:
                if free and not self.is_done(number):
                    self._write(claim)
        if free and not self.is_done(number):
            self.running.add(number)
            return True
        return False

    def _claim(self, number: int) -> Path:
        return self.directory / f"{self.stage}-{number:05d}.claim"

    def _create(self, number: int) -> bool:
        try:
            descriptor = os.open(self._claim(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(str(self.task))
        return True

    def _write(self, claim: Path) -> None:
        with atomic(claim) as file:
            file.write(str(self.task).encode("ascii"))


def task_lock(directory: Path, task: int) -> Path:
    """Return the lock file that task number `task` holds while it runs."""
    return directory / f"task-{task}.lock"


def do_all(
    queue: WorkQueue,
    submit: Callable[[int, int], Future],
    ready: Sequence[Future],
    starts: list[int],
    report: Callable[[int], None],
    wait_for_others: bool,
) -> bool:
    """Do every number that no other task does.

    Args:
        queue: the numbers.
        submit: starts a number in a worker; arguments: worker, number.
        ready: of each worker, done when it takes numbers; the first one does at once.
        starts: the number from which each worker looks for work; it goes on from there, reading on where it stopped.
        report: told the result of every number.
        wait_for_others: stay until the other tasks have done theirs, and do what they leave if they end.

    Returns:
        Whether all numbers are done.
    """
    working: dict[Future, tuple[int, int]] = {}
    joining = {future: worker for worker, future in enumerate(ready)}
    idle: list[int] = []
    while True:
        for future in [future for future in joining if future.done()]:
            future.result()  # raises if the worker could not start
            idle.append(joining.pop(future))
        while idle and (number := _next(queue, starts[idle[-1]])) is not None:
            worker = idle.pop()
            starts[worker] = number + 1
            working[submit(worker, number)] = (worker, number)
        if working:
            done = wait({*working, *joining}, return_when=FIRST_COMPLETED).done
            for future in done & working.keys():
                worker, number = working.pop(future)
                idle.append(worker)
                queue.running.discard(number)
                report(future.result())
        elif not queue.left():
            return True
        elif not wait_for_others:
            return False
        else:
            time.sleep(_POLL)


def _next(queue: WorkQueue, start: int) -> int | None:
    """Claim a free number, or else one that an ended task has left."""
    number = queue.claim(start)
    if number is None:
        return next((left for left in queue.left() if queue.take_over(left)), None)
    return number


@contextlib.contextmanager
def only_task(directory: Path, task: int) -> Iterator[bool]:
    """Hold the lock of a task; yields whether no other process holds it."""
    for _ in range(3):  # another task may hold it for a moment, to find out whether this one runs
        with lock(task_lock(directory, task), wait=False) as alone:
            if alone:
                yield True
                return
        time.sleep(0.1)
    yield False


@contextlib.contextmanager
def worker_processes(
    num_proc: int, start: Callable[..., None], setup: tuple[Any, ...]
) -> Iterator[tuple[list[Executor], list[Future]]]:
    """Start processes, each with a queue of its own.

    Args:
        num_proc: number of processes.
        start: called in each process before its first work.
        setup: the arguments of `start`.

    Yields:
        The processes, and for each a future that is done when it has started: that takes seconds.

    Raises:
        OutputError: if a process is killed.
    """
    # A plain fork would break the threads of the tokenizer and of Arrow. The fork server has imported everything once
    # and started no thread.
    methods = multiprocessing.get_all_start_methods()  # Windows has no fork server
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([start.__module__])
    pools = [ProcessPoolExecutor(1, context, start, setup) for _ in range(num_proc)]
    starters = ThreadPoolExecutor(max(1, num_proc))  # the first submission waits until the process runs
    try:
        yield list(pools), [starters.submit(_wait_for_start, pool) for pool in pools]
    except BrokenProcessPool:
        raise OutputError(
            "a worker process was killed, perhaps for want of memory; use a smaller --num_proc or --shard_mb and run "
            "the same command again"
        ) from None
    finally:
        starters.shutdown(cancel_futures=True)
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _wait_for_start(pool: Executor) -> None:
    pool.submit(os.getpid).result()

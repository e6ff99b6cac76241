"""A pretraining step beside other processes: our training, whose threads spin for a shorter time there, against plain.

    python benchmarks/busy_machine.py --size mini --batch_size 32 --precision bfloat16

Both sides make the same steps of HFBert; the other side's threads wait as PyTorch's do by default. Three machines:
still; one endless loop per core; another training of the same side. `share_of_fair` is the speed as a share of what
an equal division of the cores would leave of the still machine's: half of it beside loops or another training.
"""

import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from harness import record
from pretraining_step import BenchmarkArguments as StepArguments
from pretraining_step import build, make_batch, our_inputs, step_function

from hfbert_scratch.training.hardware.spinning import Spinning
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import disable_malloc_trim
from hfbert_scratch.utils.errors import command_line


SIDES = ("ours", "plain")
MACHINES = ("still", "loops", "another training")


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    size: str = argument("mini", help="tiny, mini, small, medium, base, large")
    batch_size: int = argument(32, help="sequences per step")
    precision: str = argument("bfloat16", help="bfloat16 (autocast) or float32")
    seconds: float = argument(6.0, help="timed, of each side on each machine")
    settling: float = argument(6.0, help="seconds of steps before them, in which our side notices the other work")
    pairs: int = argument(3, help="turns of each side on each machine")


def train(arguments: BenchmarkArguments, side: str, orders: Connection) -> None:
    """Make steps in a process of its own, as long as it is told to, and say how many a second."""
    settings = StepArguments(size=arguments.size, batch_size=arguments.batch_size, precision=arguments.precision)
    device = torch.device("cpu")
    batch, _ = make_batch(settings, device)
    disable_malloc_trim()
    model, optimizer = build(settings, "ours", device)
    step = step_function(model, optimizer, our_inputs(settings, batch), settings.precision)
    spinning = Spinning(device) if side == "ours" else None

    def steps_per_second(seconds: float) -> float:
        start, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - start < seconds:
            step()
            steps += 1
            if spinning:
                spinning.look()
        return steps / (time.perf_counter() - start)

    steps_per_second(0.0)
    orders.send(0.0)
    while orders.recv():
        steps_per_second(arguments.settling)
        orders.send(steps_per_second(arguments.seconds))


def spin() -> None:
    """Work until killed."""
    while True:
        pass


def rate(machine: str, trainings: list[Connection]) -> float:
    """Steps a second that one training makes there."""
    used = trainings if machine == "another training" else trainings[:1]
    loops = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for loop in loops if machine == "loops" else []:
        loop.start()
    for training in used:
        training.send(True)
    rates = [training.recv() for training in used]
    for loop in loops if machine == "loops" else []:
        loop.kill()
        loop.join()
    return statistics.fmean(rates)


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    context = multiprocessing.get_context("spawn")
    trainings: dict[str, list[Connection]] = {side: [] for side in SIDES}
    for side in SIDES:
        for _ in range(2):
            here, there = context.Pipe()
            context.Process(target=train, args=(arguments, side, there), daemon=True).start()
            here.recv()
            trainings[side].append(here)
    rates: dict[tuple[str, str], list[float]] = {(side, machine): [] for side in SIDES for machine in MACHINES}
    for _ in range(arguments.pairs):
        for machine in MACHINES:
            for side in SIDES:
                rates[side, machine].append(rate(machine, trainings[side]))
    for training in (*trainings["ours"], *trainings["plain"]):
        training.send(False)
    still = statistics.median(rates["plain", "still"])
    for machine in MACHINES:
        ours, plain = rates["ours", machine], rates["plain", machine]
        ratios = sorted(our_rate / plain_rate for our_rate, plain_rate in zip(ours, plain, strict=True))
        fair = still if machine == "still" else still / 2
        result: dict[str, Any] = {
            "ours_seconds": 1 / statistics.median(ours),
            "theirs_seconds": 1 / statistics.median(plain),
            "ratio": statistics.median(ratios),
            "ratio_lowest": ratios[0],
            "ratio_highest": ratios[-1],
            "pairs": arguments.pairs,
            "share_of_fair": statistics.median(ours) / fair,
            "theirs_share_of_fair": statistics.median(plain) / fair,
        }
        shape = f"{arguments.size} {arguments.batch_size}x128, {arguments.precision}"
        record(f"busy machine, {machine}, {shape}", result)


if __name__ == "__main__":
    main()

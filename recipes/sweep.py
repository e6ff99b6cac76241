# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""The paper's search for hyperparameters: learning rate × batch size × epochs × seeds, chosen on validation.

    hfbert sweep --task rte --model runs/pretrain/model --data_dir data/rte \\
        --output_dir runs/rte-sweep
    hfbert sweep --num_processes 8 --task mrpc --model … --output_dir …

Writes into output_dir: sweep.json and sweep.md (mean, median, standard deviation and best over the seeds of every
setting; trials that learnt only the most frequent answer are marked), sweep.png, and trials/<name>/. A trial is scored
at its last step. Under a launcher every process runs trials of its own, each on its own GPU where there are GPUs.
Killed at any moment, the same command goes on with the unfinished trials; one that was running starts again
(--keep_checkpoints 1: continues).

Supports: every task of hfbert finetune but all-glue; seeds decide the new head, the order of the data and dropout.
Does not support: one trial on several GPUs.

Exit codes: 0 done, 2 unusable input, 6 another sweep's directory, 7 output, 75 stopped by a signal.
"""

import dataclasses
import itertools
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbert_scratch.evaluation import TaskData, majority_baseline
from hfbert_scratch.finetuning import FinetuningArguments, estimate_fine_tuning, fine_tune, open_task
from hfbert_scratch.tasks import Task
from hfbert_scratch.training.arguments import NEVER
from hfbert_scratch.training.distributed import leave_the_launchers_group
from hfbert_scratch.training.estimate import Estimate, describe_estimate, total
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.directories import claim_directory
from hfbert_scratch.utils.environment import is_first_process, process_count
from hfbert_scratch.utils.errors import STOPPED, DivergenceError, InputError, command_line
from hfbert_scratch.utils.files import lock, read_json, write_json, write_text
from hfbert_scratch.utils.plots import draw_sweep


# Options of the grid, and options that do not change scores.
GRID = ("learning_rates", "batch_sizes", "epoch_counts", "seeds")
FREE = {*GRID, "output_dir", "log_every", "keep_checkpoints", "save_every", "eval_every", "num_proc", "cache_dir"}
FREE |= {"estimate", "price"}

# Why options of hfbert finetune are not taken here.
_LAST_STEP = "every trial is scored at its last step"


@dataclass(kw_only=True)
class SweepArguments(FinetuningArguments):
    """The command line."""

    learning_rates: list[float] = argument([], help="default: the task's grid")
    batch_sizes: list[int] = argument([], help="default: the task's grid")
    epoch_counts: list[float] = argument([], help="default: the task's grid")
    seeds: list[int] = argument([0, 1, 2, 3, 4], help="one trial each for every setting")
    keep_checkpoints: int = argument(0, help="1: a trial that was killed continues; needs the disk space")
    eval_every: int | None = argument(
        None, help="with --keep_checkpoints 1: steps between evaluations; default: an epoch's"
    )
    save_every: int | None = argument(
        None, help="with --keep_checkpoints 1: steps between checkpoints; default: eval_every"
    )
    trackers: list[str] = argument([], help="accelerate's trackers for every trial: tensorboard, wandb, trackio…")
    seed: int = argument(0, refused="name the seeds of the trials with --seeds")
    early_stopping: int = argument(0, refused=_LAST_STEP)
    metric_for_best: str | None = argument(None, refused=_LAST_STEP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.keep_checkpoints and (self.eval_every or self.save_every):
            raise InputError(f"eval_every and save_every go with keep_checkpoints 1: {_LAST_STEP}")
        for one, grid in zip(("learning_rate", "batch_size", "epochs"), GRID, strict=False):
            if getattr(self, one) and getattr(self, grid):
                raise InputError(f"{one} and {grid} are both given; leave one of them out")

    def trials(self, task: Task) -> list[dict[str, Any]]:
        """Build the grid, seeds innermost, so that settings are completed one after another."""
        defaults = task.defaults
        epochs = [self.epochs] if self.epochs else self.epoch_counts or defaults.epochs
        if self.max_steps and len(epochs) > 1:
            counts = ", ".join(f"{count:g}" for count in epochs)
            raise InputError(
                f"max_steps {self.max_steps} makes trials of {counts} epochs the same; leave it out, or name one "
                "number with --epochs"
            )
        grid = itertools.product(
            [self.learning_rate] if self.learning_rate else self.learning_rates or defaults.learning_rates,
            [self.batch_size] if self.batch_size else self.batch_sizes or defaults.batch_sizes,
            epochs,
            self.seeds,
        )
        names = ("learning_rate", "batch_size", "epochs", "seed")
        trials = [dict(zip(names, values, strict=True)) for values in grid]
        if not trials:
            raise InputError("--seeds names no seed; give at least one")
        return trials


@command_line
def main() -> None:
    """Parse, run the trials that are left, and write the table when all are done."""
    arguments = parse_arguments(SweepArguments, description=__doc__)
    is_first, processes = is_first_process(), process_count()
    leave_the_launchers_group()
    if arguments.task == "all-glue":
        raise InputError("a sweep is of one task; run one for each of GLUE's")
    data = open_task(arguments)
    print("\n".join(data.describe(list(data.raw))[1]))
    trials = arguments.trials(data.task)
    if arguments.estimate:
        estimate = estimate_sweep(arguments, trials, data, processes)
        if is_first:
            print(describe_estimate(estimate, arguments.price, f": {describe_grid(trials)}"))
        return
    directory = Path(arguments.output_dir)
    shared = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in FREE}
    claim_directory(directory, shared, "a sweep")
    for trial in trials:
        if not run_trial(arguments, trial, data):
            sys.exit(STOPPED)
    files = [trial_directory(directory, trial) / "trial.json" for trial in trials]
    if all(file.is_file() for file in files):  # else another process is still busy, and writes the table when done
        baseline = majority_baseline(data.task, data.raw["train"], data.raw["validation"])[data.task.main_metric]
        summarize(directory, arguments, data.task, [read_json(file, "trial") for file in files], baseline)


def trial_directory(directory: Path, trial: dict[str, Any]) -> Path:
    """Return the directory of a trial."""
    return directory / "trials" / f"{setting_name(trial)}-seed{trial['seed']}"


def setting_name(trial: dict[str, Any]) -> str:
    """Name a setting, for files, the table and the plot."""
    return f"lr{trial['learning_rate']:g}-bs{trial['batch_size']}-ep{trial['epochs']:g}"


def run_trial(arguments: SweepArguments, trial: dict[str, Any], data: TaskData) -> bool:
    """Run a trial unless it is done or another process has it; return False when a signal stopped it."""
    directory = trial_directory(Path(arguments.output_dir), trial)
    directory.mkdir(parents=True, exist_ok=True)
    with lock(directory / ".claim", wait=False) as free:
        if not free or (directory / "trial.json").is_file():
            return True
        changes: dict[str, Any] = trial | {"output_dir": str(directory)}
        if not arguments.keep_checkpoints:
            changes["eval_every"] = changes["save_every"] = NEVER
        print(f"== {directory.name}", flush=True)
        try:
            results = fine_tune(arguments.of_one_run(changes), data, save_model=False, end_training=False)
        except DivergenceError as error:
            print(f"diverged: {error}", flush=True)
            entry: dict[str, Any] = {"score": None, "scores": {}, "degenerate": True, "seconds": None}
        else:
            if results is None:
                return False
            entry = {
                "score": results["main_metric"]["value"],
                "scores": results["scores"]["validation"],
                "degenerate": results["degenerate"],
                "seconds": results["seconds"]["all"],
            }
        write_json(directory / "trial.json", trial | {"setting": setting_name(trial)} | entry)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return True


def estimate_sweep(
    arguments: SweepArguments, trials: list[dict[str, Any]], data: TaskData, processes: int
) -> Estimate:
    """Time steps of each batch size, and add up the trials, `processes` at a time.

    Every process times its own, so that they share the machine as in the sweep.
    """
    rows = len(data.features("train", training=True))
    timed: dict[int, Estimate] = {}
    estimates: list[Estimate] = []
    for trial in trials:
        changes = trial | ({} if arguments.keep_checkpoints else {"eval_every": NEVER, "save_every": NEVER})
        own, size = arguments.of_one_run(changes), trial["batch_size"]
        if size not in timed:
            timed[size] = estimate_fine_tuning(own, data, save_model=False, end_training=False)
        estimate = timed[size].scaled(int(own.resolved(data.task, rows).max_steps or 1))
        # A finished trial keeps no checkpoint and no model, and the features are those of all.
        kept = {"checkpoints": 0, "model_bytes": 0, "cache_bytes": 0 if estimates else estimate.cache_bytes}
        estimates.append(dataclasses.replace(estimate, **kept))
    timed_steps = sum(estimate.timed_steps for estimate in timed.values())
    return dataclasses.replace(total(estimates, parallel=min(processes, len(trials))), timed_steps=timed_steps)


def describe_grid(trials: list[dict[str, Any]]) -> str:
    """Name the sizes of the grid."""
    values = {name: list(dict.fromkeys(trial[name] for trial in trials)) for name in trials[0]}
    epochs = ", ".join(f"{value:g}" for value in sorted(values["epochs"]))
    return (
        f"{len(values['learning_rate'])} learning rates × {len(values['batch_size'])} batch sizes × "
        f"{len(values['epochs'])} numbers of epochs ({epochs}) × {len(values['seed'])} seeds"
    )


def summarize(
    directory: Path, arguments: SweepArguments, task: Task, trials: list[dict[str, Any]], baseline: float
) -> None:
    """Write the table and the plot, and print the table."""
    rows = []
    for setting in dict.fromkeys(trial["setting"] for trial in trials):
        own = [trial for trial in trials if trial["setting"] == setting]
        scores = [trial["score"] for trial in own if trial["score"] is not None]
        rows.append(
            {name: own[0][name] for name in ("setting", "learning_rate", "batch_size", "epochs")}
            | {
                "trials": len(own),
                "mean": statistics.fmean(scores) if scores else None,
                "median": statistics.median(scores) if scores else None,
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "best": max(scores, default=None),
                "degenerate": sum(trial["degenerate"] for trial in own),
                "diverged": len(own) - len(scores),
            }
        )
    rows.sort(key=lambda row: -1.0 if row["mean"] is None else row["mean"], reverse=True)
    finished = [trial for trial in trials if trial["score"] is not None]
    best = max(finished, key=lambda trial: trial["score"], default=None)
    write_json(
        directory / "sweep.json",
        {
            "task": task.name,
            "model": arguments.model,
            "metric": task.main_metric,
            "majority_baseline": baseline,
            "settings": rows,
            "best_trial": best,
            "trials": trials,
        },
    )
    table = markdown(task.metric_label(task.main_metric), rows, baseline, task.score_scale)
    write_text(directory / "sweep.md", table)
    if finished:
        draw_sweep(trials, task.main_metric, baseline, directory / "sweep.png")
    print(table)
    if best:
        print(
            f"best trial: {best['score']:.4f}; its model: hfbert finetune --task {task.name} "
            f"--model {arguments.model} --learning_rate {best['learning_rate']:g} "
            f"--batch_size {best['batch_size']} --epochs {best['epochs']:g} --seed {best['seed']}"
        )


def markdown(metric: str, rows: list[dict[str, Any]], baseline: float, scale: int) -> str:
    """Format the table of settings, scores times `scale`."""

    def figure(value: float | None) -> str:
        return "–" if value is None else f"{scale * value:.2f}"

    lines = [
        f"{metric} on validation; the most frequent answer alone has {figure(baseline)}",
        "",
        "| learning rate | batch | epochs | trials | mean | median | std | best | degenerate | diverged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        scores = " | ".join(figure(row[name]) for name in ("mean", "median", "std", "best"))
        lines.append(
            f"| {row['learning_rate']:g} | {row['batch_size']} | {row['epochs']:g} | {row['trials']} | {scores} | "
            f"{row['degenerate']} | {row['diverged']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

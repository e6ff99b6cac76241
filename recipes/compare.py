# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Fine-tune several encoders on the same tasks with the same seeds, and say which differences are more than luck.

    hfbert compare runs/base/model bert-base-uncased roberta-base \\
        --tasks mrpc conll2003 --data_dir data --output_dir runs/comparison

Writes into output_dir: compare.json, compare.md and compare.png (mean and standard deviation over the seeds for each
model and task, and the paired difference of every model from the first with a 95 % interval over seeds and examples,
as MultiBERTs': Sellam et al. 2021), and trials/. Every model gets the same hyperparameters, order of examples and
seeds; it is scored at its last step. --data_dir holds the files of one task, or a directory for each. Killed at any
moment, the same command goes on with the trials that are left.

Supports: our checkpoints, and those of BERT, DistilBERT, RoBERTa, ELECTRA, DeBERTa, ModernBERT and other encoders that
transformers opens; every task of hfbert finetune with a metric that examples add up to.
Does not support: a search for each model's best hyperparameters (hfbert sweep), questions (squad) with RoBERTa's
special tokens.

Exit codes: 0 done, 2 unusable input, 5 diverged, 6 another comparison's directory, 7 output, 75 stopped by a signal.
"""

import dataclasses
import itertools
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfbert_scratch.evaluation import TaskData
from hfbert_scratch.finetuning import FinetuningArguments, fine_tune, open_task
from hfbert_scratch.metrics.bootstrap import ExampleScores, PairedDifference, paired_bootstrap
from hfbert_scratch.tasks import find_task_directory
from hfbert_scratch.training.arguments import NEVER
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.directories import claim_directory
from hfbert_scratch.utils.environment import is_first_process
from hfbert_scratch.utils.errors import STOPPED, InputError, command_line
from hfbert_scratch.utils.files import read_json, write_json, write_text
from hfbert_scratch.utils.plots import draw_comparison


# Options that do not change scores.
FREE = {"output_dir", "log_every", "num_proc", "cache_dir", "process_timeout", "max_time", "eval_batch_size"}

# Why options of hfbert finetune are not taken here.
_LAST_STEP = "every trial is scored at its last step"
_NO_CHECKPOINTS = "trials keep no checkpoints; one that was killed starts again"
_NO_ESTIMATE = "estimate one trial with hfbert finetune --estimate"


@dataclass(kw_only=True)
class CompareArguments(FinetuningArguments):
    """The command line."""

    models: list[str] = argument(
        help="checkpoints, as words in front of all options or after this one; the others are compared with the first"
    )
    tasks: list[str] = argument(help="one or more of hfbert finetune's")
    seeds: list[int] = argument([0, 1, 2], help="one trial of each model and task for every seed")
    trackers: list[str] = argument([], help="accelerate's trackers for every trial")
    task: str = argument("", refused="name the tasks with --tasks")
    model: str = argument("", refused="name the models with --models")
    seed: int = argument(0, refused="name the seeds of the trials with --seeds")
    estimate: bool = argument(False, refused=_NO_ESTIMATE)
    price: float | None = argument(None, refused=_NO_ESTIMATE)
    early_stopping: int = argument(0, refused=_LAST_STEP)
    metric_for_best: str | None = argument(None, refused=_LAST_STEP)
    eval_every: int | None = argument(None, refused=_LAST_STEP)
    save_every: int | None = argument(None, refused=_NO_CHECKPOINTS)
    keep_checkpoints: int = argument(1, refused=_NO_CHECKPOINTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("models", 2), ("tasks", 1), ("seeds", 2)):
            values = getattr(self, name)
            if len(values) < least or len(set(values)) < len(values):
                raise InputError(f"{name} are {' '.join(map(str, values))}; give at least {least} different ones")
        if len(self.tasks) > 1 and (self.train_file or self.validation_file or self.dataset or self.columns):
            raise InputError("several tasks take their files from --data_dir or the Hub; name no single file")

    def trial(self, model: str, task: str, seed: int, directory: Path) -> FinetuningArguments:
        """Return the arguments of one trial."""
        changes: dict[str, Any] = {"model": model, "task": task, "seed": seed, "output_dir": str(directory)}
        changes |= {"data_dir": self.task_directory(task), "keep_checkpoints": 0}
        changes |= {"eval_every": NEVER, "save_every": NEVER}
        return self.of_one_run(changes)

    def task_directory(self, task: str) -> str | None:
        """Return the directory of a task's files within data_dir, or data_dir itself for a single task."""
        found = find_task_directory(self.data_dir, task, required=False)
        if found is None and self.data_dir is not None and len(self.tasks) > 1:
            raise InputError(f"--data_dir {self.data_dir} has no directory {task}, which several tasks need")
        return found or self.data_dir


@command_line
def main() -> None:
    """Parse, open all data and models, run the trials that are left, compare."""
    words = sys.argv[1:]
    count = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    models = ["--models", *words[:count]] if count else []
    arguments = parse_arguments(CompareArguments, argv=[*models, *words[count:]], description=__doc__)
    root = Path(arguments.output_dir)
    data = open_all(arguments)
    shared = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in FREE}
    claim_directory(root, shared, "a comparison")
    for task, model, seed in itertools.product(arguments.tasks, arguments.models, arguments.seeds):
        directory = trial_directory(root, arguments, task, model, seed)
        if not run_trial(arguments, data[task, model], model, seed, directory):
            sys.exit(STOPPED)
    if is_first_process():
        report(root, arguments, {task: data[task, arguments.models[0]] for task in arguments.tasks})


def open_all(arguments: CompareArguments) -> dict[tuple[str, str], TaskData]:
    """Open the data of every task with every model's tokenizer: a fault should not come up after hours."""
    data = {}
    for task in arguments.tasks:
        for model in arguments.models:
            own = arguments.trial(model, task, arguments.seeds[0], Path(arguments.output_dir))
            data[task, model] = open_task(own)
        opened = data[task, model]
        opened.check_comparable(opened.task.main_metric)
        print("\n".join(opened.describe(["train", "validation"])[1]))
    return data


def trial_directory(root: Path, arguments: CompareArguments, task: str, model: str, seed: int) -> Path:
    """Return the directory of a trial."""
    return root / "trials" / task / f"model{arguments.models.index(model)}-seed{seed}"


def run_trial(arguments: CompareArguments, data: TaskData, model: str, seed: int, directory: Path) -> bool:
    """Run a trial unless it is done; return False when a signal stopped it."""
    if (directory / "trial.json").is_file():
        return True
    print(f"== {data.task.name}, {model}, seed {seed}", flush=True)
    own = arguments.trial(model, data.task.name, seed, directory)
    results = fine_tune(own, data, save_model=False, end_training=False)
    if results is None:
        return False
    if is_first_process():
        metric = data.task.main_metric
        rows, function = data.task.example_rows(data.raw["validation"], results["predictions"]["validation"], metric)
        np.save(directory / "rows.npy", rows)
        entry = {"model": model, "task": data.task.name, "seed": seed, "metric": metric, "function": function}
        figures = {"score": results["main_metric"]["value"], "degenerate": results["degenerate"]}
        write_json(directory / "trial.json", entry | figures | {"seconds": results["seconds"]["all"]})
    return True


def report(root: Path, arguments: CompareArguments, data: dict[str, TaskData]) -> None:
    """Compare all models with the first, write compare.json, compare.md and compare.png, and print the table."""
    first, *others = arguments.models
    entries: list[dict[str, Any]] = []
    scores: dict[tuple[str, str], ExampleScores] = {}
    for task, own in data.items():
        scale = own.task.score_scale
        for model in arguments.models:
            directories = [trial_directory(root, arguments, task, model, seed) for seed in arguments.seeds]
            trials = [read_json(directory / "trial.json", "trial") for directory in directories]
            rows = np.stack([np.load(directory / "rows.npy") for directory in directories])
            scores[task, model] = ExampleScores(rows, trials[0]["function"])
            values = [scale * trial["score"] for trial in trials]
            metric = own.task.metric_label(own.task.main_metric)
            entry: dict[str, Any] = {"task": task, "model": model, "metric": metric}
            entry |= {"scores": values, "mean": statistics.fmean(values), "std": statistics.stdev(values)}
            entry["degenerate"] = sum(trial["degenerate"] for trial in trials)
            if model != first:
                paired = paired_bootstrap([(scores[task, model], scores[task, first])])
                entry["difference"] = as_entry(paired)
            entries.append(entry)
    overall = {
        model: as_entry(paired_bootstrap([(scores[task, model], scores[task, first]) for task in data]))
        for model in others
    }
    write_json(
        root / "compare.json",
        {"models": arguments.models, "seeds": arguments.seeds, "results": entries, "over_all_tasks": overall},
    )
    table = markdown(arguments, entries, overall)
    write_text(root / "compare.md", table)
    draw_comparison(entries, root / "compare.png")
    print(f"{table}\n{root}: compare.json, compare.md, compare.png")


def as_entry(paired: PairedDifference) -> dict[str, Any]:
    """Return a difference and its interval in per cent."""
    figures = {name: round(100 * getattr(paired, name), 3) for name in ("difference", "low", "high")}
    return figures | {"is_decided": paired.is_decided, "more_seeds": paired.more_seeds}


def markdown(arguments: CompareArguments, entries: list[dict[str, Any]], overall: dict[str, dict[str, Any]]) -> str:
    """Format the table; an interval that excludes 0 is a difference, others are none yet."""
    lines = [
        f"{len(arguments.seeds)} seeds; mean ± standard deviation; differences from {arguments.models[0]}, paired by "
        "seed and example, with a 95 % interval: bold where it excludes 0",
        "",
        "| task | model | score | difference |",
        "| --- | --- | --- | --- |",
    ]

    def cell(entry: dict[str, Any] | None) -> str:
        if entry is None:
            return "–"
        text = f"{entry['difference']:+.1f} [{entry['low']:+.1f}, {entry['high']:+.1f}]"
        return f"**{text}**" if entry["is_decided"] else text

    for entry in entries:
        luck = f" ({entry['degenerate']} learnt nothing)" if entry["degenerate"] else ""
        score = f"{entry['mean']:.1f} ± {entry['std']:.1f}{luck}"
        task = f"{entry['task']}, {entry['metric']}"
        lines.append(f"| {task} | {entry['model']} | {score} | {cell(entry.get('difference'))} |")
    if len(arguments.tasks) > 1:
        lines += [f"| all tasks | {model} | | {cell(entry)} |" for model, entry in overall.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

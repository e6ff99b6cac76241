"""Scores of the tasks a published model was fine-tuned on, over seeds, for its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tasks import get_task
from ..utils.errors import InputError
from ..utils.files import read_json
from ..utils.quantities import mean_and_deviation


@dataclass(frozen=True)
class TaskScores:
    """The main metric of the fine-tunings on one task.

    Attributes:
        task: the task's name.
        metric: the metric's, for people.
        split: the split it was measured on.
        examples: training examples of a run.
        scores: seed → score, as tables give it: per cent, correlations times 100.
        baseline: the score of the most frequent answer.
    """

    task: str
    metric: str
    split: str
    examples: int
    scores: dict[int, float]
    baseline: float

    def format(self) -> str:
        """Format the mean over seeds and their deviation."""
        return mean_and_deviation(list(self.scores.values()))


def read_finetunings(directories: Sequence[str], model: Path) -> tuple[TaskScores, ...]:
    """Read finished fine-tunings of a model, of any tasks and seeds.

    Args:
        directories: output directories of `hfbert finetune`.
        model: the model they all started from.

    Returns:
        One entry a task, in the order of their first directories.

    Raises:
        InputError: if a directory holds no results, started from another model, repeats a seed, or was scored on
            another split or trained on another number of examples than its task's others.
    """
    tasks: dict[str, TaskScores] = {}
    for directory in map(Path, directories):
        if not (directory / "results.json").is_file() or not (directory / "record.json").is_file():
            raise InputError(f"{directory} is not a finished fine-tuning: it has no results.json and record.json")
        results = read_json(directory / "results.json", "the results of a fine-tuning")
        seed = read_json(directory / "record.json", "the record of a fine-tuning")["arguments"]["seed"]
        if Path(results["model"]).resolve() != model.resolve():
            raise InputError(f"{directory} was fine-tuned from {results['model']}, not from {model}; leave it out")
        one = _scores(results, seed)
        others = tasks.setdefault(one.task, one)
        if others is one:
            continue
        if seed in others.scores:
            raise InputError(f"{directory} is the second fine-tuning on {one.task} with seed {seed}; leave one out")
        if (others.split, others.examples) != (one.split, one.examples):
            raise InputError(
                f"{directory}: {one.examples} training examples, scored on {one.split}; the one before on {one.task} "
                f"had {others.examples}, scored on {others.split}"
            )
        others.scores[seed] = one.scores[seed]
    return tuple(tasks.values())


def _scores(results: dict[str, Any], seed: int) -> TaskScores:
    task, main = get_task(results["task"]), results["main_metric"]
    return TaskScores(
        results["task"],
        task.metric_label(main["name"]),
        main["split"],
        results["examples"]["train"],
        {seed: task.score_scale * main["value"]},
        task.score_scale * results["majority_baseline"][main["split"]][main["name"]],
    )

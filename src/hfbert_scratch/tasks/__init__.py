"""The paper's tasks and the user's own, as a table: a task is a row, and a file where it needs code.

task = get_task("mrpc")
raw = task.load(DataArguments(data_dir="…"))                     # split → datasets.Dataset
model = getattr(transformers, task.head).from_pretrained(directory, **task.config_overrides(raw["train"]))
features = task.features(raw["validation"], tokenizer, FeatureSettings(max_seq_length=128))
predictions = task.predict(raw["validation"], features, {"logits": …})
task.score(raw["validation"], predictions)[task.main_metric]
"""

import difflib

from ..utils.errors import InputError
from .data import DataArguments
from .glue import (
    CUSTOM_TASKS,
    GLUE_TASKS,
    SUBMISSION_FILES,
    SequenceTask,
    glue_average,
    glue_leaderboard_score,
    write_submission,
)
from .ner import NER_TASKS, NerTask
from .notes import collect_notes
from .squad import SQUAD_TASKS, Answers, SquadTask
from .summary import report_lines, summarize, summary_lines
from .swag import SWAG_TASKS, SwagTask
from .task import Defaults, FeatureSettings, Task


TASKS: dict[str, Task] = {
    task.name: task for task in (*GLUE_TASKS, *SQUAD_TASKS, *SWAG_TASKS, *NER_TASKS, *CUSTOM_TASKS)
}


def get_task(name: str) -> Task:
    """The task of that name; InputError with the closest name for an unknown one."""
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name.lower(), TASKS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TASKS)}"
    raise InputError(f"unknown task {name!r}; {hint}")


__all__ = [
    "SUBMISSION_FILES",
    "TASKS",
    "Answers",
    "DataArguments",
    "Defaults",
    "FeatureSettings",
    "NerTask",
    "SequenceTask",
    "SquadTask",
    "SwagTask",
    "Task",
    "collect_notes",
    "get_task",
    "glue_average",
    "glue_leaderboard_score",
    "report_lines",
    "summarize",
    "summary_lines",
    "write_submission",
]

"""The paper's tasks and the user's own, as a table: a task is a row, a shape of tasks is a file.

    task = get_task("mrpc")
    raw = task.load(DataArguments(data_dir="…"))                     # split → datasets.Dataset
    model = getattr(transformers, task.head).from_pretrained(directory, **task.config_overrides(raw["train"]))
    features = task.features(raw["validation"], tokenizer, FeatureSettings(max_seq_length=128))
    predictions = task.predict(raw["validation"], features, {"logits": …})
    task.score(raw["validation"], predictions)[task.main_metric]

Shapes: sequence (GLUE and the user's own), multilabel, squad, swag, ner. A new one subclasses `Task`, here or in any
other package, and joins the table by `register_task`.
"""

import difflib

from ..utils.errors import InputError
from .encoding import FeatureSettings
from .files.data import DataArguments
from .glue import (
    GLUE_TASKS,
    SUBMISSION_FILES,
    find_task_directory,
    glue_average,
    glue_leaderboard_score,
    write_submission,
)
from .multilabel import MULTILABEL_TASKS, LabelSets, MultilabelTask
from .ner import NER_TASKS, NerTask
from .notes import collect_notes
from .sequence import CUSTOM_TASKS, SequenceTask
from .squad import SQUAD_TASKS, Answers, SquadTask
from .summary import report_lines, summarize, summary_lines
from .swag import SWAG_TASKS, SwagTask
from .task import Defaults, Task


TASKS: dict[str, Task] = {}


def register_task(task: Task, *, replace: bool = False) -> Task:
    """Add a task to the table, so that `fine_tune` in this process knows it by its name.

    Args:
        task: an instance of a shape in this folder, or of your own subclass of `Task`.
        replace: replace another task of that name, as when a cell of a notebook runs again.

    Returns:
        The task.

    Raises:
        InputError: if there is another task of that name.
    """
    if not replace and TASKS.get(task.name, task) != task:
        raise InputError(f"there is a task {task.name!r} already; register yours under another name")
    TASKS[task.name] = task
    return task


for _task in (*GLUE_TASKS, *SQUAD_TASKS, *SWAG_TASKS, *NER_TASKS, *CUSTOM_TASKS, *MULTILABEL_TASKS):
    register_task(_task)


def get_task(name: str) -> Task:
    """Look up a task.

    Args:
        name: as given to --task.

    Returns:
        The task.

    Raises:
        InputError: for an unknown name; the message has the closest one.
    """
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
    "LabelSets",
    "MultilabelTask",
    "NerTask",
    "SequenceTask",
    "SquadTask",
    "SwagTask",
    "Task",
    "collect_notes",
    "find_task_directory",
    "get_task",
    "glue_average",
    "glue_leaderboard_score",
    "register_task",
    "report_lines",
    "summarize",
    "summary_lines",
    "write_submission",
]

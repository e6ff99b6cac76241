"""Run any AutoModel checkpoint on a task: batches, loss, predictions, scores."""

from .data import Examples, TaskData
from .prediction import (
    answer,
    call_model,
    evaluate,
    load_for_task,
    majority_baseline,
    predict,
    run_model,
    task_loss,
    without_warnings,
)
from .task_file import TASK_FILE, read_task_file, write_task_file


__all__ = [
    "TASK_FILE",
    "Examples",
    "TaskData",
    "answer",
    "call_model",
    "evaluate",
    "load_for_task",
    "majority_baseline",
    "predict",
    "read_task_file",
    "run_model",
    "task_loss",
    "without_warnings",
    "write_task_file",
]

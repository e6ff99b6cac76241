"""task.json beside a fine-tuned model: its task, the settings of its inputs, tuned values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import read_json, write_json
from .data import TaskData


# File in the directory of a fine-tuned model: its task, and the settings of its inputs.
TASK_FILE = "task.json"
_TASK_FIELDS = {
    "task": (str,),
    "max_seq_length": (int,),
    "doc_stride": (int,),
    "max_query_length": (int,),
    "document_context": (bool,),
    "null_threshold": (float, int),
    "thresholds": (dict,),
}


def write_task_file(directory: Path, data: TaskData, tuned: Mapping[str, Any] | None = None) -> None:
    """Write task.json into the directory of a model: its task, the settings of its inputs, and tuned values.

    Args:
        directory: the model's; it must exist.
        data: the task and its settings.
        tuned: name → value, as `Task.apply_tuned` takes them. None: no value is tuned.

    Raises:
        OutputError: if the file cannot be written.
    """
    settings = dataclasses.asdict(data.settings)
    content = {
        name: settings[name] for name in ("max_seq_length", "doc_stride", "max_query_length", "document_context")
    }
    content = {"task": data.task.name} | content | {"null_threshold": None} | dict(tuned or {})
    write_json(directory / TASK_FILE, content)


def read_task_file(directory: str) -> dict[str, Any]:
    """Read task.json of a model.

    Args:
        directory: the model's.

    Returns:
        Its content; empty if there is no such file, as for models from elsewhere.

    Raises:
        InputError: if the file is damaged.
    """
    path = Path(directory) / TASK_FILE
    content = read_json(path, "--model") if path.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must hold a JSON object, not a {type(content).__name__}; remove it, and name the --task"
        )
    for name, types in _TASK_FIELDS.items():
        if content.get(name) is not None and not isinstance(content[name], types):
            allowed = " or ".join(kind.__name__ for kind in types)
            raise InputError(
                f"{path}: {name} is {content[name]!r}, but must be of type {allowed}; correct or remove it"
            )
    return content

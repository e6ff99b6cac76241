"""Weights of classes in the loss, for data with rare classes."""

import difflib
import inspect
import math
from pathlib import Path

import numpy as np
import yaml

from ..evaluation import TaskData
from ..model.kernels_hfbert import IGNORED_LABEL
from ..tasks import Task
from ..utils.errors import InputError, one_line


AUTO = "auto"


def class_weights(data: TaskData, option: str) -> dict[str, float]:
    """Determine the factor of every class's loss.

    With `auto` every class counts as much as the others: N / (classes · n) for a class with n of the N targets
    ("balanced" in scikit-learn), so that the weights are 1 on average over the targets. For several labels per text
    it is the rows without a label over the rows with it, as PyTorch recommends for `pos_weight`. A class that the
    training data lack, or that every row has, gets 1.

    Args:
        data: the task with its training split.
        option: `auto`, or the path of a YAML or JSON mapping of all classes to numbers.

    Returns:
        Class → factor.

    Raises:
        InputError: for a task without classes, an unreadable file, an unknown or missing class, or a factor that is
            not positive.
    """
    task, names = data.task, data.task.class_names(data.raw["train"])
    if not names or "class_weights" not in inspect.signature(task.loss_sum).parameters:
        raise InputError(f"--class_weights {option}: {task.name} has no classes whose losses could be weighted")
    if option != AUTO:
        return _read(Path(option), names, task)
    examples = data.examples("train", training=True)
    labels = examples.lists["labels"][0] if "labels" in examples.lists else examples.numbers["labels"]
    return dict(zip(names, _balanced(labels, len(names)).tolist(), strict=True))


def _balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return (classes,) weights from class ids of targets, or from (rows, classes) of 0 and 1."""
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        usable = (counts > 0) & (counts < len(labels))
        return np.divide(len(labels) - counts, counts, out=np.ones(classes), where=usable)
    labels = labels[labels != IGNORED_LABEL]
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return np.divide(len(labels), present * counts, out=np.ones(classes), where=counts > 0)


def _read(path: Path, names: list[str], task: Task) -> dict[str, float]:
    if not path.is_file():
        raise InputError(f"--class_weights {path}: no such file; write auto, or a file with a number for every class")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--class_weights {path} is not readable YAML or JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"--class_weights {path} must hold a mapping of classes to numbers, as {names[0]}: 2.5")
    weights = {str(name): value for name, value in content.items()}
    for name, value in weights.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names[:12])}"
            raise InputError(f"--class_weights {path}: {task.name} has no class {name!r}; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"--class_weights {path}: the weight of {name!r} is {value!r}; it must be above 0")
    if missing := [name for name in names if name not in weights]:
        raise InputError(f"--class_weights {path} lacks {', '.join(missing[:12])}; 1 leaves a class as it is")
    return {name: float(weights[name]) for name in names}

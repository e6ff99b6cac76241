"""GLUE: its ten tasks, the paper's average, the leaderboard's score, and the server's submission."""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.files import writing
from .files.tables import Columns
from .sequence import SequenceTask, same_names


# Names of the label in the original files.
_LABEL = ("label", "gold_label", "is_duplicate", "Quality", "score", "Label")
_NLI = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_PREMISE = {"premise": ("premise", "sentence1", "Premise"), "hypothesis": ("hypothesis", "sentence2", "Hypothesis")}
# Names of the tasks' directories in GLUE's own archive.
_DIRECTORIES = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B"}
_MNLI_SPLITS = ("train", "validation", "validation_mismatched", "test", "test_mismatched")


def _glue(
    name: str,
    texts: Columns,
    classes: tuple[str, ...],
    main_metric: str,
    hub_configuration: str | None = None,
    **fields: Any,
) -> SequenceTask:
    return SequenceTask(
        name=name,
        hub=("nyu-mll/glue", hub_configuration or name),
        columns={**texts, "label": _LABEL},
        texts=tuple(texts),
        classes=classes,
        metric=name,
        main_metric=main_metric,
        **fields,
    )


_SENTENCES = {"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")}

# Classes in the order of the Hub's ids (nyu-mll/glue); mind that WNLI's is the reverse of RTE's.
GLUE_TASKS = (
    # CoLA's own train and dev files have no header: source, label, the author's mark, sentence.
    _glue(
        "cola",
        same_names("sentence"),
        ("unacceptable", "acceptable"),
        "matthews_correlation",
        tsv_header=("source", "label", "mark", "sentence"),
    ),
    _glue("sst2", same_names("sentence"), ("negative", "positive"), "accuracy"),
    _glue("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), "f1"),
    _glue("stsb", same_names("sentence1", "sentence2"), (), "spearmanr", score_range=(0.0, 5.0)),
    _glue("qqp", same_names("question1", "question2"), ("not_duplicate", "duplicate"), "f1"),
    _glue("mnli", _PREMISE, _MNLI, "accuracy", splits=_MNLI_SPLITS),
    _glue("qnli", same_names("question", "sentence"), _NLI, "accuracy"),
    _glue("rte", same_names("sentence1", "sentence2"), _NLI, "accuracy"),
    _glue("wnli", same_names("sentence1", "sentence2"), _NLI[::-1], "accuracy"),
    # Only a test set; predicted with a model of MNLI.
    _glue("ax", _PREMISE, _MNLI, "matthews_correlation", splits=("test",)),
)


# Task (MNLI's mismatched split for itself) → the paper's column in table 1.
_PAPER_COLUMNS = {
    "mnli": "accuracy",
    "mnli_mismatched": "accuracy",
    "qqp": "f1",
    "qnli": "accuracy",
    "sst2": "accuracy",
    "cola": "matthews_correlation",
    "stsb": "spearmanr",
    "mrpc": "f1",
    "rte": "accuracy",
}


def find_task_directory(root: str | None, name: str, required: bool = True) -> str | None:
    """Find a task's data in a directory of several tasks: under its name, GLUE's name of it, or glue_NAME.

    Args:
        root: the directory; None for data from elsewhere.
        name: of the task.
        required: the task's data must be there.

    Returns:
        The task's directory; None without a root, or if it is neither there nor required.

    Raises:
        InputError: if it is required and not there.
    """
    if root is None:
        return None
    names = (name, _DIRECTORIES.get(name, name.upper()), f"glue_{name}")
    directory = next((str(Path(root) / each) for each in names if (Path(root) / each).is_dir()), None)
    if directory is None and required:
        raise InputError(f"--data_dir {root} has no directory {' or '.join(names)}, which all-glue needs")
    return directory


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Compute the "Average" of the paper's table 1: nine columns, MNLI-m and MNLI-mm one each, without WNLI.

    Args:
        scores: task → metric → value, with `mnli_mismatched` beside `mnli`.

    Returns:
        The mean, 0 to 1.

    Raises:
        InputError: if a score is missing.
    """
    return float(np.mean([_entry(scores, task, metric) for task, metric in _PAPER_COLUMNS.items()]))


def glue_leaderboard_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Compute the leaderboard's score: the mean of nine tasks, with WNLI and without AX.

    Both metrics of MRPC, QQP and STS-B, and both splits of MNLI, are averaged first.

    Args:
        scores: task → metric → value, with `mnli_mismatched` beside `mnli`.

    Returns:
        The mean, 0 to 1.

    Raises:
        InputError: if a score is missing.
    """
    tasks = [
        _entry(scores, "cola", "matthews_correlation"),
        _entry(scores, "sst2", "accuracy"),
        *((_entry(scores, task, "f1") + _entry(scores, task, "accuracy")) / 2 for task in ("mrpc", "qqp")),
        (_entry(scores, "stsb", "pearson") + _entry(scores, "stsb", "spearmanr")) / 2,
        (_entry(scores, "mnli", "accuracy") + _entry(scores, "mnli_mismatched", "accuracy")) / 2,
        *(_entry(scores, task, "accuracy") for task in ("qnli", "rte", "wnli")),
    ]
    return float(np.mean(tasks))


def _entry(scores: Mapping[str, Mapping[str, float]], task: str, metric: str) -> float:
    try:
        return float(scores[task][metric])
    except KeyError:
        raise InputError(f"no {metric} of {task}; there are scores of {', '.join(scores) or 'nothing'}") from None


# GLUE's file → the task whose test predictions it holds, and whether labels are written as ids.
SUBMISSION_FILES = {
    "CoLA": ("cola", True),
    "SST-2": ("sst2", True),
    "MRPC": ("mrpc", True),
    "STS-B": ("stsb", False),
    "QQP": ("qqp", True),
    "MNLI-m": ("mnli", False),
    "MNLI-mm": ("mnli_mismatched", False),
    "QNLI": ("qnli", False),
    "RTE": ("rte", False),
    "WNLI": ("wnli", True),
    "AX": ("ax", False),
}


def write_submission(path: str | Path, predictions: Mapping[str, Sequence[str] | Sequence[float]]) -> Path:
    """Write the zip for GLUE's server: 11 files, `index<TAB>prediction` in the order of the test sets.

    STS-B is written with three decimals and, only here, clamped to 0 … 5.

    Args:
        path: the zip file; its directory is made if it is not there.
        predictions: task → `predict` on its test split; `mnli_mismatched` for MNLI's second one.

    Returns:
        The path.

    Raises:
        InputError: if a task is missing or a prediction is not one of its classes.
    """
    missing = [task for task, _ in SUBMISSION_FILES.values() if task not in predictions]
    if missing:
        raise InputError(f"a GLUE submission needs all 11 test sets; there is none of {', '.join(missing)}")
    classes = {task.name: task.classes or () for task in GLUE_TASKS}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (task, as_id) in SUBMISSION_FILES.items():
            known = classes[re.sub("_mismatched$", "", task)]
            labels = [_submitted(value, known, as_id, task, row) for row, value in enumerate(predictions[task])]
            lines = ["index\tprediction", *(f"{row}\t{label}" for row, label in enumerate(labels))]
            archive.writestr(f"{name}.tsv", "".join(f"{line}\n" for line in lines))
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    return path


def _submitted(value: Any, classes: Sequence[str], as_id: bool, task: str, row: int) -> str:
    if not classes:
        return f"{min(max(float(value), 0.0), 5.0):.3f}"
    if value not in classes:
        raise InputError(f"prediction {row} of {task} is {value!r}, not one of {', '.join(classes)}")
    return str(classes.index(value)) if as_id else str(value)

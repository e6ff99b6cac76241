"""Classification and regression of a text or a pair of texts: GLUE's ten tasks, and the user's own."""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import linear_sum_assignment

from ..utils.errors import InputError
from ..utils.files import writing
from .data import Columns, check_single, check_strings, read_file
from .labels import (
    are_unnamed,
    as_number,
    check_numbered,
    class_ids,
    class_names,
    is_missing,
    label_maps,
    model_classes,
    refuse_unlabelled,
    warn_of_similar,
)
from .notes import leave_out, warn
from .task import (
    INPUT_FEATURES,
    FeatureSettings,
    Task,
    cached_map,
    excess,
    make_dataset,
    metric_scores,
    token_ids,
    with_special_tokens,
    write_predicted,
)


# What the original files call the label.
_LABEL = ("label", "gold_label", "is_duplicate", "Quality", "score", "Label")


@dataclass(frozen=True, kw_only=True)
class SequenceTask(Task):
    """One or two texts → a class or a number.

    texts: the columns of the texts in order, the second optional for regression. classes: in the order of their ids;
    None: those of the data; () for regression. score_range: what a number may be. metric: the configuration of the
    glue metric. submission: file name, and whether the label is written as a number, in GLUE's zip.
    """

    head: ClassVar[str] = "AutoModelForSequenceClassification"
    originals: ClassVar[Mapping[str, Sequence[str]]] = {"test": ("diagnostic*.tsv",)}

    texts: tuple[str, ...]
    classes: tuple[str, ...] | None
    metric: str
    score_range: tuple[float, float] = (-np.inf, np.inf)
    headless: tuple[str, ...] = ()

    @property
    def optional(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"label", *(self.texts[1:] if self.name == "custom-regression" else ())})

    @property
    def is_regression(self) -> bool:
        return self.classes == ()

    def read(self, path: Path, columns: Columns) -> pa.Table:
        return read_file(path, columns, self.optional, self.headless, quotes=self.hub is None)

    def validate(
        self, tables: dict[str, pa.Table], classes: Sequence[str] | None, numbered: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        for split, table in tables.items():
            if "label" not in table.column_names and not split.startswith("test"):
                raise InputError(
                    f"split {split} of {self.name} has no label column; to predict it, name it --test_file"
                )
        check_numbered(self.name, numbered, self.classes)
        if self.is_regression:
            names = []
        else:
            names = list(numbered or self.classes or classes or self._classes_of(tables))
        # The classes are those of the training data: others must be named.
        remedy = "" if numbered or self.classes or classes else "; --class_names names classes of other splits too"
        # Names that are numbers themselves name the labels; other names number them.
        by_position = self.classes is not None or any(as_number(name) is None for name in numbered)
        return {split: self._dataset(split, table, names, by_position, remedy) for split, table in tables.items()}

    def _classes_of(self, tables: dict[str, pa.Table]) -> list[str]:
        split = next((split for split in ("train", "validation") if split in tables), None)
        if split is None:
            raise InputError(f"{self.name} needs a split with labels, or a model that names its classes")
        where = f"split {split}: column 'label'"
        names = class_names(check_single(tables[split].column("label"), where), where)
        if _is_nli(names):
            names = [name for name in names if name != _NO_GOLD]
        if len(names) < 2:
            raise InputError(
                f"split {split}: {len(names)} class in column 'label'; at least 2 are needed (negative numbers are no "
                "labels; give such classes names)"
            )
        warn_of_similar(names, where)
        return names

    def _dataset(
        self, split: str, table: pa.Table, names: list[str], by_position: bool, remedy: str
    ) -> datasets.Dataset:
        where = f"{self.name}, split {split}"
        if _is_nli(names) and "label" in table.column_names:
            table = _with_gold_label(table, where)
        columns: dict[str, Any] = {}
        features: dict[str, Any] = {}
        for text in self.texts:
            if text in table.column_names:
                columns[text] = check_strings(table.column(text), f"{where}: column {text!r}")
                features[text] = datasets.Value("string")
        if "label" in table.column_names:
            label = table.column("label")
            if self.is_regression:
                values = self._numbers(label, where)
                labelled = refuse_unlabelled(np.isnan(values), split, where)
                features |= {"label": datasets.Value("float32")} if labelled else {}
            else:
                values = class_ids(label, names, where, by_position=by_position, remedy=remedy)
                labelled = refuse_unlabelled(values < 0, split, where)
            if labelled:
                columns["label"] = pa.array(values)
        if not self.is_regression:
            # Also without labels: the classes of a split to be predicted are known all the same.
            features["label"] = datasets.ClassLabel(names=names)
            columns.setdefault("label", pa.array(np.full(table.num_rows, -1)))
        return make_dataset(columns, datasets.Features(features))

    def _numbers(self, label: pa.ChunkedArray, where: str) -> np.ndarray:
        """The labels as numbers, NaN for none; the Hub's −1 for STS-B is none."""
        values = np.empty(len(label))
        for row, value in enumerate(label.to_pylist()):
            try:
                values[row] = np.nan if value is None or value == "" else float(value)
            except (TypeError, ValueError):
                raise InputError(f"{where}, row {row}: label {value!r} is not a number") from None
        low, high = self.score_range
        if low == 0:
            values[values == -1] = np.nan
        outside = (values < low) | (values > high) | np.isinf(values)
        if outside.any():
            row = int(np.argmax(outside))
            raise InputError(f"{where}, row {row}: label {values[row]:g} is outside {low:g} … {high:g}")
        return values

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        if self.is_regression:
            return "label" in raw.column_names
        return len(raw) == 0 or raw[0]["label"] >= 0

    @property
    def has_classes(self) -> bool:
        return not self.is_regression

    def check_training(self, raw: datasets.Dataset) -> None:
        if len(set(raw["label"][:])) == 1:
            warn(f"{self.name}, split train: every label is {self.target_of(raw, 0)}; there is nothing to tell apart")

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        labels = np.asarray(raw["label"][:])
        if self.is_regression:
            return {"labels": {name: round(float(getattr(labels, name)()), 4) for name in ("min", "mean", "max")}}
        names = self.class_names(raw)
        return {"classes": dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))}

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        if self.is_regression or not self.is_labelled(raw):
            return super().target_of(raw, row)
        return repr(self.class_names(raw)[raw[row]["label"]])

    def class_names(self, raw: datasets.Dataset) -> list[str]:
        """The classes in the order of their ids; empty for regression."""
        return [] if self.is_regression else raw.features["label"].names

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        if self.is_regression:
            return {"num_labels": 1, "problem_type": "regression"}
        return label_maps(self.class_names(raw)) | {"problem_type": "single_label_classification"}

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        if training:
            self.require_labels(raw)
        labels = self.is_labelled(raw)
        kinds = dict(INPUT_FEATURES)
        if labels:
            kinds["labels"] = datasets.Value("float32" if self.is_regression else "int64")
        texts = [text for text in self.texts if text in raw.column_names]
        return cached_map(
            raw, text_features, datasets.Features(kinds), tokenizer, settings, texts=texts, labels=labels
        )

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> list[str] | list[float]:
        """The class's name, or the number, for every raw row. outputs: `logits`, (rows, classes) or (rows, 1)."""
        logits = np.asarray(outputs["logits"], dtype=np.float64)
        logits = logits.reshape(len(raw), -1)
        if self.is_regression:
            if logits.shape[1] != 1:
                raise InputError(f"the model has {logits.shape[1]} outputs, but {self.name} is a regression: 1")
            return logits[:, 0].tolist()
        names = model_classes(id2label, self.class_names(raw), logits.shape[1], self.name)
        if id2label and self.is_labelled(raw) and are_unnamed([id2label[i] for i in range(len(names))]):
            _warn_of_a_better_order(raw["label"][:], logits, names)
        return [names[number] for number in logits.argmax(axis=1)]

    def score(self, raw: datasets.Dataset, predictions: list[str] | list[float]) -> dict[str, float]:
        self.require_labels(raw)
        return metric_scores("glue", self.metric, self._ids(raw, predictions), raw["label"][:])

    def _ids(self, raw: datasets.Dataset, predictions: list[str] | list[float]) -> list[int] | list[float]:
        places = {name: number for number, name in enumerate(self.class_names(raw))}
        return predictions if self.is_regression else [places[name] for name in predictions]  # type: ignore[index, return-value]

    def report(self, raw: datasets.Dataset, predictions: list[str] | list[float]) -> dict[str, Any]:
        if self.is_regression:
            return {}
        ids, names = self._ids(raw, predictions), self.class_names(raw)
        figures: dict[str, Any] = metric_scores("glue", "sst2", ids, raw["label"][:], per_class=len(names))
        return {"classes": dict(zip(names, figures["classes"], strict=True))}

    def write_predictions(
        self, directory: Path, raw: datasets.Dataset, predictions: list[str] | list[float], split: str
    ) -> list[Path]:
        """`predictions_<split>.tsv`: index, prediction (the class's name or the number), as a header says."""
        return write_predicted(directory, split, predictions)


_NLI_CLASSES = {"entailment", "neutral", "contradiction"}
# How SNLI and MNLI mark an example on whose label the annotators did not agree.
_NO_GOLD = "-"


def _is_nli(names: Sequence[str]) -> bool:
    return {name.casefold() for name in names} - {_NO_GOLD} == _NLI_CLASSES


def _with_gold_label(table: pa.Table, where: str) -> pa.Table:
    """An NLI split without the rows that have no label; as it is where none has one."""
    label = table.column("label")
    if pa.types.is_nested(label.type) or pa.types.is_null(label.type):
        return table
    without = [
        value
        for value in pc.unique(label).to_pylist()
        if is_missing(value) or value == _NO_GOLD or (as_number(value) or 0) < 0
    ]
    missing = pc.is_in(label, value_set=pa.array(without, type=label.type))
    count = pc.sum(missing).as_py() or 0
    if count == table.num_rows:
        return table.set_column(table.schema.get_field_index("label"), "label", pa.nulls(count))
    if count:
        table = table.filter(pc.invert(missing))
        leave_out(
            count,
            f"{where}: left out {count} of {count + table.num_rows} rows without a gold label ('-' or -1), on which "
            "the annotators did not agree",
        )
    return table


def _warn_of_a_better_order(labels: list[int], logits: np.ndarray, names: Sequence[str]) -> None:
    """Warn if another order of a model's nameless classes fits the labels better than chance explains."""
    counts = np.zeros((len(names), len(names)), dtype=np.int64)  # (outputs, classes)
    np.add.at(counts, (logits.argmax(axis=1), labels), 1)
    outputs, classes = linear_sum_assignment(-counts)
    ours, best = np.trace(counts) / len(labels), counts[outputs, classes].sum() / len(labels)
    # Three standard errors of an accuracy, at most.
    if best - ours > 1.5 / np.sqrt(len(labels)):
        warn(
            f"in the assumed order the model's accuracy is {ours:.3f}, in the order "
            f"{' '.join(names[place] for place in classes)} it is {best:.3f}"
        )


def text_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    texts: list[str],
    labels: bool,
) -> dict[str, list]:
    """`cached_map` function: one feature per row."""
    first = token_ids(tokenizer, batch[texts[0]])
    second = token_ids(tokenizer, batch[texts[1]]) if len(texts) > 1 else [None] * len(first)
    rows = [with_special_tokens(tokenizer, a, b, settings.max_seq_length) for a, b in zip(first, second, strict=True)]
    result: dict[str, list] = {
        "input_ids": [ids for ids, _ in rows],
        "token_type_ids": [types for _, types in rows],
        "example": indices,
        "cut": [excess(a, b, settings.max_seq_length) for a, b in zip(first, second, strict=True)],
    }
    return result | ({"labels": batch["label"]} if labels else {})


# -------------------------------------------------------------------------------------------------------------- tasks

_NLI = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_PREMISE = {"premise": ("premise", "sentence1", "Premise"), "hypothesis": ("hypothesis", "sentence2", "Hypothesis")}
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


def _same(*names: str) -> Columns:
    return {name: (name,) for name in names}


_SENTENCES = {"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")}

# Classes in the order of the Hub's ids (nyu-mll/glue); mind that WNLI's is the reverse of RTE's.
GLUE_TASKS = (
    # CoLA's own train and dev files have no header: source, label, the author's mark, sentence.
    _glue(
        "cola",
        _same("sentence"),
        ("unacceptable", "acceptable"),
        "matthews_correlation",
        headless=("source", "label", "mark", "sentence"),
    ),
    _glue("sst2", _same("sentence"), ("negative", "positive"), "accuracy"),
    _glue("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), "f1"),
    _glue("stsb", _same("sentence1", "sentence2"), (), "spearmanr", score_range=(0.0, 5.0)),
    _glue("qqp", _same("question1", "question2"), ("not_duplicate", "duplicate"), "f1"),
    _glue("mnli", _PREMISE, _MNLI, "accuracy", splits=_MNLI_SPLITS),
    _glue("qnli", _same("question", "sentence"), _NLI, "accuracy"),
    _glue("rte", _same("sentence1", "sentence2"), _NLI, "accuracy"),
    _glue("wnli", _same("sentence1", "sentence2"), _NLI[::-1], "accuracy"),
    # Only a test set; predicted with a model of MNLI.
    _glue("ax", _PREMISE, _MNLI, "matthews_correlation", splits=("test",)),
)

_OWN: dict[str, Any] = {"hub": None}
CUSTOM_TASKS = (
    SequenceTask(
        name="custom-classification",
        columns=_same("text", "label"),
        texts=("text",),
        classes=None,
        metric="classification",
        main_metric="accuracy",
        **_OWN,
    ),
    SequenceTask(
        name="custom-pair",
        columns=_same("text", "text_pair", "label"),
        texts=("text", "text_pair"),
        classes=None,
        metric="classification",
        main_metric="accuracy",
        **_OWN,
    ),
    SequenceTask(
        name="custom-regression",
        columns=_same("text", "text_pair", "label"),
        texts=("text", "text_pair"),
        classes=(),
        metric="regression",
        main_metric="spearmanr",
        **_OWN,
    ),
)


# ------------------------------------------------------------------------------------------------ averages, submission

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


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The "Average" of the paper's table 1: nine columns, MNLI-m and MNLI-mm one each, without WNLI.

    scores: task → metric → value, with `mnli_mismatched` beside `mnli`. Raises InputError if one is missing.
    """
    return float(np.mean([_entry(scores, task, metric) for task, metric in _PAPER_COLUMNS.items()]))


def glue_leaderboard_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The leaderboard's score: the mean of nine tasks, WNLI among them and AX not.

    Both metrics of CoLA's siblings MRPC, QQP and STS-B, and both splits of MNLI, are averaged first. scores: as in
    `glue_average`.
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
    """Write the zip that GLUE's server takes: 11 files, `index<TAB>prediction` in the order of the test sets.

    predictions: task → `predict` on its test split; `mnli_mismatched` for MNLI's second one. Class ids are those of
    the task's classes; STS-B is written with three decimals and, only here, clamped to 0 … 5.
    Raises InputError if a task is missing or a prediction is not one of its classes.
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

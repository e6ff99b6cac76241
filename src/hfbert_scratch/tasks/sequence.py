"""Classification and regression of a text or a pair of texts: the shape of GLUE's tasks, and the user's own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from ..metrics.bootstrap import f1_rows, matthews_rows, mean_rows, pearson_rows, spearman_rows
from ..utils.errors import InputError
from .encoding import (
    INPUT_FEATURES,
    FeatureSettings,
    cached_map,
    make_dataset,
    num_truncated,
    special_tokens,
    token_ids,
    with_special_tokens,
)
from .files.tables import Columns, check_strings, read_file, warn_of_blanks
from .labels import (
    PLAIN_NUMBERS,
    are_unnamed,
    as_float,
    as_number,
    check_user_classes,
    class_ids,
    distinct_classes,
    is_missing,
    label_maps,
    match_model_classes,
    refuse_booleans,
    refuse_unlabelled,
    warn_of_similar,
)
from .notes import leave_out, warn
from .task import Task, metric_scores, write_predicted


_OR_LIST_NEGATIVE = "; if negative numbers are classes, list them, as --class_names -1 0 1"


@dataclass(frozen=True, kw_only=True)
class SequenceTask(Task):
    """One or two texts → a class or a number.

    Args:
        texts: the columns of the texts, in order.
        classes: classes in the order of their ids; None: those of the data; () for regression.
        metric: configuration of the glue metric.
        score_range: lowest and highest number allowed as a label (regression).
        second_text_optional: the data may lack the second text.
        tsv_header: fields of a tsv file without a header.
    """

    head: ClassVar[str] = "AutoModelForSequenceClassification"
    original_files: ClassVar[Mapping[str, Sequence[str]]] = {"test": ("diagnostic*.tsv",)}
    plot: ClassVar[str] = "confusion.png"

    texts: tuple[str, ...]
    classes: tuple[str, ...] | None
    metric: str
    score_range: tuple[float, float] = (-np.inf, np.inf)
    second_text_optional: bool = False
    tsv_header: tuple[str, ...] = ()

    @property
    def optional_columns(self) -> frozenset[str]:  # type: ignore[override]  # depends on a field here
        return frozenset({"label", *(self.texts[1:] if self.second_text_optional else ())})

    @property
    def is_regression(self) -> bool:
        """Return whether the label is a number."""
        return self.classes == ()

    def read(self, path: Path, columns: Columns) -> pa.Table:
        return read_file(path, columns, self.optional_columns, self.tsv_header, quotes=self.hub is None)

    def validate(
        self, tables: dict[str, pa.Table], model_classes: Sequence[str] | None, user_classes: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        for split, table in tables.items():
            if "label" not in table.column_names and not split.startswith("test"):
                raise InputError(
                    f"split {split} of {self.name} has no label column; name yours: --columns label=NAME; to predict "
                    "the split, name it --test_file"
                )
        check_user_classes(self.name, user_classes, self.classes)
        if self.is_regression:
            names = []
        else:
            names = list(user_classes or self.classes or model_classes or self._classes_of(tables))
        # Classes taken from the training data may lack some of other splits.
        complete = user_classes or self.classes or model_classes
        remedy = "" if complete else "; --class_names names classes of other splits too"
        # Names that are numbers themselves name the labels; other names number them.
        by_position = self.classes is not None or any(as_number(name) is None for name in user_classes)
        return {split: self._dataset(split, table, names, by_position, remedy) for split, table in tables.items()}

    def _classes_of(self, tables: dict[str, pa.Table]) -> list[str]:
        split = next((split for split in ("train", "validation") if split in tables), None)
        if split is None:
            raise InputError(f"{self.name} needs a split with labels, or a model that names its classes")
        location = f"split {split}: column 'label'"
        names = distinct_classes(_single_labels(tables[split].column("label"), location), location)
        if _is_nli(names):
            names = [name for name in names if name != _NO_GOLD]
        if len(names) < 2:
            raise InputError(
                f"split {split}: {len(names)} class in column 'label'; at least 2 are needed (a negative number is no "
                f"label{_OR_LIST_NEGATIVE})"
            )
        warn_of_similar(names, location)
        return names

    def _dataset(
        self, split: str, table: pa.Table, names: list[str], by_position: bool, remedy: str
    ) -> datasets.Dataset:
        location = f"{self.name}, split {split}"
        if _is_nli(names) and "label" in table.column_names:
            table = _with_gold_label(table, location)
        columns, features = self.text_columns(table, location)
        if "label" in table.column_names:
            label = table.column("label")
            if self.is_regression:
                values = self._numbers(label, location)
                labelled = refuse_unlabelled(np.isnan(values), split, location)
                features |= {"label": datasets.Value("float32")} if labelled else {}
            else:
                label = _single_labels(label, f"{location}: column 'label'")
                if self.classes:
                    refuse_booleans(label, names, location)
                values = class_ids(label, names, location, by_position=by_position, remedy=remedy)
                labelled = refuse_unlabelled(
                    values < 0, split, location, _OR_LIST_NEGATIVE if not self.classes else ""
                )
            if labelled:
                columns["label"] = pa.array(values)
        if not self.is_regression:
            # Without labels too: predictions need the classes.
            features["label"] = datasets.ClassLabel(names=names)
            columns.setdefault("label", pa.array(np.full(table.num_rows, -1)))
        return make_dataset(columns, datasets.Features(features))

    def text_columns(self, table: pa.Table, location: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the columns of the texts, checked, and their types."""
        columns: dict[str, Any] = {}
        features: dict[str, Any] = {}
        for text in self.texts:
            if text in table.column_names:
                columns[text] = check_strings(table.column(text), f"{location}: column {text!r}")
                warn_of_blanks(columns[text], f"{location}: column {text!r}")
                features[text] = datasets.Value("string")
        return columns, features

    def _numbers(self, label: pa.ChunkedArray, location: str) -> np.ndarray:
        """Return the labels as numbers, (rows,), NaN for none; the Hub's −1 for STS-B means none."""
        numbers = [as_float(value) for value in _single_labels(label, f"{location}: column 'label'").to_pylist()]
        if None in numbers:
            row = numbers.index(None)
            raise InputError(f"{location}, row {row}: label {label[row].as_py()!r} is not a number; {PLAIN_NUMBERS}")
        values = np.array(numbers, dtype=np.float64)
        low, high = self.score_range
        if low == 0:
            values[values == -1] = np.nan
        outside = (values < low) | (values > high) | np.isinf(values)
        if outside.any():
            row = int(np.argmax(outside))
            allowed = f"is outside {low:g} … {high:g}" if np.isfinite(values[row]) else "is not a finite number"
            raise InputError(f"{location}, row {row}: label {values[row]:g} {allowed}")
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

    def loss_sum(
        self, outputs: Any, targets: Mapping[str, torch.Tensor], class_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum the cross-entropy over classes, or the squared error of numbers."""
        if not self.is_regression:
            return super().loss_sum(outputs, targets, class_weights)
        return F.mse_loss(outputs["logits"].float().reshape(-1), targets["labels"].float(), reduction="sum")

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> list[str] | list[float]:
        """Return the name of the class, or the number, for every row, from `logits` (rows, classes or 1)."""
        logits = np.asarray(outputs["logits"], dtype=np.float64)
        logits = logits.reshape(len(raw), -1)
        if self.is_regression:
            if logits.shape[1] != 1:
                raise InputError(f"the model has {logits.shape[1]} outputs, but {self.name} is a regression: 1")
            return logits[:, 0].tolist()
        names = match_model_classes(id2label, self.class_names(raw), logits.shape[1], self.name)
        if id2label and self.is_labelled(raw) and are_unnamed([id2label[i] for i in range(len(names))]):
            _warn_of_a_better_order(raw["label"][:], logits, names)
        return [names[number] for number in logits.argmax(axis=1)]

    def majority_predictions(self, known: datasets.Dataset, raw: datasets.Dataset) -> list[str] | list[float]:
        """Return the most frequent class of `known`, or the mean of its numbers, for every row."""
        if self.is_regression:
            return [float(np.mean(known["label"][:]))] * len(raw)
        ((label, _),) = Counter(known["label"][:]).most_common(1)
        return [self.class_names(known)[label]] * len(raw)

    def score(self, raw: datasets.Dataset, predictions: list[str] | list[float]) -> dict[str, float]:
        self.require_labels(raw)
        return metric_scores("glue", self.metric, self._ids(raw, predictions), raw["label"][:])

    def example_rows(
        self, raw: datasets.Dataset, predictions: list[str] | list[float], metric: str
    ) -> tuple[np.ndarray, str]:
        labels, answers = np.asarray(raw["label"][:]), np.asarray(self._ids(raw, predictions))
        two_classes = len(self.class_names(raw)) == 2
        if self.is_regression and metric in ("pearson", "spearmanr"):
            return (pearson_rows if metric == "pearson" else spearman_rows)(labels, answers), "correlation"
        if metric == "accuracy" and not self.is_regression:
            return mean_rows(labels == answers), "mean"
        if metric == "f1" and two_classes and self.metric != "classification":  # whose F1 is the mean over classes
            return f1_rows((labels == 1) & (answers == 1), labels != answers), "f1"
        if metric == "matthews_correlation" and two_classes:
            return matthews_rows(labels, answers), "correlation"
        return super().example_rows(raw, predictions, metric)

    def metric_label(self, metric: str) -> str:
        """Tell the mean over the classes from the F1 of the second of two classes, as GLUE has it."""
        return "macro f1" if metric == "f1" and self.metric == "classification" else metric

    def _ids(self, raw: datasets.Dataset, predictions: list[str] | list[float]) -> list[int] | list[float]:
        places = {name: number for number, name in enumerate(self.class_names(raw))}
        return predictions if self.is_regression else [places[name] for name in predictions]  # type: ignore[index, return-value]

    def report(self, raw: datasets.Dataset, predictions: list[str] | list[float]) -> dict[str, Any]:
        if self.is_regression:
            return {}
        ids, names = self._ids(raw, predictions), self.class_names(raw)
        figures: dict[str, Any] = metric_scores("glue", "sst2", ids, raw["label"][:], per_class=len(names))
        return {"classes": dict(zip(names, figures["classes"], strict=True))}

    def save_plots(self, directory: Path, raw: datasets.Dataset, predictions: list[str] | list[float]) -> None:
        """Draw `plot`, for classes."""
        if self.is_regression:
            return
        from ..utils.plots import draw_confusion_matrix  # slow to import, and selects a backend of matplotlib

        names = self.class_names(raw)
        gold = [names[label] for label in raw["label"][:]]
        draw_confusion_matrix(gold, predictions, names, directory / self.plot)  # type: ignore[arg-type]

    def write_predictions(
        self, directory: Path, raw: datasets.Dataset, predictions: list[str] | list[float], split: str
    ) -> list[Path]:
        """Write `predictions_<split>.tsv`: a header, then index and class or number."""
        return write_predicted(directory, split, predictions)


def _single_labels(label: pa.ChunkedArray, location: str) -> pa.ChunkedArray:
    """Return the labels if every row has one value."""
    if pa.types.is_nested(label.type):
        raise InputError(
            f"{location} holds lists or objects such as {label[0].as_py()!r}; every row needs a single label, not in "
            "a list (several labels per text: --task custom-multilabel)"
        )
    return label


_NLI_CLASSES = {"entailment", "neutral", "contradiction"}
# SNLI's and MNLI's mark of an example without agreement among the annotators.
_NO_GOLD = "-"


def _is_nli(names: Sequence[str]) -> bool:
    return {name.casefold() for name in names} - {_NO_GOLD} == _NLI_CLASSES


def _with_gold_label(table: pa.Table, location: str) -> pa.Table:
    """Drop the rows of an NLI split that have no label; keep all if none has one."""
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
            f"{location}: left out {count} of {count + table.num_rows} rows without a gold label ('-' or -1), on "
            "which the annotators did not agree",
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
    """Encode a batch for `cached_map`: one feature per row.

    Args:
        batch: the raw columns.
        indices: numbers of the raw rows.
        tokenizer: any encoder's.
        settings: its max_seq_length truncates.
        texts: names of the text columns, one or two.
        labels: whether the rows have labels.

    Returns:
        The columns of INPUT_FEATURES, and `labels` if there are any.
    """
    first = token_ids(tokenizer, batch[texts[0]])
    second = token_ids(tokenizer, batch[texts[1]]) if len(texts) > 1 else [None] * len(first)
    rows = [with_special_tokens(tokenizer, a, b, settings.max_seq_length) for a, b in zip(first, second, strict=True)]
    result: dict[str, list] = {
        "input_ids": [ids for ids, _ in rows],
        "token_type_ids": [types for _, types in rows],
        "example": indices,
        "num_truncated": [
            num_truncated(a, b, settings.max_seq_length, special_tokens(tokenizer).count(b is not None))
            for a, b in zip(first, second, strict=True)
        ],
    }
    return result | ({"labels": batch["label"]} if labels else {})


def same_names(*names: str) -> Columns:
    """Return columns that have the same names in the data."""
    return {name: (name,) for name in names}


CUSTOM_TASKS = (
    SequenceTask(
        name="custom-classification",
        columns=same_names("text", "label"),
        texts=("text",),
        classes=None,
        metric="classification",
        main_metric="accuracy",
        hub=None,
    ),
    SequenceTask(
        name="custom-pair",
        columns=same_names("text", "text_pair", "label"),
        texts=("text", "text_pair"),
        classes=None,
        metric="classification",
        main_metric="accuracy",
        hub=None,
    ),
    SequenceTask(
        name="custom-regression",
        columns=same_names("text", "text_pair", "label"),
        texts=("text", "text_pair"),
        classes=(),
        second_text_optional=True,
        metric="regression",
        main_metric="spearmanr",
        hub=None,
    ),
)

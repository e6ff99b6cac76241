"""Several labels per text, each decided by itself: the user's own data, in lists or in a column for every label."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from ..metrics.bootstrap import f1_rows, mean_rows
from ..metrics.multilabel import best_thresholds, multilabel_scores, per_label_scores
from ..utils.errors import InputError
from .encoding import INPUT_FEATURES, FeatureSettings, cached_map, make_dataset
from .files.tables import Columns, read_file
from .labels import as_number, class_ids, distinct_classes, label_maps, match_model_classes, warn_of_similar
from .notes import warn
from .sequence import SequenceTask, same_names, text_features
from .task import write_lines


# A label is predicted from this probability on, until thresholds are tuned.
THRESHOLD = 0.5
# Beyond this many classes, curves cannot be told apart.
_DRAWN = 20


@dataclass(frozen=True)
class LabelSets:
    """Predictions: for every row, the probability of each label.

    Attributes:
        probabilities: (rows, classes).
        names: the classes.
        thresholds: (classes,) a label is predicted from this probability on.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]
    thresholds: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Return the decisions, (rows, classes) bool."""
        return self.probabilities >= self.thresholds


@dataclass(frozen=True, kw_only=True)
class MultilabelTask(SequenceTask):
    """One or two texts → any number of labels.

    The data hold the labels of a row as a list of names, or in columns of 0 and 1 named like the classes, which
    --class_names lists then. A row without labels has an empty list, or zeros.
    """

    plot: ClassVar[str] = "precision_recall.png"

    def class_columns(self, names: Sequence[str]) -> Columns:
        """Return a column for every class."""
        if taken := [name for name in names if name in self.columns]:
            raise InputError(f"--class_names {' '.join(names)}: {taken[0]!r} is a column of {self.name}; rename it")
        return same_names(*names)

    def read(self, path: Path, columns: Columns) -> pa.Table:
        optional = self.optional_columns | (columns.keys() - self.columns.keys())
        return read_file(path, columns, optional, quotes=True)

    def validate(
        self, tables: dict[str, pa.Table], model_classes: Sequence[str] | None, user_classes: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        known = list(user_classes or model_classes or ())
        lists = {split: self._lists(table, known, f"{self.name}, split {split}") for split, table in tables.items()}
        for split, labels in lists.items():
            if labels is None and not split.startswith("test"):
                raise InputError(
                    f"split {split} of {self.name} has no labels: neither a column 'label' with lists (name yours: "
                    "--columns label=NAME) nor columns of 0 and 1 that --class_names lists"
                )
        names = known or self._names(lists)
        by_position = any(as_number(name) is None for name in user_classes)
        return {split: self._rows(split, table, lists[split], names, by_position) for split, table in tables.items()}

    def _lists(self, table: pa.Table, names: list[str], location: str) -> list[list[Any]] | None:
        """Return the labels of every row, None for a split without."""
        present = [name for name in names if name in table.column_names]
        if "label" not in table.column_names:
            if missing := [name for name in names if present and name not in present]:
                raise InputError(f"{location} has columns for {', '.join(present)}, but none for {', '.join(missing)}")
            return self._from_columns(table, present, location) if present else None
        column = table.column("label")
        if pa.types.is_null(column.type):
            return None
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise InputError(
                f"{location}: column 'label' holds {column[0].as_py()!r}, not a list of labels; write lists (.jsonl), "
                "or a column of 0 and 1 for every label, named in --class_names"
            )
        labels = column.to_pylist()
        if None in labels:
            raise InputError(f"{location}, row {labels.index(None)} has no label list; [] is a row without labels")
        for row, own in enumerate(labels):
            if len(set(own)) < len(own):
                raise InputError(
                    f"{location}, row {row}: the labels {own!r} name one twice; a list holds the labels of its row, "
                    "not a 0 or 1 for every class"
                )
        return labels

    @staticmethod
    def _from_columns(table: pa.Table, names: list[str], location: str) -> list[list[Any]]:
        labels: list[list[Any]] = [[] for _ in range(table.num_rows)]
        for name in names:
            flags = class_ids(table.column(name), ["0", "1"], f"{location}: column {name!r}", by_position=True)
            if (flags < 0).any():
                raise InputError(f"{location}, row {int(np.argmin(flags))}: column {name!r} is empty; write 0 or 1")
            for row in np.flatnonzero(flags):
                labels[row].append(name)
        return labels

    def _names(self, lists: Mapping[str, list[list[Any]] | None]) -> list[str]:
        split = next((split for split in ("train", "validation") if lists.get(split) is not None), None)
        if split is None:
            raise InputError(f"{self.name} needs a split with labels, or a model that names its classes")
        location = f"split {split}: column 'label'"
        flat = [label for own in lists[split] or () for label in own]
        names = distinct_classes(pa.chunked_array([pa.array(flat)]), location) if flat else []
        if not names:
            raise InputError(f"split {split}: no row of column 'label' has a label; there is nothing to learn")
        warn_of_similar(names, location)
        return names

    def _rows(
        self, split: str, table: pa.Table, lists: list[list[Any]] | None, names: list[str], by_position: bool
    ) -> datasets.Dataset:
        location = f"{self.name}, split {split}"
        columns, features = self.text_columns(table, location)
        features["label"] = datasets.List(datasets.ClassLabel(names=names))
        ids: list[list[int]] = [[-1]] * table.num_rows  # without labels too: predictions need the classes
        if lists is not None:
            flat = pa.array([label for own in lists for label in own])
            remedy = "; --class_names names classes of other splits too"
            numbers = class_ids(
                pa.chunked_array([flat]), names, f"{location}: column 'label'", by_position=by_position, remedy=remedy
            )
            ends = np.cumsum([len(own) for own in lists])
            ids = [sorted(part.tolist()) for part in np.split(numbers, ends[:-1])]
        columns["label"] = pa.array(ids, type=pa.list_(pa.int64()))
        return make_dataset(columns, datasets.Features(features))

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        return len(raw) == 0 or raw[0]["label"] != [-1]

    def class_names(self, raw: datasets.Dataset) -> list[str]:
        return raw.features["label"].feature.names

    def _gold(self, raw: datasets.Dataset) -> np.ndarray:
        """Return the labels, (rows, classes) bool."""
        return multi_hot(raw["label"][:], len(self.class_names(raw))) > 0

    def check_training(self, raw: datasets.Dataset) -> None:
        share = self._gold(raw).mean(axis=0)
        for name, value in zip(self.class_names(raw), share, strict=True):
            if value in (0, 1):
                warn(f"{self.name}, split train: {'every' if value else 'no'} row has the label {name!r}")

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        counts = self._gold(raw).sum(axis=0).tolist()
        return {"classes": dict(zip(self.class_names(raw), counts, strict=True))}

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        if not self.is_labelled(raw):
            return "no label"
        names = self.class_names(raw)
        return repr([names[number] for number in raw[row]["label"]])

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        return label_maps(self.class_names(raw)) | {"problem_type": "multi_label_classification"}

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        if training:
            self.require_labels(raw)
        labels = self.is_labelled(raw)
        kinds = INPUT_FEATURES | ({"labels": datasets.List(datasets.Value("float32"))} if labels else {})
        texts = [text for text in self.texts if text in raw.column_names]
        count = len(self.class_names(raw)) if labels else 0
        return cached_map(
            raw, label_set_features, datasets.Features(kinds), tokenizer, settings, texts=texts, classes=count
        )

    def loss_sum(
        self, outputs: Any, targets: Mapping[str, torch.Tensor], class_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum over the rows the mean of the labels' binary cross-entropy; weights apply to labels that are present.

        The mean over a batch is thus transformers' own loss for `multi_label_classification`.
        """
        losses = F.binary_cross_entropy_with_logits(
            outputs["logits"].float(), targets["labels"].float(), pos_weight=class_weights, reduction="none"
        )
        return losses.mean(dim=1).sum()

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> Any:
        """Return the probability of every label, from `logits` (rows, classes)."""
        logits = np.asarray(outputs["logits"], dtype=np.float64).reshape(len(raw), -1)
        own = self.class_names(raw)
        names = match_model_classes(id2label, own, logits.shape[1], self.name)
        order = [names.index(name) for name in own]
        return self._sets(1 / (1 + np.exp(-np.clip(logits[:, order], -500, 500))), own)

    @staticmethod
    def _sets(probabilities: np.ndarray, names: list[str]) -> LabelSets:
        return LabelSets(probabilities, tuple(names), np.full(len(names), THRESHOLD))

    def majority_predictions(self, known: datasets.Dataset, raw: datasets.Dataset) -> Any:
        """Return the share of the rows of `known` that have each label."""
        share = self._gold(known).mean(axis=0)
        return self._sets(np.tile(share, (len(raw), 1)), self.class_names(known))

    def score(self, raw: datasets.Dataset, predictions: Any) -> dict[str, float]:
        self.require_labels(raw)
        return multilabel_scores(self._gold(raw), predictions.probabilities, predictions.thresholds)

    def example_rows(self, raw: datasets.Dataset, predictions: Any, metric: str) -> tuple[np.ndarray, str]:
        gold, predicted = self._gold(raw), predictions.predicted
        if metric == "f1_micro":
            return f1_rows((gold & predicted).sum(axis=1), (gold != predicted).sum(axis=1)), "f1"
        if metric == "subset_accuracy":
            return mean_rows((gold == predicted).all(axis=1)), "mean"
        raise InputError(f"no numbers of single examples give {metric} of {self.name}")

    def metric_label(self, metric: str) -> str:
        return metric.replace("_", " ")

    def report(self, raw: datasets.Dataset, predictions: Any) -> dict[str, Any]:
        figures = per_label_scores(self._gold(raw), predictions.predicted)
        return {"classes": dict(zip(predictions.names, figures, strict=True))}

    def tune(self, raw: datasets.Dataset, predictions: Any) -> dict[str, Any]:
        """Return for every label the threshold of its best F1."""
        gold = self._gold(raw)
        best = best_thresholds(gold, predictions.probabilities, THRESHOLD)
        scores = multilabel_scores(gold, predictions.probabilities, best)
        value = {name: float(threshold) for name, threshold in zip(predictions.names, best, strict=True)}
        figures = {name: scores[name] for name in ("f1_micro", "f1_macro")}
        return {"thresholds": {"value": value, "tuned_on": "validation"} | figures}

    def apply_tuned(self, predictions: Any, tuned: Mapping[str, Any]) -> LabelSets:
        """Set the `thresholds`, by name of the label."""
        values = tuned.get("thresholds") or {}
        thresholds = [values.get(name, THRESHOLD) for name in predictions.names]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in thresholds):
            raise InputError(f"thresholds are {values}; each must be a number between 0 and 1")
        return replace(predictions, thresholds=np.array(thresholds, dtype=np.float64))

    def save_plots(self, directory: Path, raw: datasets.Dataset, predictions: Any) -> None:
        """Draw `plot`, for no more classes than can be told apart."""
        if len(predictions.names) > _DRAWN:
            return
        from ..utils.plots import draw_precision_recall  # slow to import, and selects a backend of matplotlib

        path = directory / self.plot
        draw_precision_recall(self._gold(raw), predictions.probabilities, list(predictions.names), path)

    def write_predictions(self, directory: Path, raw: datasets.Dataset, predictions: Any, split: str) -> list[Path]:
        """Write `predictions_<split>.jsonl`: index, labels, and the probability of every label."""
        rows = zip(predictions.predicted, predictions.probabilities, strict=True)
        entries = [
            {
                "index": number,
                "labels": [name for name, there in zip(predictions.names, own, strict=True) if there],
                "probabilities": dict(zip(predictions.names, shares.round(6).tolist(), strict=True)),
            }
            for number, (own, shares) in enumerate(rows)
        ]
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
        return [write_lines(Path(directory) / f"predictions_{split}.jsonl", lines)]


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Return the labels of rows as 0 and 1.

    Args:
        labels: the ids of the labels of every row.
        classes: number of classes.

    Returns:
        (rows, classes) float32.
    """
    result = np.zeros((len(labels), classes), dtype=np.float32)
    for row, own in enumerate(labels):
        result[row, own] = 1
    return result


def label_set_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    texts: list[str],
    classes: int,
) -> dict[str, list]:
    """Encode a batch for `cached_map`: one feature per row.

    Args:
        batch: the raw columns.
        indices: numbers of the raw rows.
        tokenizer: any encoder's.
        settings: its max_seq_length truncates.
        texts: names of the text columns, one or two.
        classes: number of classes; 0: no labels.

    Returns:
        The columns of `text_features`, and `labels`, (classes,) of 0 and 1 for each row.
    """
    result = text_features(batch, indices, tokenizer=tokenizer, settings=settings, texts=texts, labels=False)
    return result | ({"labels": list(multi_hot(batch["label"], classes))} if classes else {})


MULTILABEL_TASKS = (
    MultilabelTask(
        name="custom-multilabel",
        columns=same_names("text", "text_pair", "label"),
        texts=("text", "text_pair"),
        classes=None,
        second_text_optional=True,
        metric="multilabel",
        main_metric="f1_micro",
        hub=None,
    ),
)

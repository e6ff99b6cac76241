"""The Task abstraction: everything that differs between tasks, as attributes and methods of one class.

A task names its data, turns rows into model inputs, sums the loss, and turns outputs into predictions and scores.
Code outside this folder works with any Task and never asks which one it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from ..metrics import load_metric
from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.errors import InputError
from ..utils.files import write_text, writing
from .encoding import FeatureSettings
from .files.data import DataArguments, find_files, load_hub
from .files.tables import Columns, read_file


@dataclass(frozen=True)
class Defaults:
    """Hyperparameters of a task: the paper's grid; the first entry is the default."""

    learning_rates: tuple[float, ...] = (2e-5, 3e-5, 4e-5, 5e-5)
    batch_sizes: tuple[int, ...] = (32, 16)
    epochs: tuple[int, ...] = (3, 2, 4)
    max_seq_length: int = 128


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task. A subclass is a shape of tasks; its instances are rows of the table `TASKS`.

    A new shape implements the abstract methods and sets the class attributes in which it differs; a new task of a
    known shape is an instance. `register_task` adds either to the table.

    Args:
        name: name of the task, as given to --task.
        hub: data set on the Hub and its configuration; None for the user's own data.
        columns: task column → the names it may have in the data.
        main_metric: the score by which the best step is chosen.
        defaults: hyperparameters when the user gives none.
        splits: the splits the data may have.
    """

    name: str
    hub: tuple[str, str | None] | None
    columns: Columns
    main_metric: str
    defaults: Defaults = Defaults()
    splits: tuple[str, ...] = ("train", "validation", "test")

    # Data.
    label_column: ClassVar[str] = "label"  # raw column with the label
    optional_columns: ClassVar[frozenset[str]] = frozenset({"label"})  # raw columns that a split may lack
    original_files: ClassVar[Mapping[str, Sequence[str]]] = {}  # split → glob patterns of the task's original files
    # The model and its batches.
    head: ClassVar[str]  # Auto class of the model
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids")  # feature columns the model gets
    label_columns: ClassVar[tuple[str, ...]] = ("labels",)  # feature columns the loss gets
    outputs: ClassVar[tuple[str, ...]] = ("logits",)  # model outputs that `predict` reads
    per_token: ClassVar[bool] = False  # the model has an output, and the label columns an entry, for every token
    pads_to_batch: ClassVar[bool] = False  # the loss depends on the padding: pad micro-batches to their step's longest
    can_pack: ClassVar[bool] = True  # False where the softmax compares positions or choices of padded rows
    # Scores and capabilities.
    score_scale: ClassVar[int] = 100  # factor from `main_metric` to per cent, for tables
    tags_words: ClassVar[bool] = False  # features have `positions`, one for every word that gets a class
    answers_questions: ClassVar[bool] = False  # predicts a span of a context that answers a question
    plot: ClassVar[str | None] = None  # file that `save_plots` draws; the model card shows it

    # Loading.

    def load(self, data: DataArguments, model_classes: Sequence[str] | None = None) -> dict[str, datasets.Dataset]:
        """Load and validate the raw splits.

        Every row for training and validation has a label; a test split has labels if it came with them (see
        `is_labelled`). Left-out rows and doubtful data are printed, and can be collected with `collect_notes`.

        Args:
            data: the user's files or data set, names of columns and classes, and limits on the number of rows.
            model_classes: classes of a model that is trained already, for the user's own data; without them the
                classes are those of `data.class_names`, else those in the data.

        Returns:
            Split → data set, a subset of `splits`, with the columns of `columns`.

        Raises:
            InputError: for unusable data; the message names file or split, row, column and value.
        """
        user_classes = data.class_names or ()
        columns = data.renamed(self.columns) | dict(self.class_columns(user_classes or model_classes or ()))
        if user_classes and not self.has_classes:
            raise InputError(f"--class_names {' '.join(user_classes)}: {self.name} has no classes to be named")
        if len(set(user_classes)) < len(user_classes):
            raise InputError(f"--class_names {' '.join(user_classes)}: a name occurs more than once")
        files = find_files(data, self.splits, self.original_files)
        if files:
            tables = {
                split: pa.concat_tables([self.read(path, columns) for path in paths], promote_options="permissive")
                for split, paths in files.items()
            }
        else:
            optional = self.optional_columns | (columns.keys() - self.columns.keys())
            tables = load_hub(*self._hub_name(data), self.splits, columns, optional)
        for split, table in tables.items():
            if not table.num_rows:
                raise InputError(f"split {split} of {self.name} holds no rows")
        raw = self.validate(tables, model_classes, user_classes)
        for split, rows in raw.items():
            limit = data.max_eval_samples if split.startswith("validation") else 0
            limit = data.max_train_samples if split == "train" else limit
            if 0 < limit < len(rows):
                raw[split] = rows.select(np.linspace(0, len(rows) - 1, limit).astype(int))
        return raw

    def class_columns(self, names: Sequence[str]) -> Columns:
        """Return columns that data may have for the classes, if their names are known; none by default."""
        return {}

    def read(self, path: Path, columns: Columns) -> pa.Table:
        """Read one file, in any format the task knows, into a table with the task's columns."""
        return read_file(path, columns, self.optional_columns)

    def _hub_name(self, data: DataArguments) -> tuple[str, str | None]:
        if data.dataset:
            name, _, configuration = data.dataset.partition(":")
            return name, configuration or None
        if self.hub is None:
            raise InputError(
                f"{self.name} needs data: --train_file and --validation_file, --data_dir or --dataset "
                "(to evaluate, one file is enough)"
            )
        return self.hub

    @abstractmethod
    def validate(
        self, tables: dict[str, pa.Table], model_classes: Sequence[str] | None, user_classes: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        """Check the tables and make data sets of them.

        Args:
            tables: split → rows as read.
            model_classes: as in `load`.
            user_classes: the user's names of classes, in the order of the numbers in the data.

        Returns:
            Split → data set (see `make_dataset`).

        Raises:
            InputError: for unusable rows.
        """

    @abstractmethod
    def check_training(self, raw: datasets.Dataset) -> None:
        """Check that the training split can teach something; warn where it teaches little.

        Raises:
            InputError: if there is nothing to learn.
        """

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        """Return whether every row of a raw split has its label, so that the split can be scored."""
        return self.label_column in raw.column_names

    def require_labels(self, raw: datasets.Dataset) -> None:
        """Raise InputError unless `raw` can be scored."""
        if not self.is_labelled(raw):
            raise InputError(f"this split of {self.name} has no labels: it can be predicted, not scored or trained on")

    @property
    def has_classes(self) -> bool:
        """Return whether labels are classes with names."""
        return False

    def class_names(self, raw: datasets.Dataset) -> list[str]:
        """Return the classes in the order of their ids; empty where labels are not named classes."""
        return []

    # Description.

    @abstractmethod
    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        """Count the targets of a split by class, as {"classes": {name: count}}; empty without labels."""

    def describe_features(self, raw: datasets.Dataset, features: datasets.Dataset) -> dict[str, Any]:
        """Describe lengths in tokens, and the examples that max_seq_length truncates."""
        table = features.with_format("arrow")[:]
        lengths = self._lengths(table)
        truncated = table.column("num_truncated").to_numpy()
        return {
            "tokens": {"mean": round(float(lengths.mean()), 1), "max": int(lengths.max())},
            "cut_by_max_seq_length": {
                "examples": int((truncated > 0).sum()),
                "share": round(float((truncated > 0).mean()), 4),
                "tokens": int(truncated.sum()),
                "longest": int((lengths + truncated).max()),
            },
        }

    def _lengths(self, table: pa.Table) -> np.ndarray:
        """Return the number of tokens of every feature, (features,)."""
        return table.column("input_ids").combine_chunks().value_lengths().to_numpy()

    def decode_example(self, raw: datasets.Dataset, features: datasets.Dataset, tokenizer: Any) -> str:
        """Decode the first feature, as the model sees it, and its target.

        Args:
            raw: a split with at least one row.
            features: its features.
            tokenizer: the tokenizer they were made with.

        Returns:
            A line of text.
        """
        ids = features[0]["input_ids"]
        return f"{tokenizer.decode(ids)} → {self.target_of(raw, features[0]['example'])}"

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        """Return the label of a row in words."""
        return repr(raw[row][self.label_column]) if self.is_labelled(raw) else "no label"

    # Features and the loss.

    @abstractmethod
    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        """Return the fields that a new head needs in the model's configuration: num_labels, id2label, problem_type…"""

    @abstractmethod
    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """Encode the rows as model inputs, in batches, and keep them on disk (see `encoding.cached_map`).

        Args:
            raw: a split, as `load` returned it.
            tokenizer: the model's tokenizer.
            settings: lengths, processes, and the cache.
            training: encode for training, which needs labels, not for prediction.

        Returns:
            The columns `inputs`; `label_columns` if labelled; `example`, the number of the raw row; `num_truncated`,
            how many of its tokens max_seq_length left out. Lists are unpadded and at most max_seq_length long.

        Raises:
            InputError: for settings that do not fit, and for training without labels.
        """

    def loss_sum(
        self, outputs: Any, targets: Mapping[str, torch.Tensor], class_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum the loss over the targets of a micro-batch.

        Here cross-entropy over classes, choices, or the classes of labelled tokens.

        Args:
            outputs: the model's outputs, by name.
            targets: the label columns of the micro-batch.
            class_weights: (classes,) factors of the losses of targets, by their class.

        Returns:
            A scalar. The caller divides it by the number of targets of the whole optimizer step.
        """
        logits, labels = outputs["logits"].float(), targets["labels"]
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            weight=class_weights,
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )

    # Predictions and scores.

    @abstractmethod
    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> Any:
        """Turn model outputs into predictions.

        Args:
            raw: a split.
            features: its features.
            outputs: name of `outputs` → one array, or one array per feature; row i belongs to features[i].
            id2label: the model's, when its classes may be in another order than the task's.

        Returns:
            The predictions, in the order of the raw rows, as `score` and `write_predictions` take them.

        Raises:
            InputError: if the outputs do not fit the task.
        """

    @abstractmethod
    def majority_predictions(self, known: datasets.Dataset, raw: datasets.Dataset) -> Any:
        """Predict the most frequent target of `known` for every row of `raw`."""

    @abstractmethod
    def score(self, raw: datasets.Dataset, predictions: Any) -> dict[str, float]:
        """Score predictions.

        Args:
            raw: a labelled split.
            predictions: `predict` on it.

        Returns:
            Metric → value, `main_metric` among them.

        Raises:
            InputError: for an unlabelled split.
        """

    def example_rows(self, raw: datasets.Dataset, predictions: Any, metric: str) -> tuple[np.ndarray, str]:
        """Return the numbers of each example whose sums give a metric, for comparisons over resampled examples.

        Args:
            raw: a labelled split.
            predictions: `predict` on it.
            metric: one of the names in `score`.

        Returns:
            (examples, numbers), and the function of their sums, one of metrics.bootstrap.FROM_SUMS, which gives the
            metric from 0 to 1: 100 times it is score_scale times `score`'s.

        Raises:
            InputError: for a metric that no such numbers give.
        """
        raise InputError(f"no numbers of single examples give {metric} of {self.name}")

    def metric_label(self, metric: str) -> str:
        """Name a metric of `score` for people, where its key leaves something open."""
        return metric

    def report(self, raw: datasets.Dataset, predictions: Any) -> dict[str, Any]:
        """Score every class of a labelled split, as {"classes": {name: {"precision": …}}}; empty without classes."""
        return {}

    def tune(self, raw: datasets.Dataset, predictions: Any) -> dict[str, Any]:
        """Tune thresholds and the like, which turn predictions into answers, on a labelled split.

        Args:
            raw: the validation split.
            predictions: `predict` on it; stay as they are.

        Returns:
            Name → {"value": …, and figures to report}; empty where there is nothing to tune. `apply_tuned` takes the
            values.
        """
        return {}

    def apply_tuned(self, predictions: Any, tuned: Mapping[str, Any]) -> Any:
        """Apply tuned values to predictions.

        Args:
            predictions: `predict` on any split.
            tuned: name → value, None or missing for the default; other names are ignored.

        Returns:
            The predictions with the values applied.
        """
        return predictions

    def save_plots(self, directory: Path, raw: datasets.Dataset, predictions: Any) -> None:  # noqa: B027 - a task may draw nothing
        """Draw `plot`, the predictions of a labelled split, where matplotlib is installed; nothing by default.

        Args:
            directory: where the pictures go; it must exist.
            raw: the split.
            predictions: `predict` on it.
        """

    @abstractmethod
    def write_predictions(self, directory: Path, raw: datasets.Dataset, predictions: Any, split: str) -> list[Path]:
        """Write predictions in the task's format.

        Args:
            directory: made if it is not there.
            raw: the split.
            predictions: `predict` on it.
            split: name of the split, part of the file names.

        Returns:
            The files.

        Raises:
            OutputError: if they cannot be written.
        """


def metric_scores(
    name: str, config: str | None, predictions: Any, references: Any, **options: Any
) -> dict[str, float]:
    """Compute a metric of the package's `metrics` folder.

    Args:
        name: a key of metrics.METRICS.
        config: the configuration, for glue the task. None: for a metric that has only one.
        predictions: as the metric's class describes them.
        references: as the metric's class describes them.
        **options: further arguments of its `compute`.

    Returns:
        Metric → value.

    Raises:
        InputError: for an unknown name or configuration, and for predictions or references that the metric refuses.
    """
    return load_metric(name, config).compute(predictions=predictions, references=references, **options)


def write_predicted(directory: Path, split: str, predictions: Collection[Any]) -> list[Path]:
    """Write `predictions_<split>.tsv`: a header, then index and prediction.

    Args:
        directory: made if it is not there.
        split: name of the split.
        predictions: one a row, none with a tab or a line end.

    Returns:
        The one file.

    Raises:
        OutputError: if it cannot be written.
    """
    lines = [f"{row}\t{prediction}" for row, prediction in enumerate(predictions)]
    return [write_lines(Path(directory) / f"predictions_{split}.tsv", ["index\tprediction", *lines])]


def write_lines(path: Path, lines: Collection[str]) -> Path:
    """Write lines of text, and the directory if it is not there."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path

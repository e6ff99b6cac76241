"""A task's splits as features, and batches of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..model.kernels_hfbert import IGNORED_LABEL
from ..tasks import DataArguments, FeatureSettings, Task, collect_notes, summarize, summary_lines
from ..tasks.encoding import default_cache_dir
from ..utils.errors import InputError
from ..utils.files import lock, writing


class TaskData:
    """The raw splits of a task, and their features, which are made on first use.

    Args:
        task: the task.
        data: sources of its data.
        tokenizer: the model's tokenizer.
        settings: settings of the features.
        model_classes: classes of a model that is trained already (see `Task.load`).

    Raises:
        InputError: for unusable data.
    """

    def __init__(
        self,
        task: Task,
        data: DataArguments,
        tokenizer: Any,
        settings: FeatureSettings,
        model_classes: list[str] | None = None,
    ):
        self.task = task
        self.tokenizer = tokenizer
        with collect_notes() as self.notes:
            self.raw = task.load(data, model_classes)
        self.settings = dataclasses.replace(settings, cache_dir=settings.cache_dir or str(default_cache_dir()))
        self._features: dict[tuple[str, bool], datasets.Dataset] = {}
        self._described: dict[tuple[str, ...], tuple[dict[str, Any], list[str]]] = {}

    def features(self, split: str, training: bool = False) -> datasets.Dataset:
        """Return the features of a split; one process makes them, the others read them from the cache.

        With `in_memory` of the settings every process makes them for itself.

        Args:
            split: name of the split.
            training: encode for training, not for prediction.

        Raises:
            InputError: as `Task.features`.
            OutputError: if the cache cannot be written.
        """
        if (split, training) not in self._features:
            in_memory, cache = self.settings.in_memory, Path(str(self.settings.cache_dir))
            with nullcontext() if in_memory else _cache_lock(cache):
                self._features[split, training] = self.task.features(
                    self.raw[split], self.tokenizer, self.settings, training
                )
        return self._features[split, training]

    def check_training(self) -> None:
        """Check that there are splits to train and to validate on, and something to learn; warnings go to `notes`.

        Raises:
            InputError: if a split is missing, or there is nothing to learn.
        """
        for split in ("train", "validation"):
            if split not in self.raw:
                raise InputError(
                    f"{self.task.name} needs a {split} split; there are {', '.join(self.raw)} (--{split}_file)"
                )
        with collect_notes() as notes:
            self.task.check_training(self.raw["train"])
        self.notes.warnings += notes.warnings

    def check_comparable(self, metric: str) -> None:
        """Refuse a metric that is no function of the validation examples' own numbers (`Task.example_rows`).

        Args:
            metric: one of the names in `Task.score`.

        Raises:
            InputError: for such a metric.
        """
        raw = self.raw["validation"]
        self.task.example_rows(raw, self.task.majority_predictions(self.raw["train"], raw), metric)

    def describe(self, splits: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Summarize splits as they were read and tokenized.

        Args:
            splits: names of the splits.

        Returns:
            The summary for the record (`tasks.summarize`), and lines to print.
        """
        if tuple(splits) not in self._described:
            features = {split: self.features(split, training=split == "train") for split in splits}
            summary = summarize(self.task, self.raw, features, self.tokenizer, self.notes)
            self._described[tuple(splits)] = summary, summary_lines(summary, self.settings.max_seq_length)
        return self._described[tuple(splits)]

    def examples(self, split: str, training: bool = False) -> "Examples":
        """Return the features of a split as arrays from which batches are made.

        Args:
            split: name of the split.
            training: encode for training, not for prediction.

        Raises:
            InputError: as `Task.features`.
            OutputError: if the cache cannot be written.
        """
        return Examples(self.task, self.features(split, training), self.tokenizer.pad_token_id)


@contextmanager
def _cache_lock(directory: Path) -> Iterator[None]:
    """Hold a file lock in `directory`, because the process group does not exist yet."""
    with writing(f"the feature cache {directory}", "name another by --cache_dir"):
        stack = ExitStack()
        stack.enter_context(lock(directory / ".lock", wait=True))
    with stack:
        yield


class Examples:
    """Features as flat arrays, and padded batches of them.

    Attributes:
        lengths: (features,) tokens, of the longest choice where a feature has several.
        tokens: (features, choices) tokens.
        numbers: the columns that have an entry per feature, not per token, by name.
        targets: the label columns; none for unlabelled features.
        task: the task of the features.
    """

    def __init__(self, task: Task, features: datasets.Dataset, pad_token_id: int):
        table = features.with_format("arrow")[:]
        self.task = task
        self.padding = dict.fromkeys(task.inputs, 0) | dict.fromkeys(task.label_columns, IGNORED_LABEL)
        self.padding["input_ids"] = pad_token_id
        self.choices = 1
        self.numbers: dict[str, np.ndarray] = {}
        self.lists: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in (*task.inputs, *task.label_columns):
            if name not in table.column_names:
                continue
            column = table.column(name).combine_chunks()
            if not hasattr(column, "value_lengths"):
                self.numbers[name] = column.to_numpy(zero_copy_only=False)
                continue
            if name in task.label_columns and not task.per_token:
                # One target vector per feature, as in multi-label classification: (features, targets), never padded.
                self.numbers[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
                continue
            if hasattr(column.flatten(), "value_lengths"):
                self.choices = int(column.value_lengths()[0].as_py())
                column = column.flatten()
            ends = np.cumsum(column.value_lengths().to_numpy())
            self.lists[name] = (column.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], ends]))
        self.tokens = np.diff(self.lists["input_ids"][1]).reshape(-1, self.choices)
        self.lengths = self.tokens.max(axis=1)
        self.targets = tuple(name for name in task.label_columns if name in {*self.numbers, *self.lists})

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, length: int | None = None) -> dict[str, torch.Tensor]:
        """Make the model's inputs and targets of some features.

        Args:
            rows: (batch,) numbers of the features.
            length: tokens to pad to; None: those of the longest.

        Returns:
            Name → (batch, length) tensor, (batch, choices, length) where a feature has several choices, or (batch,)
            for labels of whole features.
        """
        sequences = (rows[:, None] * self.choices + np.arange(self.choices)).ravel()
        width = int(self.lengths[rows].max()) if length is None else length
        shape = (len(rows), self.choices, width) if self.choices > 1 else (len(rows), width)
        batch = {name: torch.from_numpy(values[rows]) for name, values in self.numbers.items()}
        for name, (values, ends) in self.lists.items():
            filled = np.arange(width) < (ends[sequences + 1] - ends[sequences])[:, None]
            padded = np.full(filled.shape, self.padding[name], dtype=np.int64)
            padded[filled] = np.concatenate([values[ends[i] : ends[i + 1]] for i in sequences])
            batch[name] = torch.from_numpy(padded.reshape(shape))
            if name == "input_ids":
                batch["attention_mask"] = torch.from_numpy(filled.astype(np.int64).reshape(shape))
        return batch

    def count_targets(self, rows: np.ndarray) -> int:
        """Count the targets in the loss of some features: labelled tokens, or else features.

        Args:
            rows: (batch,) numbers of the features.
        """
        name = next((name for name in self.targets if name in self.lists), None)
        if name is None:
            return len(rows)
        values, ends = self.lists[name]
        return int(sum((values[ends[i] : ends[i + 1]] != IGNORED_LABEL).sum() for i in rows))

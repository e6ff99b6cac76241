"""Choosing the ending of a story: SWAG (Zellers et al. 2018, arXiv:1808.05326) and data in its shape."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa

from ..metrics.bootstrap import mean_rows
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
from .files.tables import Columns, check_single, check_strings, warn_of_blanks
from .labels import class_ids, refuse_booleans, refuse_unlabelled
from .notes import warn
from .task import Defaults, Task, metric_scores, write_predicted


CHOICES = 4
_ENDINGS = tuple(f"ending{number}" for number in range(CHOICES))
_TEXTS = ("sent1", "sent2", *_ENDINGS)


@dataclass(frozen=True, kw_only=True)
class SwagTask(Task):
    """A sentence and the beginning of the next → which of four endings follows.

    Every choice is a pair of texts: `sent1`, and `sent2` with the ending. The data have the endings in four columns,
    or in one with lists of four, as HellaSwag. Features are nested: input_ids and token_type_ids are lists of four
    lists.
    """

    head: ClassVar[str] = "AutoModelForMultipleChoice"
    can_pack: ClassVar[bool] = False
    optional_columns: ClassVar[frozenset[str]] = frozenset({"label", "endings", *_ENDINGS})

    columns: Columns = field(
        default_factory=lambda: (
            {name: (name,) for name in (*_ENDINGS, "label", "endings")}
            | {"sent1": ("sent1", "ctx_a"), "sent2": ("sent2", "ctx_b")}
        )
    )
    main_metric: str = "accuracy"

    def validate(
        self, tables: dict[str, pa.Table], model_classes: Sequence[str] | None, user_classes: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        return {split: self._dataset(split, table) for split, table in tables.items()}

    def _dataset(self, split: str, table: pa.Table) -> datasets.Dataset:
        location = f"{self.name}, split {split}"
        table = _with_ending_columns(table, location)
        columns: dict[str, Any] = {
            name: check_strings(table.column(name), f"{location}: column {name!r}") for name in _TEXTS
        }
        for name in ("sent1", *_ENDINGS):
            warn_of_blanks(columns[name], f"{location}: column {name!r}")
        features: dict[str, Any] = {name: datasets.Value("string") for name in _TEXTS}
        if "label" in table.column_names:
            names = [str(number) for number in range(CHOICES)]
            label = check_single(table.column("label"), f"{location}: column 'label'")
            refuse_booleans(label, names, location)
            labels = class_ids(label, names, location, by_position=False, remedy=", the number of the right ending")
            if refuse_unlabelled(labels < 0, split, location):
                columns["label"], features["label"] = pa.array(labels), datasets.Value("int64")
        elif not split.startswith("test"):
            raise InputError(
                f"{location} has no label column; name yours: --columns label=NAME; to predict the split, name it "
                "--test_file"
            )
        return make_dataset(columns, datasets.Features(features))

    def check_training(self, raw: datasets.Dataset) -> None:
        if len(set(raw["label"][:])) == 1:
            warn(f"{self.name}, split train: every label is {raw[0]['label']}; there is nothing to tell apart")

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        counts = np.bincount(raw["label"][:], minlength=CHOICES).tolist()
        return {"classes": {str(number): count for number, count in enumerate(counts)}}

    def _lengths(self, table: pa.Table) -> np.ndarray:
        """Return the number of tokens of every example's longest choice, (examples,)."""
        choices = table.column("input_ids").combine_chunks().flatten().value_lengths().to_numpy()
        return choices.reshape(-1, CHOICES).max(axis=1)

    def decode_example(self, raw: datasets.Dataset, features: datasets.Dataset, tokenizer: Any) -> str:
        choices = " | ".join(tokenizer.decode(ids) for ids in features[0]["input_ids"])
        return f"{choices} → {self.target_of(raw, 0)}"

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        return {}

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        if training:
            self.require_labels(raw)
        labels = self.is_labelled(raw)
        kinds: dict[str, Any] = {
            name: datasets.List(INPUT_FEATURES[name]) if name in self.inputs else INPUT_FEATURES[name]
            for name in INPUT_FEATURES
        }
        if labels:
            kinds["labels"] = datasets.Value("int64")
        return cached_map(raw, swag_features, datasets.Features(kinds), tokenizer, settings, labels=labels)

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> list[int]:
        """Return the number of the ending for every row, from `logits` (rows, 4)."""
        logits = np.asarray(outputs["logits"]).reshape(len(raw), -1)
        if logits.shape[1] != CHOICES:
            raise InputError(f"the model gave {logits.shape[1]} scores per question, but {self.name} has {CHOICES}")
        return logits.argmax(axis=1).tolist()

    def majority_predictions(self, known: datasets.Dataset, raw: datasets.Dataset) -> list[int]:
        """Return the most frequent ending of `known` for every row."""
        ((label, _),) = Counter(known["label"][:]).most_common(1)
        return [label] * len(raw)

    def score(self, raw: datasets.Dataset, predictions: list[int]) -> dict[str, float]:
        self.require_labels(raw)
        # Plain accuracy, which several of GLUE's configurations are.
        return metric_scores("glue", "sst2", predictions, raw["label"][:])

    def example_rows(self, raw: datasets.Dataset, predictions: list[int], metric: str) -> tuple[np.ndarray, str]:
        if metric != "accuracy":
            return super().example_rows(raw, predictions, metric)
        return mean_rows(np.asarray(raw["label"][:]) == np.asarray(predictions)), "mean"

    def write_predictions(
        self, directory: Path, raw: datasets.Dataset, predictions: list[int], split: str
    ) -> list[Path]:
        """Write `predictions_<split>.tsv`: a header, then index and number of the ending."""
        return write_predicted(directory, split, predictions)


def _with_ending_columns(table: pa.Table, location: str) -> pa.Table:
    """Split a column of lists of endings into one column each; raise InputError if any lacks one."""
    lacking = [name for name in _ENDINGS if name not in table.column_names]
    if lacking and "endings" not in table.column_names:
        raise InputError(
            f"{location} has no column {lacking[0]!r}, nor 'endings' with lists of {CHOICES}; name yours: --columns "
            f"{lacking[0]}=NAME"
        )
    if not lacking:
        return table
    lists = table.column("endings").to_pylist()
    for row, endings in enumerate(lists):
        if not isinstance(endings, list) or len(endings) != CHOICES:
            count = f"{len(endings)} endings" if isinstance(endings, list) else f"{endings!r} for a list"
            raise InputError(f"{location}, row {row}: column 'endings' holds {count}; it must hold {CHOICES}")
    for number, name in enumerate(_ENDINGS):
        table = table.append_column(name, pa.array([endings[number] for endings in lists]))
    return table


def swag_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    labels: bool,
) -> dict[str, list]:
    """Encode a batch for `cached_map`: one feature of four pairs per row.

    Args:
        batch: the raw columns.
        indices: numbers of the raw rows.
        tokenizer: any encoder's.
        settings: its max_seq_length truncates every pair.
        labels: whether the rows have labels.

    Returns:
        The columns of INPUT_FEATURES, where `input_ids` and `token_type_ids` hold four lists a row and `num_truncated`
        is that of the pair that loses most; and `labels` if there are any.
    """
    first, special = token_ids(tokenizer, batch["sent1"]), special_tokens(tokenizer).count(is_pair=True)
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in indices]
    cut = [0] * len(indices)  # of the choice that loses most
    for number in range(CHOICES):
        second = token_ids(
            tokenizer, [f"{a} {b}" for a, b in zip(batch["sent2"], batch[f"ending{number}"], strict=True)]
        )
        for row, (a, b) in enumerate(zip(first, second, strict=True)):
            cut[row] = max(cut[row], num_truncated(a, b, settings.max_seq_length, special))
            pairs[row].append(with_special_tokens(tokenizer, a, b, settings.max_seq_length))
    result: dict[str, list] = {
        "input_ids": [[ids for ids, _ in choices] for choices in pairs],
        "token_type_ids": [[types for _, types in choices] for choices in pairs],
        "example": indices,
        "num_truncated": cut,
    }
    return result | ({"labels": batch["label"]} if labels else {})


# The paper's section 4.4; it does not give a length, and few examples have more than 128 tokens.
SWAG_TASKS = (
    SwagTask(
        name="swag",
        hub=("allenai/swag", "regular"),
        defaults=Defaults(learning_rates=(2e-5,), batch_sizes=(16,), epochs=(3,), max_seq_length=128),
    ),
)

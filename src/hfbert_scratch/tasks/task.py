"""What a task is: where its data are, how rows become model inputs, how outputs become predictions and scores."""

import dataclasses
import functools
import hashlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ..metrics import load_metric
from ..text import word_encoder
from ..text.tokenizer import tokenizer_hash
from ..text.word_encoder import Encoder, text_encoder
from ..utils.errors import InputError
from ..utils.files import write_text, writing
from .data import Columns, DataArguments, find_files, load_hub, read_file


@dataclass(frozen=True)
class Defaults:
    """A task's hyperparameters when the user names none; the tuples are the paper's grid, their first entry ours."""

    learning_rates: tuple[float, ...] = (2e-5, 3e-5, 4e-5, 5e-5)
    batch_sizes: tuple[int, ...] = (32, 16)
    epochs: tuple[int, ...] = (3, 2, 4)
    max_seq_length: int = 128


@dataclass(frozen=True)
class FeatureSettings:
    """How rows become features. Everything but num_proc and cache_dir decides what they are.

    doc_stride, max_query_length: SQuAD's windows start so many tokens apart; questions are cut to so many.
    document_context: NER, fill up every sentence with its document. cache_dir: of the finished features; default
    beside those of `datasets`.
    """

    max_seq_length: int
    doc_stride: int = 128
    max_query_length: int = 64
    document_context: bool = False
    num_proc: int = 1
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_seq_length", 8), ("doc_stride", 1), ("max_query_length", 1), ("num_proc", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task; subclasses are kinds of tasks, their instances the rows of the table `TASKS`.

    name: of the task, as given to --task. hub: its data set and configuration, None for the user's own data.
    columns: the raw columns and the names they have in known files. main_metric: the score a model is chosen by.
    """

    name: str
    hub: tuple[str, str | None] | None
    columns: Columns
    main_metric: str
    defaults: Defaults = Defaults()
    splits: tuple[str, ...] = ("train", "validation", "test")

    head: ClassVar[str]  # the Auto class of the model
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "token_type_ids")  # feature columns that go to the model…
    label_columns: ClassVar[tuple[str, ...]] = ("labels",)  # …and the targets; both are lists or numbers
    optional: ClassVar[frozenset[str]] = frozenset({"label"})  # columns that a split may lack
    originals: ClassVar[Mapping[str, Sequence[str]]] = {}  # split → glob patterns of the task's original files

    # ------------------------------------------------------------------------------------------------------- loading

    def load(self, data: DataArguments, classes: Sequence[str] | None = None) -> dict[str, datasets.Dataset]:
        """The raw splits, validated: a subset of `splits`, columns as in `columns`.

        Splits for training and validation are labelled in every row; a test split has its labels if it came with
        them (see `is_labelled`). `classes` are those of an already trained model, for the user's own data; without
        them the classes are those of `data.class_names`, else those in the data. What was left out, and what is
        doubtful, is printed and can be collected (`notes.collect_notes`).

        Raises InputError for anything unusable, naming file or split, row, column and value.
        """
        columns = data.renamed(self.columns)
        numbered = data.class_names or ()
        if numbered and not self.has_classes:
            raise InputError(f"--class_names {' '.join(numbered)}: {self.name} has no classes to be named")
        if len(set(numbered)) < len(numbered):
            raise InputError(f"--class_names {' '.join(numbered)}: a name occurs more than once")
        files = find_files(data, self.splits, self.originals)
        if files:
            tables = {
                split: pa.concat_tables([self.read(path, columns) for path in paths], promote_options="permissive")
                for split, paths in files.items()
            }
        else:
            tables = load_hub(*self._hub_name(data), self.splits, columns, self.optional)
        for split, table in tables.items():
            if not table.num_rows:
                raise InputError(f"split {split} of {self.name} holds no rows")
        raw = self.validate(tables, classes, numbered)
        for split, most in (
            ("train", data.max_train_samples),
            ("validation", data.max_eval_samples),
            ("validation_mismatched", data.max_eval_samples),
        ):
            if split in raw and 0 < most < len(raw[split]):
                raw[split] = raw[split].select(np.linspace(0, len(raw[split]) - 1, most).astype(int))
        return raw

    def read(self, path: Path, columns: Columns) -> pa.Table:
        """One file as a table with the columns of `columns`, of any format the task knows."""
        return read_file(path, columns, self.optional)

    def _hub_name(self, data: DataArguments) -> tuple[str, str | None]:
        if data.dataset:
            name, _, configuration = data.dataset.partition(":")
            return name, configuration or None
        if self.hub is None:
            raise InputError(f"{self.name} needs data: --train_file and --validation_file, --data_dir or --dataset")
        return self.hub

    @abstractmethod
    def validate(
        self, tables: dict[str, pa.Table], classes: Sequence[str] | None, numbered: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        """Check `tables` and make data sets of them (see `load`). numbered: the user's names for numbers in them."""

    @abstractmethod
    def check_training(self, raw: datasets.Dataset) -> None:
        """Raise InputError if there is nothing to learn from the training split `raw`; warn if there is little."""

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        """Whether every row of a raw split has its label, so that it can be scored."""
        return self.label_column in raw.column_names

    label_column: ClassVar[str] = "label"

    @property
    def has_classes(self) -> bool:
        """Whether labels are classes with names."""
        return False

    # ----------------------------------------------------------------------------------------------------- description

    @abstractmethod
    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        """What there is to predict in a split: counts by kind, as {"classes": {name: count}}; empty without labels."""

    def describe_features(self, raw: datasets.Dataset, features: datasets.Dataset) -> dict[str, Any]:
        """Lengths in tokens, and how many examples max_seq_length cut."""
        table = features.with_format("arrow")[:]
        lengths = self._lengths(table)
        cut = table.column("cut").to_numpy()
        return {
            "tokens": {"mean": round(float(lengths.mean()), 1), "max": int(lengths.max())},
            "cut_by_max_seq_length": {
                "examples": int((cut > 0).sum()),
                "share": round(float((cut > 0).mean()), 4),
                "tokens": int(cut.sum()),
                "longest": int((lengths + cut).max()),
            },
        }

    def _lengths(self, table: pa.Table) -> np.ndarray:
        """The number of tokens of every feature, (features,)."""
        return table.column("input_ids").combine_chunks().value_lengths().to_numpy()

    def decode_example(self, raw: datasets.Dataset, features: datasets.Dataset, tokenizer: Any) -> str:
        """The first feature as the model sees it, in words, and its target."""
        ids = features[0]["input_ids"]
        return f"{tokenizer.decode(ids)} → {self.target_of(raw, features[0]['example'])}"

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        """The label of a row in words."""
        return repr(raw[row][self.label_column]) if self.is_labelled(raw) else "no label"

    # ------------------------------------------------------------------------------------------------------ features

    @abstractmethod
    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        """What the model's configuration must say for these data: num_labels, id2label, label2id, problem_type."""

    @abstractmethod
    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """Model inputs for the rows of `raw`: the columns `inputs`, `label_columns` if labelled, `example` and `cut`.

        `example` is the number of the raw row, `cut` how many of its tokens max_seq_length left out. Lists are as long
        as they are, unpadded, and at most max_seq_length.
        Done in batches, over num_proc processes, and kept on disk: the same data, tokenizer and settings are not
        tokenized again.
        """

    # ----------------------------------------------------------------------------------------------------- prediction

    @abstractmethod
    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> Any:
        """Predictions from the model's outputs, whose row i belongs to features[i].

        outputs: name (`logits`; SQuAD: `start_logits`, `end_logits`) → array, or one array per feature. id2label: the
        model's, when its classes may be in another order than the task's.
        """

    @abstractmethod
    def score(self, raw: datasets.Dataset, predictions: Any) -> dict[str, float]:
        """The task's metrics, `main_metric` among them. Raises InputError for an unlabelled split."""

    def report(self, raw: datasets.Dataset, predictions: Any) -> dict[str, Any]:
        """Figures for every class of a labelled split, {"classes": {name: {"precision": …}}}, or none."""
        return {}

    @abstractmethod
    def write_predictions(self, directory: Path, raw: datasets.Dataset, predictions: Any, split: str) -> list[Path]:
        """Write the predictions of `split` in the task's format; returns the files."""

    def require_labels(self, raw: datasets.Dataset) -> None:
        """Raise InputError unless `raw` can be scored."""
        if not self.is_labelled(raw):
            raise InputError(f"this split of {self.name} has no labels: it can be predicted, not scored or trained on")


# -------------------------------------------------------------------------------------------------- for the subclasses


def metric_scores(
    name: str, config: str | None, predictions: Any, references: Any, **options: Any
) -> dict[str, float]:
    """`load_metric(name, config).compute(…)`."""
    return load_metric(name, config).compute(predictions=predictions, references=references, **options)


def make_dataset(columns: Mapping[str, Any], features: datasets.Features) -> datasets.Dataset:
    """A data set of Arrow arrays whose fingerprint is a hash of its content, so that what is made of it is cached."""
    schema = features.arrow_schema
    table = pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)
    digest = hashlib.sha256()

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    with pa.ipc.new_stream(Sink(), schema) as stream:
        # Chunks of one size, so that the hash does not depend on how many files the rows came from.
        stream.write_table(table.combine_chunks(), max_chunksize=1 << 16)
    return datasets.Dataset(
        datasets.table.InMemoryTable(table),
        info=datasets.DatasetInfo(features=features),
        fingerprint=digest.hexdigest()[:16],
    )


def cached_map(
    raw: datasets.Dataset,
    function: Callable[..., dict[str, list]],
    features: datasets.Features,
    tokenizer: Any,
    settings: FeatureSettings,
    derived: Mapping[str, Any] | None = None,
    **options: Any,
) -> datasets.Dataset:
    """`function(batch, indices, tokenizer=…, settings=…, **options, **derived)` over `raw`, kept on disk.

    The key is the data, the tokenizer, the settings, the options and the source of the function's module; `derived`
    arguments follow from `raw` and are not part of it.
    """
    decisive = dataclasses.asdict(settings)
    del decisive["num_proc"], decisive["cache_dir"]
    key = datasets.fingerprint.Hasher.hash(
        [
            raw._fingerprint,
            tokenizer_hash(tokenizer),
            decisive,
            sorted(options.items()),
            function.__name__,
            inspect.getsource(sys.modules[function.__module__]),
            inspect.getsource(sys.modules[__name__]),
        ]
    )
    directory = Path(settings.cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hfbert_features")
    with writing(f"the feature cache {directory}", "name another by --cache_dir"):
        directory.mkdir(parents=True, exist_ok=True)
        return raw.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=raw.column_names,
            features=features,
            num_proc=settings.num_proc if settings.num_proc > 1 else None,
            cache_file_name=str(directory / f"{key}.arrow"),
            new_fingerprint=key,
            load_from_cache_file=True,
            fn_kwargs={"tokenizer": tokenizer, "settings": settings} | options | dict(derived or {}),
            desc="features",
        )


# Feature columns: token ids, segments, the raw row's number, and how many of its tokens did not fit.
INPUT_FEATURES = {
    "input_ids": datasets.List(datasets.Value("int32")),
    "token_type_ids": datasets.List(datasets.Value("int8")),
    "example": datasets.Value("int32"),
    "cut": datasets.Value("int32"),
}


def token_ids(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text, (tokens,) int32, without special tokens and in full length.

    A "[SEP]" that stands in the text is text, as in the original code.
    """
    if not texts:
        return []
    encode = _encoder(tokenizer)
    ids, counts = encode(texts)
    return np.split(ids, np.cumsum(counts)[:-1])


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: Any) -> Encoder:
    return text_encoder(plain_backend(tokenizer), np.dtype(np.int32))


@functools.lru_cache(maxsize=1)
def plain_backend(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer's Rust part that cuts and pads nothing and takes special tokens in a text for text."""
    return word_encoder.plain_backend(tokenizer.backend_tokenizer.to_str())


def excess(first: np.ndarray, second: np.ndarray | None, max_seq_length: int) -> int:
    """How many tokens `with_special_tokens` cuts off."""
    room = max_seq_length - (2 if second is None else 3)
    return max(0, len(first) + (0 if second is None else len(second)) - room)


def with_special_tokens(
    tokenizer: Any, first: np.ndarray, second: np.ndarray | None, max_seq_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] first [SEP] (second [SEP]), cut to max_seq_length, and the segment ids; both (tokens,).

    The longer of the two loses tokens at its end first, one by one; when they are equally long, the second does
    (google-research/bert, `_truncate_seq_pair`).
    """
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    if second is None:
        ids = np.concatenate([cls, first[: max_seq_length - 2], sep])
        return ids, np.zeros(len(ids), dtype=np.int8)
    room = max_seq_length - 3
    if len(first) + len(second) > room:
        kept = min(len(first), max(room - len(second), (room + 1) // 2))
        first, second = first[:kept], second[: room - kept]
    ids = np.concatenate([cls, first, sep, second, sep])
    return ids, (np.arange(len(ids)) > len(first) + 1).astype(np.int8)


def write_predicted(directory: Path, split: str, predictions: Collection[Any]) -> list[Path]:
    """Write `predictions_<split>.tsv`: index, prediction, as a header says."""
    lines = [f"{row}\t{prediction}" for row, prediction in enumerate(predictions)]
    return [write_lines(Path(directory) / f"predictions_{split}.tsv", ["index\tprediction", *lines])]


def write_lines(path: Path, lines: Collection[str]) -> Path:
    """Write text lines, making the directory; OutputError if that fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path

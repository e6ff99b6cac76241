"""What a task is: where its data are, how rows become model inputs, how outputs become predictions and scores."""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from ..errors import InputError, one_line
from ..files import write_text, writing
from ..masking import IGNORED_LABEL  # noqa: F401 - the tasks' own name for it
from ..metrics import load_metric
from ..tokenization import tokenizer_hash
from ..word_encoding import WordEncoder, decomposes
from .loading import Columns, DataArguments, find_files, load_hub, read_file


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
        them the classes are those of the data.

        Raises InputError for anything unusable, naming file or split, row, column and value.
        """
        columns = data.renamed(self.columns)
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
        raw = self.validate(tables, classes)
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
    def validate(self, tables: dict[str, pa.Table], classes: Sequence[str] | None) -> dict[str, datasets.Dataset]:
        """Check `tables` and make data sets of them (see `load`)."""

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        """Whether every row of a raw split has its label, so that it can be scored."""
        return self.label_column in raw.column_names

    label_column: ClassVar[str] = "label"

    # ------------------------------------------------------------------------------------------------------ features

    @abstractmethod
    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        """What the model's configuration must say for these data: num_labels, id2label, label2id, problem_type."""

    @abstractmethod
    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """Model inputs for the rows of `raw`: the columns `inputs`, `label_columns` if labelled, and `example`.

        `example` is the number of the raw row. Lists are as long as they are, unpadded, and at most max_seq_length.
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


# Feature columns: token ids, segments, the raw row's number.
INPUT_FEATURES = {
    "input_ids": datasets.List(datasets.Value("int32")),
    "token_type_ids": datasets.List(datasets.Value("int8")),
    "example": datasets.Value("int32"),
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
def _encoder(tokenizer: Any) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    """texts → all their ids and the number of each, by way of a dictionary of words where the tokenizer allows it."""
    backend = plain_backend(tokenizer)
    if decomposes(backend):
        return WordEncoder(backend, np.dtype(np.int32)).encode

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=int(counts.sum())), counts

    return encode


@functools.lru_cache(maxsize=1)
def plain_backend(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer's Rust part that cuts and pads nothing and takes special tokens in a text for text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


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


def check_strings(values: pa.ChunkedArray | pa.Array, where: str) -> pa.Array:
    """`values` as an array of strings; InputError names the first row that is null or something else."""
    if pa.types.is_null(values.type) or values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise InputError(f"{where} is missing (null) in row {row}")
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{where} holds {one_line(values.type)}, not text; row 0 is {values[0].as_py()!r}")
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def check_single(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """`values` if they are numbers or texts; InputError if they are lists or objects."""
    if pa.types.is_nested(values.type):
        raise InputError(f"{where} holds {one_line(values.type)}, not one value a row")
    return values


def class_names(values: pa.ChunkedArray) -> list[str]:
    """The classes in a column of the user's own labels: names sorted, or numbers ascending, without negative ones."""
    found = [value for value in pc.unique(values).to_pylist() if value is not None and value != ""]
    found = [int(value) if isinstance(value, float) and value.is_integer() else value for value in found]
    if all(isinstance(value, int) for value in found):
        return [str(int(value)) for value in sorted(found) if value >= 0]
    texts = {str(value) for value in found}
    if all(text.lstrip("-").isascii() and text.lstrip("-").isdigit() for text in texts):
        return [str(number) for number in sorted(int(text) for text in texts) if number >= 0]
    return sorted(texts)


def class_ids(values: pa.ChunkedArray, names: Sequence[str], where: str, *, by_position: bool) -> np.ndarray:
    """Labels, given as names or numbers, as ids 0 … len(names) − 1 and −1 for none; shape (rows,).

    A number is an id where `by_position`, else it must be one of the names. Raises InputError naming the first row
    whose label is neither.
    """
    if pa.types.is_null(values.type):
        return np.full(len(values), -1, dtype=np.int64)
    check_single(values, f"{where}: the label")
    encoded = pc.dictionary_encode(values)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    distinct = encoded.dictionary.to_pylist()
    places = {name: place for place, name in enumerate(names)}
    ids = np.array([_class_id(value, places, by_position) for value in distinct] + [-1], dtype=np.int64)
    result = ids[encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)]
    if (result == _NO_CLASS).any():
        row = int(np.argmax(result == _NO_CLASS))
        allowed = f"{', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
        if by_position:
            allowed += f" or 0 … {len(names) - 1}"
        raise InputError(f"{where}, row {row}: unknown label {values[row].as_py()!r}; it must be {allowed}")
    return result


_NO_CLASS = -2


def _class_id(value: Any, places: Mapping[str, int], by_position: bool) -> int:
    """`value`'s id, −1 for a missing label (null, empty, negative), or _NO_CLASS."""
    if value is None or value == "":
        return -1
    if isinstance(value, str) and value in places:
        return places[value]
    try:
        number = float(value)
    except ValueError:
        return _NO_CLASS
    if number < 0:
        return -1
    if number != int(number):
        return _NO_CLASS
    if by_position:
        return int(number) if number < len(places) else _NO_CLASS
    return places.get(str(int(number)), _NO_CLASS)


def refuse_unlabelled(missing: np.ndarray, split: str, where: str) -> bool:
    """Whether the split is labelled; InputError for a split that must be and is not, or for one that is only partly.

    missing: (rows,) bool. Only a test split may lack its labels.
    """
    if not missing.any():
        return True
    if missing.all() and split.startswith("test"):
        return False
    if missing.all():
        raise InputError(f"{where} has no labels: it cannot serve as {split}; to predict it, name it --test_file")
    raise InputError(f"{where}, row {int(np.argmax(missing))} has no label, while other rows have one")


def model_classes(id2label: Mapping[int, str] | None, own: Sequence[str], width: int, task: str) -> list[str]:
    """The task's class behind each of the model's `width` outputs.

    By name, in whatever order the model has them; by position if its classes have no names (LABEL_0 …).
    Raises InputError if the model's classes are not the task's.
    """
    if width != len(own):
        raise InputError(f"the model has {width} outputs, but {task} has the {len(own)} classes {', '.join(own)}")
    if id2label is None:
        return list(own)
    names = [str(id2label[i]) for i in range(width)]
    by_folded = {name.casefold(): name for name in own}
    if len(by_folded) == len(own) and {name.casefold() for name in names} == set(by_folded):
        return [by_folded[name.casefold()] for name in names]
    if set(names) == set(own):
        return names
    if names == [f"LABEL_{i}" for i in range(width)]:
        return list(own)
    raise InputError(f"the model's classes {', '.join(names)} are not those of {task}: {', '.join(own)}")


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """num_labels, id2label and label2id for a model's configuration."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


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

"""Encode the examples of a task: special tokens, truncation, and features that are kept on disk."""

import dataclasses
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ..text import word_encoder
from ..text.tokenizer import tokenizer_hash
from ..text.word_encoder import Encoder, text_encoder
from ..utils.errors import InputError
from ..utils.files import writing


# Feature columns: token ids, segments, the number of the raw row, and how many of its tokens did not fit.
INPUT_FEATURES = {
    "input_ids": datasets.List(datasets.Value("int32")),
    "token_type_ids": datasets.List(datasets.Value("int8")),
    "example": datasets.Value("int32"),
    "num_truncated": datasets.Value("int32"),
}


@dataclass(frozen=True)
class FeatureSettings:
    """Settings that turn the rows of a task into features.

    All but `num_proc`, `cache_dir` and `in_memory` change the features.

    Args:
        max_seq_length: longest input, in tokens, special tokens included.
        doc_stride: tokens between the starts of two windows over a long context (question answering).
        max_query_length: longest question, in tokens (question answering).
        document_context: fill up every sentence with the sentences around it (NER).
        num_proc: processes for tokenization.
        cache_dir: directory of the finished features; None: beside the data sets of `datasets`.
        in_memory: write no features to the cache.

    Raises:
        InputError: if a number is too small.
    """

    max_seq_length: int
    doc_stride: int = 128
    max_query_length: int = 64
    document_context: bool = False
    num_proc: int = 1
    cache_dir: str | None = None
    in_memory: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_seq_length", 8), ("doc_stride", 1), ("max_query_length", 1), ("num_proc", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def check_room(self) -> None:
        """Raise InputError if a question of full length leaves no token of a window for the context."""
        least = self.max_query_length + 4
        if self.max_seq_length < least:
            raise InputError(
                f"max_seq_length {self.max_seq_length} leaves no room for context beside a question of "
                f"max_query_length {self.max_query_length}; it must be at least {least}"
            )


def default_cache_dir() -> Path:
    """Return the directory of the finished features when the user names none."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "hfbert_features"


def make_dataset(columns: Mapping[str, Any], features: datasets.Features) -> datasets.Dataset:
    """Make a data set whose fingerprint is a hash of its content, so that features made from it can be cached.

    Args:
        columns: column name → Arrow array.
        features: the types of the columns.
    """
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
    """Map a function over batches of rows, and keep the result on disk, or in memory if the settings say so.

    The cache key is made of the data, the tokenizer, the settings, the options, and the source of the function's
    module.

    Args:
        raw: the rows; their fingerprint must follow from their content (see `make_dataset`).
        function: called as `function(batch, indices, tokenizer=…, settings=…, **options, **derived)`; returns columns.
        features: the types of the columns it returns.
        tokenizer: passed on to the function.
        settings: passed on to the function; `num_proc`, `cache_dir` and `in_memory` are not part of the key.
        derived: arguments that follow from `raw`, and so are not part of the key.
        **options: further arguments, all of them part of the key.

    Returns:
        The features, mapped into memory from the cache.

    Raises:
        OutputError: if the cache cannot be written.
    """
    key = _cache_key(raw, function, tokenizer, settings, options)
    directory = Path(settings.cache_dir or default_cache_dir())
    with writing(f"the feature cache {directory}", "name another by --cache_dir"):
        file = directory / f"{key}.arrow"
        place: dict[str, Any] = {"cache_file_name": str(file), "load_from_cache_file": True}
        if not settings.in_memory:
            directory.mkdir(parents=True, exist_ok=True)
        elif not file.is_file():
            place = {"keep_in_memory": True}
        return raw.map(
            function,
            batched=True,
            with_indices=True,
            remove_columns=raw.column_names,
            features=features,
            num_proc=settings.num_proc if settings.num_proc > 1 else None,
            new_fingerprint=key,
            **place,
            fn_kwargs={"tokenizer": tokenizer, "settings": settings} | options | dict(derived or {}),
            desc="features",
        )


def _cache_key(
    raw: datasets.Dataset,
    function: Callable[..., Any],
    tokenizer: Any,
    settings: FeatureSettings,
    options: Mapping[str, Any],
) -> str:
    """Hash everything that decides the features of `cached_map`."""
    key_settings = dataclasses.asdict(settings)
    del key_settings["num_proc"], key_settings["cache_dir"], key_settings["in_memory"]
    return datasets.fingerprint.Hasher.hash(
        [
            raw._fingerprint,
            tokenizer_hash(tokenizer),
            key_settings,
            sorted(options.items()),
            function.__name__,
            _source(function),
            inspect.getsource(sys.modules[__name__]),
        ]
    )


def _source(function: Callable[..., Any]) -> str:
    """Return the source of the function's module, or a hash of the function where it was typed into a session."""
    try:
        return inspect.getsource(sys.modules[function.__module__])
    except (OSError, TypeError):
        return datasets.fingerprint.Hasher.hash(function)


def token_ids(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Return the ids of each text, (tokens,) int32, without special tokens and without truncation.

    A "[SEP]" inside a text is text, as in the original code.
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
    """Copy the tokenizer's Rust part, without truncation, padding and special tokens in texts."""
    return word_encoder.plain_backend(tokenizer.backend_tokenizer.to_str())


@dataclass(frozen=True)
class SpecialTokens:
    """The ids a tokenizer puts around texts: `begin` a `end`, and `begin` a `middle` b `end`; BERT's are [CLS], [SEP].

    Attributes:
        has_segments: the second text has token type 1.
    """

    begin: tuple[int, ...]
    middle: tuple[int, ...]
    end: tuple[int, ...]
    has_segments: bool

    def count(self, is_pair: bool) -> int:
        """Return how many there are around one text, or two."""
        return len(self.begin) + len(self.end) + (len(self.middle) if is_pair else 0)


@functools.lru_cache(maxsize=1)
def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Find the special tokens of any encoder's tokenizer by encoding a pair of texts."""
    if tokenizer.unk_token_id is None:
        raise InputError("the tokenizer has no unknown token; take an encoder's")
    text = tokenizer.pad_token  # encodes to itself: a single token, whatever the algorithm
    pair = tokenizer(text, text)
    ids, mark = pair["input_ids"], tokenizer.pad_token_id
    if ids.count(mark) != 2:
        raise InputError("the tokenizer does not mark where a pair of texts begins and ends; take an encoder's")
    first = ids.index(mark)
    second = ids.index(mark, first + 1)
    return SpecialTokens(
        begin=tuple(ids[:first]),
        middle=tuple(ids[first + 1 : second]),
        end=tuple(ids[second + 1 :]),
        has_segments=1 in pair.get("token_type_ids", ()),
    )


def cls_and_sep(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids of [CLS] and [SEP]; raise InputError if the tokenizer puts other ones around a pair of texts."""
    special, cls, sep = special_tokens(tokenizer), tokenizer.cls_token_id, tokenizer.sep_token_id
    if (special.begin, special.middle, special.end) != ((cls,), (sep,), (sep,)):
        raise InputError("questions need BERT's special tokens, [CLS] a [SEP] b [SEP]; this tokenizer has others")
    return [cls], [sep]


def num_truncated(
    first: np.ndarray, second: np.ndarray | None, max_seq_length: int, special: int | None = None
) -> int:
    """Count the tokens that `with_special_tokens` cuts off.

    Args:
        first: (tokens,) ids of the first text.
        second: (tokens,) ids of the second text. None: a single text.
        max_seq_length: tokens of the sequence, special ones included.
        special: number of special tokens. None: BERT's, 2 around one text and 3 around two.
    """
    max_tokens = max_seq_length - ((2 if second is None else 3) if special is None else special)
    return max(0, len(first) + (0 if second is None else len(second)) - max_tokens)


def with_special_tokens(
    tokenizer: Any, first: np.ndarray, second: np.ndarray | None, max_seq_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Build [CLS] first [SEP] (second [SEP]), truncated to max_seq_length.

    The longer text loses tokens at its end, one by one; when both are equally long, the second loses one
    (google-research/bert, `_truncate_seq_pair`). Tokenizers of other encoders put their own special tokens.

    Args:
        tokenizer: any encoder's.
        first: (tokens,) ids of the first text.
        second: (tokens,) ids of the second text. None: a single text.
        max_seq_length: most tokens of the sequence, special ones included.

    Returns:
        The ids, (tokens,) int64, and the segments, (tokens,) int8: 1 for the second text if the tokenizer has any.

    Raises:
        InputError: if the tokenizer has no unknown token, or does not mark where a pair of texts begins and ends.
    """
    special = special_tokens(tokenizer)
    max_tokens = max_seq_length - special.count(second is not None)
    if second is None:
        ids = np.concatenate([special.begin, first[:max_tokens], special.end]).astype(np.int64)
        return ids, np.zeros(len(ids), dtype=np.int8)
    if len(first) + len(second) > max_tokens:
        kept = min(len(first), max(max_tokens - len(second), (max_tokens + 1) // 2))
        first, second = first[:kept], second[: max_tokens - kept]
    ids = np.concatenate([special.begin, first, special.middle, second, special.end]).astype(np.int64)
    border = len(special.begin) + len(first) + len(special.middle)
    return ids, ((np.arange(len(ids)) >= border) & special.has_segments).astype(np.int8)


def as_inner_word(tokenizer: Any, word: str) -> str:
    """Return a word as it must be encoded to get the pieces that it has inside a text.

    Byte-level BPE writes the blank before a word into its first piece.
    """
    return f" {word}" if _marks_blanks(tokenizer) else word


@functools.lru_cache(maxsize=1)
def _marks_blanks(tokenizer: Any) -> bool:
    backend = plain_backend(tokenizer)
    inside, alone, marked = (backend.encode(text, add_special_tokens=False).ids for text in ("a a", "a", " a"))
    return inside != alone * 2 and inside == alone + marked

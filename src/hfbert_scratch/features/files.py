"""Read texts from a file; write their features to files in the original's jsonl, npz or Parquet."""

import hashlib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..text.rows import open_parquet, parse_row, require_column
from ..text.sources import file_source
from ..text.streams import read_lines
from ..utils.errors import InputError
from ..utils.files import writing
from .encoder import Features, Text


FORMATS = ("jsonl", "npz", "parquet")
# Digits behind the point in jsonl, as in the original.
_DIGITS = 6
# A Parquet row group is closed when its vectors take so many bytes.
_ROW_GROUP_BYTES = 1 << 26
_PAIR = re.compile(r"^(.*) \|\|\| (.*)$", re.DOTALL)


@dataclass(frozen=True)
class TextFile:
    """Texts to encode, one per line or row; iterating streams strings or pairs of strings.

    Args:
        path: .jsonl and .parquet files have columns; any other file is plain UTF-8 text with one text per line, blank
            lines included, and " ||| " between the two texts of a pair (extract_features.py of google-research/bert).
            Text and .jsonl may be packed as .gz or .zst.
        text_column: the column of the texts.
        pair_column: the column of the second texts of pairs.

    Raises:
        InputError: if there is no such file; while iterating, for an unusable line or row, which is named.
    """

    path: Path
    text_column: str = "text"
    pair_column: str | None = None

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise InputError(f"--text {self.path}: no such file")

    def __iter__(self) -> Iterator[Text]:
        source = file_source(self.path)
        if source.format == "parquet":
            return self._parquet()
        lines = read_lines(self.path, source.compression)
        return self._jsonl(lines) if source.format == "jsonl" else self._plain(lines)

    def check(self) -> tuple[int, str]:
        """Read all texts once.

        Returns:
            The number of texts, and a hash of them (64 hex digits).

        Raises:
            InputError: if a text is unusable, or there is none.
        """
        digest = hashlib.sha256()
        count = 0
        for text in self:
            digest.update(json.dumps(text).encode())
            count += 1
        if not count:
            raise InputError(f"{self.path} holds no texts")
        return count, digest.hexdigest()

    def _plain(self, lines: Iterable[tuple[str, str]]) -> Iterator[Text]:
        for _, line in lines:
            pair = _PAIR.match(line.strip())
            yield (pair[1], pair[2]) if pair else line.strip()

    def _jsonl(self, lines: Iterable[tuple[str, str]]) -> Iterator[Text]:
        for place, line in lines:
            if line.strip():
                yield self._text(parse_row(line, place), place)

    def _parquet(self) -> Iterator[Text]:
        with open_parquet(self.path) as file:
            for column in self._columns:
                require_column(column, file.schema_arrow.names, str(self.path))
            number = 0
            for batch in file.iter_batches(1024, columns=self._columns):
                for row in batch.to_pylist():
                    yield self._text(row, f"{self.path}: row {number}")
                    number += 1

    @property
    def _columns(self) -> list[str]:
        return [self.text_column, *([self.pair_column] if self.pair_column else [])]

    def _text(self, row: dict[str, Any], place: str) -> Text:
        for name in self._columns:
            require_column(name, row, place)
            if not isinstance(row[name], str):
                raise InputError(f"{place}: {name!r} is {row[name]!r:.80}, not text")
        texts = [row[name] for name in self._columns]
        return (texts[0], texts[1]) if self.pair_column else texts[0]


class Writer(Protocol):
    """A feature file that is being written."""

    def write(self, index: int, features: Features) -> None:
        """Add the features of one text.

        Args:
            index: number of the text among all texts, from 0.
            features: its vectors.
        """

    def close(self) -> None:
        """Finish the file."""


@dataclass(frozen=True)
class FeatureSchema:
    """Facts about the vectors that the files state.

    Attributes:
        layers: the layers as the user named them.
        pooling: the pooling, or None for token vectors.
        hidden_size: the length of a vector.
        token_strings: translates ids to tokens.
    """

    layers: tuple[int, ...]
    pooling: str | None
    hidden_size: int
    token_strings: Callable[[list[int]], list[str]]

    def tokens(self, features: Features) -> list[str]:
        """Return a text's tokens, special ones included."""
        return self.token_strings(features.input_ids.tolist())


class JsonLinesWriter:
    """Write a line per text, as the original does.

    A line is {"linex_index", "features": [{"token", "layers": [{"index", "values"}]}]}, or for pooled vectors
    {"linex_index", "layers": [{"index", "values"}]}.
    """

    def __init__(self, path: Path, schema: FeatureSchema):
        self.schema = schema
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, index: int, features: Features) -> None:
        values = np.round(features.vectors.astype(np.float64), _DIGITS)
        line: dict[str, Any] = {"linex_index": index}
        if self.schema.pooling is not None:
            line["layers"] = self._layers(values)
        else:
            tokens = self.schema.tokens(features)
            line["features"] = [
                {"token": token, "layers": self._layers(values[:, place])} for place, token in enumerate(tokens)
            ]
        self.file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self.file.close()

    def _layers(self, values: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"index": layer, "values": row} for layer, row in zip(self.schema.layers, values.tolist(), strict=True)
        ]


class NpzWriter:
    """An archive that np.load opens lazily; np.savez would need all arrays in memory and store the time of day.

    For text number N: `vectors_N` [layers, tokens, hidden_size], `input_ids_N` and `cut_tokens_N`. Pooled: `vectors`
    [texts, layers, hidden_size], `linex_index` and `cut_tokens` [texts]. And `layers`.
    """

    def __init__(self, path: Path, schema: FeatureSchema):
        self.schema = schema
        self.file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self.pooled: list[tuple[int, Features]] = []

    def write(self, index: int, features: Features) -> None:
        if self.schema.pooling is not None:
            self.pooled.append((index, features))
            return
        self._add(f"vectors_{index}", features.vectors)
        self._add(f"input_ids_{index}", features.input_ids)
        self._add(f"cut_tokens_{index}", np.array(features.num_truncated))

    def close(self) -> None:
        if self.schema.pooling is not None:
            self._add("vectors", np.stack([features.vectors for _, features in self.pooled]))
            self._add("linex_index", np.array([index for index, _ in self.pooled]))
            self._add("cut_tokens", np.array([features.num_truncated for _, features in self.pooled]))
        self._add("layers", np.array(self.schema.layers))
        self.file.close()

    def _add(self, name: str, array: np.ndarray) -> None:
        # A ZipInfo without a time of day, so that equal features are equal bytes.
        with self.file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


class ParquetWriter:
    """Write the columns linex_index, tokens, cut_tokens, and for every layer layer_N.

    layer_N holds a list of vectors, or one vector if pooled.
    """

    def __init__(self, path: Path, schema: FeatureSchema):
        self.schema = schema
        vector = pa.list_(pa.float32(), schema.hidden_size)
        kind = vector if schema.pooling is not None else pa.list_(vector)
        self.arrow_schema = pa.schema(
            [
                ("linex_index", pa.int64()),
                ("tokens", pa.list_(pa.string())),
                ("cut_tokens", pa.int32()),
                *((f"layer_{layer}", kind) for layer in schema.layers),
            ]
        )
        self.file = pq.ParquetWriter(path, self.arrow_schema, compression="zstd")
        self.waiting: list[tuple[int, Features]] = []
        self.size = 0

    def write(self, index: int, features: Features) -> None:
        self.waiting.append((index, features))
        self.size += features.vectors.nbytes
        if self.size >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.file.close()

    def _flush(self) -> None:
        if not self.waiting:
            return
        rows = [features for _, features in self.waiting]
        columns = [
            pa.array([index for index, _ in self.waiting], pa.int64()),
            pa.array([self.schema.tokens(features) for features in rows], pa.list_(pa.string())),
            pa.array([features.num_truncated for features in rows], pa.int32()),
        ]
        for place in range(len(self.schema.layers)):
            vectors = [features.vectors[place].reshape(-1, self.schema.hidden_size) for features in rows]
            flat = pa.array(np.concatenate(vectors).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, self.schema.hidden_size)
            if self.schema.pooling is None:
                offsets = np.concatenate([[0], np.cumsum([len(part) for part in vectors])])
                column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)
            columns.append(column)
        self.file.write_table(pa.table(columns, schema=self.arrow_schema))
        self.waiting, self.size = [], 0


WRITERS: dict[str, Callable[[Path, FeatureSchema], Writer]] = {
    "jsonl": JsonLinesWriter,
    "npz": NpzWriter,
    "parquet": ParquetWriter,
}


@dataclass(frozen=True)
class FeatureFile:
    """A finished file.

    Attributes:
        file: its name.
        texts: the number of texts in it.
        tokens: the number of tokens in it.
        cut_texts: the number of truncated texts in it.
    """

    file: str
    texts: int
    tokens: int
    cut_texts: int


def write_parts(
    directory: Path,
    format: str,
    schema: FeatureSchema,
    texts: Iterable[Text],
    encode: Callable[[Iterable[Text]], Iterator[Features]],
    part_texts: int,
    done: int = 0,
) -> Iterator[FeatureFile | Features]:
    """Write the features of texts to files.

    Every file is encoded separately and gets its name only when it is complete. So a run that was killed and
    continued leaves the same bytes as an uninterrupted one.

    Args:
        directory: where the files go.
        format: one of FORMATS.
        schema: facts about the vectors.
        texts: all texts, those of finished files included.
        encode: encodes the texts of a file.
        part_texts: texts in a file.
        done: the number of files that are finished; they are skipped.

    Yields:
        Each text's features when they are written, and a `FeatureFile` when its file is complete.

    Raises:
        OutputError: if the directory cannot be written.
    """
    remaining = itertools.islice(texts, done * part_texts, None)
    for number in itertools.count(done):
        chunk = list(itertools.islice(remaining, part_texts))
        if not chunk:
            return
        final = directory / f"features-{number:05d}.{format}"
        temporary = directory / f".writing-{final.name}"
        tokens = cut_texts = 0
        with writing(final, "what is finished stays: start again"):
            writer = WRITERS[format](temporary, schema)
            for index, features in enumerate(encode(chunk), start=number * part_texts):
                writer.write(index, features)
                tokens += len(features.input_ids)
                cut_texts += features.num_truncated > 0
                yield features
            writer.close()
            os.replace(temporary, final)
        yield FeatureFile(final.name, len(chunk), tokens, cut_texts)

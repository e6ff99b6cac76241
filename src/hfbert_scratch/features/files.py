"""Texts from a file, and their features in part files: jsonl as the original writes it, npz, or Parquet."""

import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..text.streams import with_lf
from ..utils.errors import InputError, one_line
from ..utils.files import parse_json, writing
from .encoder import Features, Text


FORMATS = ("jsonl", "npz", "parquet")
# Digits behind the point in jsonl, as in the original.
_DIGITS = 6
# A Parquet row group is closed when its vectors take so many bytes.
_ROW_GROUP_BYTES = 1 << 26
_PAIR = re.compile(r"^(.*) \|\|\| (.*)$", re.DOTALL)


# --------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TextFile:
    """Texts to be encoded, one a line or row; iterating streams them as strings or pairs of strings.

    path: .jsonl and .parquet have `text_column` and, for pairs, `pair_column`; anything else is plain UTF-8 text with
    one text a line, blank ones included, in which " ||| " separates the two texts of a pair (extract_features.py of
    google-research/bert). Text and jsonl may also be .gz. Raises InputError naming the line of what is unusable.
    """

    path: Path
    text_column: str = "text"
    pair_column: str | None = None

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise InputError(f"--text {self.path}: no such file")

    def __iter__(self) -> Iterator[Text]:
        kind = self.path.with_suffix("").suffix if self.path.suffix == ".gz" else self.path.suffix
        if kind == ".parquet":
            return self._parquet()
        return self._jsonl() if kind in (".jsonl", ".ndjson") else self._plain()

    def check(self) -> tuple[int, str]:
        """Read it all once: the number of texts, and a fingerprint of them. InputError if there is none."""
        digest = hashlib.sha256()
        count = 0
        for text in self:
            digest.update(json.dumps(text).encode())
            count += 1
        if not count:
            raise InputError(f"{self.path} holds no texts")
        return count, digest.hexdigest()

    def _lines(self) -> Iterator[tuple[str, str]]:
        """(place, line without its end); LF ends a line, or CR where the file begins with lines that end so."""
        opener: Callable[..., Any] = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opener(self.path, "rb") as file:
                for number, line in enumerate(with_lf(io.BufferedReader(file, 1 << 18), str(self.path)), start=1):
                    where = f"{self.path}: line {number}"
                    try:
                        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        raise InputError(
                            f"{where} is not valid UTF-8 (byte {error.start}); convert it first"
                        ) from None
                    yield where, text.removesuffix("\n").removesuffix("\r")
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.path} is truncated or cannot be read ({error})") from None

    def _plain(self) -> Iterator[Text]:
        for _, line in self._lines():
            pair = _PAIR.match(line.strip())
            yield (pair[1], pair[2]) if pair else line.strip()

    def _jsonl(self) -> Iterator[Text]:
        for where, line in self._lines():
            if not line.strip():
                continue
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise InputError(f"{where} is a {type(row).__name__}; it must be an object with {self.text_column!r}")
            yield self._text(row, where)

    def _parquet(self) -> Iterator[Text]:
        names = [self.text_column, *([self.pair_column] if self.pair_column else [])]
        try:
            with pq.ParquetFile(self.path) as file:
                present = file.schema_arrow.names
                chosen = [name for name in names if name in present]
                number = 0
                if len(chosen) < len(names):
                    self._text(dict.fromkeys(present), str(self.path))
                for batch in file.iter_batches(1024, columns=chosen):
                    for row in batch.to_pylist():
                        yield self._text(row, f"{self.path}: row {number}")
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} is not a readable Parquet file ({one_line(error)})") from None

    def _text(self, row: dict[str, Any], where: str) -> Text:
        names = (self.text_column, self.pair_column) if self.pair_column else (self.text_column,)
        for name in names:
            if name not in row:
                raise InputError(f"{where} has no column {name!r}, only {', '.join(map(repr, row)) or 'none'}")
            if not isinstance(row[name], str):
                raise InputError(f"{where}: {name!r} is {row[name]!r:.80}, not text")
        return (row[names[0]], row[names[1]]) if len(names) == 2 else row[names[0]]


# --------------------------------------------------------------------------------------------------------- writing


class Writer(Protocol):
    """One part file while it is written."""

    def write(self, index: int, features: Features) -> None:
        """Add the features of text number `index`."""

    def close(self) -> None:
        """Finish the file."""


@dataclass(frozen=True)
class Layout:
    """What the files say about the vectors: the layers as the user named them, the pooling, the tokens' strings."""

    layers: tuple[int, ...]
    pooling: str | None
    hidden_size: int
    token_strings: Callable[[list[int]], list[str]]

    def tokens(self, features: Features) -> list[str]:
        """The pieces of a text, special tokens included."""
        return self.token_strings(features.input_ids.tolist())


class JsonLinesWriter:
    """A line per text, as the original's: {"linex_index", "features": [{"token", "layers": [{"index", "values"}]}]}.

    Pooled vectors have no token: {"linex_index", "layers": [{"index", "values"}]}.
    """

    def __init__(self, path: Path, layout: Layout):
        self.layout = layout
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, index: int, features: Features) -> None:
        values = np.round(features.vectors.astype(np.float64), _DIGITS)
        line: dict[str, Any] = {"linex_index": index}
        if self.layout.pooling is not None:
            line["layers"] = self._layers(values)
        else:
            tokens = self.layout.tokens(features)
            line["features"] = [
                {"token": token, "layers": self._layers(values[:, place])} for place, token in enumerate(tokens)
            ]
        self.file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self.file.close()

    def _layers(self, values: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"index": layer, "values": row} for layer, row in zip(self.layout.layers, values.tolist(), strict=True)
        ]


class NpzWriter:
    """What np.load opens lazily: `vectors_N` (layers, tokens, hidden_size), `input_ids_N` and `cut_tokens_N` for text
    number N; pooled: `vectors` (texts, layers, hidden_size), `linex_index` and `cut_tokens` (texts,). And `layers`.
    """

    def __init__(self, path: Path, layout: Layout):
        self.layout = layout
        self.file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self.pooled: list[tuple[int, Features]] = []

    def write(self, index: int, features: Features) -> None:
        if self.layout.pooling is not None:
            self.pooled.append((index, features))
            return
        self._add(f"vectors_{index}", features.vectors)
        self._add(f"input_ids_{index}", features.input_ids)
        self._add(f"cut_tokens_{index}", np.array(features.cut))

    def close(self) -> None:
        if self.layout.pooling is not None:
            self._add("vectors", np.stack([features.vectors for _, features in self.pooled]))
            self._add("linex_index", np.array([index for index, _ in self.pooled]))
            self._add("cut_tokens", np.array([features.cut for _, features in self.pooled]))
        self._add("layers", np.array(self.layout.layers))
        self.file.close()

    def _add(self, name: str, array: np.ndarray) -> None:
        # A ZipInfo of our own carries no time of day, so that the same features are the same bytes.
        with self.file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


class ParquetWriter:
    """Columns linex_index, tokens, cut_tokens, and layer_N for each layer: a list of vectors, or one if pooled."""

    def __init__(self, path: Path, layout: Layout):
        self.layout = layout
        vector = pa.list_(pa.float32(), layout.hidden_size)
        kind = vector if layout.pooling is not None else pa.list_(vector)
        self.schema = pa.schema(
            [
                ("linex_index", pa.int64()),
                ("tokens", pa.list_(pa.string())),
                ("cut_tokens", pa.int32()),
                *((f"layer_{layer}", kind) for layer in layout.layers),
            ]
        )
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd")
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
            pa.array([self.layout.tokens(features) for features in rows], pa.list_(pa.string())),
            pa.array([features.cut for features in rows], pa.int32()),
        ]
        for place in range(len(self.layout.layers)):
            vectors = [features.vectors[place].reshape(-1, self.layout.hidden_size) for features in rows]
            flat = pa.array(np.concatenate(vectors).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, self.layout.hidden_size)
            if self.layout.pooling is None:
                offsets = np.concatenate([[0], np.cumsum([len(part) for part in vectors])])
                column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)
            columns.append(column)
        self.file.write_table(pa.table(columns, schema=self.schema))
        self.waiting, self.size = [], 0


_WRITERS: dict[str, Callable[[Path, Layout], Writer]] = {
    "jsonl": JsonLinesWriter,
    "npz": NpzWriter,
    "parquet": ParquetWriter,
}


@dataclass(frozen=True)
class Part:
    """A finished part file: its name and what is in it. cut_texts: how many texts were truncated."""

    file: str
    texts: int
    tokens: int
    cut_texts: int


def write_parts(
    directory: Path,
    format: str,
    layout: Layout,
    texts: Iterable[Text],
    encode: Callable[[Iterable[Text]], Iterator[Features]],
    part_texts: int,
    done: int = 0,
) -> Iterator[Part | Features]:
    """Write the features of `texts`, `part_texts` to a file, leaving out the first `done` parts, which are there.

    Yields each text's features when they are written, and a `Part` when its file is whole. Every part is encoded by
    itself and appears under its name only when it is complete, so that a run that was killed and continued leaves
    the same bytes as one that was not.

    Raises OutputError when the directory cannot be written.
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
            writer = _WRITERS[format](temporary, layout)
            for index, features in enumerate(encode(chunk), start=number * part_texts):
                writer.write(index, features)
                tokens += len(features.input_ids)
                cut_texts += features.cut > 0
                yield features
            writer.close()
            os.replace(temporary, final)
        yield Part(final.name, len(chunk), tokens, cut_texts)

"""One shard of a corpus: its documents are split into sentences, tokenized and written as Arrow files.

This is what the worker processes of corpus.py do. A file appears under its name only when it is complete, and the
record of a shard only when its files are there, so that a build can be interrupted at any moment.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ..text.sample import inspect_sentences
from ..text.sentences import bounded, split_sentences
from ..text.tokenizer import SPECIAL_TOKENS
from ..text.word_encoder import WordEncoder, decomposes
from ..utils.errors import InputError, one_line
from ..utils.files import atomic, write_json


Segmenter = Callable[[str], list[str]]

# Directory of the records and other files that are gone when the corpus is finished.
BUILD = ".build"
# Characters tokenized in one call, which bounds the memory of its result.
_ENCODER_BATCH, _TOKENIZER_BATCH = 1 << 22, 1 << 20


@dataclasses.dataclass
class Shard:
    """Documents on their way to a worker: UTF-8 text, and which of them are for validation."""

    number: int
    documents: list[bytes]
    validation: np.ndarray  # (documents,) bool

    @property
    def size(self) -> int:
        return sum(map(len, self.documents))


class ShardWriter:
    """Splits, tokenizes and writes shards."""

    def __init__(self, output: str, tokenizer: str, vocab_size: int, segmenter: Segmenter) -> None:
        self.output = Path(output)
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # "[SEP]" in the text is three words, not the special token.
        self.tokenizer.encode_special_tokens = True
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.segmenter = segmenter
        self.encoder = WordEncoder(self.tokenizer, self.dtype) if decomposes(self.tokenizer) else None

    def write(self, shard: Shard) -> int:
        """Write the shard's train file, the documents for validation and, last, its record; return its bytes."""
        start = time.monotonic()
        sentences, counts, literal = self._split(shard)
        split = time.monotonic()
        tokens, lengths = self._tokenize(sentences)
        sample = inspect_sentences(self.tokenizer, sentences, tokens, lengths)
        tokenized = time.monotonic()
        document = np.repeat(np.arange(len(counts)), counts)[lengths > 0]
        lengths = lengths[lengths > 0]
        for name, chosen in (("train", ~shard.validation), ("validation", shard.validation)):
            sentence_chosen = chosen[document]
            write_documents(
                piece_path(self.output, name, shard.number),
                tokens[np.repeat(sentence_chosen, lengths)],
                lengths[sentence_chosen],
                np.bincount(document[sentence_chosen], minlength=len(counts)),
            )
        record = {
            "bytes": shard.size,
            "documents": len(counts),
            "without_text": int((np.bincount(document, minlength=len(counts)) == 0).sum()),
            "literal_special_tokens": literal,
            "sample": sample.as_dict(),
            "seconds": {
                "split": split - start,
                "tokenize": tokenized - split,
                "write": time.monotonic() - tokenized,
            },
        }
        write_json(record_path(self.output, shard.number), record)
        return shard.size

    def _split(self, shard: Shard) -> tuple[list[str], np.ndarray, int]:
        sentences: list[str] = []
        counts = np.zeros(len(shard.documents), dtype=np.int64)
        literal = 0
        for number, document in enumerate(shard.documents):
            text = document.decode("utf-8")
            literal += "[" in text and any(token in text for token in SPECIAL_TOKENS)
            before = len(sentences)
            sentences += self._segment(text)
            counts[number] = len(sentences) - before
        return sentences, counts, literal

    def _segment(self, text: str) -> list[str]:
        if self.segmenter is split_sentences:
            return split_sentences(text)
        return [piece for sentence in self.segmenter(text) for piece in bounded(sentence)]

    def _tokenize(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All token ids one after another, and the number of each sentence (0 where nothing is left of it)."""
        ids: list[np.ndarray] = [np.zeros(0, self.dtype)]
        lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        if self.encoder is not None:
            for batch in _batches(sentences, _ENCODER_BATCH):
                flat, count = self.encoder.encode(batch)
                ids.append(flat)
                lengths.append(count)
            return np.concatenate(ids), np.concatenate(lengths)
        for batch in _batches(sentences, _TOKENIZER_BATCH):
            encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
            count = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
            lengths.append(count)
            ids.append(np.fromiter(itertools.chain.from_iterable(encoded), dtype=self.dtype, count=int(count.sum())))
        return np.concatenate(ids), np.concatenate(lengths)


def _batches(sentences: list[str], size: int) -> Iterator[list[str]]:
    """`sentences` in runs of about `size` characters."""
    ends = np.cumsum(np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences)))
    begin = 0
    while begin < len(sentences):
        held = int(ends[begin - 1]) if begin else 0
        end = int(np.searchsorted(ends, held + size)) + 1
        yield sentences[begin:end]
        begin = end


def write_documents(path: Path, tokens: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
    """Write documents as an Arrow stream of one batch; `counts` has the sentences of each (0: not written)."""
    counts = counts[counts > 0]
    sentence_offsets = np.concatenate([[0], np.cumsum(counts)])
    token_offsets = np.concatenate([[0], np.cumsum(lengths)])[sentence_offsets]
    batch = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(pa.array(token_offsets.astype(np.int32)), pa.array(tokens)),
            "sentence_lengths": pa.ListArray.from_arrays(
                pa.array(sentence_offsets.astype(np.int32)), pa.array(lengths.astype(np.int32))
            ),
        }
    )
    write_batch(path, batch)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write `batch` as an Arrow stream, the format of `datasets`; one batch, so that its columns are flat arrays."""
    with atomic(path) as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)


def open_batch(path: Path) -> pa.RecordBatch:
    """The batch in `path`, memory-mapped. Raises InputError if the file is missing or damaged."""
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path), "r")) as stream:
            return stream.read_next_batch()
    except (OSError, pa.ArrowInvalid, StopIteration) as error:
        raise InputError(f"{path} is missing or damaged ({one_line(error)}); build it again") from None


def piece_path(output: Path, split: str, number: int) -> Path:
    """Train files stay where they are written; the few validation documents of a shard are collected in the end."""
    return output / ("train" if split == "train" else BUILD) / f"data-{number:05d}.arrow"


def record_path(output: Path, number: int) -> Path:
    return output / BUILD / f"shard-{number:05d}.json"


def is_written(output: Path, number: int) -> bool:
    """Whether shard `number` is finished."""
    pieces = (piece_path(output, split, number) for split in ("train", "validation"))
    return record_path(output, number).is_file() and all(piece.is_file() for piece in pieces)

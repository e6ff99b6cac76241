"""Shards of a corpus: read the documents of a shard again, split, tokenize and write them.

The content of a shard depends only on the text and the arguments. A file appears under its name only when it is
complete, and the record of a shard only after its files, so a build can be interrupted at any moment.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...text.readers import ReadStats, read_part
from ...text.sample import inspect_sentences
from ...text.sentences import bounded, split_sentences
from ...text.tokenizer import SPECIAL_TOKENS
from ...text.word_encoder import plain_backend, text_encoder
from ...utils.errors import InputError
from ...utils.files import atomic, write_json
from ..arguments import BuildArguments
from ..dataset import BUILD, write_documents
from ..statistics import count_split
from .index import Unit, choose_validation, document_digest, kept_digests, open_plan


# A document → its sentences.
Segmenter = Callable[[str], list[str]]


@dataclasses.dataclass
class TextShard:
    """Documents to write: UTF-8 text, and a flag on validation documents."""

    number: int
    documents: list[bytes]
    validation: np.ndarray  # (documents,) bool
    seconds: float = 0.0  # spent reading

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(map(len, self.documents))


class ShardReader:
    """Read the documents of planned shards, one shard after the other without seeking.

    Args:
        output: directory of the build.
        units: the units of the text.
        arguments: options of the build.
    """

    def __init__(self, output: Path, units: Sequence[Unit], arguments: BuildArguments) -> None:
        self.output, self.units, self.arguments = output, units, arguments
        self.plan = open_plan(output)
        self._texts: Iterator[str] = iter(())
        self._next, self._unit = 0, -1  # number of the next document, and its unit

    def read(self, number: int) -> TextShard:
        """Read shard `number`.

        Raises:
            InputError: if the text is not the one that was indexed, or cannot be read.
        """
        start = time.monotonic()
        digests = kept_digests(self.output, self.plan, number)
        documents: list[bytes] = []
        for place in range(int(self.plan.borders[number]), int(self.plan.borders[number + 1])):
            if not self.plan.kept[place]:
                continue
            document = self._document(place).encode("utf-8")
            if document_digest(document) != digests[len(documents)].tobytes():
                raise self._changed()
            documents.append(document)
        validation = choose_validation(self.arguments, digests, first=number == 0)
        return TextShard(number, documents, validation, time.monotonic() - start)

    def _document(self, place: int) -> str:
        """Return document `place`, which comes after those returned before or else is sought."""
        first_documents = self.plan.first_documents
        unit = int(np.searchsorted(first_documents, place, side="right")) - 1
        if unit != self._unit or place < self._next:
            source, part = self.units[unit]
            options = (self.arguments.text_column, self.arguments.encoding_errors, ReadStats())
            self._texts = read_part(source, part, *options)
            self._unit, self._next = unit, int(first_documents[unit])
        while True:
            text = next(self._texts, None)
            if text is None:
                raise self._changed()
            self._next += 1
            if self._next > place:
                return text

    def _changed(self) -> InputError:
        return InputError(
            f"{self.units[self._unit]} has changed since it was indexed; put the former text back, or build in a new "
            "--output_dir"
        )


class ShardWriter:
    """Split, tokenize and write shards, in a worker process."""

    def __init__(self, output: str, tokenizer: str, vocab_size: int, segmenter: Segmenter) -> None:
        self.output = Path(output)
        self.tokenizer = plain_backend(tokenizer)
        self.segmenter = segmenter
        self.vocab_size = vocab_size
        self.encode = text_encoder(self.tokenizer, np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32))

    def write(self, shard: TextShard) -> int:
        """Write the shard's train file, its validation documents and counts, and last its record.

        Returns:
            Its bytes of text.
        """
        start = time.monotonic()
        sentences, counts, literal = self._split(shard)
        split = time.monotonic()
        tokens, lengths = self.encode(sentences)  # (tokens,) and (sentences,), of which some may be 0
        sample = inspect_sentences(self.tokenizer, sentences, tokens, lengths)
        tokenized = time.monotonic()
        # (sentences,) each: the document of every sentence with tokens left, and its length.
        document = np.repeat(np.arange(len(counts)), counts)[lengths > 0]
        lengths = lengths[lengths > 0]
        counted = []
        for name, chosen in (("train", ~shard.validation), ("validation", shard.validation)):
            sentence_chosen = chosen[document]
            sentences_of = np.bincount(document[sentence_chosen], minlength=len(counts))  # (documents,)
            parts = (
                tokens[np.repeat(sentence_chosen, lengths)],
                lengths[sentence_chosen],
                sentences_of[sentences_of > 0],
            )
            write_documents(piece_path(self.output, name, shard.number), *parts)
            counted.append(count_split(*parts, self.vocab_size))
        with atomic(counts_path(self.output, shard.number)) as file:
            np.save(file, np.stack(counted).astype(np.uint32))
        record = {
            "bytes": shard.size,
            "documents": len(counts),
            "without_text": int((np.bincount(document, minlength=len(counts)) == 0).sum()),
            "literal_special_tokens": literal,
            "sample": sample.as_dict(),
            "seconds": {
                "read": shard.seconds,
                "split": split - start,
                "tokenize": tokenized - split,
                "write": time.monotonic() - tokenized,
            },
        }
        write_json(record_path(self.output, shard.number), record)
        return shard.size

    def _split(self, shard: TextShard) -> tuple[list[str], np.ndarray, int]:
        """Return all sentences, (documents,) sentences of each, and the documents with special tokens as text."""
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


def piece_path(output: Path, split: str, number: int) -> Path:
    """Return a shard's file of a split. Train files stay; the few validation documents are collected in the end."""
    return output / ("train" if split == "train" else BUILD) / f"data-{number:05d}.arrow"


def record_path(output: Path, number: int) -> Path:
    """Return the file of a shard's record."""
    return output / BUILD / f"shard-{number:05d}.json"


def counts_path(output: Path, number: int) -> Path:
    """Return the file with the counts of a shard's documents: `count_split` of train and validation, (2, …) uint32."""
    return output / BUILD / f"counts-{number:05d}.npy"


def is_written(output: Path, number: int) -> bool:
    """Tell whether shard `number` is finished."""
    pieces = (piece_path(output, split, number) for split in ("train", "validation"))
    return record_path(output, number).is_file() and all(piece.is_file() for piece in pieces)

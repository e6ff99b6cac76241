"""Shards of a corpus: text cut into shards by one process, each split, tokenized and written by a worker.

The content of a shard depends only on the text and the arguments. Every process that builds a corpus can therefore
iterate over the same shards and work on its own ones, or on the unfinished ones. A file appears under its name only
when it is complete, and the record of a shard only after its files, so a build can be interrupted at any moment.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..text.readers import ReadStats, TextSource, read_documents
from ..text.sample import inspect_sentences
from ..text.sentences import bounded, split_sentences
from ..text.tokenizer import SPECIAL_TOKENS
from ..text.word_encoder import plain_backend, text_encoder
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.hashing import GOLDEN, splitmix64
from .arguments import BuildArguments
from .dataset import BUILD, write_documents


# A document → its sentences.
Segmenter = Callable[[str], list[str]]

# Documents are hashed and compared in chunks of this many bytes.
_CHUNK_BYTES = 1 << 23
# Fewest documents of a shard, however long: random segments need a choice.
_MIN_DOCUMENTS = 8


@dataclasses.dataclass
class TextShard:
    """Documents for a worker: UTF-8 text, and a flag on validation documents."""

    number: int
    documents: list[bytes]
    validation: np.ndarray  # (documents,) bool

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(map(len, self.documents))


@dataclasses.dataclass
class BuildStats:
    """Counts of reading the text and forming shards; filled on the way."""

    reading: ReadStats = dataclasses.field(default_factory=ReadStats)
    documents: int = 0
    duplicates: int = 0
    bytes: int = 0
    shards: int = 0
    seconds: float = 0.0


class DigestSet:
    """A growing set of 64-bit document digests, as sorted runs of falling length: 8 bytes per document.

    The probability that two different documents among 10⁸ share a digest, so that one is dropped, is 0.0003.
    """

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add `digests` and return a mask of the new ones (of equal ones the first), (digests,) bool."""
        values, first = np.unique(digests, return_index=True)
        known = np.zeros(len(values), dtype=bool)
        for run in self.runs:
            place = np.minimum(np.searchsorted(run, values), len(run) - 1)
            known |= run[place] == values
        self.runs.append(values[~known])
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            last = self.runs.pop()
            self.runs[-1] = np.sort(np.concatenate([self.runs[-1], last]))
        self.runs = [run for run in self.runs if len(run)]
        new = np.zeros(len(digests), dtype=bool)
        new[first[~known]] = True
        return new


def shard_documents(arguments: BuildArguments, sources: list[TextSource], stats: BuildStats) -> Iterator[TextShard]:
    """Read all text and yield shards of about the same size, without duplicates and with the validation flags.

    Args:
        arguments: options of the build.
        sources: the text.
        stats: filled while reading.

    Raises:
        InputError: if a source cannot be read, or has too few documents for two splits.
    """
    size = arguments.shard_mb * 1_000_000 or shard_size(sources)
    documents: list[bytes] = []
    hashes: list[np.ndarray] = []
    waiting: tuple[list[bytes], np.ndarray] | None = None
    held = 0

    def shard(content: tuple[list[bytes], np.ndarray]) -> TextShard:
        stats.shards += 1
        return TextShard(stats.shards - 1, content[0], _validation(arguments, content[1], first=stats.shards == 1))

    for chunk, digests in _chunks(arguments, sources, stats, min(size, _CHUNK_BYTES)):
        documents += chunk
        hashes.append(digests)
        held += sum(map(len, chunk))
        if held >= size and len(documents) >= _MIN_DOCUMENTS:
            if waiting is not None:
                yield shard(waiting)
            waiting = (documents, np.concatenate(hashes))
            documents, hashes, held = [], [], 0
    if documents:
        rest = (documents, np.concatenate(hashes))
        # A short rest joins the shard before it.
        if waiting is not None and (held < size / 2 or len(documents) < _MIN_DOCUMENTS):
            waiting = (waiting[0] + rest[0], np.concatenate([waiting[1], rest[1]]))
        elif waiting is not None:
            yield shard(waiting)
            waiting = rest
        else:
            waiting = rest
    if waiting is not None:
        yield shard(waiting)


def shard_size(sources: list[TextSource]) -> int:
    """Choose the bytes of text in a shard: a 64th of the text, between 8 and 64 MB."""
    return int(min(max(sum(source.size for source in sources) / 64, 8e6), 64e6))


def _chunks(
    arguments: BuildArguments, sources: list[TextSource], stats: BuildStats, size: int
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yield the new documents of every `size` bytes of text, and their digests, (documents,) uint64."""
    known = DigestSet()
    texts = read_documents(
        sources,
        text_column=arguments.text_column,
        encoding_errors=arguments.encoding_errors,
        stats=stats.reading,
    )
    while True:
        start = time.monotonic()
        chunk: list[bytes] = []
        held = 0
        for text in texts:
            chunk.append(text.encode("utf-8"))
            held += len(chunk[-1])
            if held >= size or len(chunk) >= 10_000:
                break
        if not chunk:
            return
        digests = np.frombuffer(
            b"".join(hashlib.blake2b(document.strip(), digest_size=8).digest() for document in chunk), dtype="<u8"
        )
        new = known.add(digests)
        stats.duplicates += len(chunk) - int(new.sum())
        if not arguments.drop_duplicates:
            new[:] = True
        stats.documents += len(chunk)
        stats.bytes += held
        stats.seconds += time.monotonic() - start
        yield list(itertools.compress(chunk, new)), digests[new]


def _validation(arguments: BuildArguments, digests: np.ndarray, *, first: bool) -> np.ndarray:
    """Choose the validation documents, (documents,) bool: their hash with the seed is below the share.

    A tiny corpus could miss one split. So the first shard has at least one document in each (two for next-sentence
    prediction): the smallest hashes go to validation.
    """
    golden = np.uint64(GOLDEN)
    seed = splitmix64(np.array([arguments.seed], dtype=np.uint64) + golden)
    hashes = splitmix64((digests ^ seed) + golden)
    chosen = hashes < np.uint64(int(arguments.validation_share * 2.0**64))
    if not first or arguments.validation_share == 0:
        return chosen
    needed = 2 if arguments.next_sentence else 1
    if len(digests) < 2 * needed:
        if len(digests) == 1:
            return np.zeros(1, dtype=bool)  # a single document: check_corpus names the remedy
        raise InputError(
            f"--text holds {len(digests)} different documents, too few for a train and a validation split"
            f"{' of 2 each, as next-sentence prediction needs (--no_nsp: 1 each)' if needed == 2 else ''}; "
            "separate documents by blank lines, or add text"
        )
    count = min(max(int(chosen.sum()), needed), len(digests) - needed)
    chosen[:] = False
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen


class ShardWriter:
    """Split, tokenize and write shards, in a worker process."""

    def __init__(self, output: str, tokenizer: str, vocab_size: int, segmenter: Segmenter) -> None:
        self.output = Path(output)
        self.tokenizer = plain_backend(tokenizer)
        self.segmenter = segmenter
        self.encode = text_encoder(self.tokenizer, np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32))

    def write(self, shard: TextShard) -> int:
        """Write the shard's train file, its validation documents and, last, its record; return its bytes of text."""
        start = time.monotonic()
        sentences, counts, literal = self._split(shard)
        split = time.monotonic()
        tokens, lengths = self.encode(sentences)  # (tokens,) and (sentences,), of which some may be 0
        sample = inspect_sentences(self.tokenizer, sentences, tokens, lengths)
        tokenized = time.monotonic()
        # (sentences,) each: the document of every sentence with tokens left, and its length.
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


def is_written(output: Path, number: int) -> bool:
    """Tell whether shard `number` is finished."""
    pieces = (piece_path(output, split, number) for split in ("train", "validation"))
    return record_path(output, number).is_file() and all(piece.is_file() for piece in pieces)

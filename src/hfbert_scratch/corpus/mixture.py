"""Train on several corpora at once, each with its share of the instances.

The share holds in every batch within rounding, and what rounding left out comes in the next batches: after any number
of batches, the instances drawn from a corpus differ by less than one from its share of all. The batches are a
function of the seed and their number, like those of one corpus.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import InputError
from ..utils.hashing import hash64
from .dataset import Corpus, TokenizedDocuments
from .segment_pairs import Cursor, Instances, InstanceStream, SegmentPairSampler


# The number of an instance's corpus stands in the highest bits of its index; see `SegmentPairSampler.sample_buffer`.
_SOURCE_SHIFT = np.uint64(56)
_MAX_CORPORA = 256
_WEIGHT = re.compile(r"(.+):([\d.eE+-]+)")


class MixedCursor(NamedTuple):
    """A position in the stream of a mixture: instances drawn from each corpus so far, and the cursors of theirs."""

    drawn: tuple[int, ...]
    cursors: tuple[Cursor, ...]

    @classmethod
    def restore(cls, saved: Sequence[Any]) -> "MixedCursor":
        """Make a cursor from its JSON."""
        drawn, cursors = saved
        return cls(tuple(drawn), tuple(Cursor(*cursor) for cursor in cursors))


class MixedSampler:
    """Draw batches from several samplers of one length, with shares.

    Args:
        samplers: of each corpus.
        shares: of the instances, positive, sum 1.
    """

    def __init__(self, samplers: Sequence[SegmentPairSampler], shares: Sequence[float]) -> None:
        self.samplers, self.shares = list(samplers), np.array(shares, dtype=np.float64)
        self.max_seq_length = samplers[0].max_seq_length

    def batches(self, batch_size: int, cursor: MixedCursor | None = None) -> Iterator[tuple[Instances, MixedCursor]]:
        """Yield batches without end.

        Args:
            batch_size: instances per batch.
            cursor: the position to start from. None: the beginning.

        Yields:
            A batch, and the cursor of the instance after it.

        Raises:
            InputError: if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, not {batch_size}")
        start = cursor or MixedCursor((0,) * len(self.samplers), (Cursor(),) * len(self.samplers))
        drawn = np.array(start.drawn, dtype=np.int64)
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(InstanceStream(sampler, place))
                for sampler, place in zip(self.samplers, start.cursors, strict=True)
            ]
            while True:
                counts = next_counts(self.shares, drawn, batch_size)
                drawn += counts
                parts = [
                    self._marked(stream.take(count), number)
                    for number, (stream, count) in enumerate(zip(streams, counts.tolist(), strict=True))
                    if count
                ]
                # Spread evenly over the batch, so that every part of it has about the shares of the whole.
                places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
                mixed = Instances.concatenate(parts)[places.argsort(kind="stable")]
                yield mixed, MixedCursor(tuple(drawn.tolist()), tuple(stream.cursor for stream in streams))

    @staticmethod
    def _marked(instances: Instances, number: int) -> Instances:
        instances = instances[:]
        instances.index = instances.index | np.uint64(number) << _SOURCE_SHIFT
        return instances

    def to_batch(self, instances: Instances) -> dict[str, np.ndarray]:
        """Gather the token ids of instances; see `SegmentPairSampler.to_batch`."""
        source = source_of(instances)
        batch: dict[str, np.ndarray] = {}
        for number in np.unique(source).tolist():
            rows = np.flatnonzero(source == number)
            for name, values in self.samplers[number].to_batch(instances[rows]).items():
                if name not in batch:
                    batch[name] = np.empty((len(source), *values.shape[1:]), values.dtype)
                batch[name][rows] = values
        return batch


def source_of(instances: Instances) -> np.ndarray:
    """Return the number of each instance's corpus in a mixture, (n,) int64."""
    return (instances.index >> _SOURCE_SHIFT).astype(np.int64)


def next_counts(shares: np.ndarray, drawn: np.ndarray, batch_size: int) -> np.ndarray:
    """Choose how many instances of the next batch come from each corpus, by largest remainders.

    Args:
        shares: (corpora,) sum 1.
        drawn: (corpora,) instances drawn before.
        batch_size: of the next batch.

    Returns:
        (corpora,) int64, sum `batch_size`.
    """
    due = shares * (int(drawn.sum()) + batch_size) - drawn
    counts = np.maximum(np.floor(due), 0).astype(np.int64)
    missing = batch_size - int(counts.sum())
    if missing > 0:
        counts[np.argsort(counts - due, kind="stable")[:missing]] += 1
    while missing < 0:  # one corpus was ahead of its share, so that the others' sum is too large
        surplus = np.where(counts > 0, counts - due, -np.inf)
        counts[surplus.argmax()] -= 1
        missing += 1
    return counts


class MixedDocuments:
    """A split of several corpora, which `PretrainingDataArguments.sampler` turns into a `MixedSampler`.

    Args:
        names: of the corpora.
        parts: their splits.
        shares: of the instances.
    """

    def __init__(self, names: Sequence[str], parts: Sequence[TokenizedDocuments], shares: Sequence[float]) -> None:
        self.names, self.parts, self.shares = list(names), list(parts), list(shares)

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Count tokens as training meets them: each corpus with its share of all.

        Args:
            vocab_size: of the tokenizer; larger than every id.

        Returns:
            (vocab_size,) float64. The sum is the number of tokens of all corpora.

        Raises:
            InputError: if the counts that were kept are not those of the split.
        """
        total = sum(part.num_tokens for part in self.parts)
        counts = np.zeros(vocab_size)
        for part, share in zip(self.parts, self.shares, strict=True):
            counts += part.token_counts(vocab_size) * (share * total / part.num_tokens)
        return counts


def parts_of(documents: "TokenizedDocuments | MixedDocuments") -> list[tuple[str, TokenizedDocuments, float]]:
    """Return name, split and share of every corpus in `documents`."""
    if isinstance(documents, MixedDocuments):
        return list(zip(documents.names, documents.parts, documents.shares, strict=True))
    return [("", documents, 1.0)]


def source_seed(seed: int, number: int) -> int:
    """Return the seed of a corpus in a mixture, so that corpora do not go in step.

    Args:
        seed: the run's.
        number: number of the corpus, from 0. The first one has the run's own seed.
    """
    return seed if number == 0 else int(hash64(seed, number)) >> 1


class Mixture:
    """The corpora of a run, in most runs one.

    Args:
        corpora: opened; all of one tokenizer.
        shares: of the instances, sum 1.
    """

    def __init__(self, corpora: Sequence[Corpus], shares: Sequence[float]) -> None:
        self.corpora, self.shares = list(corpora), list(shares)
        self.names = _names([corpus.directory for corpus in corpora])

    @classmethod
    def open(cls, words: Sequence[str], tokenizer: Any, max_seq_length: int, temperature: float = 1.0) -> "Mixture":
        """Open the corpora of a command line.

        Args:
            words: directories, or DIRECTORY:WEIGHT.
            tokenizer: the one they must have been built with.
            max_seq_length: tokens of the longest sequence; each must have been built for this length or a longer one.
            temperature: above 0. Corpora without weights get tokens^(1/temperature). 1 keeps the proportions of their
                sizes, more evens them out.

        Raises:
            InputError: if a corpus cannot be opened or is given twice, if a weight is not above 0, if some have
                weights and others not, or if there are none or more than 256.
        """
        if not words:
            raise InputError("--corpus names no corpus")
        directories, weights = zip(*map(_split_weight, words), strict=True)
        corpora = [Corpus.open(directory, tokenizer, max_seq_length) for directory in directories]
        if len({directory.resolve() for directory in directories}) < len(directories):
            raise InputError(f"--corpus names a directory more than once: {' '.join(words)}")
        if len(corpora) > _MAX_CORPORA:
            raise InputError(f"--corpus names {len(corpora)} corpora; at most {_MAX_CORPORA} can be mixed")
        if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
            raise InputError(f"--corpus {' '.join(words)}: give every corpus a weight, as DIRECTORY:WEIGHT, or none")
        if weights[0] is None:
            sizes = [corpus.manifest["splits"]["train"]["tokens"] for corpus in corpora]
            weights = tuple((size / max(sizes)) ** (1 / temperature) for size in sizes)
        return cls(corpora, [weight / sum(weights) for weight in weights])

    @property
    def identity(self) -> dict[str, Any]:
        """Return the content of the corpora and their shares, which a run that continues must find unchanged."""
        if len(self.corpora) == 1:
            return self.corpora[0].manifest["identity"]
        identities = [corpus.manifest["identity"] for corpus in self.corpora]
        return {"corpora": identities, "shares": self.shares}

    def split(self, name: str) -> TokenizedDocuments | MixedDocuments:
        """Open a split of all corpora.

        Args:
            name: "train" or "validation".

        Raises:
            InputError: if a corpus has no such split, or one of its files is missing or damaged.
        """
        parts = [corpus.split(name) for corpus in self.corpora]
        return parts[0] if len(parts) == 1 else MixedDocuments(self.names, parts, self.shares)

    def mean_length(self, max_seq_length: int) -> float:
        """Return the mean tokens of a training instance, special ones included.

        Args:
            max_seq_length: tokens of the longest instance. Where a corpus does not describe this length, the first one
                that it describes stands in.
        """
        total = 0.0
        for corpus, share in zip(self.corpora, self.shares, strict=True):
            pairs = corpus.manifest["pairs"]["train"]
            described = pairs.get(str(max_seq_length)) or next(iter(pairs.values()))
            total += share * min(max_seq_length, described["mean_length"])
        return total

    def epochs(self, tokens: float) -> dict[str, float]:
        """Return how often training passes the train split of each corpus.

        Args:
            tokens: of the whole training.

        Returns:
            Name of the corpus → passes, to two digits.
        """
        return {
            name: round(share * tokens / max(1, corpus.manifest["splits"]["train"]["tokens"]), 2)
            for name, corpus, share in zip(self.names, self.corpora, self.shares, strict=True)
        }

    def describe(self) -> dict[str, Any]:
        """Describe the corpora for the record of a run."""
        kept = [_description(corpus) for corpus in self.corpora]
        if len(kept) == 1:
            return kept[0]
        splits = {
            split: {
                count: sum(entry["splits"][split][count] for entry in kept)
                for count in ("documents", "sentences", "tokens")
            }
            for split in ("train", "validation")
        }
        mixed = [
            {"name": name, "share": share, **entry}
            for name, share, entry in zip(self.names, self.shares, kept, strict=True)
        ]
        return {"splits": splits, "mixture": mixed}


def _description(corpus: Corpus) -> dict[str, Any]:
    entry = {name: corpus.manifest[name] for name in ("arguments", "splits")}
    pinned = [
        {name: source[name] for name in ("name", "revision")}
        for source in corpus.manifest.get("sources", [])
        if source.get("revision")
    ]
    return entry | ({"pinned_sources": pinned} if pinned else {})


def _split_weight(word: str) -> tuple[Path, float | None]:
    match = None if Path(word).exists() else _WEIGHT.fullmatch(word)
    if match is None:
        return Path(word), None
    try:
        weight = float(match[2])
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise InputError(f"--corpus {word}: the weight must be a number above 0")
    return Path(match[1]), weight


def _names(directories: Sequence[Path]) -> list[str]:
    """Name corpora by their directories, with a number where two have one name."""
    names = [directory.resolve().name for directory in directories]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]

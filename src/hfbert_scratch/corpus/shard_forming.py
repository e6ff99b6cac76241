"""From the sources to shards: read, drop duplicates, hold out documents, cut into shards of about the same size.

What a shard holds depends on the text and the arguments alone. Every process that builds a corpus can therefore go
through the same shards and work on those it is to, or those that are not finished.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterator

import numpy as np

from ..text.readers import ReadingCounts, Source, read_documents
from ..utils.errors import InputError
from ..utils.hashing import GOLDEN, splitmix64
from .shard_writing import Shard


# Documents are hashed, compared and handed on in portions of so many bytes.
_PORTION = 1 << 23
# Documents of a shard, however long they are: random segments need some to choose from.
_MIN_DOCUMENTS = 8


@dataclasses.dataclass(frozen=True)
class BuildArguments:
    """What decides the content of a corpus; a build that is continued must have the same."""

    text: tuple[str, ...]
    tokenizer: str
    text_column: str = "text"
    encoding_errors: str = "strict"
    validation_share: float = 0.01
    max_seq_length: int = 512
    next_sentence: bool = True
    drop_duplicates: bool = True
    seed: int = 0
    shard_mb: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise InputError(f"--validation_share must be at least 0 and below 1, not {self.validation_share}")
        if self.max_seq_length < 5:
            raise InputError(f"--max_seq_length {self.max_seq_length} leaves no room for text; the smallest is 5")
        if self.seed < 0:
            raise InputError(f"--seed must not be negative, not {self.seed}")
        if not 0 <= self.shard_mb <= 512:
            raise InputError(
                f"--shard_mb must be between 1 and 512, or 0 to let it follow the text, not {self.shard_mb}"
            )


@dataclasses.dataclass
class Counts:
    """What reading and forming shards counted."""

    reading: ReadingCounts = dataclasses.field(default_factory=ReadingCounts)
    documents: int = 0
    duplicates: int = 0
    bytes: int = 0
    shards: int = 0
    seconds: float = 0.0


class _Digests:
    """A growing set of 64-bit document digests: 8 bytes each, in sorted runs of falling length.

    Two different documents among 10⁸ share a digest with a probability of 0.0003; one of them would be dropped.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add `digests` and return which of them were not there before (the first of equal ones counts as new)."""
        values, first = np.unique(digests, return_index=True)
        known = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, values), len(run) - 1)
            known |= run[place] == values
        self._runs.append(values[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]))
        self._runs = [run for run in self._runs if len(run)]
        new = np.zeros(len(digests), dtype=bool)
        new[first[~known]] = True
        return new


def form_shards(arguments: BuildArguments, sources: list[Source], counts: Counts) -> Iterator[Shard]:
    """Read everything; yield shards of about the same size, without duplicates, the split drawn."""
    size = arguments.shard_mb * 1_000_000 or shard_size(sources)
    documents: list[bytes] = []
    hashes: list[np.ndarray] = []
    waiting: tuple[list[bytes], np.ndarray] | None = None
    held = 0

    def shard(content: tuple[list[bytes], np.ndarray]) -> Shard:
        counts.shards += 1
        return Shard(counts.shards - 1, content[0], _validation(arguments, content[1], first=counts.shards == 1))

    for portion, digests in _portions(arguments, sources, counts, min(size, _PORTION)):
        documents += portion
        hashes.append(digests)
        held += sum(map(len, portion))
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


def shard_size(sources: list[Source]) -> int:
    """Bytes of text in a shard: 64 shards if that makes them 8 to 64 MB."""
    return int(min(max(sum(source.size for source in sources) / 64, 8e6), 64e6))


def _portions(
    arguments: BuildArguments, sources: list[Source], counts: Counts, size: int
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Portions of about `size` bytes, their new documents and the digests of these (uint64)."""
    known = _Digests()
    texts = read_documents(
        sources,
        text_column=arguments.text_column,
        encoding_errors=arguments.encoding_errors,
        counts=counts.reading,
    )
    while True:
        start = time.monotonic()
        portion: list[bytes] = []
        held = 0
        for text in texts:
            portion.append(text.encode("utf-8"))
            held += len(portion[-1])
            if held >= size or len(portion) >= 10_000:
                break
        if not portion:
            return
        digests = np.frombuffer(
            b"".join(hashlib.blake2b(document.strip(), digest_size=8).digest() for document in portion), dtype="<u8"
        )
        new = known.add(digests)
        counts.duplicates += len(portion) - int(new.sum())
        if not arguments.drop_duplicates:
            new[:] = True
        counts.documents += len(portion)
        counts.bytes += held
        counts.seconds += time.monotonic() - start
        yield list(itertools.compress(portion, new)), digests[new]


def _validation(arguments: BuildArguments, digests: np.ndarray, *, first: bool) -> np.ndarray:
    """Which documents are for validation: those whose hash with the seed falls below the share.

    A tiny corpus could miss one split, so the first shard gives at least one document (two for next-sentence
    prediction) to each: those with the smallest hashes to validation.
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
            return np.zeros(1, dtype=bool)  # one document: the check of the finished corpus says what to do
        raise InputError(
            f"--text holds {len(digests)} different documents, too few for a train and a validation split"
            f"{' of 2 each, as next-sentence prediction needs (--no_nsp: 1 each)' if needed == 2 else ''}; "
            "separate documents by blank lines, or add text"
        )
    count = min(max(int(chosen.sum()), needed), len(digests) - needed)
    chosen[:] = False
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen

"""Documents as flat arrays, and BERT's segment pairs drawn from them as a function of (seed, epoch).

Nothing is copied per epoch: an instance is two (start, length) spans of the token array and a label. All documents of
a shard advance in lockstep in numpy; the random B comes from the same shard, and a group mixes several shards.
Rules of a pair: Devlin et al. 2018, appendix A.2, and the code published with it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..utils.errors import InputError
from .dataset import Documents, Shard


# Shards whose rows are shuffled together: 8 shards of 64 MB of text are about a million rows of 128.
SHARDS_PER_GROUP = 8
# The dry passes that find the share of one-sentence chunks go over so many shards until they saw so many documents.
_DRY_SHARDS, _DRY_DOCUMENTS, _DRY_PASSES = 4, 2_000, 12
# Streams of random numbers, told apart by the last entry of the seed.
_SHARD_ORDER, _DRAW, _ROW_ORDER, _DRY = range(4)


class Cursor(NamedTuple):
    """A place in the endless stream of instances: the next one is number `offset` of `group` in `epoch`."""

    epoch: int = 0
    group: int = 0
    offset: int = 0


@dataclasses.dataclass
class Instances:
    """Rows as parallel arrays. Spans are positions in the tokens of the split; a row without segment B has length 0.

    `index` is unique within an epoch and does not depend on the order of the rows.
    """

    epoch: np.ndarray  # (rows,) int64
    index: np.ndarray  # (rows,) uint64
    a_start: np.ndarray  # (rows,) int64
    a_length: np.ndarray  # (rows,) int32
    b_start: np.ndarray  # (rows,) int64
    b_length: np.ndarray  # (rows,) int32
    next_sentence_label: np.ndarray  # (rows,) int64: 0 B follows A, 1 B is from another document

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | np.ndarray) -> "Instances":
        return Instances(*(column[rows] for column in self._columns()))

    @staticmethod
    def concatenate(parts: Sequence["Instances"]) -> "Instances":
        """The rows of `parts` (at least one) one after another."""
        if len(parts) == 1:
            return parts[0]
        return Instances(*(np.concatenate(columns) for columns in zip(*(p._columns() for p in parts), strict=True)))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


class Drawn(NamedTuple):
    """One pass over a shard: spans in shard positions, and what only statistics look at."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray
    lost: np.ndarray  # tokens taken away by truncation
    chunk_sentences: np.ndarray  # sentences of the chunk the row came from


class SegmentPairs:
    """Draws the instances of `documents` for every epoch.

    `max_seq_length` counts [CLS] and [SEP]. With probability `short_seq_prob` a document aims at a random shorter
    length in a pass. `balanced_nsp` lowers the coin so that half of the rows are NotNext in spite of the one-sentence
    chunks, which can be nothing else; False is the original's fair coin. `next_sentence=False` gives contiguous spans
    of one document, `[CLS] A [SEP]`, without segment B (§5.1 of the paper).

    Raises InputError if the split is empty, the length too small, or NSP has no second document to draw from.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        max_seq_length: int,
        seed: int,
        short_seq_prob: float = 0.1,
        balanced_nsp: bool = True,
        next_sentence: bool = True,
    ) -> None:
        if documents.num_documents == 0:
            raise InputError("this split of the corpus holds no document; build it with more text")
        if next_sentence and documents.num_documents < 2:
            raise InputError("next-sentence prediction needs at least 2 documents, this split has 1; use --no_nsp")
        self.room = max_seq_length - (3 if next_sentence else 2)
        if self.room < 2:
            raise InputError(f"max_seq_length {max_seq_length} leaves no room for text; the smallest is 5")
        if not 0 <= short_seq_prob <= 1:
            raise InputError(f"short_seq_prob must be between 0 and 1, not {short_seq_prob}")
        if seed < 0:
            raise InputError(f"seed must not be negative, not {seed}")
        self.documents = documents
        self.max_seq_length, self.seed, self.short_seq_prob = max_seq_length, seed, short_seq_prob
        self.balanced_nsp, self.next_sentence = balanced_nsp, next_sentence
        self._single_shares: dict[float, float] = {}
        self.num_groups = -(-documents.num_shards // SHARDS_PER_GROUP)

    @cached_property
    def coin(self) -> float:
        """Probability of NotNext for a chunk of two or more sentences.

        Balanced: (0.5 − p)/(1 − p) with p the share of one-sentence chunks, found by dry passes. p depends a little on
        the coin itself (the unused sentences are put back), so the second pass starts from the first's answer.
        """
        coin = 0.5
        if self.balanced_nsp and self.next_sentence:
            for _ in range(2):
                single = self.single_sentence_share(coin)
                coin = max(0.0, (0.5 - single) / (1 - single)) if single < 1 else 0.0
        return coin

    def single_sentence_share(self, coin: float) -> float:
        """Share of rows from chunks of one sentence, expected over all passes, from some shards, whatever the seed.

        Documents with short targets have many times as many of them as others. To draw which documents those are would
        be noise, so every document goes through once with the full and once with a short target, weighted.
        """
        if coin not in self._single_shares:
            self._single_shares[coin] = self._dry_passes(coin)
        return self._single_shares[coin]

    def _dry_passes(self, coin: float) -> float:
        shards = self.documents.num_shards
        chosen = sorted({shard * shards // _DRY_SHARDS for shard in range(_DRY_SHARDS)})
        arrays = {number: self.documents.shard(number) for number in chosen}
        rows = single = 0.0
        seen = 0
        for dry_pass in range(_DRY_PASSES):
            for number, shard in arrays.items():
                rng = np.random.default_rng([dry_pass, number, _DRY])
                for short, weight in ((0.0, 1 - self.short_seq_prob), (1.0, self.short_seq_prob)):
                    sentences = draw_pairs(shard, self.room, short, coin, rng).chunk_sentences
                    rows += weight * len(sentences)
                    single += weight * int((sentences == 1).sum())
                seen += len(shard.documents) - 1
            if seen >= _DRY_DOCUMENTS:
                break
        return single / rows

    def draw(self, epoch: int, shard: int) -> Drawn:
        """One pass over a shard in the order of drawing; a pure function of (seed, epoch, shard)."""
        rng = np.random.default_rng([self.seed, epoch, shard, _DRAW])
        arrays = self.documents.shard(shard)
        if self.next_sentence:
            return draw_pairs(arrays, self.room, self.short_seq_prob, self.coin, rng)
        return draw_spans(arrays, self.room, self.short_seq_prob, rng)

    def group(self, epoch: int, group: int) -> Instances:
        """The shuffled rows of a group; a pure function of (seed, epoch, group)."""
        order = np.random.default_rng([self.seed, epoch, _SHARD_ORDER]).permutation(self.documents.num_shards)
        parts = []
        for shard in order[group * SHARDS_PER_GROUP : (group + 1) * SHARDS_PER_GROUP]:
            drawn = self.draw(epoch, int(shard))
            first, rows = self.documents.first_tokens[shard], len(drawn.label)
            parts.append(
                Instances(
                    epoch=np.full(rows, epoch, dtype=np.int64),
                    index=(np.uint64(shard) << np.uint64(32)) + np.arange(rows, dtype=np.uint64),
                    a_start=drawn.a_start + first,
                    a_length=drawn.a_length.astype(np.int32),
                    b_start=drawn.b_start + first,
                    b_length=drawn.b_length.astype(np.int32),
                    next_sentence_label=drawn.label.astype(np.int64),
                )
            )
        rows = Instances.concatenate(parts)
        return rows[np.random.default_rng([self.seed, epoch, group, _ROW_ORDER]).permutation(len(rows))]

    def batches(
        self, batch_size: int, cursor: Cursor | None = None, *, drop_last: bool = False, epochs: int | None = None
    ) -> Iterator[tuple[Instances, Cursor]]:
        """Yield (batch, cursor behind it) from `cursor` on; endless unless `epochs` says where to stop.

        Batches run across groups and epochs. With `epochs`, epochs 0 … epochs − 1 are passed and the last batch may
        be smaller unless `drop_last`. The next group is drawn in a thread while this one is used.
        """
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, not {batch_size}")
        epoch, group, offset = cursor or Cursor()
        parts: list[Instances] = []
        missing = batch_size
        with ThreadPoolExecutor(max_workers=1) as executor:
            upcoming = executor.submit(self.group, epoch, group) if epochs is None or epoch < epochs else None
            while upcoming is not None:
                rows = upcoming.result()
                following = (epoch, group + 1) if group + 1 < self.num_groups else (epoch + 1, 0)
                more = epochs is None or following[0] < epochs
                upcoming = executor.submit(self.group, *following) if more else None
                while offset < len(rows):
                    part = rows[offset : offset + missing]
                    offset += len(part)
                    missing -= len(part)
                    parts.append(part)
                    if missing == 0:
                        batch, parts, missing = Instances.concatenate(parts), [], batch_size
                        yield batch, Cursor(epoch, group, offset) if offset < len(rows) else Cursor(*following, 0)
                (epoch, group), offset = following, 0
        if parts and not drop_last:
            yield Instances.concatenate(parts), Cursor(epoch, group, 0)

    def assemble(self, instances: Instances) -> dict[str, np.ndarray]:
        """Token ids of `instances`, padded to max_seq_length = S.

        Returns input_ids and token_type_ids (rows, S) int64, lengths (rows,) int32 counting the special tokens, and
        next_sentence_label (rows,) int64 unless next_sentence is off.
        """
        rows, width, special = len(instances), self.max_seq_length, self.documents.special_ids
        # Rows of a shard together: its tokens are one array.
        shards = self.documents.first_tokens.searchsorted(instances.a_start, side="right") - 1
        order = shards.argsort(kind="stable")
        used, first_rows = np.unique(shards[order], return_index=True)
        ordered = instances[order]
        # A row is [CLS] A [SEP], then B [SEP] if there is a B, then padding: `spread` gives each part one value.
        head = ordered.a_length.astype(np.int64) + 2
        tail = ordered.b_length.astype(np.int64) + 1 if self.next_sentence else np.zeros_like(head)
        lengths = head + tail
        parts = np.stack([head, tail, width - lengths], axis=1).ravel()

        def spread(first: np.ndarray | int, second: np.ndarray | int, padding: np.ndarray | int) -> np.ndarray:
            values = np.empty((rows, 3), dtype=np.int64)
            values[:, 0], values[:, 1], values[:, 2] = first, second, padding
            return values.ravel().repeat(parts)

        # Where special tokens and padding will be, any token of the shard does.
        begin = np.arange(0, rows * width, width)
        offset = self.documents.first_tokens[shards[order]] + begin
        source = spread(ordered.a_start - 1 - offset, ordered.b_start - head - offset, 0)
        source += np.arange(rows * width)
        input_ids = np.empty(rows * width, dtype=np.int64)
        borders = [*(first_rows * width).tolist(), rows * width]
        for shard, first, last in zip(used.tolist(), borders[:-1], borders[1:], strict=True):
            cells = slice(first, last)
            input_ids[cells] = self.documents.tokens(shard).take(source[cells], mode="clip")
        input_ids[spread(0, 0, 1).astype(bool)] = special["pad"]
        input_ids[begin] = special["cls"]
        input_ids[begin + head - 1] = input_ids[begin + lengths - 1] = special["sep"]
        batch = {"input_ids": input_ids, "token_type_ids": spread(0, 1, 0)}
        batch = {name: values.reshape(rows, width) for name, values in batch.items()}
        batch["lengths"] = lengths.astype(np.int32)
        if len(used) > 1:
            back = order.argsort()
            batch = {name: values[back] for name, values in batch.items()}
        if self.next_sentence:
            batch["next_sentence_label"] = instances.next_sentence_label.astype(np.int64)
        return batch


# ---------------------------------------------------------------------------------------------------- drawing


def draw_pairs(shard: Shard, room: int, short_seq_prob: float, coin: float, rng: np.random.Generator) -> Drawn:
    """One pass of segment pairs over the documents of `shard`; `room` is max_seq_length − 3.

    Step k takes the k-th chunk of every document that still has sentences. The shard needs two documents.
    """
    tokens_before, first_sentences = shard.sentences, shard.documents[:-1]
    document_sentences = np.diff(shard.documents)
    alive = np.arange(len(first_sentences))
    begin, stop = first_sentences, shard.documents[1:]
    target = _targets(len(alive), room, short_seq_prob, rng)
    steps: list[tuple[np.ndarray, ...]] = []
    while len(alive):
        end = np.minimum(tokens_before.searchsorted(tokens_before[begin] + target), stop)
        draws = rng.random(4 * len(alive)).reshape(4, -1)
        # A: one sentence of a one-sentence chunk, else 1 … n − 1 of them.
        a_end = begin + 1 + (draws[0] * np.maximum(end - begin - 1, 1)).astype(np.int64)
        random_b = (draws[1] < coin) | (end - begin == 1)
        steps.append((alive, target, begin, a_end, end, random_b, *draws[2:]))
        # The sentences a random B displaced are put back.
        begin = np.where(random_b, a_end, end)
        unfinished = begin < stop
        if not unfinished.all():
            alive, begin, stop, target = (values[unfinished] for values in (alive, begin, stop, target))
    document, target, begin, a_end, end, label, *draws = (
        np.concatenate(column) for column in zip(*steps, strict=True)
    )
    a_start = tokens_before[begin]
    a_length = tokens_before[a_end] - a_start
    # Random B: never from A's document, from a uniform sentence on, until the target is reached.
    other = (draws[0] * (len(first_sentences) - 1)).astype(np.int64)
    other += other >= document
    other_begin = first_sentences[other] + (draws[1] * document_sentences[other]).astype(np.int64)
    wanted = tokens_before[other_begin] + np.maximum(target - a_length, 1)
    other_end = np.minimum(tokens_before.searchsorted(wanted), shard.documents[other + 1])
    b_start = tokens_before[np.where(label, other_begin, a_end)]
    b_length = tokens_before[np.where(label, other_end, end)] - b_start
    *spans, lost = _truncate(a_start, a_length, b_start, b_length, room, rng)
    return Drawn(*spans, label=label, lost=lost, chunk_sentences=end - begin)


def draw_spans(shard: Shard, room: int, short_seq_prob: float, rng: np.random.Generator) -> Drawn:
    """One pass of contiguous spans over the documents of `shard`; `room` is max_seq_length − 2.

    A document is cut every `room` tokens (or its shorter target) from a random phase on, so that epochs differ.
    """
    document_starts = shard.sentences[shard.documents[:-1]]
    lengths = shard.sentences[shard.documents[1:]] - document_starts
    targets = _targets(len(lengths), room, short_seq_prob, rng)
    # The first span ends after 1 … target tokens; a document that fits into one span stays whole.
    heads = np.where(lengths > targets, 1 + _uniform(targets, rng), lengths)
    counts = 1 + -(-(lengths - heads) // targets)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.where(number > 0, heads[document] + (number - 1) * targets[document], 0)
    stop = np.minimum(heads[document] + number * targets[document], lengths[document])
    none = np.zeros(len(document), dtype=np.int64)
    begin = document_starts[document] + start
    return Drawn(begin, stop - start, begin, none, none, lost=none, chunk_sentences=none)


def _targets(documents: int, room: int, short_seq_prob: float, rng: np.random.Generator) -> np.ndarray:
    short = rng.random(documents) < short_seq_prob
    return np.where(short, 2 + _uniform(np.full(documents, room - 1), rng), room)


def _uniform(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One uniform integer in [0, count) per entry (every count at least 1)."""
    return (rng.random(len(counts)) * counts).astype(np.int64)


def _truncate(
    a_start: np.ndarray,
    a_length: np.ndarray,
    b_start: np.ndarray,
    b_length: np.ndarray,
    room: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """Take one token at a time from the longer segment (B on a tie), front or back at random, until both fit `room`.

    In closed form: the longer gives the difference, the rest is shared; what comes from the front is binomial.
    """
    excess = np.maximum(a_length + b_length - room, 0)
    difference = a_length - b_length
    from_longer = np.minimum(excess, np.abs(difference))
    shared = excess - from_longer
    a_lost = np.where(difference > 0, from_longer, 0) + shared // 2
    b_lost = np.where(difference < 0, from_longer, 0) + (shared + 1) // 2
    cut = np.flatnonzero(excess)
    a_front, b_front = np.zeros_like(a_lost), np.zeros_like(b_lost)
    a_front[cut], b_front[cut] = rng.binomial(a_lost[cut], 0.5), rng.binomial(b_lost[cut], 0.5)
    return a_start + a_front, a_length - a_lost, b_start + b_front, b_length - b_lost, excess

"""Sample BERT's segment pairs from tokenized documents, as a function of (seed, epoch).

An epoch copies no token: an instance is two (start, length) spans of the token array and a label. numpy advances all
documents of a shard in lockstep. A random B comes from the same shard; a shuffle buffer mixes several shards.
Rules of a pair: Devlin et al. 2018, appendix A.2, and create_pretraining_data.py of google-research/bert.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..utils.errors import InputError
from .dataset import ShardArrays, TokenizedDocuments


# Shards whose instances are shuffled together: 8 shards of 64 MB of text give about a million instances of length 128.
SHUFFLE_BUFFER_SHARDS = 8
# The dry passes measure the share of one-sentence chunks on this many shards, until they saw this many documents.
_DRY_SHARDS, _DRY_DOCUMENTS, _DRY_PASSES = 4, 2_000, 12
# The last entry of a generator's seed, one for each use, so that the streams of random numbers are independent.
_SHARD_ORDER, _DRAW, _ROW_ORDER, _DRY = range(4)


class Cursor(NamedTuple):
    """A position in the endless stream of instances: the next is number `offset` of shuffle buffer `buffer`."""

    epoch: int = 0
    buffer: int = 0
    offset: int = 0


@dataclasses.dataclass
class Instances:
    """Training instances as parallel arrays.

    Starts are positions in the tokens of the whole split. Without segment B, b_length is 0. `index` is unique within
    an epoch and does not depend on the order of the instances.
    """

    epoch: np.ndarray  # (instances,) int64
    index: np.ndarray  # (instances,) uint64
    a_start: np.ndarray  # (instances,) int64
    a_length: np.ndarray  # (instances,) int32
    b_start: np.ndarray  # (instances,) int64
    b_length: np.ndarray  # (instances,) int32
    next_sentence_label: np.ndarray  # (instances,) int64: 0 B follows A, 1 B is from another document

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, selected: slice | np.ndarray) -> "Instances":
        return Instances(*(column[selected] for column in self._columns()))

    @staticmethod
    def concatenate(parts: Sequence["Instances"]) -> "Instances":
        """Join `parts` (at least one) in their order."""
        if len(parts) == 1:
            return parts[0]
        return Instances(*(np.concatenate(columns) for columns in zip(*(p._columns() for p in parts), strict=True)))

    @staticmethod
    def empty() -> "Instances":
        """Return no instances."""
        return Instances(*(np.empty(0, dtype=np.int64) for _ in dataclasses.fields(Instances)))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


class InstanceStream:
    """The instances of a sampler from `cursor` on, as many at a time as are asked for; a context manager.

    They run across shuffle buffers and epochs. A thread samples the next buffer while this one is used.

    Args:
        sampler: of the instances.
        cursor: the position to start from; afterwards, that of the next instance.
        epochs: stop after epoch `epochs` − 1; default: never stop.
    """

    def __init__(self, sampler: "SegmentPairSampler", cursor: Cursor, epochs: int | None = None) -> None:
        self.sampler, self.cursor, self.epochs = sampler, cursor, epochs
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._buffer: Instances | None = None
        self._following = Cursor(cursor.epoch, cursor.buffer)
        self._sample_following()

    def __enter__(self) -> "InstanceStream":
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()

    def _sample_following(self) -> None:
        epoch, buffer, _ = self._following
        more = self.epochs is None or epoch < self.epochs
        self._upcoming = self._executor.submit(self.sampler.sample_buffer, epoch, buffer) if more else None

    def take(self, count: int) -> Instances:
        """Return the next `count` instances, or fewer at the end of the last epoch."""
        parts: list[Instances] = []
        while count:
            if self._buffer is None:
                if self._upcoming is None:
                    break
                self._buffer = self._upcoming.result()
                epoch, buffer, _ = self._following
                last = buffer + 1 == self.sampler.num_buffers
                self._following = Cursor(epoch + 1, 0) if last else Cursor(epoch, buffer + 1)
                self._sample_following()
            part = self._buffer[self.cursor.offset : self.cursor.offset + count]
            count -= len(part)
            parts.append(part)
            self.cursor = self.cursor._replace(offset=self.cursor.offset + len(part))
            if self.cursor.offset >= len(self._buffer):
                self.cursor, self._buffer = self._following, None
        return Instances.concatenate(parts) if parts else Instances.empty()


class SampledSpans(NamedTuple):
    """The result of one pass over a shard, (instances,) each; starts are positions in the shard's tokens."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    label: np.ndarray
    num_truncated: np.ndarray  # tokens removed by truncation; for statistics
    chunk_sentences: np.ndarray  # sentences of the chunk the instance was made from; for statistics


class SegmentPairSampler:
    """Sample the instances of a split for every epoch.

    Everything is a pure function of the seed and the position in the stream, so any number of processes and a resumed
    run see the same instances.

    Args:
        documents: the split.
        max_seq_length: tokens of an instance, [CLS] and [SEP] included.
        seed: decides pairs and order; 0 or more.
        short_seq_prob: probability that a document gets a random shorter target length in a pass.
        balanced_nsp: make exactly half of the instances NotNext. One-sentence chunks are always NotNext, so the other
            chunks become NotNext less often. False: with probability 0.5, as the original does.
        next_sentence: sample pairs. False: contiguous spans of one document, `[CLS] A [SEP]` (paper, section 5.1).

    Raises:
        InputError: if the split is empty, has no second document for next-sentence prediction, or an argument is out
            of range.
    """

    def __init__(
        self,
        documents: TokenizedDocuments,
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
        self.max_num_tokens = max_seq_length - (3 if next_sentence else 2)
        if self.max_num_tokens < 2:
            raise InputError(f"max_seq_length {max_seq_length} leaves no room for text; the smallest is 5")
        if not 0 <= short_seq_prob <= 1:
            raise InputError(f"short_seq_prob must be between 0 and 1, not {short_seq_prob}")
        if seed < 0:
            raise InputError(f"seed must not be negative, not {seed}")
        self.documents = documents
        self.max_seq_length, self.seed, self.short_seq_prob = max_seq_length, seed, short_seq_prob
        self.balanced_nsp, self.next_sentence = balanced_nsp, next_sentence
        self._single_shares: dict[float, float] = {}
        self.num_buffers = -(-documents.num_shards // SHUFFLE_BUFFER_SHARDS)

    @cached_property
    def not_next_probability(self) -> float:
        """Probability of NotNext for a chunk of two or more sentences.

        Balanced: (0.5 − p)/(1 − p), where p is the share of one-sentence chunks, measured by dry passes. A random B
        puts its displaced sentences back, so p depends a little on the probability; the second pass starts from the
        first one's result.
        """
        probability = 0.5
        if self.balanced_nsp and self.next_sentence:
            for _ in range(2):
                single = self.single_sentence_share(probability)
                probability = max(0.0, (0.5 - single) / (1 - single)) if single < 1 else 0.0
        return probability

    def single_sentence_share(self, not_next_probability: float) -> float:
        """Estimate the share of instances from one-sentence chunks, independent of the seed.

        Documents with a short target length have many more such chunks. Drawing these documents at random would add
        noise, so every document passes once with the full and once with a short length, weighted.
        """
        if not_next_probability not in self._single_shares:
            self._single_shares[not_next_probability] = self._dry_passes(not_next_probability)
        return self._single_shares[not_next_probability]

    def _dry_passes(self, not_next_probability: float) -> float:
        arrays = {number: self.documents.shard(number) for number in self.documents.spread_shards(_DRY_SHARDS)}
        instances = single = 0.0
        seen = 0
        for dry_pass in range(_DRY_PASSES):
            for number, shard in arrays.items():
                rng = np.random.default_rng([dry_pass, number, _DRY])
                for short, weight in ((0.0, 1 - self.short_seq_prob), (1.0, self.short_seq_prob)):
                    sampled = sample_pairs(shard, self.max_num_tokens, short, not_next_probability, rng)
                    instances += weight * len(sampled.chunk_sentences)
                    single += weight * int((sampled.chunk_sentences == 1).sum())
                seen += len(shard.documents) - 1
            if seen >= _DRY_DOCUMENTS:
                break
        return single / instances

    def sample_shard(self, epoch: int, shard: int) -> SampledSpans:
        """Sample one pass over a shard, unshuffled; a pure function of (seed, epoch, shard)."""
        rng = np.random.default_rng([self.seed, epoch, shard, _DRAW])
        arrays = self.documents.shard(shard)
        if self.next_sentence:
            return sample_pairs(arrays, self.max_num_tokens, self.short_seq_prob, self.not_next_probability, rng)
        return sample_spans(arrays, self.max_num_tokens, self.short_seq_prob, rng)

    def sample_buffer(self, epoch: int, buffer: int) -> Instances:
        """Sample and shuffle the instances of a shuffle buffer; a pure function of (seed, epoch, buffer)."""
        order = np.random.default_rng([self.seed, epoch, _SHARD_ORDER]).permutation(self.documents.num_shards)
        parts = []
        for shard in order[buffer * SHUFFLE_BUFFER_SHARDS : (buffer + 1) * SHUFFLE_BUFFER_SHARDS]:
            sampled = self.sample_shard(epoch, int(shard))
            first, count = self.documents.first_tokens[shard], len(sampled.label)
            parts.append(
                Instances(
                    epoch=np.full(count, epoch, dtype=np.int64),
                    index=(np.uint64(shard) << np.uint64(32)) + np.arange(count, dtype=np.uint64),
                    a_start=sampled.a_start + first,
                    a_length=sampled.a_length.astype(np.int32),
                    b_start=sampled.b_start + first,
                    b_length=sampled.b_length.astype(np.int32),
                    next_sentence_label=sampled.label.astype(np.int64),
                )
            )
        instances = Instances.concatenate(parts)
        order = np.random.default_rng([self.seed, epoch, buffer, _ROW_ORDER]).permutation(len(instances))
        return instances[order]

    def batches(
        self, batch_size: int, cursor: Cursor | None = None, *, drop_last: bool = False, epochs: int | None = None
    ) -> Iterator[tuple[Instances, Cursor]]:
        """Yield batches of instances; they run across shuffle buffers and epochs.

        A thread samples the next buffer while this one is used.

        Args:
            batch_size: instances per batch.
            cursor: the position to start from; default: the beginning.
            drop_last: leave out a smaller last batch. Only with `epochs`.
            epochs: stop after epoch `epochs` − 1; default: never stop.

        Yields:
            A batch, and the cursor of the instance after it.

        Raises:
            InputError: if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, not {batch_size}")
        with InstanceStream(self, cursor or Cursor(), epochs) as stream:
            while len(batch := stream.take(batch_size)) == batch_size:
                yield batch, stream.cursor
            if len(batch) and not drop_last:
                yield batch, stream.cursor

    def to_batch(self, instances: Instances) -> dict[str, np.ndarray]:
        """Gather the token ids of n instances, padded to S = max_seq_length.

        Args:
            instances: of this sampler's split and length.

        Returns:
            input_ids and token_type_ids (n, S) int64, lengths (n,) int32 with the special tokens counted, and
            next_sentence_label (n,) int64 if pairs are sampled.
        """
        count, width, special = len(instances), self.max_seq_length, self.documents.special_ids
        # Sort by shard: the tokens of a shard are one array, read by one `take`.
        shards = self.documents.first_tokens.searchsorted(instances.a_start, side="right") - 1  # (n,)
        order = shards.argsort(kind="stable")
        used, first_of_shard = np.unique(shards[order], return_index=True)
        ordered = instances[order]
        # An instance is a head [CLS] A [SEP], a tail B [SEP] (empty without B), and padding.
        head = ordered.a_length.astype(np.int64) + 2  # (n,)
        tail = ordered.b_length.astype(np.int64) + 1 if self.next_sentence else np.zeros_like(head)
        lengths = head + tail
        parts = np.stack([head, tail, width - lengths], axis=1).ravel()  # (n * 3,), sums to n * S

        def spread(first: np.ndarray | int, second: np.ndarray | int, padding: np.ndarray | int) -> np.ndarray:
            """Repeat one value per part over its cells, (n * S,)."""
            values = np.empty((count, 3), dtype=np.int64)
            values[:, 0], values[:, 1], values[:, 2] = first, second, padding
            return values.ravel().repeat(parts)

        # `source` maps every cell to a position in its shard: a constant per part plus the cell's own number. Cells of
        # special tokens and padding read some token, which is overwritten below.
        begin = np.arange(0, count * width, width)  # (n,)
        offset = self.documents.first_tokens[shards[order]] + begin
        source = spread(ordered.a_start - 1 - offset, ordered.b_start - head - offset, 0)  # (n * S,)
        source += np.arange(count * width)
        input_ids = np.empty(count * width, dtype=np.int64)
        borders = [*(first_of_shard * width).tolist(), count * width]
        for shard, first, last in zip(used.tolist(), borders[:-1], borders[1:], strict=True):
            cells = slice(first, last)
            input_ids[cells] = self.documents.tokens(shard).take(source[cells], mode="clip")
        input_ids[spread(0, 0, 1).astype(bool)] = special["pad"]
        input_ids[begin] = special["cls"]
        input_ids[begin + head - 1] = input_ids[begin + lengths - 1] = special["sep"]
        batch = {"input_ids": input_ids, "token_type_ids": spread(0, 1, 0)}
        batch = {name: values.reshape(count, width) for name, values in batch.items()}
        batch["lengths"] = lengths.astype(np.int32)
        if len(used) > 1:  # undo the sorting
            back = order.argsort()
            batch = {name: values[back] for name, values in batch.items()}
        if self.next_sentence:
            batch["next_sentence_label"] = instances.next_sentence_label.astype(np.int64)
        return batch


def sample_pairs(
    shard: ShardArrays,
    max_num_tokens: int,
    short_seq_prob: float,
    not_next_probability: float,
    rng: np.random.Generator,
) -> SampledSpans:
    """Sample one pass of segment pairs over the documents of `shard`.

    Args:
        shard: two documents or more.
        max_num_tokens: tokens of A and B together, max_seq_length − 3.
        short_seq_prob: probability of a random shorter target length, per document.
        not_next_probability: probability of a random B, per chunk of two or more sentences.
        rng: the source of all random numbers.

    Returns:
        The pairs, in the order in which chunks were taken: first chunks of all documents, then second ones.
    """
    token_offsets, first_sentences = shard.sentences, shard.documents[:-1]
    document_sentences = np.diff(shard.documents)
    # Step k takes the k-th chunk of every document with sentences left; d is the number of these documents.
    alive = np.arange(len(first_sentences))  # (d,) document numbers
    begin, stop = first_sentences, shard.documents[1:]  # (d,) sentence numbers: next to use, end of the document
    target_seq_length = sample_target_lengths(len(alive), max_num_tokens, short_seq_prob, rng)  # (d,)
    steps: list[tuple[np.ndarray, ...]] = []
    while len(alive):
        # The chunk ends with the sentence that reaches the target length, or with the document.
        end = np.minimum(token_offsets.searchsorted(token_offsets[begin] + target_seq_length), stop)
        draws = rng.random(4 * len(alive)).reshape(4, -1)
        # A is the first 1 … n − 1 sentences of a chunk of n; all of a one-sentence chunk.
        a_end = begin + 1 + (draws[0] * np.maximum(end - begin - 1, 1)).astype(np.int64)
        random_b = (draws[1] < not_next_probability) | (end - begin == 1)
        steps.append((alive, target_seq_length, begin, a_end, end, random_b, *draws[2:]))
        # The sentences displaced by a random B are put back.
        begin = np.where(random_b, a_end, end)
        unfinished = begin < stop
        if not unfinished.all():
            remaining = (alive, begin, stop, target_seq_length)
            alive, begin, stop, target_seq_length = (values[unfinished] for values in remaining)
    document, target_seq_length, begin, a_end, end, label, *b_draws = (
        np.concatenate(column) for column in zip(*steps, strict=True)
    )  # (instances,) each
    a_start = token_offsets[begin]
    a_length = token_offsets[a_end] - a_start
    # A random B comes from any document but A's: from a uniform sentence on, until the target length is reached.
    other = (b_draws[0] * (len(first_sentences) - 1)).astype(np.int64)
    other += other >= document
    other_begin = first_sentences[other] + (b_draws[1] * document_sentences[other]).astype(np.int64)
    enough = token_offsets[other_begin] + np.maximum(target_seq_length - a_length, 1)
    other_end = np.minimum(token_offsets.searchsorted(enough), shard.documents[other + 1])
    b_start = token_offsets[np.where(label, other_begin, a_end)]
    b_length = token_offsets[np.where(label, other_end, end)] - b_start
    a_start, a_length, b_start, b_length, num_truncated = truncate_pairs(
        a_start, a_length, b_start, b_length, max_num_tokens, rng
    )
    return SampledSpans(a_start, a_length, b_start, b_length, label, num_truncated, chunk_sentences=end - begin)


def sample_spans(
    shard: ShardArrays, max_num_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> SampledSpans:
    """Sample one pass of contiguous spans over the documents of `shard`.

    A document is cut every `max_num_tokens` tokens, or every target length, if shorter. The first cut is random, so
    that epochs differ.

    Args:
        shard: one document or more.
        max_num_tokens: tokens of a span, max_seq_length − 2.
        short_seq_prob: probability of a random shorter target length, per document.
        rng: the source of all random numbers.

    Returns:
        The spans as segments A, in the order of the text; segments B are empty and labels 0.
    """
    document_starts = shard.sentences[shard.documents[:-1]]  # (documents,)
    lengths = shard.sentences[shard.documents[1:]] - document_starts
    target_seq_lengths = sample_target_lengths(len(lengths), max_num_tokens, short_seq_prob, rng)
    # The first span has 1 … target length tokens; a document that fits into one span stays whole.
    heads = np.where(lengths > target_seq_lengths, 1 + _uniform(target_seq_lengths, rng), lengths)
    counts = 1 + -(-(lengths - heads) // target_seq_lengths)  # (documents,) spans of each
    document = np.repeat(np.arange(len(lengths)), counts)  # (instances,)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the document
    start = np.where(number > 0, heads[document] + (number - 1) * target_seq_lengths[document], 0)
    stop = np.minimum(heads[document] + number * target_seq_lengths[document], lengths[document])
    zeros = np.zeros(len(document), dtype=np.int64)
    begin = document_starts[document] + start
    return SampledSpans(begin, stop - start, begin, zeros, zeros, num_truncated=zeros, chunk_sentences=zeros)


def sample_target_lengths(
    documents: int, max_num_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the target length of every document.

    Args:
        documents: number of documents.
        max_num_tokens: the longest target, in tokens, at least 2.
        short_seq_prob: probability of a length that is uniform from 2 to `max_num_tokens`.
        rng: the source of all random numbers.

    Returns:
        (documents,) int64.
    """
    short = rng.random(documents) < short_seq_prob
    return np.where(short, 2 + _uniform(np.full(documents, max_num_tokens - 1), rng), max_num_tokens)


def _uniform(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one uniform integer in [0, count) per entry (every count at least 1)."""
    return (rng.random(len(counts)) * counts).astype(np.int64)


def truncate_pairs(
    a_start: np.ndarray,
    a_length: np.ndarray,
    b_start: np.ndarray,
    b_length: np.ndarray,
    max_num_tokens: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """Shorten pairs to `max_num_tokens`, in closed form.

    The original removes one token at a time from the longer segment (B on a tie), at its front or back at random. So
    the longer segment first loses the difference, both share the rest, and the tokens lost at a front are binomial.

    Args:
        a_start: (instances,) position of each segment's first token.
        a_length: (instances,) tokens.
        b_start: (instances,) position of each segment's first token.
        b_length: (instances,) tokens.
        max_num_tokens: most tokens of A and B together.
        rng: the source of all random numbers.

    Returns:
        The four arrays of the shortened pairs, and the number of tokens that each pair lost, (instances,).
    """
    excess = np.maximum(a_length + b_length - max_num_tokens, 0)
    difference = a_length - b_length
    from_longer = np.minimum(excess, np.abs(difference))
    shared = excess - from_longer
    a_lost = np.where(difference > 0, from_longer, 0) + shared // 2
    b_lost = np.where(difference < 0, from_longer, 0) + (shared + 1) // 2
    cut = np.flatnonzero(excess)
    a_front, b_front = np.zeros_like(a_lost), np.zeros_like(b_lost)
    a_front[cut], b_front[cut] = rng.binomial(a_lost[cut], 0.5), rng.binomial(b_lost[cut], 0.5)
    return a_start + a_front, a_length - a_lost, b_start + b_front, b_length - b_lost, excess

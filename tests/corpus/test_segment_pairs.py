"""Segment pairs against a plain-Python reading of the rules, and the promises about order and resuming."""

import hashlib
import random

import numpy as np
import pytest
from corpus_helpers import numbered_documents, random_lengths

from hfbert_scratch.corpus import segment_pairs
from hfbert_scratch.corpus.dataset import TokenizedDocuments
from hfbert_scratch.corpus.segment_pairs import (
    Cursor,
    Instances,
    SegmentPairSampler,
    sample_target_lengths,
    truncate_pairs,
)
from hfbert_scratch.utils.errors import InputError


def reference_pass(sentence_lengths, max_seq_length, short_seq_prob, coin, rng):
    """One pass by the book: lists of (document, position) tokens, one document after the other.

    Yields (A, B, label, sentences of the chunk, tokens lost).
    """
    texts = []
    for number, lengths in enumerate(sentence_lengths):
        position, sentences = 0, []
        for length in lengths:
            sentences.append([(number, position + i) for i in range(length)])
            position += length
        texts.append(sentences)
    room = max_seq_length - 3
    for number, sentences in enumerate(texts):
        target = rng.randint(2, room) if rng.random() < short_seq_prob else room
        chunk, i = [], 0
        while i < len(sentences):
            chunk.append(sentences[i])
            if i == len(sentences) - 1 or sum(map(len, chunk)) >= target:
                a_end = 1 if len(chunk) == 1 else rng.randint(1, len(chunk) - 1)
                a = [token for sentence in chunk[:a_end] for token in sentence]
                b = []
                random_b = len(chunk) == 1 or rng.random() < coin
                if random_b:
                    other = number
                    while other == number:
                        other = rng.randrange(len(texts))
                    for sentence in texts[other][rng.randrange(len(texts[other])) :]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - a_end
                else:
                    b = [token for sentence in chunk[a_end:] for token in sentence]
                lost = 0
                while len(a) + len(b) > room:
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if rng.random() < 0.5 else -1)
                    lost += 1
                yield a, b, int(random_b), len(chunk), lost
                chunk = []
            i += 1


def sample_epochs(pairs, epochs=1):
    """All rows of some passes, one shard after the other, with the shard's first token added."""
    parts = []
    for epoch in range(epochs):
        for shard in range(pairs.documents.num_shards):
            rows = pairs.sample_shard(epoch, shard)
            first = pairs.documents.first_tokens[shard]
            parts.append(rows._replace(a_start=rows.a_start + first, b_start=rows.b_start + first))
    return segment_pairs.SampledSpans(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def document_starts(sentence_lengths):
    return np.cumsum([0, *(sum(lengths) for lengths in sentence_lengths)])


@pytest.fixture(scope="module")
def lengths():
    return random_lengths(600, seed=3)


@pytest.fixture
def documents(tmp_path, lengths):
    return numbered_documents(tmp_path, lengths)


@pytest.mark.parametrize("max_seq_length", [32, 128])
def test_agrees_with_the_rules_in_plain_python(documents, lengths, max_seq_length):
    rng = random.Random(5)
    rows = [row for _ in range(4) for row in reference_pass(lengths, max_seq_length, 0.1, 0.5, rng)]
    expected = np.array(
        [(len(a), len(b), label, chunk == 1, lost, chunk) for a, b, label, chunk, lost in rows], dtype=float
    )
    pairs = SegmentPairSampler(documents, max_seq_length=max_seq_length, seed=1, balanced_nsp=False)
    got = sample_epochs(pairs, epochs=12)
    ours = np.stack(
        [got.a_length, got.b_length, got.label, got.chunk_sentences == 1, got.num_truncated, got.chunk_sentences],
        axis=1,
    ).astype(float)
    assert len(got.label) / 12 == pytest.approx(len(rows) / 4, rel=0.03)
    # Means of |A|, |B|, label, one-sentence chunks, tokens lost, chunk length; also of rows under half and full ones.
    np.testing.assert_allclose(ours.mean(0), expected.mean(0), rtol=0.04, atol=0.012)
    np.testing.assert_allclose(ours.std(0), expected.std(0), rtol=0.05, atol=0.012)
    room = max_seq_length - 3
    for used, reference in ((ours[:, :2].sum(1), expected[:, :2].sum(1)),):
        assert (used == room).mean() == pytest.approx((reference == room).mean(), abs=0.015)
        assert (used < room / 2).mean() == pytest.approx((reference < room / 2).mean(), abs=0.015)
        for share in (0.1, 0.5, 0.9):
            assert np.quantile(ours[:, 0], share) == pytest.approx(np.quantile(expected[:, 0], share), abs=2)


def test_spans_partition_every_document(documents, lengths, monkeypatch):
    # Without truncation, which comes last, the spans are those the rules chose.
    monkeypatch.setattr(segment_pairs, "truncate_pairs", lambda *spans: (*spans[:4], np.zeros_like(spans[1])))
    rows = sample_epochs(SegmentPairSampler(documents, max_seq_length=64, seed=7))
    starts = document_starts(lengths)
    follows = rows.label == 0
    np.testing.assert_array_equal(rows.b_start[follows], (rows.a_start + rows.a_length)[follows])
    begin = np.concatenate([rows.a_start, rows.b_start[follows]])
    end = begin + np.concatenate([rows.a_length, rows.b_length[follows]])
    order = np.argsort(begin)
    np.testing.assert_array_equal(begin[order], np.concatenate([[0], end[order][:-1]]))
    assert end.max() == starts[-1] == documents.num_tokens
    # No span crosses a document's end.
    np.testing.assert_array_equal(np.searchsorted(starts, begin, "right"), np.searchsorted(starts, end - 1, "right"))


def test_random_b_is_from_another_document_and_uniform(documents, lengths):
    rows = sample_epochs(SegmentPairSampler(documents, max_seq_length=128, seed=2), epochs=3)
    starts = document_starts(lengths)
    a, b = (np.searchsorted(starts, start, "right") - 1 for start in (rows.a_start, rows.b_start))
    assert (a[rows.label == 1] != b[rows.label == 1]).all()
    assert (a[rows.label == 0] == b[rows.label == 0]).all()
    assert set(a) == set(range(len(lengths)))
    counts = np.bincount(b[rows.label == 1], minlength=len(lengths))
    assert counts.std() < 1.25 * np.sqrt(counts.mean())


def test_lengths_and_truncation(documents):
    rows = sample_epochs(SegmentPairSampler(documents, max_seq_length=48, seed=2), epochs=3)
    assert (rows.a_length >= 1).all() and (rows.b_length >= 1).all()
    assert (rows.a_length + rows.b_length <= 45).all()
    assert ((rows.a_length + rows.b_length)[rows.num_truncated > 0] == 45).all()


def test_truncation_equals_token_by_token():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 90, 20_000), rng.integers(1, 90, 20_000)
    zero = np.zeros_like(a)
    a_start, a_left, b_start, b_left, lost = truncate_pairs(zero, a, zero, b, 61, rng)
    for row in range(2000):
        la, lb = a[row], b[row]
        while la + lb > 61:
            if la > lb:
                la -= 1
            else:
                lb -= 1
        assert (a_left[row], b_left[row]) == (la, lb)
    np.testing.assert_array_equal(lost, a - a_left + b - b_left)
    for start, gone in ((a_start, a - a_left), (b_start, b - b_left)):
        assert (start >= 0).all() and (start <= gone).all()
        many = gone >= 20
        assert start.sum() / gone.sum() == pytest.approx(0.5, abs=0.005)
        # Binomial(n, ½) has variance n/4.
        assert np.mean((start[many] - gone[many] / 2) ** 2 / (gone[many] / 4)) == pytest.approx(1, abs=0.05)


def test_balanced_and_short(tmp_path):
    documents = numbered_documents(tmp_path, random_lengths(3000, seed=1, mean=40.0), documents_per_shard=500)
    for length in (64, 128):
        fair = SegmentPairSampler(documents, max_seq_length=length, seed=0, balanced_nsp=False)
        even = SegmentPairSampler(documents, max_seq_length=length, seed=0)
        assert sample_epochs(fair, 3).label.mean() > 0.53
        assert sample_epochs(even, 6).label.mean() == pytest.approx(0.5, abs=0.01)
    rng = np.random.default_rng(0)
    targets = sample_target_lengths(200_000, 125, 0.1, rng)
    assert (targets < 125).mean() == pytest.approx(0.1 * 123 / 124, abs=0.003)
    assert targets.min() == 2 and targets.max() == 125
    assert targets[targets < 125].mean() == pytest.approx((2 + 124) / 2, abs=1)


def test_one_sentence_documents_only_give_not_next(tmp_path):
    documents = numbered_documents(tmp_path, [[12]] * 40)
    pairs = SegmentPairSampler(documents, max_seq_length=32, seed=0)
    assert pairs.not_next_probability == 0.0
    assert (sample_epochs(pairs).label == 1).all()


def test_same_rows_for_any_batch_size_and_from_any_cursor(tmp_path):
    documents = numbered_documents(tmp_path, random_lengths(300, seed=2), documents_per_shard=15)
    assert documents.num_shards == 20
    make = lambda: SegmentPairSampler(documents, max_seq_length=64, seed=11)  # noqa: E731
    pairs = make()
    assert pairs.num_buffers == 3
    whole = Instances.concatenate([pairs.sample_buffer(epoch, group) for epoch in range(2) for group in range(3)])
    for size in (1, 7, 64, 5000):
        stream = pairs.batches(size, epochs=2)
        parts = [batch for batch, _ in zip((batch for batch, _ in stream), range(10**9), strict=False)]
        assert all(len(part) == size for part in parts[:-1])
        np.testing.assert_array_equal(Instances.concatenate(parts).index, whole.index)
        np.testing.assert_array_equal(Instances.concatenate(parts).a_start, whole.a_start)
    batches = list(make().batches(50, epochs=2))
    for number in (0, 3, len(batches) // 2, len(batches) - 2):
        rest = list(make().batches(50, batches[number][1], epochs=2))
        assert [cursor for _, cursor in rest] == [cursor for _, cursor in batches[number + 1 :]]
        for (again, _), (before, _) in zip(rest, batches[number + 1 :], strict=True):
            np.testing.assert_array_equal(again.a_start, before.a_start)
            np.testing.assert_array_equal(again.index, before.index)
    assert len(list(pairs.batches(50, epochs=2, drop_last=True))) == len(whole) // 50
    assert list(pairs.batches(50, Cursor(2, 0, 0), epochs=2)) == []
    endless = pairs.batches(5000)
    assert [next(endless)[1].epoch for _ in range(6)][-1] >= 2


def test_index_is_unique_and_epochs_differ(tmp_path):
    documents = numbered_documents(tmp_path, random_lengths(200, seed=2), documents_per_shard=50)
    pairs = SegmentPairSampler(documents, max_seq_length=64, seed=1)
    first, second = pairs.sample_buffer(0, 0), pairs.sample_buffer(1, 0)
    assert len(np.unique(first.index)) == len(first)
    assert first.index.dtype == np.uint64 and (second.epoch == 1).all()
    assert not np.array_equal(first.a_start[:100], second.a_start[:100])
    other_seed = SegmentPairSampler(documents, max_seq_length=64, seed=2).sample_buffer(0, 0)
    assert not np.array_equal(first.a_start[:100], other_seed.a_start[:100])


def test_golden_rows(tmp_path):
    """Changes of this digest change every run that is resumed: do not, or say so in the release notes."""
    documents = numbered_documents(tmp_path, random_lengths(100, seed=9), documents_per_shard=30)
    rows = SegmentPairSampler(documents, max_seq_length=64, seed=42).sample_buffer(3, 0)
    digest = hashlib.sha256()
    for column in (rows.index, rows.a_start, rows.a_length, rows.b_start, rows.b_length, rows.next_sentence_label):
        digest.update(np.ascontiguousarray(column).tobytes())
    assert digest.hexdigest()[:16] == "c1944ee0a6600f65"


@pytest.mark.parametrize("next_sentence", [True, False])
def test_assemble(tmp_path, next_sentence):
    documents = numbered_documents(tmp_path, random_lengths(120, seed=4), documents_per_shard=11)
    pairs = SegmentPairSampler(documents, max_seq_length=40, seed=0, next_sentence=next_sentence)
    rows = pairs.sample_buffer(0, 0)[:300]
    batch = pairs.to_batch(rows)
    assert batch["input_ids"].dtype == batch["token_type_ids"].dtype == np.int64
    assert batch["lengths"].dtype == np.int32
    assert ("next_sentence_label" in batch) == next_sentence
    assert pairs.to_batch(rows[:0])["input_ids"].shape == (0, 40), "no rows are rows too"
    for row in range(len(rows)):
        # Token ids are positions plus 10.
        a, b = ([*range(s + 10, s + 10 + n)] for s, n in (
            (rows.a_start[row], rows.a_length[row]), (rows.b_start[row], rows.b_length[row])))  # fmt: skip
        ids = [2, *a, 3, *b, 3] if next_sentence else [2, *a, 3]
        types = [0] * (len(a) + 2) + ([1] * (len(b) + 1) if next_sentence else [])
        assert batch["lengths"][row] == len(ids) <= 40
        assert batch["input_ids"][row].tolist() == ids + [0] * (40 - len(ids))
        assert batch["token_type_ids"][row].tolist() == types + [0] * (40 - len(ids))


def test_spans_without_next_sentence_partition_the_documents(documents, lengths):
    pairs = SegmentPairSampler(documents, max_seq_length=64, seed=0, next_sentence=False)
    seen = []
    for epoch in range(2):
        rows = pairs.sample_buffer(epoch, 0)
        order = np.argsort(rows.a_start)
        begin, end = rows.a_start[order], (rows.a_start + rows.a_length)[order]
        np.testing.assert_array_equal(begin, np.concatenate([[0], end[:-1]]))
        assert end[-1] == documents.num_tokens and rows.a_length.max() == 62 and not rows.b_length.any()
        starts = document_starts(lengths)
        np.testing.assert_array_equal(
            np.searchsorted(starts, begin, "right"), np.searchsorted(starts, end - 1, "right")
        )
        seen.append(begin)
    assert (rows.a_length == 62).mean() > 0.5
    assert not np.array_equal(*(np.resize(begin, 500) for begin in seen))


def test_a_lone_document_joins_its_neighbours(tmp_path):
    for counts in ([1, 5], [5, 1], [1, 1, 1, 5], [3, 1, 1], [1, 1]):
        directory = tmp_path / "-".join(map(str, counts))
        directory.mkdir()
        files = []
        all_lengths = random_lengths(sum(counts), seed=5)
        for number, count in enumerate(counts):
            place = directory / str(number)
            place.mkdir()
            numbered_documents(place, all_lengths[sum(counts[:number]) :][:count])
            files.append(place / "data-00000.arrow")
        documents = TokenizedDocuments(files, {"pad": 0, "cls": 2, "sep": 3})
        assert documents.num_documents == sum(counts)
        assert all(len(documents.shard(number).documents) > 2 for number in range(documents.num_shards))
        assert len(SegmentPairSampler(documents, max_seq_length=32, seed=0).sample_buffer(0, 0)) > 0


def test_tokens_are_not_copied(tmp_path):
    documents = numbered_documents(tmp_path, random_lengths(50), documents_per_shard=10)
    tokens = documents.tokens(0)
    assert not tokens.flags.writeable and not tokens.flags.owndata


def test_refusals(tmp_path):
    one = numbered_documents(tmp_path, [[5, 5, 5]])
    with pytest.raises(InputError, match="at least 2 documents"):
        SegmentPairSampler(one, max_seq_length=32, seed=0)
    assert len(SegmentPairSampler(one, max_seq_length=32, seed=0, next_sentence=False).sample_buffer(0, 0)) == 1
    with pytest.raises(InputError, match="no document"):
        SegmentPairSampler(TokenizedDocuments([], {}), max_seq_length=32, seed=0)
    with pytest.raises(InputError, match="no room"):
        SegmentPairSampler(one, max_seq_length=3, seed=0, next_sentence=False)
    with pytest.raises(InputError, match="short_seq_prob"):
        SegmentPairSampler(one, max_seq_length=32, seed=0, next_sentence=False, short_seq_prob=1.5)
    (tmp_path / "data-00000.arrow").write_bytes(b"torn")
    with pytest.raises(InputError, match="data-00000.arrow is missing or damaged"):
        TokenizedDocuments([tmp_path / "data-00000.arrow"], {})

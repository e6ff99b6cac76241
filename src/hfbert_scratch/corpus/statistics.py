"""Describe a corpus for its manifest, and refuse one that is unfit for pretraining."""

from typing import Any

import numpy as np

from ..text.sample import TextSample
from ..utils.errors import InputError
from .dataset import TokenizedDocuments
from .segment_pairs import SegmentPairSampler


# Sequence lengths of the two phases of BERT's pretraining.
PHASE_LENGTHS = (128, 512)
# Bins of a histogram of lengths by powers of two.
_BINS = 40
# Pairs are described from at most this many shards, and the counts scaled up.
DESCRIBED_SHARDS = 16


def count_split(tokens: np.ndarray, lengths: np.ndarray, sentences: np.ndarray, vocab_size: int) -> np.ndarray:
    """Count the documents of a part of a split, for `describe_split`; the counts of all parts add up.

    Args:
        tokens: (tokens,) ids.
        lengths: (sentences,) tokens of each sentence.
        sentences: (documents,) sentences of each document, none without any.
        vocab_size: of the tokenizer.

    Returns:
        (3 + 40 + 40 + vocab_size,) int64: documents, sentences, documents of one sentence; histograms of sentences and
        documents by tokens; occurrences of each token.
    """
    first = np.cumsum(sentences) - sentences  # (documents,) first sentence of each
    of_documents = np.add.reduceat(lengths, first) if len(first) else lengths  # (documents,) tokens of each
    totals = [len(sentences), len(lengths), int((sentences == 1).sum())]
    unigrams = np.bincount(tokens, minlength=vocab_size)
    return np.concatenate([totals, _binned(lengths), _binned(of_documents), unigrams]).astype(np.int64)


def describe_split(counts: np.ndarray, unk_id: int) -> dict[str, Any]:
    """Compute sizes, histograms and the unigram baseline of a split.

    A masked language model that only knows token frequencies reaches the loss `unigram_entropy` (nats) and the
    accuracy `unigram_accuracy`, the share of the most frequent token. [CLS], [SEP] and [PAD] do not count.

    Args:
        counts: the sum of `count_split` over all its parts; at least one token.
        unk_id: id of the unknown token.

    Returns:
        Name → figure, for the manifest. Shares are from 0 to 1.
    """
    (documents, sentences, one_sentence), bins, unigrams = counts[:3], counts[3 : 3 + 2 * _BINS], unigrams_of(counts)
    tokens = int(unigrams.sum())
    share = unigrams[unigrams > 0] / tokens
    return {
        "documents": int(documents),
        "sentences": int(sentences),
        "tokens": tokens,
        "one_sentence_documents": int(one_sentence),
        "unk_rate": round(float(unigrams[unk_id] / tokens), 6),
        "unigram_entropy": round(float(-(share * np.log(share)).sum()), 4),
        "unigram_accuracy": round(float(share.max()), 5),
        "most_frequent_token": int(unigrams.argmax()),
        "distinct_tokens": len(share),
        "sentences_by_tokens": _histogram(bins[:_BINS]),
        "documents_by_tokens": _histogram(bins[_BINS:]),
    }


def unigrams_of(counts: np.ndarray) -> np.ndarray:
    """Return how often each token occurs, (vocab_size,) int64, from the counts of `count_split`."""
    return counts[3 + 2 * _BINS :]


def describe_pairs(documents: TokenizedDocuments, longest: int, next_sentence: bool) -> dict[str, Any]:
    """Describe one pass of segment pairs at the usual lengths up to `longest`.

    Args:
        documents: a split. Counts are scaled up from DESCRIBED_SHARDS shards.
        longest: tokens of the longest sequence; it is described, too.
        next_sentence: describe pairs, not spans.

    Returns:
        Length → figures; empty if pairs need a second document. tokens_truncated_rate is the share of sampled
        tokens that truncation removes; padding_rate the share of padding; not_next_rate_original the share of
        NotNext with the original's fair coin.
    """
    described: dict[str, Any] = {}
    if next_sentence and documents.num_documents < 2:
        return described
    chosen = documents.spread_shards(DESCRIBED_SHARDS)
    scale = documents.num_tokens / sum(len(documents.tokens(shard)) for shard in chosen)
    for length in sorted({*(length for length in PHASE_LENGTHS if length <= longest), longest}):
        sampler = SegmentPairSampler(documents, max_seq_length=length, seed=0, next_sentence=next_sentence)
        sampled = [sampler.sample_shard(0, shard) for shard in chosen]
        used = np.concatenate([spans.a_length + spans.b_length for spans in sampled])
        truncated = sum(int(spans.num_truncated.sum()) for spans in sampled)
        entry: dict[str, Any] = {
            "instances": round(len(used) * scale),
            "counted_shards": len(chosen),
            "mean_length": round(float(used.mean()) + length - sampler.max_num_tokens, 2),
            "full_rows": round(float((used == sampler.max_num_tokens).mean()), 4),
            "rows_under_half": round(float((used < sampler.max_num_tokens / 2).mean()), 4),
            "padding_rate": round(float(1 - (used.mean() + length - sampler.max_num_tokens) / length), 4),
            "tokens_truncated_rate": round(truncated / (truncated + int(used.sum())), 4),
            "tokens_per_corpus_token": round(float(used.sum()) * scale / documents.num_tokens, 4),
        }
        if next_sentence:
            single = sampler.single_sentence_share(0.5)
            entry["one_sentence_chunks"] = round(single, 4)
            entry["not_next_coin"] = round(sampler.not_next_probability, 4)
            entry["not_next_rate"] = round(float(np.concatenate([spans.label for spans in sampled]).mean()), 4)
            entry["not_next_rate_original"] = round(single + (1 - single) * 0.5, 4)
        described[str(length)] = entry
    return described


def corpus_lines(manifest: dict[str, Any]) -> list[str]:
    """Describe a corpus: a line for each split, and one for each length of sequences."""
    lines = [
        f"{name}: {split['documents']:,} documents, {split['sentences']:,} sentences, {split['tokens']:,} tokens; "
        f"unigram entropy {split['unigram_entropy']:.2f} nats; the most frequent token is "
        f"{split['unigram_accuracy']:.1%} of all"
        for name, split in manifest["splits"].items()
    ]
    for length, entry in manifest["pairs"]["train"].items():
        pairs = f"; {entry['not_next_rate']:.1%} are not-next pairs" if "not_next_rate" in entry else ""
        lines.append(
            f"length {length}: {entry['instances']:,} sequences of {entry['mean_length']:.1f} tokens on average, "
            f"{entry['padding_rate']:.1%} padding; {entry['tokens_truncated_rate']:.1%} of the tokens drawn are cut "
            f"off{pairs}"
        )
    return lines


def check_corpus(manifest: dict[str, Any]) -> list[str]:
    """Check a described corpus.

    Args:
        manifest: its description so far, with the arguments of the build.

    Returns:
        Warnings, one sentence each.

    Raises:
        InputError: if pretraining cannot work: no document, no second one for random segments, hardly any pair that
            can be IsNext, mostly duplicates, or a tokenizer that does not know the text.
    """
    splits, arguments = manifest["splits"], manifest["arguments"]
    next_sentence = arguments["next_sentence"]
    train = splits.get("train")
    if train is None:
        raise InputError("the text holds no document for the train split (blank lines and control characters only?)")
    kept = sum(split["documents"] for split in splits.values())
    if next_sentence and kept < 2:
        raise InputError(
            f"next-sentence prediction needs at least 2 documents (blank-line separated); found {kept} "
            f"({manifest['duplicates']} duplicates left out); add documents (4 with a validation split) or use "
            "--no_nsp"
        )
    if next_sentence and any(split["documents"] < 2 for split in splits.values()):
        raise InputError(
            "next-sentence prediction needs 2 documents with text in each split; use more text, or --no_nsp"
        )
    if arguments["validation_share"] and "validation" not in splits:
        raise InputError(
            "one document cannot be split into train and validation; separate documents by blank lines, or add text"
        )
    rate = manifest["duplicate_rate"]
    if rate > 0.5 and not arguments["drop_duplicates"]:
        raise InputError(
            f"{rate:.0%} of the documents are copies of others; the model would learn them by heart: use "
            "--drop_duplicates true"
        )
    sample = TextSample.merged([manifest["sample"]])
    if train["unk_rate"] > 0.1:
        reasons = "; ".join(sample.reasons_for_many_unknown())
        raise InputError(f"{train['unk_rate']:.0%} of the tokens are [UNK]: {reasons}")
    single = train["one_sentence_documents"] / train["documents"]
    if next_sentence and single > 0.9:
        raise InputError(
            f"{single:.0%} of the documents have one sentence, so there is next to nothing for IsNext; is there a "
            "blank line behind every sentence? Remove those inside documents, or use --no_nsp"
        )
    return _warnings(manifest, next_sentence, single) + sample.reasons()


def _warnings(manifest: dict[str, Any], next_sentence: bool, single: float) -> list[str]:
    train, rate = manifest["splits"]["train"], manifest["duplicate_rate"]
    warnings = []
    if "validation" not in manifest["splits"]:
        warnings.append("no document is held out, and hfbert pretrain needs some: see --validation_share")
    if train["documents"] < 10:
        warnings.append(f"only {train['documents']} documents in the train split")
    if next_sentence and single > 0.2:
        warnings.append(f"{single:.0%} of the documents have one sentence and give no IsNext pair")
    for length, entry in manifest.get("pairs", {}).get("train", {}).items():
        if entry["tokens_truncated_rate"] > 0.3:
            warnings.append(
                f"at length {length}, {entry['tokens_truncated_rate']:.0%} of the tokens drawn are cut off again, for "
                f"sentences have {train['tokens'] / train['sentences']:.0f} tokens on average; put one on a line, or "
                "train on longer sequences"
            )
        if entry.get("not_next_rate_original", 0) > 0.6:
            warnings.append(
                f"at length {length}, {entry['one_sentence_chunks']:.0%} of the chunks have one sentence: NotNext is "
                f"{entry['not_next_rate_original']:.0%} with a fair coin and {entry['not_next_rate']:.0%} balanced"
            )
    if rate > 0.2:
        warnings.append(f"{rate:.0%} of the documents were copies of others")
    if train["unk_rate"] > 0.01:
        warnings.append(f"{train['unk_rate']:.1%} of the tokens are [UNK]")
    if manifest["documents_with_literal_special_tokens"]:
        count = manifest["documents_with_literal_special_tokens"]
        warnings.append(f"{count} documents contain special tokens as text, such as [SEP]; they are tokenized as text")
    if manifest["null_texts"]:
        warnings.append(f"{manifest['null_texts']} rows had no text (null)")
    if manifest["cut_documents"]:
        warnings.append(f"{manifest['cut_documents']} times a document was so long that its rest became another one")
    return warnings


def _binned(lengths: np.ndarray) -> np.ndarray:
    """Count lengths by powers of two: bin k has those from 2^k to 2^(k+1) − 1."""
    return np.bincount(np.log2(lengths).astype(np.int64), minlength=_BINS)


def _histogram(bins: np.ndarray) -> dict[str, int]:
    last = int(np.flatnonzero(bins)[-1]) if bins.any() else -1
    return {f"{1 << k}-{(2 << k) - 1}": int(bins[k]) for k in range(last + 1)}

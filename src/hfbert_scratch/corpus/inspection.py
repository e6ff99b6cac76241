"""Show what a model is fed: documents, training instances and a tokenizer, as text for human eyes and as figures."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.errors import InputError
from .arguments import PretrainingDataArguments
from .dataset import Corpus, TokenizedDocuments
from .masking import collate
from .segment_pairs import Instances, SegmentPairSampler


# Changes `text` for a terminal, in a style of `STYLES`; elsewhere it returns the text.
Paint = Callable[[str, str], str]
# What became of a predicted token, the parts of a pair, and their SGR codes.
STYLES = {"mask": "1;31", "random": "1;33", "kept": "1;32", "special": "2", "heading": "1"}
# Instances that the figures of a batch are counted on.
_COUNTED_INSTANCES = 1024
# Tokens in each list of the most frequent and the unused ones.
_LISTED = 20


@dataclass
class Inspection:
    """The result: lines of text, figures for a JSON file, and histograms for a picture."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)


def plain(text: str, style: str) -> str:
    """Return the text as it is: the `Paint` of files and pipes."""
    del style
    return text


def painted(text: str, style: str) -> str:
    """Return the text in a colour: the `Paint` of terminals."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def join_pieces(pieces: Sequence[str]) -> str:
    """Write tokens as words: a piece that begins with ## joins the one before.

    Args:
        pieces: tokens, or tokens with marks around them, of which only the beginning counts.
    """
    words: list[str] = []
    for piece in pieces:
        if piece.startswith("##") and words:
            words[-1] += piece[2:]
        else:
            words.append(piece)
    return " ".join(words)


def inspect_corpus(
    corpus: Corpus, tokenizer: Any, *, split: str, first: int, count: int, paint: Paint = plain
) -> Inspection:
    """Show documents of a corpus, sentence by sentence, and the totals of all.

    Args:
        corpus: a finished corpus.
        tokenizer: the corpus's.
        split: "train" or "validation".
        first: number of the first document to show.
        count: how many documents to show.
        paint: marks headings.

    Raises:
        InputError: if the split has no document `first`.
    """
    documents = corpus.split(split)
    _require_number("document", first, documents.num_documents, f"the split {split}")
    result = Inspection()
    numbered = itertools.islice(_documents(documents), first, first + count)
    for number, sentences in enumerate(numbered, start=first):
        tokens = sum(map(len, sentences))
        result.lines.append(
            paint(f"document {number} of {split}: {len(sentences)} sentences, {tokens} tokens", "heading")
        )
        for place, sentence in enumerate(sentences, start=1):
            result.lines.append(f"{place:5}  {join_pieces(tokenizer.convert_ids_to_tokens(sentence.tolist()))}")
    described = corpus.manifest["splits"][split]
    for name in ("documents_by_tokens", "sentences_by_tokens"):
        result.histograms[name.replace("_", " ")] = described[name]
        result.lines += [paint(name.replace("_", " "), "heading"), *_bars(described[name])]
    counts = documents.token_counts(len(tokenizer))
    usage = token_usage(counts, tokenizer)
    result.figures = {
        "documents": described["documents"],
        "sentences": described["sentences"],
        "tokens": described["tokens"],
        "documents_by_tokens": described["documents_by_tokens"],
        "sentences_by_tokens": described["sentences_by_tokens"],
        **usage,
    }
    result.lines += _usage_lines(usage, paint)
    result.histograms["tokens of the vocabulary by frequency"] = _by_frequency(counts)
    return result


def _documents(documents: TokenizedDocuments) -> Iterator[list[np.ndarray]]:
    """Yield the documents of a split as lists of sentences."""
    for number in range(documents.num_shards):
        shard = documents.shard(number)
        for begin, end in itertools.pairwise(shard.documents.tolist()):
            borders = shard.sentences[begin : end + 1].tolist()
            yield [shard.tokens[first:last] for first, last in itertools.pairwise(borders)]


def token_usage(counts: np.ndarray, tokenizer: Any) -> dict[str, Any]:
    """Tell how a text uses a vocabulary.

    Args:
        counts: (vocabulary,) how often each token occurs in the text.
        tokenizer: whose tokens they are.

    Returns:
        Share of unknown tokens, pieces per word, the most frequent tokens with their shares, and how many of the
        vocabulary never occur, with the first of them.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    total = max(int(counts.sum()), 1)
    begins_word = np.array([not piece.startswith("##") for piece in pieces])
    special = set(tokenizer.all_special_ids)
    unused = [number for number in np.flatnonzero(counts == 0).tolist() if number not in special]
    order = np.argsort(-counts, kind="stable")[:_LISTED].tolist()
    return {
        "unknown_share": round(int(counts[tokenizer.unk_token_id]) / total, 6),
        "pieces_per_word": round(total / max(int(counts[begins_word].sum()), 1), 4),
        "most_frequent": {pieces[number]: round(int(counts[number]) / total, 6) for number in order if counts[number]},
        "never_used": len(unused),
        "never_used_first": [pieces[number] for number in unused[:_LISTED]],
    }


def _usage_lines(usage: dict[str, Any], paint: Paint) -> list[str]:
    frequent = ", ".join(f"{token} {share:.2%}" for token, share in usage["most_frequent"].items())
    unused = f": {', '.join(usage['never_used_first'])}, …" if usage["never_used_first"] else ""
    return [
        paint("tokens", "heading"),
        f"unknown: {usage['unknown_share']:.3%} of the tokens; {usage['pieces_per_word']:.2f} pieces per word",
        f"most frequent: {frequent}",
        f"never used: {usage['never_used']:,} tokens of the vocabulary{unused}",
    ]


def inspect_batch(
    corpus: Corpus,
    tokenizer: Any,
    arguments: PretrainingDataArguments,
    *,
    max_seq_length: int,
    split: str,
    epoch: int,
    first: int,
    count: int,
    paint: Paint = plain,
) -> Inspection:
    """Show training instances as the model gets them: segments, label, predicted tokens before and after masking.

    A predicted token is written [before→after]: [cat→[MASK]], [cat→dog] with a random token, [cat→cat] where it was
    left.

    Args:
        corpus: a finished corpus.
        tokenizer: the corpus's.
        arguments: options of pairs and masks; their seed decides.
        max_seq_length: tokens of an instance, special ones included.
        split: "train" or "validation".
        epoch: pass over the split, from 0.
        first: number of the first instance to show, in the order of training on this split alone.
        count: how many to show.
        paint: marks predicted and special tokens.

    Raises:
        InputError: if the epoch has no instance `first`, or an option is out of range.
    """
    sampler = arguments.sampler(corpus.split(split), max_seq_length)
    collator = arguments.collator(tokenizer, max_seq_length)
    instances = _instances(sampler, epoch, first, max(count, _COUNTED_INSTANCES))
    batch, lengths = collate(sampler, collator, instances)
    result = Inspection()
    for row in range(min(count, len(instances))):
        result.lines += describe_instance(batch, row, int(lengths[row]), tokenizer, f"instance {first + row}", paint)
    result.figures = _batch_figures(batch, lengths, collator.mask_token_id)
    by_length = np.bincount(np.minimum(lengths * 8 // (max_seq_length + 1), 7), minlength=8)
    edges = [-(-number * (max_seq_length + 1) // 8) for number in range(9)]
    result.histograms["instances by tokens"] = {
        f"{edges[number]}-{edges[number + 1] - 1}": int(by_length[number]) for number in range(8)
    }
    result.figures["instances_by_tokens"] = result.histograms["instances by tokens"]
    result.lines += [paint(f"{len(instances)} instances by tokens", "heading")]
    result.lines += _bars(result.histograms["instances by tokens"])
    result.lines += [f"{name.replace('_', ' ')}: {value}" for name, value in _scalars(result.figures)]
    return result


def _instances(sampler: SegmentPairSampler, epoch: int, first: int, count: int) -> Instances:
    """Return `count` instances of an epoch from number `first` on, or fewer at its end."""
    parts: list[Instances] = []
    before = 0
    for buffer in range(sampler.num_buffers):
        instances = sampler.sample_buffer(epoch, buffer)
        wanted = slice(max(first - before, 0), max(first + count - before, 0))
        parts.append(instances[wanted])
        before += len(instances)
        if before >= first + count:
            break
    _require_number("instance", first, before, f"epoch {epoch}")
    return Instances.concatenate(parts)


def describe_instance(
    batch: dict[str, np.ndarray], row: int, length: int, tokenizer: Any, name: str, paint: Paint = plain
) -> list[str]:
    """Write one instance of a batch: a heading, and a line for each segment.

    Args:
        batch: from a collator; (n, S) arrays.
        row: which instance.
        length: its tokens.
        tokenizer: of the corpus.
        name: begins the heading.
        paint: marks predicted and special tokens.
    """
    ids, labels = batch["input_ids"][row, :length], batch["labels"][row, :length]
    types = batch["token_type_ids"][row, :length]
    shown = tokenizer.convert_ids_to_tokens(ids.tolist())
    before = tokenizer.convert_ids_to_tokens(np.where(labels == IGNORED_LABEL, ids, labels).tolist())
    predicted = labels != IGNORED_LABEL
    pieces = []
    for place, (original, token) in enumerate(zip(before, shown, strict=True)):
        if predicted[place]:
            style = "mask" if ids[place] == tokenizer.mask_token_id else "kept" if original == token else "random"
            joined = "##" if original.startswith("##") else ""
            pieces.append(joined + paint(f"[{original.removeprefix('##')}→{token}]", style))
        else:
            pieces.append(paint(token, "special") if ids[place] in tokenizer.all_special_ids else token)
    relation = ""
    if "next_sentence_label" in batch:
        relation = ("IsNext", "NotNext")[int(batch["next_sentence_label"][row])] + ", "
    lines = [paint(f"{name}: {relation}{length} tokens, {int(predicted.sum())} of them predicted", "heading")]
    for letter, kind in (("A", 0), ("B", 1)):
        segment = [piece for piece, own in zip(pieces, types == kind, strict=True) if own]
        if segment:
            lines.append(f"  {letter}  {join_pieces(segment)}")
    return lines


def _batch_figures(batch: dict[str, np.ndarray], lengths: np.ndarray, mask_token_id: int) -> dict[str, Any]:
    labels, ids = batch["labels"], batch["input_ids"]
    predicted = labels != IGNORED_LABEL
    count = max(int(predicted.sum()), 1)
    figures: dict[str, Any] = {
        "counted_instances": len(lengths),
        "mean_length": round(float(lengths.mean()), 2),
        "padding_share": round(1 - float(lengths.sum()) / ids.size, 4),
        "predicted_share": round(count / int(lengths.sum()), 4),
        "masked_share_of_predicted": round(float((ids[predicted] == mask_token_id).sum()) / count, 4),
        "unchanged_share_of_predicted": round(float((ids[predicted] == labels[predicted]).sum()) / count, 4),
    }
    if "next_sentence_label" in batch:
        figures["not_next_share"] = round(float(batch["next_sentence_label"].mean()), 4)
    return figures


def inspect_tokenizer(tokenizer: Any, corpus: Corpus | None = None, *, paint: Paint = plain) -> Inspection:
    """Show a vocabulary, and with a corpus how its text uses it.

    Args:
        tokenizer: a WordPiece tokenizer of transformers.
        corpus: count the tokens of its train split. None: the vocabulary alone.
        paint: colours headings; `painted` for a terminal.

    Returns:
        Lines, figures and histograms.

    Raises:
        InputError: if the corpus's train split is damaged.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = tokenizer.all_special_tokens
    ordinary = [piece for piece in pieces if piece not in special]
    continuing = [piece for piece in ordinary if piece.startswith("##")]
    lengths = np.array([len(piece.removeprefix("##")) for piece in ordinary] or [0])
    by_length = {str(length): int((lengths == length).sum()) for length in range(1, int(lengths.max()) + 1)}
    result = Inspection(histograms={"tokens by characters": by_length})
    result.figures = {
        "tokens": len(pieces),
        "special_tokens": {token: tokenizer.convert_tokens_to_ids(token) for token in special},
        "single_characters": int((lengths == 1).sum()),
        "continuing_tokens": len(continuing),
        "mean_characters": round(float(lengths.mean()), 2),
        "longest": sorted(ordinary, key=len)[-_LISTED:][::-1],
        "tokens_by_characters": by_length,
    }
    result.lines = [
        paint(f"{len(pieces):,} tokens", "heading")
        + f": {len(special)} special, {len(continuing):,} that continue a word, "
        f"{result.figures['single_characters']:,} single characters",
        f"special: {', '.join(f'{token} {number}' for token, number in result.figures['special_tokens'].items())}",
        f"longest: {', '.join(result.figures['longest'])}",
        paint("tokens by characters", "heading"),
        *_bars(by_length),
    ]
    if corpus is not None:
        counts = corpus.split("train").token_counts(len(tokenizer))
        result.figures["usage"] = usage = token_usage(counts, tokenizer)
        result.lines += _usage_lines(usage, paint)
        result.histograms["tokens of the vocabulary by frequency"] = _by_frequency(counts)
    return result


def _by_frequency(counts: np.ndarray) -> dict[str, int]:
    """Count the tokens of the vocabulary that occur so often, by powers of ten."""
    powers = np.where(counts > 0, np.floor(np.log10(np.maximum(counts, 1))) + 1, 0).astype(np.int64)
    names = ["never", *(f"{10**power:,}+" for power in range(int(powers.max(initial=0))))]
    return dict(zip(names, np.bincount(powers, minlength=len(names)).tolist(), strict=True))


def _require_number(what: str, number: int, count: int, where: str) -> None:
    if not 0 <= number < count:
        raise InputError(f"--row {number}: {where} has {count} {what}s, numbered from 0")


def _scalars(figures: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in figures.items() if not isinstance(value, dict | list)]


def _bars(histogram: dict[str, Any], width: int = 40) -> list[str]:
    most = max(histogram.values(), default=0) or 1
    label = max(map(len, histogram), default=0)
    return [f"{name:>{label + 2}}  {'█' * round(width * count / most)} {count:,}" for name, count in histogram.items()]

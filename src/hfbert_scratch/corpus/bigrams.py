"""A baseline for pretraining: predictions from counts of neighbouring tokens. A better model uses more than those."""

from collections.abc import Sequence

import numpy as np

from ..model.configuration_hfbert import IGNORED_LABEL
from .dataset import TokenizedDocuments


# Tokens of the training split that are counted: bounds time and memory for any corpus.
_MOST_TOKENS = 1 << 23


def bigram_baseline(
    documents: TokenizedDocuments, batches: Sequence[dict[str, np.ndarray]], vocab_size: int, left_to_right: bool
) -> dict[str, float]:
    """Predict the labelled tokens of held-out batches from the token to the left of each, by counts.

    Counts are interpolated with those of single tokens (Witten and Bell 1991): n(c, w) + t(c)·p(w) over n(c) + t(c),
    where t(c) is the number of different tokens seen after c. Behind [MASK] or [CLS] p(w) is all there is.

    Args:
        documents: the train split.
        batches: `input_ids` and `labels` (rows, length), as the model gets them.
        vocab_size: number of tokens.
        left_to_right: labels are the next tokens, so that the token to their left is at their own place.

    Returns:
        `loss` in nats and `accuracy`.
    """
    contexts, targets = [], []
    for batch in batches:
        rows, columns = np.nonzero(batch["labels"] != IGNORED_LABEL)
        targets.append(batch["labels"][rows, columns])
        contexts.append(batch["input_ids"][rows, columns if left_to_right else columns - 1])
    context, target = np.concatenate(contexts), np.concatenate(targets)
    keys, counts = _count(documents, np.unique(context), vocab_size)
    single = documents.token_counts(vocab_size) + 1.0
    single /= single.sum()
    lefts = keys // vocab_size
    seen = np.bincount(lefts, weights=counts, minlength=vocab_size)
    different = np.bincount(lefts, minlength=vocab_size)
    # The most frequent follower: of keys in the order of (left, count) the last of each left.
    order = np.lexsort((counts, lefts))
    best = np.full(vocab_size, single.argmax())
    best[lefts[order]] = keys[order] % vocab_size
    wanted = context.astype(np.int64) * vocab_size + target
    places = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = np.where(keys[places] == wanted, counts[places], 0) if len(keys) else np.zeros(len(wanted))
    total, weight = seen[context], np.maximum(different[context], 1)
    probability = (found + weight * single[target]) / (total + weight)
    return {"loss": float(-np.log(probability).mean()), "accuracy": float((best[context] == target).mean())}


def _count(documents: TokenizedDocuments, lefts: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs that begin with one of `lefts`: keys left · vocab_size + right, ascending, and their counts."""
    wanted = np.zeros(vocab_size, dtype=bool)
    wanted[lefts] = True
    keys, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    room = _MOST_TOKENS
    for shard in range(documents.num_shards):
        tokens = documents.tokens(shard)[:room].astype(np.int64)
        room -= len(tokens)
        left, right = tokens[:-1], tokens[1:]
        chosen = wanted[left]
        new, new_counts = np.unique(left[chosen] * vocab_size + right[chosen], return_counts=True)
        merged, places = np.unique(np.concatenate([keys, new]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, new_counts]), minlength=len(merged))
        keys = merged
        if room <= 0:
            break
    return keys, counts

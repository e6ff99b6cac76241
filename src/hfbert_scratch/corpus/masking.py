"""Make the labels of pretraining: masked tokens (paper, section 3.1, appendix A.1, table 8), or the next token.

Masking is stateless: a hash of (seed, epoch, instance index, position) decides which positions are masked and how. Any
number of processes, any batch size and a resumed run see the same masks, and no generator has a state to save.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.errors import InputError
from ..utils.hashing import hash64
from .mixture import MixedSampler
from .segment_pairs import Instances, SegmentPairSampler


_MAX_UINT64 = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_MAX_UINT32 = np.uint32(0xFFFF_FFFF)
_COLUMN_BITS = np.uint64(0xFFFF)


def num_predictions(lengths: np.ndarray, masked_lm_prob: float, max_predictions_per_seq: int) -> np.ndarray:
    """Count the positions to predict: round(length · prob), at least 1, at most `max_predictions_per_seq`.

    Args:
        lengths: (n,) tokens of each instance, special ones included.
        masked_lm_prob: share of them to predict; halves are rounded to even.
        max_predictions_per_seq: the upper bound.

    Returns:
        (n,) int64.
    """
    return np.rint(lengths * masked_lm_prob).astype(np.int64).clip(1, max_predictions_per_seq)


@dataclass(frozen=True)
class MaskingConfig:
    """Settings of masked-LM masking.

    Args:
        max_predictions_per_seq: most positions to predict in an instance.
        masked_lm_prob: share of an instance's tokens to predict, at least one token.
        mask_share: share of the predicted tokens replaced by [MASK].
        random_share: share replaced by a random token.
        keep_share: share left as they are. The three sum to 1 (paper: 0.8, 0.1, 0.1; table 8 has others).
        whole_word: mask all pieces of a word together, or none.
        random_special: let random tokens be special ones, as the original code does.

    Raises:
        InputError: if a number is out of range.
    """

    max_predictions_per_seq: int
    masked_lm_prob: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    keep_share: float = 0.1
    whole_word: bool = False
    random_special: bool = False

    def __post_init__(self) -> None:
        if self.max_predictions_per_seq < 1:
            raise InputError(f"max_predictions_per_seq is {self.max_predictions_per_seq}; it must be at least 1")
        if not 0 < self.masked_lm_prob < 1:
            raise InputError(f"masked_lm_prob is {self.masked_lm_prob}; it must lie between 0 and 1")
        shares = (self.mask_share, self.random_share, self.keep_share)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise InputError(f"mask_share, random_share, keep_share are {shares}; they must be ≥ 0 and sum to 1")


class PretrainingCollator:
    """Mask a batch of segment pairs and make its labels.

    Args:
        tokenizer: with BERT's special tokens.
        masking: which tokens to predict, and how to replace them.
        seed: of the masks.
        left_to_right: replace nothing and label every position with the next token.

    Raises:
        InputError: if the tokenizer lacks a special token.
    """

    def __init__(self, tokenizer: Any, masking: MaskingConfig, seed: int, left_to_right: bool = False):
        self.masking = masking
        self.seed = seed
        self.left_to_right = left_to_right
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")}
        for name, value in special.items():
            if value is None:
                raise InputError(f"the tokenizer has no [{name.upper()}] token; masked-LM training needs one")
        self.mask_token_id = special["mask"]
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._candidate = np.ones(len(pieces), dtype=bool)
        self._candidate[[special["pad"], special["cls"], special["sep"]]] = False
        self._continues_word = np.array([piece.startswith("##") for piece in pieces])
        ordinary = np.ones(len(pieces), dtype=bool)
        if not masking.random_special:
            ordinary[tokenizer.all_special_ids] = False
        self._random_tokens = np.flatnonzero(ordinary)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's inputs and labels.

        Args:
            rows: `input_ids` and `token_type_ids` (n, S), `lengths`, `epoch` and `index` (n,), and for
                next-sentence prediction `next_sentence_label` (n,).

        Returns:
            `input_ids` with the chosen tokens replaced, `token_type_ids` and `attention_mask` (n, S);
            `labels` (n, S), the original token at predicted positions, else -100;
            `masked_positions` (n, max_predictions_per_seq), the predicted positions ascending, padded with 0, the
            position of [CLS], whose label is always -100 (absent if left to right);
            `next_sentence_label` as given.
        """
        input_ids, lengths = rows["input_ids"], rows["lengths"]
        columns = np.arange(input_ids.shape[1], dtype=lengths.dtype)  # equal types compare faster
        batch = {
            "input_ids": input_ids,
            "token_type_ids": rows["token_type_ids"],
            "attention_mask": (columns < lengths[:, None]).astype(np.int64),
        }
        if self.left_to_right:
            labels = np.full_like(input_ids, IGNORED_LABEL)
            labels[:, :-1] = np.where(columns[1:] < lengths[:, None], input_ids[:, 1:], IGNORED_LABEL)
            batch["labels"] = labels
        else:
            batch |= self._mask(input_ids, lengths, hash64(self.seed, rows["epoch"], rows["index"]))
        if "next_sentence_label" in rows:
            batch["next_sentence_label"] = rows["next_sentence_label"]
        return batch

    def _mask(self, input_ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Choose positions, replace their tokens and label them; `keys` (n,) are the hashes of the instances."""
        config = self.masking
        candidate = self._candidate[input_ids]  # (n, S) bool
        num_to_predict = num_predictions(lengths, config.masked_lm_prob, config.max_predictions_per_seq)  # (n,)
        noise = hash64(keys[:, None], np.arange(input_ids.shape[1], dtype=np.uint64))  # (n, S) uint64
        if config.whole_word:
            chosen = self._choose_words(input_ids, candidate, num_to_predict, noise)
        else:
            chosen = _choose(candidate, num_to_predict, noise)

        places = np.flatnonzero(chosen)  # (p,) predicted positions, in the flattened batch
        originals = input_ids.reshape(-1)[places]
        # A second, independent draw per predicted position: the high bits decide between [MASK], random and keep, the
        # low half picks the random token.
        draw = hash64(noise.reshape(-1)[places])
        kind = (draw >> np.uint64(40)) * 2.0**-24
        replaced = np.full_like(originals, self.mask_token_id)
        others = np.flatnonzero(kind >= config.mask_share)
        pick = (draw[others] & np.uint64(0xFFFF_FFFF)) * np.uint64(len(self._random_tokens))
        random = self._random_tokens[pick >> np.uint64(32)]
        replaced[others] = np.where(kind[others] < config.mask_share + config.random_share, random, originals[others])

        masked_ids = input_ids.copy()
        masked_ids.reshape(-1)[places] = replaced
        labels = np.full(input_ids.shape, IGNORED_LABEL, dtype=input_ids.dtype)
        labels.reshape(-1)[places] = originals
        # The columns of every row, left-aligned: `places` is ascending, so it fills the valid cells in order.
        rows, columns = np.divmod(places, input_ids.shape[1])
        valid = np.arange(config.max_predictions_per_seq) < np.bincount(rows, minlength=len(input_ids))[:, None]
        positions = np.zeros(valid.shape, dtype=np.int64)
        positions[valid] = columns
        return {
            "input_ids": masked_ids,
            "labels": labels,
            "masked_positions": positions,
        }

    def _choose_words(
        self, input_ids: np.ndarray, candidate: np.ndarray, num_to_predict: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """Choose whole words, (n, S) bool: in random order, each unless it exceeds the number still to predict."""
        count, length = input_ids.shape
        columns = np.arange(length)
        # A word never crosses a special token: a segment B truncated to start with "##…" starts a word of its own.
        joins = candidate & self._continues_word[input_ids]
        joins[:, 0] = False
        joins[:, 1:] &= candidate[:, :-1]
        starts = candidate & ~joins
        start_of = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)  # (n, S) first column of each word
        flat_start = (np.arange(count)[:, None] * length + start_of)[candidate]
        sizes = np.bincount(flat_start, minlength=count * length).reshape(count, length)  # at starts

        order = np.argsort(np.where(starts, noise, _MAX_UINT64), axis=1, kind="stable")  # word starts first
        ordered_sizes = np.take_along_axis(np.where(starts, sizes, length + 1), order, axis=1)
        taken_in_order = np.zeros((count, length), dtype=bool)
        remaining = num_to_predict.copy()
        for rank in range(int(starts.sum(axis=1).max(initial=0))):
            take = ordered_sizes[:, rank] <= remaining
            taken_in_order[:, rank] = take
            remaining -= np.where(take, ordered_sizes[:, rank], 0)
            if not remaining.any():
                break
        taken = np.zeros((count, length), dtype=bool)
        np.put_along_axis(taken, order, taken_in_order, axis=1)
        return candidate & np.take_along_axis(taken, start_of, axis=1)


def _choose(candidate: np.ndarray, num_to_predict: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Choose `num_to_predict[i]` ≥ 1 candidates of row i uniformly, or all if there are fewer: (n, S) bool.

    The candidates with the smallest noise win. Comparing only its high halves is fast and enough, unless two of the
    halves tie.
    """
    halves = (noise >> np.uint64(32)).astype(np.uint32)
    halves |= candidate.astype(np.uint32) - np.uint32(1)  # candidates keep theirs, others get the maximum
    borders = np.take_along_axis(np.sort(halves, axis=1), num_to_predict[:, None] - 1, axis=1)
    chosen = halves <= borders
    if np.count_nonzero(chosen) == num_to_predict.sum() and borders.max(initial=0) < _MAX_UINT32:
        return chosen
    # A tie: compare all bits, with the column in the lowest ones, so that no two are equal.
    keys = noise & ~_COLUMN_BITS | np.arange(noise.shape[1], dtype=np.uint64)
    order = np.where(candidate, keys, _MAX_UINT64).argsort(axis=1)
    chosen = np.zeros_like(candidate)
    np.put_along_axis(chosen, order, np.arange(noise.shape[1]) < num_to_predict[:, None], axis=1)
    return chosen & candidate


def collate(
    sampler: SegmentPairSampler | MixedSampler, collator: PretrainingCollator, instances: Instances
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gather and mask n instances.

    Args:
        sampler: the sampler that drew the instances.
        collator: masks them. Epoch and index of an instance decide its mask.
        instances: n instances.

    Returns:
        The collator's batch, and the lengths of the instances, (n,) int32.
    """
    rows = sampler.to_batch(instances) | {"epoch": instances.epoch, "index": instances.index}
    return collator(rows), rows["lengths"]

"""What the model has to predict: masked tokens (paper, section 3.1, appendix A.1, table 8), or the next token.

Stateless: which positions are masked, and by what, is a hash of (seed, epoch, example index, position). So any number
of processes or workers, any batch size and a resumed run see the same masks, and no generator has a state to save.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.errors import InputError
from ..utils.hashing import hash64


_LAST = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_LAST_HALF = np.uint32(0xFFFF_FFFF)
_COLUMNS = np.uint64(0xFFFF)


def number_to_predict(lengths: np.ndarray, masked_lm_prob: float, max_predictions_per_seq: int) -> np.ndarray:
    """min(max_predictions_per_seq, max(1, round(length·prob))): halves to even, length with the special tokens."""
    return np.rint(lengths * masked_lm_prob).astype(np.int64).clip(1, max_predictions_per_seq)


@dataclass(frozen=True)
class Masking:
    """The rule of what is masked and how.

    masked_lm_prob: share of a sequence's tokens to predict, at most max_predictions_per_seq of them, at least one.
    mask_share / random_share / keep_share: of those, how many become [MASK], a random token, stay as they are; they
    sum to 1 (paper: 0.8, 0.1, 0.1; table 8 has others). whole_word: all pieces of a word together or none.
    random_special: the random token may be a special one, as in the original code.
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
    """Turn assembled segment pairs into the model's batch.

    Called with arrays `input_ids` and `token_type_ids` (n, sequence_length), `lengths` (n,), `epoch` and `index` (n,)
    and optionally `next_sentence_label` (n,), it returns a dict of arrays:

    - `input_ids` with the chosen tokens replaced, `token_type_ids`, `attention_mask`: (n, sequence_length)
    - `labels` (n, sequence_length): the original token where one is to predict, else -100
    - `masked_positions` (n, max_predictions_per_seq): where the labels are, ascending, padded with 0, the position of
      [CLS], whose label is always -100
    - `next_sentence_label` as given

    With `left_to_right` nothing is replaced, every label is the next token and `masked_positions` is absent.
    """

    def __init__(self, tokenizer: Any, masking: Masking, seed: int, left_to_right: bool = False):
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
        input_ids, lengths = rows["input_ids"], rows["lengths"]
        columns = np.arange(input_ids.shape[1], dtype=lengths.dtype)  # of one type they compare faster
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

    def _mask(self, input_ids: np.ndarray, lengths: np.ndarray, row_keys: np.ndarray) -> dict[str, np.ndarray]:
        rule = self.masking
        candidate = self._candidate[input_ids]
        wanted = number_to_predict(lengths, rule.masked_lm_prob, rule.max_predictions_per_seq)
        noise = hash64(row_keys[:, None], np.arange(input_ids.shape[1], dtype=np.uint64))
        if rule.whole_word:
            chosen = self._choose_words(input_ids, candidate, wanted, noise)
        else:
            chosen = _choose(candidate, wanted, noise)

        places = np.flatnonzero(chosen)  # in the flattened batch
        originals = input_ids.reshape(-1)[places]
        # A second, independent draw for each chosen position: its high half decides the kind, its low half the token.
        draw = hash64(noise.reshape(-1)[places])
        kind = (draw >> np.uint64(40)) * 2.0**-24
        replaced = np.full_like(originals, self.mask_token_id)
        others = np.flatnonzero(kind >= rule.mask_share)
        pick = (draw[others] & np.uint64(0xFFFF_FFFF)) * np.uint64(len(self._random_tokens))
        random = self._random_tokens[pick >> np.uint64(32)]
        replaced[others] = np.where(kind[others] < rule.mask_share + rule.random_share, random, originals[others])

        masked_ids = input_ids.copy()
        masked_ids.reshape(-1)[places] = replaced
        labels = np.full(input_ids.shape, IGNORED_LABEL, dtype=input_ids.dtype)
        labels.reshape(-1)[places] = originals
        rows, columns = np.divmod(places, input_ids.shape[1])
        valid = np.arange(rule.max_predictions_per_seq) < np.bincount(rows, minlength=len(input_ids))[:, None]
        positions = np.zeros(valid.shape, dtype=np.int64)
        positions[valid] = columns
        return {
            "input_ids": masked_ids,
            "labels": labels,
            "masked_positions": positions,
        }

    def _choose_words(
        self, input_ids: np.ndarray, candidate: np.ndarray, wanted: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """Whole words in random order, each taken unless it would exceed what is still wanted: (n, length) of bool."""
        count, length = input_ids.shape
        columns = np.arange(length)
        # A word never reaches over a special token: a segment B cut to start with "##…" starts a word of its own.
        joins = candidate & self._continues_word[input_ids]
        joins[:, 0] = False
        joins[:, 1:] &= candidate[:, :-1]
        starts = candidate & ~joins
        start_of = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
        flat_start = (np.arange(count)[:, None] * length + start_of)[candidate]
        sizes = np.bincount(flat_start, minlength=count * length).reshape(count, length)

        order = np.argsort(np.where(starts, noise, _LAST), axis=1, kind="stable")
        ordered_sizes = np.take_along_axis(np.where(starts, sizes, length + 1), order, axis=1)
        taken_in_order = np.zeros((count, length), dtype=bool)
        remaining = wanted.copy()
        for rank in range(int(starts.sum(axis=1).max(initial=0))):
            take = ordered_sizes[:, rank] <= remaining
            taken_in_order[:, rank] = take
            remaining -= np.where(take, ordered_sizes[:, rank], 0)
            if not remaining.any():
                break
        taken = np.zeros((count, length), dtype=bool)
        np.put_along_axis(taken, order, taken_in_order, axis=1)
        return candidate & np.take_along_axis(taken, start_of, axis=1)


def _choose(candidate: np.ndarray, wanted: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """`wanted[i]` ≥ 1 candidates of row i, uniformly, or all if there are fewer: (n, length) of bool.

    The candidates with the smallest noise win. Half of its bits decide, which is fast, unless two of them are equal.
    """
    halves = (noise >> np.uint64(32)).astype(np.uint32)
    halves |= candidate.astype(np.uint32) - np.uint32(1)  # the last number for what is no candidate
    borders = np.take_along_axis(np.sort(halves, axis=1), wanted[:, None] - 1, axis=1)
    chosen = halves <= borders
    if np.count_nonzero(chosen) == wanted.sum() and borders.max(initial=0) < _LAST_HALF:
        return chosen
    # The column, which differs, in the lowest bits.
    keys = noise & ~_COLUMNS | np.arange(noise.shape[1], dtype=np.uint64)
    order = np.where(candidate, keys, _LAST).argsort(axis=1)
    chosen = np.zeros_like(candidate)
    np.put_along_axis(chosen, order, np.arange(noise.shape[1]) < wanted[:, None], axis=1)
    return chosen & candidate

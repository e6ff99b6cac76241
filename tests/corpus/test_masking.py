"""Masking: the numbers of the paper, word boundaries, and that nothing but (seed, epoch, index) decides."""

import numpy as np
import pytest
from corpus_helpers import small_tokenizer

from hfbert_scratch.corpus import masking
from hfbert_scratch.corpus.masking import MaskingConfig, PretrainingCollator, num_predictions
from hfbert_scratch.model.kernels_hfbert import IGNORED_LABEL
from hfbert_scratch.utils.errors import InputError


GOLDEN_POSITIONS = [9, 16, 27, 28, 40, 56, 62, 65, 66, 70, 73, 74, 89, 91, 97, 100, 123, 124, 125, 0]


def random_rows(tokenizer, count: int, length: int, seed: int = 0, first_index: int = 0) -> dict[str, np.ndarray]:
    """Rows `[CLS] A [SEP] B [SEP]` of random ordinary tokens, a fifth of them short."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(count) < 0.2, rng.integers(5, length, count), length)
    input_ids = rng.integers(5, len(tokenizer), (count, length))
    columns = np.arange(length)
    middle = (lengths // 2)[:, None]
    input_ids[:, 0] = tokenizer.cls_token_id
    input_ids[(columns == middle) | (columns == lengths[:, None] - 1)] = tokenizer.sep_token_id
    input_ids[columns >= lengths[:, None]] = tokenizer.pad_token_id
    return {
        "input_ids": input_ids,
        "token_type_ids": ((columns > middle) & (columns < lengths[:, None])).astype(np.int64),
        "lengths": lengths,
        "epoch": np.zeros(count, dtype=np.int64),
        "index": np.arange(first_index, first_index + count).astype(np.uint64),
    }


def collator(tokenizer, most: int = 20, seed: int = 3, **rule) -> PretrainingCollator:
    return PretrainingCollator(tokenizer, MaskingConfig(most, **rule), seed)


def test_statistics_are_the_papers(tokenizer):
    rows = random_rows(tokenizer, 20_000, 128)
    batch = collator(tokenizer)(rows)
    predicted = batch["labels"] != IGNORED_LABEL
    counts = predicted.sum(axis=1)
    expected = np.minimum(20, np.maximum(1, np.rint(rows["lengths"] * 0.15)))
    assert (counts == expected).all(), "the number to predict is exact, not a coin per token"
    special = np.isin(rows["input_ids"], [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id])
    assert not (predicted & special).any()
    assert (batch["labels"][predicted] == rows["input_ids"][predicted]).all()
    assert (batch["input_ids"][~predicted] == rows["input_ids"][~predicted]).all()

    masked = (batch["input_ids"] == tokenizer.mask_token_id)[predicted].mean()
    kept = (batch["input_ids"] == rows["input_ids"])[predicted].mean()
    replaced = 1 - masked - kept
    by_chance = replaced / (len(tokenizer) - 6)  # a random token is the original one in so many cases
    assert masked == pytest.approx(0.8, abs=0.005)
    assert kept == pytest.approx(0.1 + by_chance, abs=0.005)
    assert replaced == pytest.approx(0.1, abs=0.005)
    random = batch["input_ids"][
        predicted & (batch["input_ids"] != rows["input_ids"]) & (batch["input_ids"] != tokenizer.mask_token_id)
    ]
    assert not np.isin(random, tokenizer.all_special_ids).any()
    frequency = np.bincount(random, minlength=len(tokenizer))[5:]
    assert frequency.min() > 0.5 * frequency.mean(), "random tokens come from the whole vocabulary"
    assert frequency.max() < 1.5 * frequency.mean(), "and uniformly"


def test_positions_are_uniform_and_static_arrays_agree_with_the_labels(tokenizer):
    rows = random_rows(tokenizer, 20_000, 64)
    batch = collator(tokenizer, most=12)(rows)
    full = rows["lengths"] == 64
    share = (batch["labels"] != IGNORED_LABEL)[full].mean(axis=0)
    candidates = share[share > 0]
    assert len(candidates) == 61, "every position but the three special tokens"
    assert candidates.std() < 0.01

    positions = batch["masked_positions"]
    assert positions.shape == (20_000, 12)
    predicted = np.take_along_axis(batch["labels"], positions, axis=1) != IGNORED_LABEL
    assert (predicted.sum(axis=1) == (batch["labels"] != IGNORED_LABEL).sum(axis=1)).all()
    assert (positions[~predicted] == 0).all(), "padding points at [CLS], which has no label"
    assert (np.diff(np.where(predicted, positions, 64 + np.arange(12)), axis=1) > 0).all(), "ascending"


def test_number_to_predict_rounds_halves_to_even():
    # round(10·0.15) = round(1.5) = 2, round(30·0.15) = round(4.5) = 4: Python's rule, as in the original code
    assert num_predictions(np.array([3, 10, 30, 128, 512]), 0.15, 100).tolist() == [1, 2, 4, 19, 77]
    assert num_predictions(np.array([512]), 0.15, 76).tolist() == [76]


@pytest.mark.parametrize("shares", [(1, 0, 0), (0.8, 0, 0.2), (0.8, 0.2, 0), (0, 0.8, 0.2), (0, 1, 0)])
def test_other_mixes_of_table_8(tokenizer, shares):
    mask, random, keep = shares
    rows = random_rows(tokenizer, 4000, 128)
    batch = collator(tokenizer, mask_share=mask, random_share=random, keep_share=keep)(rows)
    predicted = batch["labels"] != IGNORED_LABEL
    by_chance = random / (len(tokenizer) - 5)
    assert (batch["input_ids"] == tokenizer.mask_token_id)[predicted].mean() == pytest.approx(mask, abs=0.01)
    assert (batch["input_ids"] == rows["input_ids"])[predicted].mean() == pytest.approx(keep + by_chance, abs=0.01)


def test_the_original_may_draw_special_tokens(tokenizer):
    rows = random_rows(tokenizer, 20_000, 64)
    batch = collator(tokenizer, random_special=True, mask_share=0.0, random_share=1.0, keep_share=0.0)(rows)
    assert np.isin(tokenizer.all_special_ids, batch["input_ids"][batch["labels"] != IGNORED_LABEL]).all()


def test_whole_words_are_masked_whole(tokenizer):
    rows = random_rows(tokenizer, 3000, 64)
    batch = collator(tokenizer, most=12, whole_word=True)(rows)
    pieces = np.array(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    predicted = batch["labels"] != IGNORED_LABEL
    special = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    longer = 0
    for row, chosen, wanted in zip(
        rows["input_ids"], predicted, num_predictions(rows["lengths"], 0.15, 12), strict=True
    ):
        words: list[list[int]] = []
        for column, token in enumerate(row):
            if token in special:
                continue
            # "##x" right behind [SEP], as a segment cut at its front leaves it, is a word of its own
            if pieces[token].startswith("##") and row[column - 1] not in special:
                words[-1].append(column)
            else:
                words.append([column])
        for word in words:
            assert chosen[word].all() or not chosen[word].any()
            longer += len(word) > 1 and chosen[word].all()
        assert chosen.sum() <= wanted
        unchosen = [len(word) for word in words if not chosen[word].any()]
        assert chosen.sum() == wanted or min(unchosen) > wanted - chosen.sum(), (
            "only words that do not fit are skipped"
        )
    assert longer > 100
    kinds = batch["input_ids"] == tokenizer.mask_token_id
    assert kinds[predicted].mean() == pytest.approx(0.8, abs=0.015), "every piece draws for itself"


def test_masks_depend_on_seed_epoch_and_index_alone(tokenizer):
    rows = random_rows(tokenizer, 64, 128)
    whole = collator(tokenizer)(rows)

    def part(chosen, **changes):
        piece = {name: array[chosen] for name, array in rows.items()} | changes
        return collator(tokenizer)(piece)["labels"]

    order = np.random.default_rng(1).permutation(64)
    assert (part(order) == whole["labels"][order]).all(), "neither order nor batch size matters"
    assert (part(slice(10, 13)) == whole["labels"][10:13]).all()
    assert (part(slice(None), epoch=rows["epoch"] + 1) != whole["labels"]).any(axis=1).all(), "each epoch masks anew"
    assert (collator(tokenizer, seed=4)(rows)["labels"] != whole["labels"]).any(axis=1).all()
    # Golden: a change of the hash would silently change every corpus and break resumed runs.
    assert whole["masked_positions"][0].tolist() == GOLDEN_POSITIONS


def test_left_to_right_labels_are_the_next_tokens(tokenizer):
    rows = random_rows(tokenizer, 10, 32)
    batch = PretrainingCollator(tokenizer, MaskingConfig(5), seed=0, left_to_right=True)(rows)
    assert (batch["input_ids"] == rows["input_ids"]).all()
    for ids, labels, length in zip(rows["input_ids"], batch["labels"], rows["lengths"], strict=True):
        assert (labels[: length - 1] == ids[1:length]).all()
        assert (labels[length - 1 :] == IGNORED_LABEL).all()
    assert "masked_positions" not in batch


def test_tiny_rows_and_unknown_tokens(tokenizer):
    ids = np.array([[2, tokenizer.unk_token_id, 3, 3, 0, 0]])
    rows = {"input_ids": ids, "token_type_ids": 0 * ids, "lengths": np.array([4]), "epoch": [0], "index": [7]}
    batch = collator(tokenizer, most=4)(rows)
    assert batch["labels"].tolist() == [[-100, tokenizer.unk_token_id, -100, -100, -100, -100]]
    empty = dict(rows, input_ids=np.array([[2, 3, 3, 0, 0, 0]]), lengths=np.array([3]))
    assert (collator(tokenizer, most=4)(empty)["labels"] == IGNORED_LABEL).all(), "nothing to mask is not an error"


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({"max_predictions_per_seq": 0}, "max_predictions_per_seq"),
        ({"max_predictions_per_seq": 5, "masked_lm_prob": 1.5}, "masked_lm_prob"),
        ({"max_predictions_per_seq": 5, "mask_share": 0.9}, "mask_share"),
        ({"max_predictions_per_seq": 5, "mask_share": 1.2, "random_share": -0.2, "keep_share": 0.0}, "mask_share"),
    ],
)
def test_impossible_rules_are_refused(rule, named):
    with pytest.raises(InputError, match=named):
        MaskingConfig(**rule)


def test_a_tokenizer_without_mask_is_refused():
    tokenizer = small_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(InputError, match=r"\[MASK\]"):
        collator(tokenizer)


@pytest.mark.parametrize("shift", [32, 60])
def test_equal_random_numbers_do_not_change_how_many_are_predicted(tokenizer, monkeypatch, shift):
    """Half of a random number decides who is masked; where halves are equal the rest of it does, then the position."""
    hashed = masking.hash64
    monkeypatch.setattr(masking, "hash64", lambda *values: hashed(*values) >> np.uint64(shift))
    rows = random_rows(tokenizer, 500, 64)
    predicted = collator(tokenizer)(rows)["labels"] != IGNORED_LABEL
    assert (predicted.sum(axis=1) == num_predictions(rows["lengths"], 0.15, 20)).all()
    special = np.isin(rows["input_ids"], [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id])
    assert not (predicted & special).any()


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_rows_are_a_batch_too(tokenizer, whole_word):
    batch = collator(tokenizer, whole_word=whole_word)(random_rows(tokenizer, 0, 64))
    assert batch["labels"].shape == (0, 64)
    assert batch["masked_positions"].shape == (0, 20)

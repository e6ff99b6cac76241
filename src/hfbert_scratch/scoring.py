"""Log-probabilities of sentences, and minimal pairs judged by them.

A masked language model has no probability of a sentence. Its pseudo-log-likelihood stands in (Salazar et al. 2020,
arXiv:1910.14659): every token is masked alone and predicted from all others, and the log-probabilities are summed.
`within_word_l2r` masks the later pieces of the token's word too, which the first one would otherwise give away (Kauf
and Ivanova 2023, arXiv:2305.10588). A left-to-right model's score is the plain log-probability of the tokens.

A sentence of n tokens becomes n sequences. They go through the model without padding, batches are filled from many
sentences, and one position of each meets the last layer's queries and the vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .model.inference import default_batch_tokens, eval_mode, inference_copy
from .model.loading import check_fits, open_model
from .model.modeling_hfbert import HFBertForMaskedLM
from .text.rows import parse_row
from .text.streams import COMPRESSIONS, read_lines
from .utils.errors import InputError


METHODS = ("pll", "within_word_l2r")
LEFT_TO_RIGHT = "left_to_right"
# Batches whose sequences are sorted by length together; more of them only delay the first score.
_WINDOW_BATCHES = 64


@dataclass(frozen=True)
class SentenceScore:
    """The score of a sentence.

    Attributes:
        input_ids: (tokens,), without special tokens.
        log_probabilities: (tokens,) float32, in nats.
    """

    input_ids: np.ndarray
    log_probabilities: np.ndarray

    @property
    def total(self) -> float:
        """The sum over the tokens, in nats."""
        return float(self.log_probabilities.sum(dtype=np.float64))


@dataclass(frozen=True)
class _Sentence:
    input_ids: np.ndarray  # (tokens + 2,), with [CLS] and [SEP]
    mask_ends: np.ndarray  # (tokens,), the column after the last one masked for each token

    @property
    def num_tokens(self) -> int:
        return len(self.mask_ends)


def open_language_model(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> HFBertForMaskedLM:
    """Open a checkpoint, ours or stock bert, with its language-model head, for scoring.

    Args:
        name: directory or name on the Hub.
        device: the device to compute on.
        dtype: the precision to compute in.

    Raises:
        InputError: if it cannot be opened or has no such head.
    """
    model, new = open_model(HFBertForMaskedLM, name)
    if new:
        raise InputError(f"{name} has no language-model head ({new[0]} is missing); name a pretrained checkpoint")
    scorer: Any = inference_copy(model.to(device), dtype)  # type: ignore[arg-type]
    return scorer


def resolve_method(model: PreTrainedModel, method: str | None) -> str:
    """Return the scoring method for a model.

    Args:
        model: from `open_language_model`.
        method: one of METHODS. None: pll, or left_to_right for a left-to-right model.

    Returns:
        One of METHODS, or LEFT_TO_RIGHT.

    Raises:
        InputError: for an unknown method, and for one that masks tokens if the model is left-to-right.
    """
    if model.config.left_to_right:
        if method not in (None, LEFT_TO_RIGHT):
            raise InputError(f"method {method} masks tokens, which a left-to-right model has never seen; leave it out")
        return LEFT_TO_RIGHT
    if method is not None and method not in METHODS:
        raise InputError(f"method is {method!r}; for this model it must be {' or '.join(METHODS)}")
    return method or METHODS[0]


def score_sentences(
    model: HFBertForMaskedLM,
    tokenizer: Any,
    sentences: Iterable[str],
    *,
    method: str | None = None,
    batch_tokens: int | None = None,
) -> Iterator[SentenceScore]:
    """Score sentences, streaming: as many are in memory as fill a few batches.

    Args:
        model: from `open_language_model`.
        tokenizer: the model's.
        sentences: texts of one sequence each. Special tokens are added, and not scored.
        method: pll or within_word_l2r; None for pll, or for the log-probability under a left-to-right model.
        batch_tokens: tokens in a forward pass; default: `default_batch_tokens`. A longer sentence is a batch.

    Returns:
        An iterator over the scores, in the given order.

    Raises:
        InputError: at once for a method or tokenizer that does not fit the model; while iterating for a sentence that
            is empty or longer than the model takes: part of it would have no score.
    """
    method = resolve_method(model, method)
    check_fits(model, tokenizer, 1)
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(model.device)
    return _score_windows(_Scorer(model, tokenizer, method, batch_tokens), sentences)


def _score_windows(scorer: "_Scorer", sentences: Iterable[str]) -> Iterator[SentenceScore]:
    window: list[_Sentence] = []
    tokens = 0
    for number, text in enumerate(sentences, start=1):
        window.append(scorer.tokenize(text, number))
        tokens += scorer.cost(window[-1])
        if tokens >= _WINDOW_BATCHES * scorer.batch_tokens:
            yield from scorer.score(window)
            window, tokens = [], 0
    yield from scorer.score(window)


class _Scorer:
    """The sequences of sentences, in batches of similar length, through the model."""

    def __init__(self, model: HFBertForMaskedLM, tokenizer: Any, method: str, batch_tokens: int):
        self.model, self.tokenizer, self.method, self.batch_tokens = model, tokenizer, method, batch_tokens
        self.longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def tokenize(self, text: str, number: int) -> _Sentence:
        """Tokenize a sentence and find the tokens to mask for each of its tokens; `number` is for errors."""
        if not isinstance(text, str):
            raise InputError(f"sentence {number} is {str(text)[:80]!r}; it must be a string")
        try:
            encoding = self.tokenizer(text, verbose=False)
        except UnicodeEncodeError as error:
            raise InputError(f"sentence {number} is not valid Unicode ({error.reason})") from None
        ids = np.array(encoding["input_ids"], dtype=np.int64)
        if len(ids) <= 2:
            raise InputError(f"sentence {number} ({text[:80]!r}) has no tokens")
        if len(ids) > self.longest:
            raise InputError(f"sentence {number} has {len(ids)} tokens; this model takes at most {self.longest}")
        ends = np.arange(2, len(ids))
        if self.method == "within_word_l2r":
            words = np.array(encoding.word_ids()[1:-1])
            ends = np.searchsorted(words, words, side="right") + 1
        return _Sentence(ids, ends)

    def cost(self, sentence: _Sentence) -> int:
        """Return the tokens that the model reads to score a sentence."""
        copies = 1 if self.method == LEFT_TO_RIGHT else sentence.num_tokens
        return copies * len(sentence.input_ids)

    def score(self, sentences: list[_Sentence]) -> Iterator[SentenceScore]:
        """Score a window of sentences."""
        scores = [np.empty(sentence.num_tokens, dtype=np.float32) for sentence in sentences]
        order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number].input_ids))
        pairs = [
            (number, position)
            for number in order
            for position in range(1 if self.method == LEFT_TO_RIGHT else sentences[number].num_tokens)
        ]
        waiting, start = [], 0
        with eval_mode(self.model):
            while start < len(pairs):
                size = max(1, self.batch_tokens // len(sentences[pairs[start][0]].input_ids))
                batch, start = pairs[start : start + size], start + size
                inputs, rows, columns, targets = self._batch(sentences, batch)
                waiting.append((batch, self._log_probabilities(inputs, rows, columns, targets)))
            # Only now: reading a result makes a GPU's host wait.
            for batch, values in waiting:
                self._distribute(scores, batch, values.cpu().numpy())
        for sentence, own in zip(sentences, scores, strict=True):
            yield SentenceScore(sentence.input_ids[1:-1], own)

    def _batch(
        self, sentences: list[_Sentence], batch: list[tuple[int, int]]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """Return the model's inputs, and for each prediction its row, its column and its token."""
        lengths = np.array([len(sentences[number].input_ids) for number, _ in batch])
        real = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(real.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        input_ids[real] = np.concatenate([sentences[number].input_ids for number, _ in batch])
        inputs = {"input_ids": input_ids, "attention_mask": real.astype(np.int64)}
        if (
            self.method == LEFT_TO_RIGHT
        ):  # [CLS] predicts the first token; the last predicts [SEP], which is not scored
            rows, columns = np.nonzero(np.arange(real.shape[1]) < lengths[:, None] - 2)
            return inputs, rows, columns, input_ids[rows, columns + 1]
        rows, columns = np.arange(len(batch)), np.array([position for _, position in batch]) + 1
        targets = input_ids[rows, columns]
        ends = np.array([sentences[number].mask_ends[position] for number, position in batch])
        places = np.arange(real.shape[1])
        input_ids[(places >= columns[:, None]) & (places < ends[:, None])] = self.tokenizer.mask_token_id
        return inputs, rows, columns, targets

    def _log_probabilities(
        self, inputs: dict[str, np.ndarray], rows: np.ndarray, columns: np.ndarray, targets: np.ndarray
    ) -> torch.Tensor:
        """Compute the log-probability of each target, (predictions,)."""
        device, width = self.model.device, inputs["input_ids"].shape[1]
        tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        positions = torch.from_numpy(rows * width + columns).to(device)
        states = self.model.bert(**tensors, read_positions=positions, return_dict=True).last_hidden_state
        logits = self.model.cls.predictions(states).float()
        return -F.cross_entropy(logits, torch.from_numpy(targets).to(device), reduction="none")

    def _distribute(self, scores: list[np.ndarray], batch: list[tuple[int, int]], values: np.ndarray) -> None:
        start = 0
        for number, position in batch:
            own = scores[number] if self.method == LEFT_TO_RIGHT else scores[number][position : position + 1]
            own[:] = values[start : start + len(own)]
            start += len(own)


@dataclass(frozen=True)
class MinimalPair:
    """An acceptable sentence and an unacceptable one that differs in one respect (BLiMP, arXiv:1912.00582)."""

    good: str
    bad: str
    group: str  # the phenomenon: UID, or else the file's name


def read_minimal_pairs(path: Path) -> list[MinimalPair]:
    """Read a file of minimal pairs as BLiMP has them.

    Args:
        path: JSON lines, plain or packed as .gz or .zst. Every line has the texts `sentence_good` and `sentence_bad`.
            `UID` names the pair's group; without it the file's name does. Blank lines are skipped.

    Returns:
        The pairs, in the order of the file.

    Raises:
        InputError: naming file and line, if the file is missing, holds anything else, or holds no pair.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path} of minimal pairs")
    pairs = []
    for place, line in read_lines(path, COMPRESSIONS.get(path.suffix)):
        if not line.strip():
            continue
        row = parse_row(line, place)
        for name in ("sentence_good", "sentence_bad"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{place} has no text under {name!r}; it must hold sentence_good and sentence_bad")
        pairs.append(MinimalPair(row["sentence_good"], row["sentence_bad"], str(row.get("UID") or path.stem)))
    if not pairs:
        raise InputError(f"{path} holds no minimal pairs")
    return pairs


def judge_pairs(pairs: Sequence[MinimalPair], scores: Iterable[SentenceScore]) -> list[dict[str, Any]]:
    """Judge minimal pairs by the sums of their scores; a tie is wrong, for the model does not tell them apart.

    Args:
        pairs: the pairs.
        scores: of good and bad sentence in turn.

    Returns:
        One row a pair: both sentences and scores, `group` and `right`.
    """
    totals = iter([score.total for score in scores])
    rows = []
    for pair in pairs:
        good, bad = next(totals), next(totals)
        rows.append(
            {"group": pair.group, "sentence_good": pair.good, "sentence_bad": pair.bad}
            | {"score_good": good, "score_bad": bad, "right": good > bad}
        )
    return rows


def summarize_pairs(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the rows of `judge_pairs`.

    Args:
        rows: at least one.

    Returns:
        `accuracy`, the mean over groups (as BLiMP's overall score), `accuracy_of_pairs`, `standard_error` of the
        latter, `pairs`, `ties`, and `groups`: name → accuracy, pairs and ties.
    """
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(row["group"], {"pairs": 0, "right": 0, "ties": 0})
        group["pairs"] += 1
        group["right"] += row["right"]
        group["ties"] += row["score_good"] == row["score_bad"]
    for group in groups.values():
        group["accuracy"] = group.pop("right") / group["pairs"]
    count = sum(group["pairs"] for group in groups.values())
    share = sum(group["accuracy"] * group["pairs"] for group in groups.values()) / count
    return {
        "accuracy": sum(group["accuracy"] for group in groups.values()) / len(groups),
        "accuracy_of_pairs": share,
        "standard_error": math.sqrt(share * (1 - share) / count),
        "pairs": count,
        "ties": sum(group["ties"] for group in groups.values()),
        "groups": groups,
    }

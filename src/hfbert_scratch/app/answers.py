"""Answers of a checkpoint for one text: words for blanks, classes, entities, spans, similarities, attention."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from ..evaluation import answer
from ..features import encode
from ..model.inference import masked_lm_logits
from ..scoring import score_sentences
from ..tasks import get_task
from ..utils.errors import InputError
from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Attention:
    """The attention weights of one input.

    Attributes:
        tokens: its tokens, special ones included.
        weights: [layers, heads, tokens, tokens]; row i sums to 1 and says how much token i reads from each.
    """

    tokens: list[str]
    weights: np.ndarray


@torch.no_grad()
def fill_mask(checkpoint: Checkpoint, text: str, top_k: int = 5) -> list[dict[str, float]]:
    """Return the likeliest tokens for each blank of a text.

    Args:
        checkpoint: a model with a masked-LM head.
        text: a text with the tokenizer's mask token, [MASK], where a word is missing.
        top_k: tokens for each blank, at most as many as the vocabulary has.

    Returns:
        For each blank in order, token → probability, likeliest first.

    Raises:
        InputError: for a text that is empty, too long, or without a blank.
    """
    tokenizer = checkpoint.tokenizer
    inputs = _encode(checkpoint, text)
    blanks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    if not len(blanks):
        raise InputError(f"the text has no {tokenizer.mask_token}; write it where a word is missing")
    probabilities, ids = masked_lm_logits(checkpoint.model(**inputs))[0, blanks].softmax(-1).topk(top_k)
    return [
        dict(zip(tokenizer.convert_ids_to_tokens(row.tolist()), shares.tolist(), strict=True))
        for row, shares in zip(ids, probabilities, strict=True)
    ]


@torch.no_grad()
def next_sentence(checkpoint: Checkpoint, first: str, second: str) -> float:
    """Return the probability that `second` follows `first`.

    Args:
        checkpoint: a model with a next-sentence head.
        first: the first text.
        second: the second text. Both together must fit the model.

    Returns:
        The probability, from 0 to 1.

    Raises:
        InputError: for texts that are empty or too long.
    """
    _require("the second sentence", second)
    outputs = checkpoint.model(**_encode(checkpoint, first, second))
    logits = outputs.seq_relationship_logits if "seq_relationship_logits" in outputs else outputs.logits
    return float(logits[0].softmax(-1)[0])  # column 0: B follows A


@torch.no_grad()
def classify(checkpoint: Checkpoint, text: str, second: str = "") -> dict[str, float]:
    """Classify a text or a pair of texts.

    Args:
        checkpoint: a model with a head for sequence classification.
        text: the text.
        second: the second text, where the model was fine-tuned on pairs.

    Returns:
        Class → probability, likeliest first; for a regression {"score": value}.

    Raises:
        InputError: for a text that is empty or too long.
    """
    config: Any = checkpoint.model.config
    logits = checkpoint.model(**_encode(checkpoint, text, second)).logits[0]
    if config.num_labels == 1:
        return {"score": float(logits[0])}
    is_multi_label = config.problem_type == "multi_label_classification"
    probabilities = (logits.sigmoid() if is_multi_label else logits.softmax(-1)).tolist()
    named = {config.id2label[number]: probability for number, probability in enumerate(probabilities)}
    return dict(sorted(named.items(), key=lambda entry: -entry[1]))


def tag_words(checkpoint: Checkpoint, text: str) -> list[tuple[str, str | None]]:
    """Find the entities of a text.

    Args:
        checkpoint: a model with a head for token classification.
        text: the text.

    Returns:
        The text in pieces, each with its entity's type, None between entities.

    Raises:
        InputError: for a text that is empty or too long.
    """
    _encode(checkpoint, text)  # checks the length
    pipeline: Any = transformers.pipeline(
        "token-classification",
        model=checkpoint.model,
        tokenizer=checkpoint.tokenizer,
        aggregation_strategy="first",  # a word has the class of its first piece, as in training
    )
    pieces: list[tuple[str, str | None]] = []
    end = 0
    for entity in pipeline(text):
        if entity["start"] > end:
            pieces.append((text[end : entity["start"]], None))
        pieces.append((text[entity["start"] : entity["end"]], entity["entity_group"]))
        end = entity["end"]
    return [*pieces, (text[end:], None)] if end < len(text) else pieces


def answer_question(checkpoint: Checkpoint, question: str, context: str, top_k: int = 5) -> list[tuple[str, float]]:
    """Answer a question from a text of any length.

    Args:
        checkpoint: a model with a head for question answering.
        question: the question.
        context: the text that holds the answer.
        top_k: the most answers to return.

    Returns:
        (answer, probability among the candidates), the model's answer first; "" is no answer.

    Raises:
        InputError: if the question or the text is empty.
    """
    _require("the question", question)
    _require("the text", context)
    task = checkpoint.task.get("task")
    names = ("max_seq_length", "doc_stride", "max_query_length")
    settings = {name: checkpoint.task[name] for name in names if checkpoint.task.get(name) is not None}
    reply = answer(
        checkpoint.model,
        checkpoint.tokenizer,
        question,
        context,
        task=get_task(task) if task else None,
        null_threshold=checkpoint.task.get("null_threshold"),
        **settings,
    )
    others = [(entry["text"], entry["probability"]) for entry in reply["n_best"] if entry["text"] != reply["answer"]]
    return [(reply["answer"], reply["probability"]), *others][:top_k]


def pseudo_likelihood(checkpoint: Checkpoint, text: str) -> list[tuple[str, float]]:
    """Return each token with the probability that the model gives it when it alone is masked.

    The sum of the logarithms is the sentence's pseudo-log-likelihood (see `scoring`).

    Args:
        checkpoint: a model with a masked-LM head, not left-to-right.
        text: one sentence.

    Returns:
        (token, probability) of each token, without special ones.

    Raises:
        InputError: for a text that is empty or too long.
    """
    _encode(checkpoint, text)  # checks the length
    (score,) = score_sentences(checkpoint.scorer, checkpoint.tokenizer, [text])
    tokens = checkpoint.tokenizer.convert_ids_to_tokens(score.input_ids.tolist())
    return list(zip(tokens, np.exp(score.log_probabilities).tolist(), strict=True))


def similarity(checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """Compare texts by the cosine between their mean token vectors, special tokens included.

    Args:
        checkpoint: any model.
        texts: blank ones are left out. Longer ones than the model takes are truncated.

    Returns:
        [texts, texts] float32, -1 to 1.

    Raises:
        InputError: for less than two texts.
    """
    texts = [text.strip() for text in texts if text.strip()]
    if len(texts) < 2:
        raise InputError("write at least two sentences, one a line")
    rows = [row.vectors[0] for row in encode(checkpoint.model, checkpoint.tokenizer, texts, pooling="mean")]
    vectors = np.stack([row / np.linalg.norm(row) for row in rows])
    return vectors @ vectors.T


@torch.no_grad()
def attention(checkpoint: Checkpoint, text: str, second: str = "") -> Attention:
    """Return the attention weights for a text or a pair.

    Args:
        checkpoint: any model.
        text: the text.
        second: the second text of a pair; "" for none.

    Returns:
        The tokens, and the weights [layers, heads, tokens, tokens].

    Raises:
        InputError: for a text that is empty or too long.
    """
    inputs = _encode(checkpoint, text, second)
    outputs = checkpoint.model(**inputs, output_attentions=True)
    weights = torch.cat(outputs.attentions).numpy()  # a batch of 1 in each layer
    return Attention(checkpoint.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()), weights)


def _encode(checkpoint: Checkpoint, text: str, second: str = "") -> dict[str, torch.Tensor]:
    _require("the text", text)
    texts = (text, second) if second.strip() else (text,)
    inputs = dict(checkpoint.tokenizer(*texts, return_tensors="pt"))
    tokens = inputs["input_ids"].shape[1]
    if tokens > checkpoint.max_tokens:
        raise InputError(f"the text has {tokens} tokens, and this model reads at most {checkpoint.max_tokens}; cut it")
    return inputs


def _require(what: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"{what} is empty; type one")

"""Words of a domain in a finished checkpoint's vocabulary.

New words take the `[unusedN]` rows first, then rows behind the last one; no other id moves. A new word's embedding and
output bias start from the mean of those of the pieces it had. The result is a checkpoint of the same class.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from torch import nn

from ..model import modeling_hfbert
from ..model.inference import masked_lm_logits
from ..model.loading import open_model
from ..text.tokenizer import MAX_WORD, bert_words, load_tokenizer, save_tokenizer, tokenizer_hash
from ..text.tokenizer_checks import UNUSED
from ..utils.directories import atomic_directory
from ..utils.errors import InputError
from ..utils.files import split_revision


# A word seen less often teaches its row too little; of a text of a million words that is one per 200,000.
MIN_COUNT = 5
# One document in so many is held out: its words are not counted, and it measures the result.
HELD_OUT = 10
# Spans of held-out text that are measured: how many words each, how many at most, how many in a forward pass.
_SPAN_WORDS, _SPANS, _BATCH = 40, 512, 32
# Output biases beside the output layer: ours and stock BERT's.
_OUTPUT_BIASES = ("predictions.bias", "lm_head.bias")
# The paper's share (section 3.1).
_MASKED_SHARE = 0.15


@dataclass(frozen=True)
class NewWord:
    """A word for the vocabulary.

    Attributes:
        word: as the normalizer leaves it.
        count: its occurrences in the text.
        pieces: its pieces so far.
    """

    word: str
    count: int
    pieces: tuple[str, ...]


def choose_words(counts: Counter[str], tokenizer: Any, most: int) -> list[NewWord]:
    """Choose the words whose own row saves the most tokens: occurrences × (pieces − 1).

    An unknown word counts as two pieces. Words with digits are left out, for numbers are no words of a domain.

    Args:
        counts: words, as the tokenizer's normalizer and word rules leave them → occurrences.
        tokenizer: of the checkpoint.
        most: how many to choose.

    Returns:
        At most that many words, the most useful first.
    """
    words = sorted(word for word, count in counts.items() if count >= MIN_COUNT and not any(map(str.isdigit, word)))
    candidates = [
        (counts[word] * max(len(pieces) - 1, 1), NewWord(word, counts[word], pieces))
        for word, pieces in zip(words, _pieces(tokenizer.backend_tokenizer, words), strict=True)
        if len(word) <= MAX_WORD and (len(pieces) > 1 or pieces == (tokenizer.unk_token,))
    ]
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1].word))
    return [word for _, word in candidates[:most]]


def _pieces(backend: Tokenizer, words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(token.value for token in backend.model.tokenize(word)) for word in words]


def extended_tokenizer(tokenizer: Any, words: Sequence[str], directory: Path) -> Any:
    """Write the tokenizer with more words into `directory` and open it.

    Args:
        tokenizer: of transformers, with a WordPiece model.
        words: new ones; the ids follow their order.
        directory: for its files.

    Returns:
        The new tokenizer.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = content["model"]["vocab"]
    unused = sorted((token for token in vocabulary if UNUSED.fullmatch(token)), key=vocabulary.__getitem__)
    size = len(tokenizer)
    for number, word in enumerate(words):
        vocabulary[word] = vocabulary.pop(unused[number]) if number < len(unused) else size + number - len(unused)
    tokenizer.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (directory / "vocab.txt").unlink(missing_ok=True)  # of the old words, where transformers wrote one
    opened = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if tokenizer_hash(opened) != tokenizer_hash(Tokenizer.from_file(str(directory / "tokenizer.json"))):
        raise InputError(
            f"transformers does not open a {type(tokenizer).__name__} with more words as it was written; convert the "
            "model to stock bert first"
        )
    return opened


@torch.no_grad()
def extend_rows(
    model: transformers.PreTrainedModel, tokenizer: Any, words: Sequence[NewWord], ids: Sequence[int]
) -> None:
    """Give a model rows for new words: embeddings, and the output layer's weights and biases if it has one.

    Args:
        model: changed in place.
        tokenizer: the old one, which knows the words' pieces.
        words: the new words.
        ids: their ids in the new tokenizer.
    """
    size = max(ids, default=0) + 1
    if size > len(model.get_input_embeddings().weight):  # type: ignore[arg-type]  # a tensor
        model.resize_token_embeddings(size, mean_resizing=False)
    output = model.get_output_embeddings()
    rows = {model.get_input_embeddings().weight, *([] if output is None else output.parameters())}
    tables = [table for name, table in model.named_parameters() if table in rows or name.endswith(_OUTPUT_BIASES)]
    old = [table.clone() for table in tables]  # a word may have been a piece's neighbour in an [unusedN] row
    for word, number in zip(words, ids, strict=True):
        pieces = tokenizer.convert_tokens_to_ids(list(word.pieces))
        for table, before in zip(tables, old, strict=True):
            table[number] = before[pieces].mean(dim=0)


def open_as_written(name: str) -> transformers.PreTrainedModel:
    """Open a checkpoint with the class that its configuration names, ours or one of transformers.

    Raises:
        InputError: if it names none, or weights of that class are missing.
    """
    source, revision = split_revision(name)
    config = transformers.AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    architecture = (config.architectures or ["BertForPreTraining"])[0]
    model_class = getattr(modeling_hfbert, architecture, None) or getattr(transformers, architecture, None)
    if model_class is None:
        raise InputError(f"--extend {name}: its config.json names the class {architecture}, which nothing here knows")
    model, new = open_model(model_class, name)
    if missing := [key for key in new if "pooler" not in key]:
        raise InputError(f"--extend {name} has no {missing[0]}, which its class {architecture} needs")
    return model


def extend_vocabulary(name: str, documents: Iterable[str], most: int, output: str | Path) -> dict[str, Any]:
    """Extend a checkpoint's vocabulary by words of a text, and write both to `output`.

    Args:
        name: directory or name of the checkpoint.
        documents: of the domain; one in HELD_OUT is held out.
        most: words to add.
        output: directory of the result, absent or empty.

    Returns:
        The record: `words` (word, id, count, pieces), `before` and `after` (tokens and pieces per word, unknown words,
        loss per masked word on held-out text), and sizes.

    Raises:
        InputError: if the checkpoint cannot be opened or the text has no word that would help.
        OutputError: if `output` cannot be written.
    """
    tokenizer, model = load_tokenizer(name), open_as_written(name)
    seen: list[str] = []
    held_out: list[str] = []
    counts: Counter[str] = Counter()
    for number, document in enumerate(documents):
        if number % HELD_OUT == HELD_OUT - 1:
            held_out += [document] if len(held_out) < _SPANS else []
        else:
            counts.update(bert_words(document, tokenizer.backend_tokenizer.normalizer))
            seen = seen or [document]
    words = choose_words(counts, tokenizer, most)
    if not words:
        raise InputError(
            f"the text has no word of several pieces that occurs {MIN_COUNT} times: the vocabulary suits it already"
        )
    spans = _spans(held_out or seen)
    before = measure(model, tokenizer, spans)
    with atomic_directory(output) as directory:
        extended = extended_tokenizer(tokenizer, [word.word for word in words], directory)
        vocabulary = extended.get_vocab()
        ids = [vocabulary[word.word] for word in words]
        extend_rows(model, tokenizer, words, ids)
        model.save_pretrained(directory)
        save_tokenizer(extended, directory)
    lost = sorted(set(_unknown(extended, counts)) - set(_unknown(tokenizer, counts)))
    return {
        "model": str(name),
        "words": [
            {"word": w.word, "id": i, "count": w.count, "pieces": w.pieces} for w, i in zip(words, ids, strict=True)
        ],
        "unused_rows": sum(number < len(tokenizer) for number in ids),
        "vocab_size": {"before": len(tokenizer), "after": len(extended)},
        "newly_unknown": lost,
        "held_out": {"documents": len(held_out), "spans": len(spans)},
        "before": before,
        "after": measure(model, extended, spans),
    }


def _unknown(tokenizer: Any, words: Iterable[str]) -> list[str]:
    listed = list(words)
    pieces = _pieces(tokenizer.backend_tokenizer, listed)
    return [word for word, own in zip(listed, pieces, strict=True) if own == (tokenizer.unk_token,)]


def _spans(documents: Sequence[str]) -> list[str]:
    """Cut documents into spans of words, and take some of them, evenly spread."""
    spans = []
    for document in documents:
        words = document.split()
        spans += [" ".join(words[start : start + _SPAN_WORDS]) for start in range(0, len(words), _SPAN_WORDS)]
    if len(spans) <= _SPANS:
        return spans
    return [spans[number] for number in np.linspace(0, len(spans) - 1, _SPANS).astype(int)]


def measure(model: nn.Module, tokenizer: Any, spans: Sequence[str]) -> dict[str, float | None]:
    """Measure a vocabulary and a model on spans of text.

    Losses of two vocabularies compare only per word: the same words are masked whole, and the losses of a word's
    pieces are added up. The number of a span seeds the choice of its words.

    Args:
        model: any model of transformers. It is left in eval mode.
        tokenizer: a fast tokenizer, the model's.
        spans: texts. Each is truncated to the model's length, at most 512 tokens.

    Returns:
        pieces_per_word, unknown_per_word, and loss_per_word in nats, None for a model without a masked-LM head.
    """
    words = pieces = unknown = masked_words = 0
    loss = 0.0
    predicts = getattr(model, "get_output_embeddings", lambda: None)() is not None
    longest = min(getattr(model.config, "max_position_embeddings", 512), 512)
    model.eval()
    for start in range(0, len(spans), _BATCH):
        encoded = tokenizer(list(spans[start : start + _BATCH]), truncation=True, max_length=longest, padding=True)
        chosen = np.zeros(np.shape(encoded["input_ids"]), dtype=bool)
        for row in range(len(chosen)):
            places = encoded.word_ids(row)
            own = np.array([-1 if word is None else word for word in places])
            count = own.max() + 1
            draw = np.random.default_rng([0, start + row]).random(count) < _MASKED_SHARE
            words, pieces = words + int(count), pieces + int((own >= 0).sum())
            masked_words += int(draw.sum())
            chosen[row] = np.append(draw, False)[own]
        ids = torch.tensor(encoded["input_ids"])
        unknown += int((ids == tokenizer.unk_token_id).sum())
        if predicts:
            loss += _loss_sum(model, tokenizer, encoded, ids, torch.from_numpy(chosen))
    words = max(words, 1)
    return {
        "pieces_per_word": round(pieces / words, 4),
        "unknown_per_word": round(unknown / words, 5),
        "loss_per_word": round(loss / max(masked_words, 1), 4) if predicts else None,
    }


@torch.no_grad()
def _loss_sum(model: nn.Module, tokenizer: Any, encoded: Any, ids: torch.Tensor, chosen: torch.Tensor) -> float:
    inputs = {name: torch.tensor(encoded[name]) for name in tokenizer.model_input_names if name in encoded}
    inputs["input_ids"] = ids.masked_fill(chosen, tokenizer.mask_token_id)
    logits = masked_lm_logits(model(**inputs))
    return F.cross_entropy(logits[chosen].float(), ids[chosen], reduction="sum").item()


def table(record: dict[str, Any]) -> str:
    """Format the measurements before and after, and the first words, for the screen."""
    rows: list[tuple[str, ...]] = [("", "before", "after")]
    for name, unit in (("pieces_per_word", ""), ("unknown_per_word", ""), ("loss_per_word", " (nats, held out)")):
        values = [record[side][name] for side in ("before", "after")]
        rows.append((name.replace("_", " ") + unit, *("–" if value is None else f"{value:.4f}" for value in values)))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"  {name:{width}}  {left:>8}  {right:>8}" for name, left, right in rows)

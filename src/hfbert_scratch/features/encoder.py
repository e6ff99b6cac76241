"""Feature vectors of texts from any encoder that AutoModel opens: of every token from chosen layers, or pooled.

Streaming: texts come from any iterable, vectors go out in the same order. In between, rows wait in a window until
there is enough to sort them by length, so that batches hold little padding; how much waits, and how large a batch is,
is counted in tokens and bytes, never in rows, so that memory stays bounded whatever the lengths.
"""

import hashlib
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from ..model.inference import choose_attention, inference_copy
from ..model.loading import drop_random_pooler, open_model
from ..utils.errors import InputError


POOLINGS = ("mean", "max", "cls", "pooler")
# Vectors that wait for the rest of their window, in bytes.
_WINDOW_BYTES = 1 << 28
# A window is at most so many batches: more would sort no better and answer later.
_WINDOW_BATCHES = 64
# Texts tokenized at a time.
_CHUNK_TEXTS = 512
_CHUNK_CHARACTERS = 1 << 20

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Row:
    """A sequence on its way into the encoder.

    input_ids, token_type_ids: (tokens,), special tokens included. positions: (wanted,), the tokens whose vectors are
    returned; None for all. cut: how many tokens truncation took.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    positions: np.ndarray | None = None
    cut: int = 0


@dataclass(frozen=True)
class Features:
    """What `encode` returns for a text.

    input_ids: (tokens,) int32, special tokens included. vectors: float32, (layers, tokens, hidden_size), or pooled
    (layers, hidden_size). cut: how many tokens did not fit and are not represented; 0 for a whole text.
    """

    input_ids: np.ndarray
    vectors: np.ndarray
    cut: int


def load_encoder(name: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Open a checkpoint's encoder, without its head, for inference.

    Args:
        name: a checkpoint directory or a name on the Hub, of any encoder that AutoModel opens.
        device: the device to put it on.

    Returns:
        The encoder in eval mode and float32. Its `pooler` is None if the checkpoint has no weights for one.

    Raises:
        InputError: if the checkpoint cannot be opened or lacks other weights.
    """
    model, new = open_model(transformers.AutoModel, name)
    drop_random_pooler(model, new)
    model.eval().to(device)
    choose_attention(model)
    return model


def encode(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[Text],
    *,
    layers: Sequence[int] = (-1,),
    pooling: str | None = None,
    max_seq_length: int | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Features]:
    """Yield the `Features` of each text in the given order, computed in eval mode and without gradients.

    model: an encoder or a model with a head, whose encoder is then used. texts: strings, or (A, B) for a pair; they
    are tokenized as `tokenizer(A, B)` does. layers: indices into transformers' `hidden_states`, 0 for the embeddings,
    -1 for the last layer. pooling: None for a vector per token; "mean" or "max" over all tokens with the special ones;
    "cls" for the first, in a left-to-right model for the last; "pooler" for the model's own pooler_output (then layers
    must be (-1,)). max_seq_length: longer sequences are cut, by default at what model and tokenizer take;
    `Features.cut` tells. batch_tokens: per forward pass, padding included, by default `default_batch_tokens`; a
    sequence that is longer is a batch of its own. dtype: to compute in, by default the model's own; for another one
    (bfloat16) a copy is made and yours stays as it is. For many texts an `inference.inference_copy` of the model is
    faster.
    Vectors are float32 in any case; in float32 they differ from a forward pass of the text alone by rounding (at most
    1e-5).

    Raises InputError at once for arguments that do not fit the model, and on the way for a text that is no string.
    """
    limit = _length_limit(model, tokenizer, max_seq_length)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {vocab_size}; use the model's own"
        )
    rows = tokenized(tokenizer, texts, limit)
    encoded = encode_rows(model, rows, layers=layers, pooling=pooling, batch_tokens=batch_tokens, dtype=dtype)
    return (Features(row.input_ids, vectors, row.cut) for row, vectors in encoded)


def encode_rows(
    model: nn.Module,
    rows: Iterable[Row],
    *,
    layers: Sequence[int] = (-1,),
    pooling: str | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Row, np.ndarray]]:
    """`encode` for what is tokenized already: yields each row with its vectors, (layers, wanted tokens, hidden_size)
    or pooled (layers, hidden_size), float32, in the given order.
    """
    encoder = _encoder(model)
    config = encoder.config
    layers = _resolve_layers(layers, config.num_hidden_layers)
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; it must be {', '.join(POOLINGS)}, or None for a vector per token")
    if pooling == "pooler" and layers != [config.num_hidden_layers]:
        raise InputError("pooling 'pooler' is made from the last layer: use it with layers -1 alone")
    if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
        raise InputError(f"this {type(encoder).__name__} has no pooler; use pooling 'cls' or 'mean'")
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(encoder.device)
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    if dtype is not None and dtype != encoder.dtype:
        encoder = inference_copy(encoder, dtype)
    # Pooled vectors weigh next to nothing.
    waiting = _WINDOW_BYTES // (len(layers) * config.hidden_size * 4) if pooling is None else math.inf
    window_tokens = max(batch_tokens, min(waiting, _WINDOW_BATCHES * batch_tokens))
    return _encode_windows(encoder, rows, layers, pooling, batch_tokens, window_tokens)


def tokenized(tokenizer: Any, texts: Iterable[Text], max_seq_length: int) -> Iterator[Row]:
    """The rows of `texts` (strings or pairs), with special tokens, cut to max_seq_length (the longer of a pair first).

    Raises InputError for a text that is neither.
    """
    for chunk in _chunks(texts):
        encoded: list[Any] = [None] * len(chunk)
        # The tokenizer takes single texts and pairs apart.
        for is_pair in (False, True):
            members = [number for number, text in enumerate(chunk) if isinstance(text, tuple) == is_pair]
            for number, row in zip(members, _tokenize(tokenizer, [chunk[m] for m in members]), strict=True):
                encoded[number] = row
        for text, (ids, types) in zip(chunk, encoded, strict=True):
            cut = len(ids) - max_seq_length
            if cut > 0:
                ((ids, types),) = _tokenize(tokenizer, [text], truncation=True, max_length=max_seq_length)
            yield Row(np.array(ids, dtype=np.int32), np.array(types, dtype=np.int32), cut=max(cut, 0))


def default_batch_tokens(device: torch.device) -> int:
    """Tokens in a forward pass that are fast: on a CPU enough for its matrix products, and few enough that what passes
    from layer to layer is memory that glibc keeps (2048 against 512 and 4096: benchmarks/inference.py --batch_tokens);
    on a GPU enough to fill it.
    """
    return 2048 if device.type == "cpu" else 16384


def weights_hash(model: nn.Module) -> str:
    """A fingerprint (64 hex digits) of a model's class, configuration and weights, wherever they were loaded from."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = model.config.to_dict()
    digest.update(repr(sorted((k, v) for k, v in config.items() if not k.startswith(("_", "transformers")))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------- the texts


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    chunk: list[Text] = []
    characters = 0
    for number, text in enumerate(texts):
        if isinstance(text, list):
            text = tuple(text)
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            raise InputError(f"text {number} is {str(text)[:80]!r}; it must be a string or a pair of strings")
        chunk.append(text if len(parts) == 2 else parts[0])
        characters += sum(map(len, parts))
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _tokenize(tokenizer: Any, texts: list[Text], **truncation: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and segments of texts that are all single, or all pairs."""
    if not texts:
        return iter(())
    columns = zip(*texts, strict=True) if isinstance(texts[0], tuple) else [texts]
    try:
        encoded = tokenizer(
            *map(list, columns),
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,  # a long text is cut and counted here, no reason for a warning
            **truncation,
        )
    except UnicodeEncodeError as error:
        raise InputError(f"a text holds a lone surrogate ({error.reason}); it is not valid Unicode") from None
    return zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)


def _length_limit(model: nn.Module, tokenizer: Any, asked: int | None) -> int:
    positions = getattr(model.config, "max_position_embeddings", math.inf)
    # RoBERTa's family counts positions from behind the padding id, so some of its table is never used.
    padding_idx = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    # Tokenizers without a limit say 1e30.
    limit = min(tokenizer.model_max_length, positions - (0 if padding_idx is None else padding_idx + 1))
    if asked is None:
        if limit > 1e9:
            raise InputError("neither model nor tokenizer says how long a sequence may be; give max_seq_length")
        return int(limit)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if not least <= asked <= limit:
        raise InputError(f"max_seq_length is {asked}; this model and tokenizer take {least} to {int(limit)}")
    return asked


# --------------------------------------------------------------------------------------------------------- the model


def _encoder(model: nn.Module) -> nn.Module:
    encoder = model.base_model
    if getattr(encoder.config, "is_encoder_decoder", False) or encoder.get_input_embeddings() is None:
        raise InputError(f"{type(encoder).__name__} is not a text encoder like BERT; its layers are not features")
    return encoder


def _resolve_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Non-negative indices into the num_layers + 1 hidden states."""
    if not layers:
        raise InputError("layers is empty; name at least one, such as -1")
    for layer in layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise InputError(
                f"layer {layer} does not exist: this model has 0 (the embeddings) to {num_layers}, "
                f"or from the end -1 to {-num_layers - 1}"
            )
    return [layer % (num_layers + 1) for layer in layers]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


# ------------------------------------------------------------------------------------------------ windows and batches


def _encode_windows(
    encoder: nn.Module,
    rows: Iterable[Row],
    layers: list[int],
    pooling: str | None,
    batch_tokens: int,
    window_tokens: float,
) -> Iterator[tuple[Row, np.ndarray]]:
    window: list[Row] = []
    tokens = 0
    for row in rows:
        window.append(row)
        tokens += len(row.input_ids)
        if tokens >= window_tokens:
            yield from zip(window, _encode_window(encoder, window, layers, pooling, batch_tokens), strict=True)
            window, tokens = [], 0
    yield from zip(window, _encode_window(encoder, window, layers, pooling, batch_tokens), strict=True)


def _encode_window(
    encoder: nn.Module, window: list[Row], layers: list[int], pooling: str | None, batch_tokens: int
) -> list[np.ndarray]:
    """The vectors of all rows; longest first, so that the largest batch finds the memory it needs at the start."""
    order = sorted(range(len(window)), key=lambda number: -len(window[number].input_ids))
    batches = []
    while order:
        size = max(1, batch_tokens // len(window[order[0]].input_ids))
        batches.append(order[:size])
        order = order[size:]
    with _evaluating(encoder):
        # Nothing is read back before all is started, so that a GPU does not wait for the host.
        outputs = [_forward(encoder, [window[number] for number in batch], layers, pooling) for batch in batches]
        found: list[np.ndarray] = [np.empty(0)] * len(window)
        for batch, vectors in zip(batches, outputs, strict=True):
            host = vectors.float().cpu().numpy()
            if pooling is None:
                ends = np.cumsum([_wanted(window[number]) for number in batch])
                parts = np.split(host, ends[:-1], axis=1)
            else:
                parts = list(host)
            for number, part in zip(batch, parts, strict=True):
                found[number] = np.array(part)  # a copy: one row must not keep its batch alive
    return found


def _wanted(row: Row) -> int:
    return len(row.input_ids if row.positions is None else row.positions)


def _forward(encoder: nn.Module, rows: list[Row], layers: list[int], pooling: str | None) -> torch.Tensor:
    """One batch, padded on the right → (layers, all rows' wanted tokens, hidden), or pooled (rows, layers, hidden)."""
    width = len(rows[0].input_ids)
    input_ids = np.full((len(rows), width), encoder.config.pad_token_id or 0, dtype=np.int64)
    token_type_ids = np.zeros_like(input_ids)
    mask = np.zeros_like(input_ids)
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[number, :length] = row.input_ids
        token_type_ids[number, :length] = row.token_type_ids
        mask[number, :length] = 1
    inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": mask}
    known = inspect.signature(encoder.forward).parameters
    device = encoder.device
    tensors = {k: torch.from_numpy(v).to(device, non_blocking=True) for k, v in inputs.items() if k in known}
    last = encoder.config.num_hidden_layers
    # In each row the vector of "cls": left to right only the last token has seen the others.
    is_causal = any(getattr(encoder.config, name, False) for name in ("left_to_right", "is_decoder"))
    place = np.array([len(row.input_ids) - 1 if is_causal else 0 for row in rows])
    summary = torch.from_numpy(np.arange(len(rows)) * width + place).to(device, non_blocking=True)
    if pooling in ("cls", "pooler") and layers == [last] and "read_positions" in known:  # of our own encoders
        read = encoder(**tensors, read_positions=summary, return_dict=True)
        return (read.last_hidden_state.float() if pooling == "cls" else read.pooler_output)[:, None]
    outputs = encoder(**tensors, output_hidden_states=layers != [last], return_dict=True)
    if pooling == "pooler":
        return outputs.pooler_output[:, None]
    states = [outputs.last_hidden_state if layer == last else outputs.hidden_states[layer] for layer in layers]
    if pooling == "cls":
        return torch.stack([state.flatten(0, 1)[summary].float() for state in states], dim=1)
    if pooling is not None:
        return torch.stack([_pool(state, tensors["attention_mask"], pooling) for state in states], dim=1)
    places = [
        number * width + (np.arange(len(row.input_ids)) if row.positions is None else row.positions)
        for number, row in enumerate(rows)
    ]
    index = torch.from_numpy(np.concatenate(places).astype(np.int64)).to(device, non_blocking=True)
    return torch.stack([state.flatten(0, 1)[index] for state in states])


def _pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """(rows, tokens, hidden) → (rows, hidden), in float32: a bfloat16 sum over tokens would lose digits."""
    real = mask[..., None].bool()
    if pooling == "max":
        return states.float().masked_fill(~real, -math.inf).amax(dim=1)
    return states.float().masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)

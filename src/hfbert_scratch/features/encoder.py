"""Feature vectors of texts from any encoder that AutoModel opens: per token from chosen layers, or pooled.

Texts stream in from any iterable, and vectors stream out in the same order. In between, sequences wait in a window
and are sorted by length, so that batches hold little padding. Windows and batches are limited in tokens and bytes,
never in sequences, so that memory stays bounded for all lengths.
"""

import hashlib
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..model.attention import choose_attention
from ..model.inference import default_batch_tokens, eval_mode, inference_copy
from ..model.loading import drop_random_pooler, open_model
from ..utils.errors import InputError


POOLINGS = ("mean", "max", "cls", "pooler")
# The most bytes of vectors that wait for the rest of their window.
_WINDOW_BYTES = 1 << 28
# The most batches in a window; larger windows add latency without better batching.
_WINDOW_BATCHES = 64
# Texts and characters tokenized at a time.
_CHUNK_TEXTS = 512
_CHUNK_CHARACTERS = 1 << 20

Text = str | tuple[str, str]


@dataclass(frozen=True)
class EncoderInput:
    """A tokenized sequence.

    Attributes:
        input_ids: [tokens], special tokens included.
        token_type_ids: [tokens].
        positions: [num_vectors], the tokens whose vectors are returned; None for all.
        num_truncated: the number of tokens that truncation removed.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    positions: np.ndarray | None = None
    num_truncated: int = 0

    @property
    def num_vectors(self) -> int:
        """The number of token vectors to return."""
        return len(self.input_ids if self.positions is None else self.positions)


@dataclass(frozen=True)
class Features:
    """The vectors of a text.

    Attributes:
        input_ids: [tokens] int32, special tokens included.
        vectors: float32 [layers, tokens, hidden_size], or pooled [layers, hidden_size].
        num_truncated: the number of tokens that did not fit and are not represented.
    """

    input_ids: np.ndarray
    vectors: np.ndarray
    num_truncated: int


def load_encoder(name: str | Path, device: torch.device | str = "cpu") -> transformers.PreTrainedModel:
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
    model: transformers.PreTrainedModel,
    tokenizer: Any,
    texts: Iterable[Text],
    *,
    layers: Sequence[int] = (-1,),
    pooling: str | None = None,
    max_seq_length: int | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Features]:
    """Encode texts in batches, in eval mode and without gradients.

    Vectors differ from a forward pass of the text alone by rounding, in float32 by at most 1e-5. For many texts an
    `inference_copy` of the model is faster.

    Args:
        model: an encoder, or a model with a head, whose encoder is used.
        tokenizer: the model's tokenizer.
        texts: strings, or (A, B) for a pair, which is tokenized as `tokenizer(A, B)`.
        layers: indices into transformers' `hidden_states`: 0 for the embeddings, -1 for the last layer.
        pooling: None for a vector per token; "mean" or "max" over all tokens, special ones included; "cls" for the
            first token, in a left-to-right model for the last; "pooler" for the model's pooler_output, with layers
            (-1,) only.
        max_seq_length: truncate longer sequences; default: the limit of model and tokenizer.
        batch_tokens: tokens in a forward pass, padding included; default: `default_batch_tokens`. A longer sequence
            is a batch of its own.
        dtype: the precision to compute in; default: the model's own. Another one is applied to a copy.

    Returns:
        An iterator over the `Features` of each text, float32, in the given order.

    Raises:
        InputError: at once for arguments that do not fit the model; while iterating for a text that is not a string
            or a pair of strings.
    """
    limit = _length_limit(model, tokenizer, max_seq_length)
    embeddings: Any = model.get_input_embeddings()
    vocab_size = embeddings.weight.shape[0]
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {vocab_size}; use the model's own"
        )
    inputs = tokenize(tokenizer, texts, limit)
    encoded = encode_inputs(model, inputs, layers=layers, pooling=pooling, batch_tokens=batch_tokens, dtype=dtype)
    return (Features(item.input_ids, vectors, item.num_truncated) for item, vectors in encoded)


def encode_inputs(
    model: transformers.PreTrainedModel,
    inputs: Iterable[EncoderInput],
    *,
    layers: Sequence[int] = (-1,),
    pooling: str | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[EncoderInput, np.ndarray]]:
    """Encode tokenized sequences, in eval mode and without gradients.

    Args:
        model: an encoder, or a model with a head, whose encoder is used.
        inputs: sequences; every one must fit the model.
        layers: indices into transformers' `hidden_states`: 0 for the embeddings, -1 for the last layer.
        pooling: one of POOLINGS, over all tokens of a sequence; see `encode`. None: a vector per token, or per entry
            of an input's `positions`.
        batch_tokens: tokens in a forward pass, padding included. None: `default_batch_tokens`.
        dtype: the precision to compute in. None: the model's own. Another one is applied to a copy.

    Returns:
        An iterator over each input and its vectors, float32 [layers, num_vectors, hidden_size], or pooled
        [layers, hidden_size], in the given order.

    Raises:
        InputError: at once, for arguments that do not fit the model.
    """
    encoder = _encoder(model)
    config = encoder.config
    layers = _resolve_layers(layers, config.num_hidden_layers)
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; it must be {', '.join(POOLINGS)}, or None for a vector per token")
    if pooling == "pooler" and layers != [config.num_hidden_layers]:
        raise InputError("pooling 'pooler' is made from the last layer: use it with layers -1 only")
    if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
        raise InputError(f"this {type(encoder).__name__} has no pooler; use pooling 'cls' or 'mean'")
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(encoder.device)
    if batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    if dtype is not None and dtype != encoder.dtype:
        encoder = inference_copy(encoder, dtype)
    # Pooled vectors need almost no memory.
    waiting = _WINDOW_BYTES // (len(layers) * config.hidden_size * 4) if pooling is None else math.inf
    window_tokens = max(batch_tokens, min(waiting, _WINDOW_BATCHES * batch_tokens))
    return _encode_windows(encoder, inputs, layers, pooling, batch_tokens, window_tokens)


def tokenize(tokenizer: Any, texts: Iterable[Text], max_seq_length: int) -> Iterator[EncoderInput]:
    """Tokenize texts with special tokens, and truncate them.

    Args:
        tokenizer: of transformers.
        texts: strings, or (A, B) for a pair.
        max_seq_length: tokens of a sequence, special ones included. The longer text of a pair is truncated first.

    Yields:
        Each text's sequence, in the given order.

    Raises:
        InputError: for a text that is not a string or a pair of strings, or not valid Unicode.
    """
    for chunk in _chunks(texts):
        encoded: list[Any] = [None] * len(chunk)
        # The tokenizer takes single texts and pairs in separate calls.
        for is_pair in (False, True):
            members = [number for number, text in enumerate(chunk) if isinstance(text, tuple) == is_pair]
            for number, ids_and_types in zip(members, _tokenize(tokenizer, [chunk[m] for m in members]), strict=True):
                encoded[number] = ids_and_types
        for text, (ids, types) in zip(chunk, encoded, strict=True):
            excess = len(ids) - max_seq_length
            if excess > 0:
                ((ids, types),) = _tokenize(tokenizer, [text], truncation=True, max_length=max_seq_length)
            input_ids, token_type_ids = np.array(ids, dtype=np.int32), np.array(types, dtype=np.int32)
            yield EncoderInput(input_ids, token_type_ids, num_truncated=max(excess, 0))


def weights_hash(model: transformers.PreTrainedModel) -> str:
    """Hash a model's class, configuration and weights to 64 hex digits, independent of the checkpoint's location."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = model.config.to_dict()
    digest.update(repr(sorted((k, v) for k, v in config.items() if not k.startswith(("_", "transformers")))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Group texts for the tokenizer; refuse everything but strings and pairs of strings."""
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
    """Return ids and segments of texts that are all single, or all pairs."""
    if not texts:
        return iter(())
    columns = zip(*texts, strict=True) if isinstance(texts[0], tuple) else [texts]
    try:
        encoded = tokenizer(
            *map(list, columns),
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,  # long texts are truncated and counted here; do not warn
            **truncation,
        )
    except UnicodeEncodeError as error:
        raise InputError(f"a text holds a lone surrogate ({error.reason}); it is not valid Unicode") from None
    return zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)


def _length_limit(model: transformers.PreTrainedModel, tokenizer: Any, max_seq_length: int | None) -> int:
    """Return the longest sequence in tokens; refuse a max_seq_length that model or tokenizer cannot take."""
    positions = getattr(model.config, "max_position_embeddings", math.inf)
    # RoBERTa and its relatives count positions from padding_idx + 1, so the first rows of the table are never used.
    padding_idx = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    # Tokenizers without a limit state 1e30.
    limit = min(tokenizer.model_max_length, positions - (0 if padding_idx is None else padding_idx + 1))
    if max_seq_length is None:
        if limit > 1e9:
            raise InputError("neither model nor tokenizer says how long a sequence may be; give max_seq_length")
        return int(limit)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if not least <= max_seq_length <= limit:
        raise InputError(f"max_seq_length is {max_seq_length}; this model and tokenizer take {least} to {int(limit)}")
    return max_seq_length


def _encoder(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    encoder: Any = model.base_model
    if getattr(encoder.config, "is_encoder_decoder", False) or encoder.get_input_embeddings() is None:
        raise InputError(f"{type(encoder).__name__} is not a text encoder like BERT; its layers are not features")
    return encoder


def _resolve_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Return non-negative indices into the num_layers + 1 hidden states."""
    if not layers:
        raise InputError("layers is empty; name at least one, such as -1")
    for layer in layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise InputError(
                f"layer {layer} does not exist: this model has 0 (the embeddings) to {num_layers}, "
                f"or from the end -1 to {-num_layers - 1}"
            )
    return [layer % (num_layers + 1) for layer in layers]


def _encode_windows(
    encoder: transformers.PreTrainedModel,
    inputs: Iterable[EncoderInput],
    layers: list[int],
    pooling: str | None,
    batch_tokens: int,
    window_tokens: float,
) -> Iterator[tuple[EncoderInput, np.ndarray]]:
    window: list[EncoderInput] = []
    tokens = 0
    for item in inputs:
        window.append(item)
        tokens += len(item.input_ids)
        if tokens >= window_tokens:
            yield from zip(window, _encode_window(encoder, window, layers, pooling, batch_tokens), strict=True)
            window, tokens = [], 0
    yield from zip(window, _encode_window(encoder, window, layers, pooling, batch_tokens), strict=True)


def _encode_window(
    encoder: transformers.PreTrainedModel,
    window: list[EncoderInput],
    layers: list[int],
    pooling: str | None,
    batch_tokens: int,
) -> list[np.ndarray]:
    """Return the vectors of all inputs, computed longest first: a batch beyond the memory fails at the start."""
    order = sorted(range(len(window)), key=lambda number: -len(window[number].input_ids))
    batches = []
    while order:
        size = max(1, batch_tokens // len(window[order[0]].input_ids))
        batches.append(order[:size])
        order = order[size:]
    with eval_mode(encoder):
        # Launch every batch before reading any result, so that a GPU does not wait for the host.
        outputs = [_forward(encoder, [window[number] for number in batch], layers, pooling) for batch in batches]
        results: list[np.ndarray] = [np.empty(0)] * len(window)
        for batch, vectors in zip(batches, outputs, strict=True):
            host = vectors.float().cpu().numpy()
            if pooling is None:
                ends = np.cumsum([window[number].num_vectors for number in batch])
                slices = np.split(host, ends[:-1], axis=1)
            else:
                slices = list(host)
            for number, own in zip(batch, slices, strict=True):
                results[number] = np.array(own)  # a copy: one sequence must not keep its batch alive
    return results


def _forward(
    encoder: transformers.PreTrainedModel, rows: list[EncoderInput], layers: list[int], pooling: str | None
) -> torch.Tensor:
    """Encode one batch, padded on the right.

    Returns [layers, sum of num_vectors, hidden_size], or pooled [rows, layers, hidden_size].
    """
    width = len(rows[0].input_ids)  # the first row is the longest
    input_ids = np.full((len(rows), width), encoder.config.pad_token_id or 0, dtype=np.int64)
    token_type_ids = np.zeros_like(input_ids)
    mask = np.zeros_like(input_ids)
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[number, :length] = row.input_ids
        token_type_ids[number, :length] = row.token_type_ids
        mask[number, :length] = 1
    inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": mask}
    parameters = inspect.signature(encoder.forward).parameters
    device = encoder.device
    tensors = {k: torch.from_numpy(v).to(device, non_blocking=True) for k, v in inputs.items() if k in parameters}
    last = encoder.config.num_hidden_layers
    # Position of the "cls" vector; in a left-to-right model only the last token attends to all others.
    is_causal = any(getattr(encoder.config, name, False) for name in ("left_to_right", "is_decoder"))
    place = np.array([len(row.input_ids) - 1 if is_causal else 0 for row in rows])
    summary = torch.from_numpy(np.arange(len(rows)) * width + place).to(device, non_blocking=True)
    if pooling in ("cls", "pooler") and layers == [last] and "read_positions" in parameters:  # our own encoders
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
    flat_positions = [
        number * width + (np.arange(len(row.input_ids)) if row.positions is None else row.positions)
        for number, row in enumerate(rows)
    ]
    index = torch.from_numpy(np.concatenate(flat_positions).astype(np.int64)).to(device, non_blocking=True)
    return torch.stack([state.flatten(0, 1)[index] for state in states])


def _pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool [rows, tokens, hidden] to [rows, hidden] in float32: a bfloat16 sum over tokens would lose digits."""
    real = mask[..., None].bool()
    if pooling == "max":
        return states.float().masked_fill(~real, -math.inf).amax(dim=1)
    return states.float().masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)

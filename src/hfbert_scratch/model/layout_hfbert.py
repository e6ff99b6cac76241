# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""Layouts of a batch: padded, packed in one row, or unpadded; each with its attention mask.

A padded batch goes through the model as it is: for it `TokenLayout` does nothing but pick the vectors to pool and to
read. `pack` concatenates a batch into one packed row. `UnpaddedLayout` hides the padding from the layers and gives it
back. This file travels with every checkpoint and imports no other of this package but checks_hfbert and
configuration_hfbert.
"""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .checks_hfbert import check_cu_seqlens, check_packable, check_read_positions
from .configuration_hfbert import IGNORED_LABEL, HFBertConfig, autocast_dtype, is_transformed


# An attention implementation like "sdpa", of our own: the layers see no padding.
UNPADDED = "hfbert_unpadded"
# Arguments of the model for a packed row beside its tokens, under transformers' names.
PACKED_ARGUMENTS = ("cu_seq_lens_q", "max_length_q")

# Sequences share a bucket if each is at least this fraction of the longest, or if the longest is very short.
_MIN_LENGTH_RATIO = 0.8
_SHORT_LENGTH = 32


def token_layout(
    model: PreTrainedModel,
    shape: torch.Size,
    device: torch.device,
    attention_mask: torch.Tensor | None,
    read_positions: torch.Tensor | tuple[()] | None,
    kwargs: Mapping[str, Any],
) -> "TokenLayout":
    """Choose the layout of a batch: unpadded if the model's attention is UNPADDED and nothing asks for padded outputs.

    Args:
        model: an HFBertModel.
        shape, device: (batch_size, sequence_length) of the inputs, and where they are.
        attention_mask, read_positions, kwargs: see `HFBertModel.forward`.

    Raises:
        ValueError: if packed rows or positions are wrong, or attentions are asked for that are not computed.
    """
    config: Any = model.config
    cu_seqlens, max_seqlen = kwargs.get("cu_seq_lens_q"), 0
    if cu_seqlens is not None:
        max_seqlen = kwargs.get("max_length_q") or min(shape[1], config.max_position_embeddings)
        cu_seqlens = check_cu_seqlens(cu_seqlens, max_seqlen, shape, device, attention_mask)
    pooled = _pooled_positions(config.left_to_right, shape, device, attention_mask, cu_seqlens)
    if read_positions is not None:
        read_positions = check_read_positions(read_positions, pooled, shape, device)
    layout = TokenLayout(shape, pooled, read_positions, cu_seqlens, max_seqlen)
    if config._attn_implementation != UNPADDED or config.bilstm:
        return layout
    if kwargs.get("output_attentions"):
        raise ValueError(f"{UNPADDED!r} returns no attentions; model.set_attn_implementation('eager') does")
    dtype = autocast_dtype(device) or model.dtype
    has_kernel = has_varlen_kernel(device, dtype, config.hidden_size // config.num_attention_heads)
    keeps_shapes = kwargs.get("output_hidden_states") or is_transformed()
    is_pair_mask = attention_mask is not None and len(attention_mask.shape) != 2
    if is_pair_mask or (keeps_shapes and (cu_seqlens is None or not has_kernel)):
        return layout
    unpadded = layout.unpadded(attention_mask, device, has_kernel)
    # A causal mask depends on the positions of all queries.
    if read_positions is not None and not kwargs.get("output_hidden_states") and not config.left_to_right:
        unpadded.confine_last_layer(device)
    return unpadded


def _pooled_positions(
    left_to_right: bool,
    shape: torch.Size,
    device: torch.device,
    attention_mask: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> torch.Tensor | None:
    """Return the position of each sequence's first token in the flattened batch or, left to right, of its last.

    None for the first of each row.
    """
    if cu_seqlens is not None:
        # An empty last sequence starts after the row: clamp. Its vector means nothing.
        positions = cu_seqlens[1:] - 1 if left_to_right else cu_seqlens[:-1]
        return positions.to(torch.long).clamp(min=0, max=shape[1] - 1)
    if not left_to_right:
        return None
    columns = torch.arange(shape[1], device=device)
    if isinstance(attention_mask, torch.Tensor):
        columns = real_tokens(attention_mask.to(device)) * columns
    return first_positions(shape, device) + columns.amax(-1)


def pack(
    batch: Mapping[str, torch.Tensor], pad_token_id: int, multiple_of: int = 1, *, per_row: Collection[str] = ()
) -> dict[str, Any]:
    """Pack a padded batch into one row for HFBertModel.forward.

    Args:
        batch: `attention_mask` (rows, length), 1 for tokens and 0 for padding; `masked_positions` (rows, predictions);
            `next_sentence_label` and the tensors of `per_row` (rows, …); anything else (rows, length).
        pad_token_id: token of the padding at the end.
        multiple_of: round the number of tokens up to a multiple of it, so that few shapes occur. The padding forms
            sequences of its own with labels of -100; their number depends on the shapes only, so some are empty.
        per_row: names of tensors with an entry per row. Shapes do not tell: there may be as many classes as tokens.

    Returns:
        The batch without attention_mask: `masked_positions` (1, rows · predictions), the rest (sequences, …) or
        (1, tokens). Added: `cu_seq_lens_q` (sequences + 1,) int32 and `max_length_q`, the length.

    Raises:
        ValueError: if a tensor has another shape, or a sequence of padding would need a floating-point label.
    """
    real = batch["attention_mask"] != 0
    rows, length = real.shape
    indices = real.flatten().nonzero().squeeze(1)  # (tokens,)
    tokens = len(indices)
    total = -(-tokens // multiple_of) * multiple_of
    # The most sequences of padding any batch of this shape can need.
    spare = -(-(multiple_of - 1) // length)
    ends = real.sum(1).cumsum(0)
    spare_ends = (tokens + length * torch.arange(1, spare + 1)).clamp(max=total)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends, spare_ends])
    fills = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}
    per_row = {*per_row, "next_sentence_label"}
    check_packable(batch, per_row, has_padding=spare > 0)
    packed: dict[str, Any] = {}
    for name, values in batch.items():
        if name == "masked_positions":
            packed_index = real.flatten().cumsum(0) - 1  # (rows · length,)
            packed[name] = packed_index[values + length * torch.arange(rows)[:, None]].view(1, -1)
        elif name in per_row:
            packed[name] = torch.cat([values, values.new_full((spare, *values.shape[1:]), IGNORED_LABEL)])
        elif name != "attention_mask":
            packed[name] = F.pad(values.flatten()[indices], (0, total - tokens), value=fills.get(name, 0))[None]
    return packed | dict(zip(PACKED_ARGUMENTS, (cu_seqlens.to(torch.int32), length), strict=True))


@dataclass(eq=False)
class TokenLayout:
    """Layout of a batch in the layers, and the vectors that the model returns.

    This class leaves the tokens where they are: a padded batch, or a packed row whose sequences a mask keeps apart.
    `UnpaddedLayout` leaves the padding out.

    Attributes:
        shape: (batch_size, sequence_length) of the inputs. A position in the flattened batch is
            row · sequence_length + column.
        pooled_positions: (sequences,) positions that the pooler reads; None for the first of each row.
        read_positions: (count,) positions to return; None for all.
        packed_cu_seqlens: (sequences + 1,) start of each sequence of a packed row and end of the last; None for a
            padded batch.
        packed_max_seqlen: no sequence of a packed row is longer.
    """

    shape: torch.Size
    pooled_positions: torch.Tensor | None = None
    read_positions: torch.Tensor | None = None
    packed_cu_seqlens: torch.Tensor | None = None
    packed_max_seqlen: int = 0

    def attention_kwargs(self) -> dict[str, Any]:
        """Return the arguments an attention implementation needs, under transformers' names."""
        if self.packed_cu_seqlens is None:
            return {}
        sequences = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), self.packed_cu_seqlens)
        return sequences | dict.fromkeys(("max_length_q", "max_length_k"), self.packed_max_seqlen)

    def default_positions(self, embeddings: nn.Module, device: torch.device) -> torch.Tensor | None:
        """Return 0, 1, 2 … from 0 again in each sequence of a packed row, (1, tokens); None for a padded batch."""
        if self.packed_cu_seqlens is None:
            return None
        tokens = torch.arange(self.shape[1], device=device)
        return (tokens - self.packed_cu_seqlens[sequence_numbers(self.packed_cu_seqlens, self.shape[1])])[None]

    def attention_mask(
        self, config: HFBertConfig, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, training: bool
    ) -> Any:
        """Convert the user's mask to the form the attention implementation takes; None where none is needed."""
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() != 2:
            return pair_mask(attention_mask, hidden_states, config)
        same_sequence = None
        if self.packed_cu_seqlens is not None:
            numbers = sequence_numbers(self.packed_cu_seqlens, self.shape[1])

            def same_sequence(batch: Any, head: Any, query: Any, key: Any) -> Any:
                return numbers[query] == numbers[key]

        if config.left_to_right:
            # By position: no cache, which transformers renamed in 5.24.
            return create_causal_mask(config, hidden_states, attention_mask, None, and_mask_function=same_sequence)
        # Dropping an all-ones mask allows faster kernels, but reading the mask synchronises a GPU: not in training.
        may_skip = not (training and hidden_states.device.type != "cpu") and not is_transformed()
        options = {"and_mask_function": same_sequence, "allow_is_bidirectional_skip": may_skip}
        return create_bidirectional_mask(config, hidden_states, attention_mask, **options)

    def unpad(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """Return the inputs of the layers, (batch_size or 1, sequence_length, …)."""
        return values

    def restore(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors to read, (count, size) or all, and the pooler's input, (sequences, 1 or length, size)."""
        positions = self.pooled_positions
        pooled = hidden_states if positions is None else states_at(hidden_states, positions)[:, None]
        if self.read_positions is not None:
            hidden_states = states_at(hidden_states, self.read_positions)
        return hidden_states, pooled

    def unpadded(
        self, attention_mask: torch.Tensor | None, device: torch.device, has_kernel: bool = False
    ) -> "UnpaddedLayout":
        """Leave the padding out.

        Reads the mask on the host, which synchronises a GPU; a packed row with a kernel reads nothing.

        Args:
            attention_mask: (batch_size, sequence_length), 0 for padding, wherever it stands; None for no padding.
            device: of the inputs.
            has_kernel: see `has_varlen_kernel`.
        """
        packed, longest = self.packed_cu_seqlens, self.packed_max_seqlen
        fields = self.shape, self.pooled_positions, self.read_positions, packed, longest  # 2.11 cannot compile vars()
        if packed is not None and has_kernel:
            return UnpaddedLayout(*fields, cu_seqlens=packed.to(torch.int32), max_seqlen=longest)
        indices, seqlens = self._longest_first(attention_mask)
        if has_kernel:
            cu_seqlens = torch.tensor([0, *itertools.accumulate(seqlens)], dtype=torch.int32, device=device)
            max_seqlen = max(seqlens, default=0)
            return UnpaddedLayout(*fields, indices=indices, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        # Many small products do not help a device that runs far ahead of the host.
        edges = _bucket_edges(seqlens) if device.type == "cpu" else sorted({0, len(seqlens)})
        buckets = [_LengthBucket(seqlens[start:end], device) for start, end in itertools.pairwise(edges)]
        return UnpaddedLayout(*fields, indices=indices, buckets=buckets)

    def _longest_first(self, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor | None, list[int]]:
        """Return the positions of the real tokens by descending length of their sequence, and the lengths.

        The positions are None where all tokens are real and their order remains; no length is 0.
        """
        batch_size, sequence_length = self.shape
        indices, cu_seqlens = None, self.packed_cu_seqlens
        if cu_seqlens is not None:
            lengths = cu_seqlens.diff()
            order = lengths.argsort(descending=True, stable=True)
            if bool((lengths[1:] > lengths[:-1]).any()):
                # Sort the tokens by the rank of their sequence.
                indices = order.argsort()[sequence_numbers(cu_seqlens, sequence_length)].argsort(stable=True)
        elif attention_mask is None or bool((attention_mask != 0).all()):
            return None, [sequence_length] * batch_size
        else:
            real = attention_mask != 0
            lengths = real.sum(1)
            order = lengths.argsort(descending=True, stable=True)
            rows, columns = real[order].nonzero(as_tuple=True)
            indices = order[rows] * sequence_length + columns
        return indices, [length for length in lengths[order].tolist() if length]


@dataclass(eq=False)
class UnpaddedLayout(TokenLayout):
    """Layout of an unpadded batch: sequences concatenated along one axis, with `unpad` and `pad`.

    Attributes:
        indices: (real tokens,) positions of the tokens in the flattened batch; None for all, in order.
        buckets: neighbouring sequences of similar length, longest first; None where a kernel takes any lengths.
        cu_seqlens: (sequences + 1,) int32 for the kernel; None with buckets.
        max_seqlen: no sequence is longer, for the kernel.
        query_subset: queries of the last layer; None for all.
    """

    indices: torch.Tensor | None = None
    buckets: "list[_LengthBucket] | None" = None
    cu_seqlens: torch.Tensor | None = None
    max_seqlen: int = 0
    query_subset: "QuerySubset | None" = None

    def attention_kwargs(self) -> dict[str, Any]:
        return super().attention_kwargs() | {"layout": self, "query_subset": self.query_subset}

    def default_positions(self, embeddings: nn.Module, device: torch.device) -> torch.Tensor | None:
        if self.packed_cu_seqlens is not None:
            return super().default_positions(embeddings, device)
        return embeddings.default_positions(self.shape[1], device)  # type: ignore[operator]  # HFBertEmbeddings

    def attention_mask(
        self, config: HFBertConfig, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, training: bool
    ) -> None:
        """Return None: the attention reads this layout instead."""
        return

    def unpad(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """(batch_size or 1, sequence_length, …) → (1, real tokens, …); None stays None."""
        if values is None:
            return None
        values = values.expand(*self.shape, *values.shape[2:]).flatten(0, 1)
        return (values if self.indices is None else values.index_select(0, self.indices))[None]

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """(1, real tokens, size) → (batch_size, sequence_length, size), 0 for padding."""
        values = values[0]
        if self.indices is not None:
            values = values.new_zeros(self.shape.numel(), values.shape[-1]).index_copy(0, self.indices, values)
        return values.unflatten(0, self.shape)

    def restore(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.query_subset is None:
            return super().restore(self.pad(hidden_states))
        vectors = self.query_subset.restore(hidden_states)
        # A query subset is made of positions to read, so that there are some.
        count = len(vectors) - len(self.read_positions)  # type: ignore[arg-type]
        return vectors[count:], vectors[:count, None]

    def confine_last_layer(self, device: torch.device) -> None:
        """Set `query_subset` to the positions that are pooled or read, unless one of them is padding."""
        pooled = first_positions(self.shape, device) if self.pooled_positions is None else self.pooled_positions
        # Called only where positions are read.
        rows, num_tokens = torch.cat([pooled, self.read_positions]), self.shape.numel()  # type: ignore[list-item]
        if self.indices is not None:
            # (batch_size · sequence_length,): place in the unpadded row, -1 for padding
            inverse = rows.new_full((num_tokens,), -1)
            num_tokens = len(self.indices)
            inverse[self.indices] = torch.arange(num_tokens, device=rows.device)
            rows = inverse[rows]
            if bool((rows < 0).any()):
                return
        is_read = torch.zeros(num_tokens, dtype=torch.int32, device=rows.device).index_fill_(0, rows, 1)
        if self.buckets is None:
            # A shape that does not depend on the data: where positions repeat, others fill up.
            indices = is_read.argsort(descending=True, stable=True)[: len(rows)].sort().values
            starts: Any = self.cu_seqlens  # without buckets there are some
            cu_seqlens = torch.searchsorted(indices, starts.to(indices.dtype), out_int32=True)
            max_seqlen, order = min(self.max_seqlen, len(indices)), torch.searchsorted(indices, rows)
            self.query_subset = QuerySubset(indices, order, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
            return
        indices = is_read.nonzero().squeeze(1)
        lengths = (length for bucket in self.buckets for length in bucket.lengths)
        ends = list(itertools.accumulate(lengths, initial=0))
        counts = torch.searchsorted(indices, torch.tensor(ends, device=indices.device)).diff()
        seqlens = [part.tolist() for part in counts.split([bucket.count for bucket in self.buckets])]
        buckets = [_LengthBucket(part, indices.device) for part in seqlens]
        self.query_subset = QuerySubset(indices, torch.searchsorted(indices, rows), buckets)


@dataclass(eq=False)
class QuerySubset:
    """Tokens of an unpadded batch that the last layer computes: queries for them, keys and values for all.

    Attributes:
        indices: (queries,) ascending places in the unpadded row.
        order: (count,) places among the queries in the order they are returned, possibly repeated.
        buckets, cu_seqlens, max_seqlen: how the queries are divided among the sequences, as in `UnpaddedLayout`.
    """

    indices: torch.Tensor
    order: torch.Tensor
    buckets: "list[_LengthBucket] | None" = None
    cu_seqlens: torch.Tensor | None = None
    max_seqlen: int = 0

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """(1, real tokens, size) → (1, queries, size)."""
        return values.index_select(1, self.indices)

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """(1, queries, size) → (count, size)."""
        return values[0].index_select(0, self.order)


class _LengthBucket:
    """Neighbouring sequences of an unpadded batch that are attended together, padded to the longest of them.

    indices: (tokens,) positions in the flattened grid, (count · max_seqlen); None where there is no padding.
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self.lengths, self.count, self.max_seqlen, self.tokens = lengths, len(lengths), max(lengths), sum(lengths)
        # (count, max_seqlen)
        self.real = torch.arange(self.max_seqlen, device=device) < torch.tensor(lengths, device=device)[:, None]
        has_padding = self.tokens < self.count * self.max_seqlen
        self.indices = self.real.flatten().nonzero().squeeze(1) if has_padding else None
        self._masks: dict[tuple[torch.dtype, bool], torch.Tensor] = {}

    def pad(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, head size) → (count, heads, max_seqlen, head size), 0 for padding."""
        if self.indices is not None:
            grid = tokens.new_zeros(self.count * self.max_seqlen, *tokens.shape[1:])
            tokens = grid.index_copy(0, self.indices, tokens)
        return tokens.unflatten(0, (self.count, self.max_seqlen)).transpose(1, 2)

    def unpad(self, grid: torch.Tensor) -> torch.Tensor:
        """Inverse of `pad`."""
        tokens = grid.transpose(1, 2).flatten(0, 1)
        return tokens if self.indices is None else tokens.index_select(0, self.indices)

    def mask(self, dtype: torch.dtype, is_causal: bool) -> torch.Tensor | None:
        """Return the mask to add to scores (count, heads, length, length), made once for all layers; or None."""
        if self.indices is None and not is_causal:
            return None
        if (dtype, is_causal) not in self._masks:
            allowed = self.real[:, None, None, :]
            if is_causal:
                allowed = allowed & torch.ones_like(self.real[:1, :, None] & self.real[:1, None, :]).tril()
            lowest = torch.finfo(dtype).min
            self._masks[dtype, is_causal] = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, lowest)
        return self._masks[dtype, is_causal]


def _bucket_edges(lengths: list[int]) -> list[int]:
    """Cut descending lengths where padding would cost more than another round of small products."""
    edges = [0]
    for number, length in enumerate(lengths):
        longest = lengths[edges[-1]]
        if length < _MIN_LENGTH_RATIO * longest and longest > _SHORT_LENGTH:
            edges.append(number)
    return sorted({*edges, len(lengths)})


def sequence_numbers(cu_seqlens: torch.Tensor, count: int) -> torch.Tensor:
    """Return the number of each token's sequence in a packed row, (count,)."""
    tokens = torch.arange(count, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, tokens, right=True) - 1


def first_positions(shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Return the position of each row's first token in the flattened batch, (batch_size,)."""
    return torch.arange(shape[0], device=device) * shape[1]


def states_at(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Take (count, size) from (batch_size, sequence_length, size) at positions in the flattened batch, (count,)."""
    return hidden_states.flatten(0, 1).index_select(0, positions.to(hidden_states.device))


@torch.compiler.assume_constant_result
def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether PyTorch's flash attention over sequences of any length runs there (Ampere and later)."""
    fits = head_size % 8 == 0 and head_size <= 256
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and fits and _has_flash(device)


def select_queries(hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the states of the queries a layer computes: all of them unless `query_subset` is given."""
    query_subset: QuerySubset | None = kwargs.get("query_subset")
    return hidden_states if query_subset is None else query_subset.select(hidden_states)


def pair_mask(mask: torch.Tensor, hidden_states: torch.Tensor, config: Any) -> torch.Tensor:
    """Convert a mask per pair of tokens to the form the attention implementation takes.

    Args:
        mask: (batch or 1, [heads or 1,] length or 1, length), True or 1 where a token sees another, or floats to add.

    Returns:
        (batch or 1, heads or 1, length or 1, length), booleans or what is added to the scores.
    """
    implementation = config._attn_implementation
    if "flash" in implementation:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, and {implementation} takes (batch_size, sequence_length); "
            "for a mask of pairs, model.set_attn_implementation('sdpa')"
        )
    mask = (mask[:, None] if mask.dim() == 3 else mask).to(hidden_states.device)
    length, is_causal = hidden_states.shape[1], config.left_to_right
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    dtype = autocast_dtype(mask.device) or hidden_states.dtype
    lowest = torch.finfo(dtype).min
    if mask.is_floating_point():
        mask = mask.clamp(min=lowest).to(dtype)
        mask = mask.masked_fill(~causal, lowest) if is_causal else mask
    else:
        mask = mask != 0
        mask = mask & causal if is_causal else mask
        if implementation in ("eager", "flex_attention"):
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
    if implementation == "flex_attention":
        if mask.shape[1] != 1:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} heads; flex_attention takes one mask for all of them: "
                "model.set_attn_implementation('sdpa')"
            )
        mask = mask.expand(hidden_states.shape[0], 1, length, length)
    return mask


def real_tokens(mask: torch.Tensor) -> torch.Tensor:
    """Return False for padding, in a pair mask for keys that no query sees, else True; (batch or 1, length)."""
    real = mask > -1000 if mask.is_floating_point() and mask.dim() != 2 else mask != 0
    return real if real.dim() == 2 else real.flatten(1, -2).any(1)

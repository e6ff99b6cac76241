# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""Faster dropout, cross-entropy and attention, numerically equivalent to the plain path, and the layouts they need.

Kernels equal the plain path up to rounding (tests/model/test_kernels.py) and step aside where `is_transformed`. A
backward pass that is differentiated itself uses operations PyTorch can differentiate. This file travels with every
checkpoint: it imports nothing of this package but configuration_hfbert. Measurements: benchmarks/pretraining_step.py.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hfbert import IGNORED_LABEL, check_class_ids, check_label_count, is_transformed


# An attention implementation like "sdpa", of our own: the layers see no padding.
UNPADDED = "hfbert_unpadded"

# The integers that share a floating-point number's bits.
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# Random numbers have 15 bits: a dropout probability is met to within 1/65536.
_RANDOM_BITS = 15
# Float32 logits of one chunk of the loss: they fit a processor's cache.
_CHUNK_ELEMENTS = 1 << 18
# Below this many classes the chunked loss is not faster.
_MIN_CLASSES = 4096
# Sequences share a bucket if each is at least this fraction of the longest, or if the longest is very short.
_MIN_LENGTH_RATIO = 0.8
_SHORT_LENGTH = 32


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype autocast uses for matrix products on `device` now, or None where it is off."""
    # The meta device has no autocast and raises when asked. torch.amp.is_autocast_available would say so, but
    # Dynamo of PyTorch 2.11 cannot trace it and breaks the graph in every layer.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def needs_plain_backward(gradient: torch.Tensor) -> bool:
    """Return whether a backward pass is differentiated (create_graph), transformed or batched itself."""
    return torch.is_grad_enabled() or is_transformed() or torch._C._functorch.is_legacy_batchedtensor(gradient)


def _use_cpu_kernel(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _BITS and not is_transformed()


def _random_keep_mask(probability: float, like: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Draw integers of `like`'s shape and width, negative for elements to drop, from PyTorch's CPU generator.

    One 64-bit draw makes four of them: bernoulli_ takes several times as long.

    Returns:
        The integers, and `probability` rounded to a multiple of 2⁻¹⁵.
    """
    threshold = round(probability * (1 << _RANDOM_BITS))
    count = like.numel()
    random = torch.empty((count + 3) // 4, dtype=torch.int64).random_().view(torch.int16)[:count]
    random = random.bitwise_and_((1 << _RANDOM_BITS) - 1).sub_(threshold)
    return random.to(_BITS[like.dtype]).view(like.shape), threshold / (1 << _RANDOM_BITS)


class _Dropout(torch.autograd.Function):
    """Dropout by bit masks: -1 (all bits) keeps an element, 0 drops it."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, probability: float) -> torch.Tensor:
        values = values.contiguous()
        drawn, probability = _random_keep_mask(probability, values)
        kept = drawn.bitwise_right_shift_(torch.iinfo(drawn.dtype).bits - 1).bitwise_not_()
        ctx.kept, ctx.scale = kept.to(torch.int8), 1 / (1 - probability)
        return (values.view(kept.dtype) & kept).view(values.dtype).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        if needs_plain_backward(gradient):
            return gradient.masked_fill(ctx.kept == 0, 0) * ctx.scale, None
        bits = _BITS[gradient.dtype]
        kept = gradient.contiguous().view(bits) & ctx.kept.to(bits)
        return kept.view(gradient.dtype).mul_(ctx.scale), None


class HFBertDropout(nn.Dropout):
    """nn.Dropout, with cheaper random numbers in training on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and self.p > 0 and _use_cpu_kernel(input):
            return _Dropout.apply(input, self.p)
        return super().forward(input)


def recompute_gelu(activated: torch.Tensor) -> AbstractContextManager:
    """Within this context, save a GELU's output for the backward pass as nothing but its shape, and recompute it.

    GELU saves its input anyway: the same numbers for a fifth less memory in each layer and 1 % more time in a training
    step. Tensors other than `activated`, and outputs of other activations, are saved as usual. On CPUs only: a GPU has
    the memory, and would spend 2 to 3 % of a step.
    """
    if activated.device.type != "cpu" or is_transformed():
        return nullcontext()
    node: Any = activated.grad_fn  # what it saved is not declared
    if node is None or node.name() != "GeluBackward0":
        return nullcontext()
    source, approximate = node._saved_self, node._saved_approximate
    address, count, dtype = activated.data_ptr(), activated.numel(), activated.dtype

    def pack_hook(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        is_output = saved.data_ptr() == address and saved.numel() == count and saved.dtype == dtype
        return saved.shape if is_output and saved.is_contiguous() else saved

    def unpack_hook(packed: torch.Tensor | torch.Size) -> torch.Tensor:
        return F.gelu(source, approximate=approximate).view(packed) if isinstance(packed, torch.Size) else packed

    return torch.autograd.graph.saved_tensors_hooks(pack_hook, unpack_hook)


class _CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of (rows, classes) logits and (rows,) labels, in float32 chunk by chunk.

    The forward pass keeps the probabilities in the logits' type, as the exponentials dominate the cost. They are its
    second output, so that their dependence on the logits enters second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.set_materialize_grads(False)
        counted = labels != IGNORED_LABEL  # (rows,)
        # (rows, 1)
        index = torch.where(counted, labels, 0)[:, None]
        probabilities = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        normalizers = []  # log Σ exp of each row, (chunk rows, 1)
        size = max(1, _CHUNK_ELEMENTS // logits.shape[1])  # rows of a chunk
        for start in range(0, len(logits), size):
            values = logits[start : start + size].to(torch.float32, copy=True)
            largest = values.amax(-1, keepdim=True)
            total = values.sub_(largest).exp_().sum(-1, keepdim=True)
            normalizers.append(largest + total.log())
            if probabilities is not None:
                torch.div(values, total, out=values)
                probabilities[start : start + size] = values
        ctx.save_for_backward(probabilities, index, counted)
        losses = torch.cat(normalizers) - logits.gather(1, index).float()
        return (losses.squeeze(1) * counted).sum(), probabilities

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor | None, probabilities_gradient: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None]:
        probabilities, index, counted = ctx.saved_tensors
        logits_gradient = None
        if gradient is not None:
            # (probabilities − one-hot labels) · gradient; (rows, 1) · (rows, classes)
            scale = (gradient * counted).to(probabilities.dtype)[:, None]
            logits_gradient = (probabilities * scale).scatter_add_(1, index, -scale)
        if probabilities_gradient is not None:  # of a second derivative
            softmax_gradient = torch._softmax_backward_data(
                probabilities_gradient, probabilities, -1, probabilities.dtype
            )
            logits_gradient = softmax_gradient if logits_gradient is None else logits_gradient + softmax_gradient
        return logits_gradient, None


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return half precision in float32, and float64 as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute F.cross_entropy(at_least_float32(logits), labels, reduction="sum") for (rows, classes) and (rows,).

    Over a vocabulary on a CPU it makes no float32 copy of all logits, which would cost more than the arithmetic.
    """
    if logits.shape[-1] >= _MIN_CLASSES and _use_cpu_kernel(logits):
        lowest, highest = labels.min(), labels.max()
        if highest < logits.shape[1] and (lowest >= 0 or bool(((labels >= 0) | (labels == IGNORED_LABEL)).all())):
            return _CrossEntropy.apply(logits, labels)[0]
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORED_LABEL, reduction="sum")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """Compute the cross-entropy over the labels other than -100; 0, not NaN, when there are none.

    Args:
        logits: (…, classes).
        labels: (…), of any integer type.
        num_items: divisor of the sum; None for the mean.

    Raises:
        ValueError: for labels of another number or type, or, on the CPU, outside the classes.
    """
    check_label_count(labels, logits, math.prod(logits.shape[:-1]))
    check_class_ids(labels)
    labels = labels.reshape(-1).to(logits.device, torch.long)
    try:
        total = cross_entropy_sum(logits.reshape(-1, logits.shape[-1]), labels)
    except IndexError as error:  # "Target … is out of bounds", on the CPU
        raise ValueError(
            f"the labels go from {int(labels[labels != IGNORED_LABEL].min())} to {int(labels.max())}; they must be "
            f"0 … {logits.shape[-1] - 1}, or {IGNORED_LABEL} where there is none"
        ) from error
    return total / loss_denominator(num_items, (labels != IGNORED_LABEL).sum(), total.device)


def loss_denominator(
    num_items: torch.Tensor | int | None, counted: torch.Tensor | int, device: torch.device
) -> torch.Tensor | int:
    """Return `num_items`, or `counted` when it is None; at least 1, so that a loss without labels is 0, not NaN."""
    if num_items is None:
        num_items = counted if isinstance(counted, torch.Tensor) else torch.full((), counted, device=device)
    if isinstance(num_items, torch.Tensor):
        return num_items.to(device).clamp(min=1)
    return max(num_items, 1)


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

    query_subset: "QuerySubset | None" = None  # queries of the last layer; None for all

    def __init__(
        self,
        shape: torch.Size,
        pooled_positions: torch.Tensor | None = None,
        read_positions: torch.Tensor | None = None,
        packed_cu_seqlens: torch.Tensor | None = None,
        packed_max_seqlen: int = 0,
    ):
        self.shape, self.pooled_positions, self.read_positions = shape, pooled_positions, read_positions
        self.packed_cu_seqlens, self.packed_max_seqlen = packed_cu_seqlens, packed_max_seqlen

    def attention_kwargs(self) -> dict[str, Any]:
        """Return the arguments an attention implementation needs, under transformers' names."""
        if self.packed_cu_seqlens is None:
            return {}
        sequences = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), self.packed_cu_seqlens)
        return sequences | dict.fromkeys(("max_length_q", "max_length_k"), self.packed_max_seqlen)

    def same_sequence(self) -> Callable | None:
        """Return a mask function for the sequences of a packed row; None for a padded batch."""
        if self.packed_cu_seqlens is None:
            return None
        numbers = sequence_numbers(self.packed_cu_seqlens, self.shape[1])
        return lambda batch, head, query, key: numbers[query] == numbers[key]

    def unpad(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """Return the inputs of the layers, (batch_size or 1, sequence_length, …)."""
        return values

    def restore(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors to read, (count, size) or all, and the pooler's input, (sequences, 1, size)."""
        positions = self.pooled_positions
        pooled = hidden_states[:, 0] if positions is None else states_at(hidden_states, positions)
        if self.read_positions is not None:
            hidden_states = states_at(hidden_states, self.read_positions)
        return hidden_states, pooled[:, None]

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
        batch_size, sequence_length = self.shape
        cu_seqlens, indices = self.packed_cu_seqlens, None
        if cu_seqlens is not None and has_kernel:
            return UnpaddedLayout(self, None, cu_seqlens=cu_seqlens.to(torch.int32), max_seqlen=self.packed_max_seqlen)
        if cu_seqlens is not None:
            lengths = cu_seqlens.diff()
            order = lengths.argsort(descending=True, stable=True)
            if bool((lengths[1:] > lengths[:-1]).any()):
                # Sort the tokens by the rank of their sequence.
                indices = order.argsort()[sequence_numbers(cu_seqlens, sequence_length)].argsort(stable=True)
            seqlens = [length for length in lengths[order].tolist() if length]
        elif attention_mask is None or bool((attention_mask != 0).all()):
            seqlens = [sequence_length] * batch_size
        else:
            real = attention_mask != 0
            counts = real.sum(1)
            order = counts.argsort(descending=True, stable=True)
            rows, columns = real[order].nonzero(as_tuple=True)
            indices = order[rows] * sequence_length + columns
            seqlens = [length for length in counts[order].tolist() if length]
        if has_kernel:
            cu_seqlens = torch.tensor([0, *itertools.accumulate(seqlens)], dtype=torch.int32, device=device)
            return UnpaddedLayout(self, indices, cu_seqlens=cu_seqlens, max_seqlen=max(seqlens, default=0))
        # Many small products do not help a device that runs far ahead of the host.
        edges = _bucket_edges(seqlens) if device.type == "cpu" else sorted({0, len(seqlens)})
        buckets = [_LengthBucket(seqlens[start:end], device) for start, end in itertools.pairwise(edges)]
        return UnpaddedLayout(self, indices, buckets)


class UnpaddedLayout(TokenLayout):
    """Layout of an unpadded batch: sequences concatenated along one axis, with `unpad` and `pad`.

    Attributes:
        indices: (real tokens,) positions of the tokens in the flattened batch; None for all, in order.
        buckets: neighbouring sequences of similar length, longest first; None where a kernel takes any lengths.
        cu_seqlens: (sequences + 1,) int32 for the kernel; None with buckets.
        max_seqlen: no sequence is longer, for the kernel.
    """

    def __init__(
        self,
        given: TokenLayout,
        indices: torch.Tensor | None,
        buckets: "list[_LengthBucket] | None" = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int = 0,
    ):
        super().__init__(
            given.shape, given.pooled_positions, given.read_positions, given.packed_cu_seqlens, given.packed_max_seqlen
        )
        self.indices, self.buckets, self.cu_seqlens, self.max_seqlen = indices, buckets, cu_seqlens, max_seqlen

    def attention_kwargs(self) -> dict[str, Any]:
        return super().attention_kwargs() | {"layout": self, "query_subset": self.query_subset}

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
            padded = values.new_zeros(self.shape.numel(), values.shape[-1])
            values = padded.index_copy(0, self.indices, values)
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
            max_seqlen = min(self.max_seqlen, len(indices))
            self.query_subset = QuerySubset(indices, rows, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
            return
        indices = is_read.nonzero().squeeze(1)
        lengths = (length for bucket in self.buckets for length in bucket.lengths)
        ends = list(itertools.accumulate(lengths, initial=0))
        counts = torch.searchsorted(indices, torch.tensor(ends, device=indices.device)).diff()
        seqlens = [part.tolist() for part in counts.split([bucket.count for bucket in self.buckets])]
        self.query_subset = QuerySubset(indices, rows, [_LengthBucket(part, indices.device) for part in seqlens])


class QuerySubset:
    """Tokens of an unpadded batch that the last layer computes: queries for them, keys and values for all.

    Args:
        indices: (queries,) ascending places in the unpadded row.
        rows: (count,) places in the unpadded row in the order they are returned, possibly repeated.
        buckets, cu_seqlens, max_seqlen: how the queries are divided among the sequences, as in `UnpaddedLayout`.
    """

    def __init__(
        self,
        indices: torch.Tensor,
        rows: torch.Tensor,
        buckets: "list[_LengthBucket] | None" = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int = 0,
    ):
        self.indices, self.buckets, self.cu_seqlens, self.max_seqlen = indices, buckets, cu_seqlens, max_seqlen
        self._order = torch.searchsorted(indices, rows)

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """(1, real tokens, size) → (1, queries, size)."""
        return values.index_select(1, self.indices)

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """(1, queries, size) → (count, size)."""
        return values[0].index_select(0, self._order)


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


def unpadded_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    layout: UnpaddedLayout | None = None,
    query_subset: QuerySubset | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the sequences of an unpadded batch, (1, heads, tokens, head size); without `layout`, sdpa."""
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # squeeze and unsqueeze are views in the backward pass too, where [0] and [None] would fill and copy whole tensors.
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    is_causal: Any = module.is_causal
    return varlen_attention(query, key, value, layout, scaling, dropout, is_causal, query_subset).unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register(UNPADDED, unpadded_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(UNPADDED, sdpa_mask)


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


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: UnpaddedLayout,
    scaling: float,
    dropout: float,
    is_causal: bool,
    query_subset: QuerySubset | None = None,
) -> torch.Tensor:
    """Attend within each sequence of an unpadded batch; returns values of the query's shape.

    Args:
        query: (real tokens, heads, head size), or (queries, heads, head size) of `query_subset`, without causal mask.
        key, value: (real tokens, heads, head size).
    """
    if not len(query):  # a batch of padding alone
        return value
    queries = layout if query_subset is None else query_subset
    if layout.buckets is None:
        # PyTorch's own interface to this kernel, torch.nn.attention.varlen, leaves dropout out.
        seqlens = (queries.cu_seqlens, layout.cu_seqlens, queries.max_seqlen, layout.max_seqlen)
        return torch.ops.aten._flash_attention_forward(
            query, key, value, *seqlens, dropout, is_causal, False, scale=scaling
        )[0]
    # On CPUs PyTorch's fused attention has no dropout and is slow in bfloat16 (benchmarks/pretraining_step.py).
    use_own = _use_cpu_kernel(query) and (dropout > 0 or query.dtype != torch.float32)
    outputs = []
    query_buckets: Any = queries.buckets  # a query subset has buckets where its layout has some
    query_sizes, sizes = ([bucket.tokens for bucket in buckets] for buckets in (query_buckets, layout.buckets))
    parts = zip(query.split(query_sizes), key.split(sizes), value.split(sizes), strict=True)
    for query_bucket, bucket, tokens in zip(query_buckets, layout.buckets, parts, strict=True):
        # (sequences, heads, length, head size) each
        grids = query_bucket.pad(tokens[0]), bucket.pad(tokens[1]), bucket.pad(tokens[2])
        mask = bucket.mask(query.dtype, is_causal)
        if use_own:
            rows = [grid.flatten(0, 1) for grid in grids]
            grid = _Attention.apply(*rows, mask, scaling, dropout).unflatten(0, grids[0].shape[:2])
        else:
            grid = F.scaled_dot_product_attention(*grids, attn_mask=mask, dropout_p=dropout, scale=scaling)
        outputs.append(query_bucket.unpad(grid))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _Attention(torch.autograd.Function):
    """dropout(softmax(QKᵀ·scaling + mask))·V on (sequences · heads, length, head size), for CPUs.

    Saves one tensor of scores: the probabilities, with a negative sign where they were dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        # (sequences · heads, queries, keys)
        scores = query.new_empty(len(query), query.shape[1], key.shape[1])
        torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scaling, out=scores)
        if mask is not None:  # (sequences, 1, queries or 1, keys)
            scores.unflatten(0, (len(mask), -1)).add_(mask)
        probabilities = torch.softmax(scores, -1)
        ctx.mask, ctx.scaling, ctx.scale = mask, scaling, 1.0
        if dropout:
            signs, dropout = _random_keep_mask(dropout, probabilities)
            ctx.scale = 1 / (1 - dropout)
            bits = probabilities.view(signs.dtype)  # set the sign bit of dropped ones
            bits |= signs.bitwise_and_(torch.iinfo(signs.dtype).min)
        ctx.save_for_backward(query, key, value, probabilities)
        return torch.bmm(_Attention.kept(probabilities, dropout), value).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, probabilities = ctx.saved_tensors
        if needs_plain_backward(gradient):
            return (
                *_Attention.plain_gradients(ctx, query, key, value, probabilities.signbit(), gradient),
                None,
                None,
                None,
            )
        gradient = gradient * ctx.scale
        dropped = ctx.scale != 1
        value_gradient = torch.bmm(_Attention.kept(probabilities, dropped).transpose(1, 2), gradient)
        scores_gradient = torch.bmm(gradient, value.transpose(1, 2))
        if dropped:
            bits = _BITS[probabilities.dtype]
            sign = probabilities.view(bits).bitwise_right_shift(torch.iinfo(bits).bits - 1)
            scores_gradient.view(bits).bitwise_and_(sign.bitwise_not_())
            probabilities = probabilities.abs()
        scores_gradient = torch._softmax_backward_data(scores_gradient, probabilities, -1, probabilities.dtype)
        query_gradient = torch.bmm(scores_gradient, key).mul_(ctx.scaling)
        key_gradient = torch.bmm(scores_gradient.transpose(1, 2), query).mul_(ctx.scaling)
        return query_gradient, key_gradient, value_gradient, None, None, None

    @staticmethod
    def plain_gradients(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dropped: torch.Tensor,
        gradient: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Compute the gradients of query, key and value by operations PyTorch can differentiate."""
        scores = torch.bmm(query, key.transpose(1, 2)) * ctx.scaling
        if ctx.mask is not None:
            scores = (scores.unflatten(0, (len(ctx.mask), -1)) + ctx.mask).flatten(0, 1)
        probabilities = torch.softmax(scores, -1)
        gradient = gradient * ctx.scale
        kept = probabilities.masked_fill(dropped, 0)
        kept_gradient = torch.matmul(gradient, value.transpose(1, 2)).masked_fill(dropped, 0)
        scores_gradient = torch._softmax_backward_data(kept_gradient, probabilities, -1, probabilities.dtype)
        return (
            torch.matmul(scores_gradient, key) * ctx.scaling,
            torch.matmul(scores_gradient.transpose(-1, -2), query) * ctx.scaling,
            torch.matmul(kept.transpose(1, 2), gradient),
        )

    @staticmethod
    def kept(probabilities: torch.Tensor, dropout: Any) -> torch.Tensor:
        """Return the probabilities, 0 where their sign says dropped."""
        if not dropout:
            return probabilities
        bits = probabilities.view(_BITS[probabilities.dtype])
        sign = bits.bitwise_right_shift(torch.iinfo(bits.dtype).bits - 1)
        return (bits & sign.bitwise_not_()).view(probabilities.dtype)

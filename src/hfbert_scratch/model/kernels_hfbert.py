# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""Faster dropout, cross-entropy and attention, numerically equivalent to the plain path; and PyTorch's fused LSTM.

Kernels equal the plain path up to rounding (tests/model/test_kernels.py) and step aside where `is_transformed`. A
backward pass that is differentiated itself uses operations PyTorch can differentiate. This file travels with every
checkpoint and imports only the other travelling files. Measurements: benchmarks/pretraining_step.py.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .checks_hfbert import check_class_ids, check_label_count, check_masked_positions
from .configuration_hfbert import IGNORED_LABEL, HFBertConfig, is_transformed
from .layout_hfbert import UNPADDED, QuerySubset, TokenLayout, UnpaddedLayout, first_positions, real_tokens


# The integers that share a floating-point number's bits.
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# Random numbers have 15 bits: a dropout probability is met to within 1/65536.
_RANDOM_BITS = 15
# Float32 logits of one chunk of the loss: they fit a processor's cache.
_CHUNK_ELEMENTS = 1 << 18
# Below this many classes the chunked loss is not faster.
_MIN_CLASSES = 4096


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


class HFBertBiLSTM(nn.LSTM):
    """A bidirectional LSTM of one layer over the tokens of each sequence, padded anywhere (paper, section 5.1)."""

    def __init__(self, config: HFBertConfig):
        super().__init__(config.hidden_size, config.hidden_size // 2, batch_first=True, bidirectional=True)

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, layout: TokenLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states that `layout` reads and, for the pooler, both directions' last ones, (sequences, 1, size).

        Raises:
            ValueError: for a packed row.
        """
        if layout.packed_cu_seqlens is not None:
            raise ValueError("a bilstm takes padded batches, not packed rows: leave out cu_seq_lens_q")
        if attention_mask is None:
            states, (ends, _) = super().forward(hidden_states)
        else:
            padding = ~real_tokens(attention_mask.to(hidden_states.device)).expand(hidden_states.shape[:2])
            order = padding.byte().argsort(dim=1, stable=True)  # real tokens first, in their order
            lengths = (~padding).sum(1).clamp(min=1).cpu()
            ordered = hidden_states.gather(1, order[..., None].expand_as(hidden_states))
            packed = pack_padded_sequence(ordered, lengths, batch_first=True, enforce_sorted=False)
            packed, (ends, _) = super().forward(packed)
            states = pad_packed_sequence(packed, batch_first=True, total_length=order.shape[1])[0]
            states = states.gather(1, order.argsort(dim=1)[..., None].expand_as(states))
        return layout.restore(states)[0], ends.transpose(0, 1).flatten(1)[:, None]


class HFBertOutputProjection(nn.Linear):
    """Projection onto the vocabulary by the matrix of the word embeddings; its `bias` is the head's parameter.

    Adding the bias in the same operation is bit-identical to stock and makes no second copy of the logits.
    """

    def __init__(self, config: HFBertConfig, head: nn.Module):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self._head: Any = (head,)  # a tuple, so that the head is not registered as a submodule of its part

    @property
    def bias(self) -> Any:  # a parameter, or another tensor
        if "bias" in self._parameters:
            return self._head[0].bias
        if "_tensor_bias" in self.__dict__:
            return self.__dict__["_tensor_bias"]
        # torch.nn.utils.parametrize deletes the attribute and looks whether it is gone.
        raise AttributeError(f"{type(self).__name__} has no attribute 'bias'")

    @bias.setter
    def bias(self, value: torch.Tensor | None) -> None:
        """Compute with a tensor that is no parameter, as pruning assigns in every forward pass."""
        self.__dict__["_tensor_bias"] = value

    @bias.deleter
    def bias(self) -> None:
        self.__dict__.pop("_tensor_bias", None)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Give an assigned bias, or None, to the head: there is one, under one name."""
        if name == "bias" and "_head" in self.__dict__:
            self.__dict__.pop("_tensor_bias", None)
            self._parameters[name] = None  # the attribute is there, and no second parameter
            self._head[0].bias = param
        else:
            super().register_parameter(name, param)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """Copy with the head or, when copied alone as PEFT does, as an nn.Linear with a bias of its own."""
        with_head = id(self._head[0]) in memo
        copied: Any = object.__new__(type(self) if with_head else nn.Linear)
        memo[id(self)] = copied
        state = {name: value for name, value in vars(self).items() if with_head or name != "_head"}
        copied.__setstate__(copy.deepcopy(state, memo))
        if not with_head:
            copied.bias = copy.deepcopy(self.bias, memo)
        return copied


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


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
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


def predicted_positions(
    labels: torch.Tensor, masked_positions: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the predicted positions in the flattened batch, (count,) or None for all, and their targets."""
    if masked_positions is not None:
        check_masked_positions(masked_positions, labels)
        index = masked_positions.to(labels.device, torch.long)
        rows = first_positions(labels.shape, labels.device)[:, None]
        return (index + rows).flatten(), labels.gather(1, index).flatten()
    if is_transformed():  # a recorded graph cannot hold a number known at run time only
        return None, labels
    index = (labels.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
    return index, labels.flatten()[index]


def span_loss(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of (batch_size, sequence_length) logits and (batch_size,) token indices.

    Indices beyond the sequence do not count, and negative ones are 0.
    """
    check_class_ids(positions)
    positions = positions.long()
    return cross_entropy(logits, positions.clamp(min=0).masked_fill(positions >= logits.shape[1], IGNORED_LABEL))


def problem_type_of(labels: torch.Tensor, num_labels: int) -> str:
    """Return the problem type of labels, as stock settles it by the first ones."""
    if num_labels == 1:
        return "regression"
    is_numbers = labels.is_floating_point() or labels.dtype == torch.bool
    return "multi_label_classification" if is_numbers else "single_label_classification"


def classification_loss(
    problem_type: str, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None
) -> torch.Tensor:
    """Compute the loss of (batch_size, num_labels) logits for a problem type of transformers' configurations."""
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, num_items)
    logits = at_least_float32(logits)
    labels = labels.to(logits.device, logits.dtype).reshape(logits.shape)
    if problem_type == "regression":
        total = F.mse_loss(logits, labels, reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return total / loss_denominator(num_items, labels.numel(), total.device)


def loss_denominator(
    num_items: torch.Tensor | int | None, counted: torch.Tensor | int, device: torch.device
) -> torch.Tensor | int:
    """Return `num_items`, or `counted` when it is None; at least 1, so that a loss without labels is 0, not NaN."""
    if num_items is None:
        num_items = counted if isinstance(counted, torch.Tensor) else torch.full((), counted, device=device)
    if isinstance(num_items, torch.Tensor):
        return num_items.to(device).clamp(min=1)
    return max(num_items, 1)


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

# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""The same arithmetic in less time: dropout, cross-entropy and attention over sequences of different lengths.

modeling_hfbert.py says what is computed; here is how, where PyTorch's own way is slow. What is here equals the plain
path up to rounding (tests/test_kernels.py), and steps aside where `is_transformed`. Backward passes that will be
differentiated themselves are computed by operations PyTorch can differentiate. This file travels with every
checkpoint, so it imports nothing of this package. Figures: benchmarks/pretraining_step.py.
"""

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad


IGNORED_LABEL = -100  # PyTorch's and transformers' convention for positions without a label

# The integers that share a floating-point number's bits.
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# Random numbers have 15 bits: a dropout probability is met to within 1/65536.
_RANDOM_BITS = 15
# Float32 logits that are worked on at a time, in numbers: what fits a processor's cache.
_CHUNK = 1 << 18
# Fewer classes than this are not worth the trouble.
_VOCABULARY = 4096
# Sequences share a product of matrices if the shorter ones are at least this share of the longest, or very short.
_SHARED_LENGTH = 0.8
_SHORT_LENGTH = 32


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype autocast uses for matrix products on `device` now, or None where it is off."""
    # The meta device has no autocast and raises when asked. torch.amp.is_autocast_available would say so, but
    # Dynamo of PyTorch 2.11 cannot trace it and breaks the graph in every layer.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def is_transformed() -> bool:
    """Return whether operations are recorded or transformed here, and not just computed.

    So it is under torch.compile, export and jit.trace, forward-mode differentiation, the transforms of torch.func
    (vmap, grad, jvp …) and in dispatch modes (make_fx, fake tensors). There no number may be read, and gradients come
    from PyTorch's own operations alone.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def needs_plain_backward(gradient: torch.Tensor) -> bool:
    """Return whether a backward pass is differentiated itself (create_graph=True), transformed, or for many gradients
    at once (is_grads_batched=True).
    """
    return torch.is_grad_enabled() or is_transformed() or torch._C._functorch.is_legacy_batchedtensor(gradient)


def _takes_own_path(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _BITS and not is_transformed()


# ------------------------------------------------------------------------------------------------------------- dropout


def _below(probability: float, like: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Integers of `like`'s shape and width, negative with `probability` and else 0 or more; and that probability as it
    is met. From PyTorch's CPU generator, four of them for one 64-bit draw: bernoulli_ takes several times as long.
    """
    threshold = round(probability * (1 << _RANDOM_BITS))
    count = like.numel()
    random = torch.empty((count + 3) // 4, dtype=torch.int64).random_().view(torch.int16)[:count]
    random = random.bitwise_and_((1 << _RANDOM_BITS) - 1).sub_(threshold)
    return random.to(_BITS[like.dtype]).view(like.shape), threshold / (1 << _RANDOM_BITS)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, probability: float) -> torch.Tensor:
        values = values.contiguous()
        below, probability = _below(probability, values)
        kept = below.bitwise_right_shift_(torch.iinfo(below.dtype).bits - 1).bitwise_not_()
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
        if self.training and self.p > 0 and _takes_own_path(input):
            return _Dropout.apply(input, self.p)
        return super().forward(input)


# ---------------------------------------------------------------------------------------------------------------- GELU


def gelu_not_saved(activated: torch.Tensor) -> AbstractContextManager:
    """While this is open, what is computed from `activated`, a GELU's output, does not keep it for the backward pass.

    It is computed again from the GELU's input, which is kept anyway: the same numbers, and a fifth of a layer's memory
    less, for one more elementwise pass, some 1 % of a training step. Anything but a GELU's output is kept as usual.

    On CPUs only: a GPU has the memory, and would spend 2 to 3 % of a step on the pass.
    """
    if activated.device.type != "cpu" or is_transformed():
        return nullcontext()
    node = activated.grad_fn
    if node is None or node.name() != "GeluBackward0":
        return nullcontext()
    source, approximate = node._saved_self, node._saved_approximate
    place, count, dtype = activated.data_ptr(), activated.numel(), activated.dtype

    def keep(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        same = saved.data_ptr() == place and saved.numel() == count and saved.dtype == dtype
        return saved.shape if same and saved.is_contiguous() else saved

    def give(kept: torch.Tensor | torch.Size) -> torch.Tensor:
        return F.gelu(source, approximate=approximate).view(kept) if isinstance(kept, torch.Size) else kept

    return torch.autograd.graph.saved_tensors_hooks(keep, give)


# ------------------------------------------------------------------------------------------------------- cross-entropy


class _CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of (rows, classes) logits and (rows,) labels, in float32 a few rows at a time.

    The forward pass keeps the probabilities, in the logits' type: the exponentials are the dear part. They are its
    second output, so that their dependence on the logits enters second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.set_materialize_grads(False)
        counted = labels != IGNORED_LABEL
        index = torch.where(counted, labels, 0)[:, None]
        probabilities = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        normalizers = []
        size = max(1, _CHUNK // logits.shape[1])
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
            scale = (gradient * counted).to(probabilities.dtype)[:, None]
            logits_gradient = (probabilities * scale).scatter_add_(1, index, -scale)
        if probabilities_gradient is not None:  # in a second derivative
            softmax_gradient = torch._softmax_backward_data(
                probabilities_gradient, probabilities, -1, probabilities.dtype
            )
            logits_gradient = softmax_gradient if logits_gradient is None else logits_gradient + softmax_gradient
        return logits_gradient, None


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """F.cross_entropy(logits.float(), labels, reduction="sum"), labels of -100 ignored; (rows, classes) and (rows,).

    Over a vocabulary on a CPU without float32 copies of all logits, which cost more than the arithmetic.
    """
    if logits.shape[-1] >= _VOCABULARY and _takes_own_path(logits):
        lowest, highest = labels.min(), labels.max()
        if highest < logits.shape[1] and (lowest >= 0 or bool(((labels >= 0) | (labels == IGNORED_LABEL)).all())):
            return _CrossEntropy.apply(logits, labels)[0]
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")


# ----------------------------------------------------------------------------------------------------------- unpadding


@torch.compiler.assume_constant_result
def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether PyTorch's flash attention runs there (Ampere and later), over sequences of any length in one row."""
    fits = head_size % 8 == 0 and head_size <= 256
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and fits and _has_flash(device)


def sequence_numbers(boundaries: torch.Tensor, count: int) -> torch.Tensor:
    """(count,): the number of the sequence that each token of a row belongs to; boundaries as in `Packing`."""
    tokens = torch.arange(count, device=boundaries.device, dtype=boundaries.dtype)
    return torch.searchsorted(boundaries, tokens, right=True) - 1


class _Group:
    """Neighbouring sequences of a packed batch that are attended together, padded to the longest of them.

    places: where each token stands in the padded (sequences · longest) grid; None where there is no padding.
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self.lengths, self.count, self.longest, self.tokens = lengths, len(lengths), max(lengths), sum(lengths)
        self.real = torch.arange(self.longest, device=device) < torch.tensor(lengths, device=device)[:, None]
        padded = self.tokens < self.count * self.longest
        self.places = self.real.flatten().nonzero().squeeze(1) if padded else None
        self._masks: dict[tuple[torch.dtype, bool], torch.Tensor] = {}

    def spread(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, head size) → (sequences, heads, longest, head size), zeros as padding."""
        if self.places is not None:
            grid = tokens.new_zeros(self.count * self.longest, *tokens.shape[1:])
            tokens = grid.index_copy(0, self.places, tokens)
        return tokens.unflatten(0, (self.count, self.longest)).transpose(1, 2)

    def gather(self, grid: torch.Tensor) -> torch.Tensor:
        """The way back."""
        tokens = grid.transpose(1, 2).flatten(0, 1)
        return tokens if self.places is None else tokens.index_select(0, self.places)

    def mask(self, dtype: torch.dtype, is_causal: bool) -> torch.Tensor | None:
        """What is added to (sequences, heads, longest, longest) scores; None for nothing. The same for every layer."""
        if self.places is None and not is_causal:
            return None
        if (dtype, is_causal) not in self._masks:
            allowed = self.real[:, None, None, :]
            if is_causal:
                allowed = allowed & torch.ones_like(self.real[:1, :, None] & self.real[:1, None, :]).tril()
            lowest = torch.finfo(dtype).min
            self._masks[dtype, is_causal] = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, lowest)
        return self._masks[dtype, is_causal]


class Packing:
    """How the sequences of a batch stand one behind the other in one row of their tokens, and the way there and back.

    shape: the batch's, (batch_size, sequence_length). tokens: (real tokens,) places in the flattened batch; None if
    they are all, in order. Then either `groups`, neighbours of similar length, the longest first; or, for a kernel
    that takes sequences of any length, `boundaries`, int32, where each begins and the last ends, and what `longest`
    they have at most.
    """

    def __init__(
        self,
        shape: torch.Size,
        tokens: torch.Tensor | None,
        groups: list[_Group] | None = None,
        boundaries: torch.Tensor | None = None,
        longest: int = 0,
    ):
        self.shape, self.tokens, self.groups = shape, tokens, groups
        self.boundaries, self.longest = boundaries, longest

    @classmethod
    def from_mask(
        cls, attention_mask: torch.Tensor | None, shape: torch.Size, device: torch.device, has_kernel: bool = False
    ) -> "Packing":
        """attention_mask (batch_size, sequence_length), 0 for padding, wherever it stands; None: no padding.

        It is read, for which a GPU has to be waited for. has_kernel: see `has_varlen_kernel`.
        """
        batch_size, sequence_length = shape
        if attention_mask is None or bool((attention_mask != 0).all()):
            tokens, lengths = None, [sequence_length] * batch_size
        else:
            real = attention_mask != 0
            counts = real.sum(1)
            order = counts.argsort(descending=True, stable=True)
            rows, columns = real[order].nonzero(as_tuple=True)
            tokens = order[rows] * sequence_length + columns
            lengths = [length for length in counts[order].tolist() if length]
        return cls._of_lengths(shape, tokens, lengths, device, has_kernel)

    @classmethod
    def from_boundaries(
        cls, boundaries: torch.Tensor, longest: int, shape: torch.Size, has_kernel: bool = False
    ) -> "Packing":
        """boundaries (sequences + 1,): where the sequences of a row of `shape` (1, tokens) begin and the last ends;
        with a kernel for it nothing is read.
        """
        if has_kernel:
            return cls(shape, None, boundaries=boundaries.to(torch.int32), longest=longest)
        lengths = boundaries.diff()
        order = lengths.argsort(descending=True, stable=True)
        tokens = None
        if bool((lengths[1:] > lengths[:-1]).any()):
            # Every token's key is the place its sequence has among the sorted ones.
            tokens = order.argsort()[sequence_numbers(boundaries, shape[1])].argsort(stable=True)
        sorted_lengths = [length for length in lengths[order].tolist() if length]
        return cls._of_lengths(shape, tokens, sorted_lengths, boundaries.device, False)

    @classmethod
    def _of_lengths(
        cls,
        shape: torch.Size,
        tokens: torch.Tensor | None,
        lengths: list[int],
        device: torch.device,
        has_kernel: bool,
    ) -> "Packing":
        if has_kernel:
            boundaries = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
            return cls(shape, tokens, boundaries=boundaries, longest=max(lengths, default=0))
        # A device that is far ahead of the host is not helped by many small products.
        cuts = _cuts(lengths) if device.type == "cpu" else sorted({0, len(lengths)})
        groups = [_Group(lengths[start:end], device) for start, end in itertools.pairwise(cuts)]
        return cls(shape, tokens, groups=groups)

    def pack(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """(batch_size or 1, sequence_length, …) → (1, real tokens, …); None stays None."""
        if values is None:
            return None
        values = values.expand(self.shape[0], *values.shape[1:]).flatten(0, 1)
        return (values if self.tokens is None else values.index_select(0, self.tokens))[None]

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(1, real tokens, size) → (batch_size, sequence_length, size), 0 where there is padding."""
        values = values[0]
        if self.tokens is not None:
            padded = values.new_zeros(self.shape.numel(), values.shape[-1])
            values = padded.index_copy(0, self.tokens, values)
        return values.unflatten(0, self.shape)

    def reading(self, positions: torch.Tensor) -> "Reading | None":
        """positions (count,): places in the flattened batch, in any order, also repeated; None if one is padding."""
        row, tokens = positions, self.shape.numel()
        if self.tokens is not None:
            there = positions.new_full((tokens,), -1)
            tokens = len(self.tokens)
            there[self.tokens] = torch.arange(tokens, device=positions.device)
            row = there[positions]
            if bool((row < 0).any()):
                return None
        read = torch.zeros(tokens, dtype=torch.int32, device=positions.device).index_fill_(0, row, 1)
        if self.groups is None:
            # Always as many, however often one is repeated: others, which nobody will read, fill them up.
            places = read.argsort(descending=True, stable=True)[: len(positions)].sort().values
            boundaries = torch.searchsorted(places, self.boundaries.to(places.dtype), out_int32=True)
            return Reading(places, row, boundaries=boundaries, longest=min(self.longest, len(places)))
        places = read.nonzero().squeeze(1)
        lengths = (length for group in self.groups for length in group.lengths)
        ends = list(itertools.accumulate(lengths, initial=0))
        counts = torch.searchsorted(places, torch.tensor(ends, device=places.device)).diff()
        shares = [share.tolist() for share in counts.split([group.count for group in self.groups])]
        return Reading(places, row, groups=[_Group(share, places.device) for share in shares])


class Reading:
    """The tokens of a packed batch whose vectors will be read, when a layer is computed for them alone.

    places: where they stand in the packed row, ascending. row: where those that were asked for do, as they were asked
    for. The places are divided among the sequences by `groups` or `boundaries`, as in `Packing`.
    """

    def __init__(
        self,
        places: torch.Tensor,
        row: torch.Tensor,
        groups: list[_Group] | None = None,
        boundaries: torch.Tensor | None = None,
        longest: int = 0,
    ):
        self.places, self.groups, self.boundaries, self.longest = places, groups, boundaries, longest
        self._order = torch.searchsorted(places, row)

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """(1, real tokens, size) → (1, count, size)."""
        return values.index_select(1, self.places)

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """(1, count, size) → (count, size), as they were asked for."""
        return values[0].index_select(0, self._order)


def _cuts(lengths: list[int]) -> list[int]:
    """Where to cut descending lengths: where padding would cost more than another round of small products."""
    cuts = [0]
    for number, length in enumerate(lengths):
        longest = lengths[cuts[-1]]
        if length < _SHARED_LENGTH * longest and longest > _SHORT_LENGTH:
            cuts.append(number)
    return sorted({*cuts, len(lengths)})


def attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float,
    dropout: float,
    is_causal: bool,
    reading: Reading | None = None,
) -> torch.Tensor:
    """Every sequence of a packed batch attends to itself alone: (real tokens, heads, head size), the same back.

    With a `reading` the query has its tokens alone, and there is no causal mask.
    """
    if not len(query):  # a batch of padding alone
        return value
    asking = packing if reading is None else reading
    if packing.groups is None:
        # PyTorch's own interface to this kernel, torch.nn.attention.varlen, leaves dropout out.
        where = (asking.boundaries, packing.boundaries, asking.longest, packing.longest)
        return torch.ops.aten._flash_attention_forward(
            query, key, value, *where, dropout, is_causal, False, scale=scaling
        )[0]
    # On CPUs PyTorch's fused attention has no dropout, and its backward pass is slow in bfloat16: on AMD's and Intel's
    # processors, with AMX and without (benchmarks/pretraining_step.py, --dropout 0 --attention sdpa).
    slow_backward = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    own = _takes_own_path(query) and (dropout > 0 or (slow_backward and query.dtype != torch.float32))
    attended = []
    asked_sizes, sizes = ([group.tokens for group in groups] for groups in (asking.groups, packing.groups))
    parts = zip(query.split(asked_sizes), key.split(sizes), value.split(sizes), strict=True)
    for asked, group, (queries, keys, values) in zip(asking.groups, packing.groups, parts, strict=True):
        grids = asked.spread(queries), group.spread(keys), group.spread(values)
        mask = group.mask(query.dtype, is_causal)
        if own:
            rows = [grid.flatten(0, 1) for grid in grids]
            grid = _Attention.apply(*rows, mask, scaling, dropout).unflatten(0, grids[0].shape[:2])
        else:
            grid = F.scaled_dot_product_attention(*grids, attn_mask=mask, dropout_p=dropout, scale=scaling)
        attended.append(asked.gather(grid))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


class _Attention(torch.autograd.Function):
    """dropout(softmax(QKᵀ·scaling + mask))·V on (sequences · heads, length, head size), for CPUs.

    Keeps one tensor of scores: the probabilities, negative where they were dropped.
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
        scores = query.new_empty(len(query), query.shape[1], key.shape[1])
        torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scaling, out=scores)
        if mask is not None:
            scores.unflatten(0, (len(mask), -1)).add_(mask)
        probabilities = torch.softmax(scores, -1)
        ctx.mask, ctx.scaling, ctx.scale = mask, scaling, 1.0
        if dropout:
            signs, dropout = _below(dropout, probabilities)
            ctx.scale = 1 / (1 - dropout)
            bits = probabilities.view(signs.dtype)
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
        """Gradients of query, key and value as functions of these three and of `gradient`."""
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
        """The probabilities that were not dropped, 0 for the others."""
        if not dropout:
            return probabilities
        bits = probabilities.view(_BITS[probabilities.dtype])
        sign = bits.bitwise_right_shift(torch.iinfo(bits.dtype).bits - 1)
        return (bits & sign.bitwise_not_()).view(probabilities.dtype)

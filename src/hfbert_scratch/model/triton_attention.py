"""Attention over packed rows of short sequences with dropout as Triton kernels, for training on GPUs.

For sequences of up to 128 tokens PyTorch's flash kernel takes 0.54 ms for a layer of BERT-BASE, forward and backward,
and the copy of its three gradients into one 0.07; these kernels take 0.34 (H200, benchmarks/gpu_micro.py). For longer
sequences they are not faster. They follow FlashAttention-2 (Dao 2023, arXiv:2307.08691) with three differences: one
program of the backward pass holds all keys of a sequence, so that no gradient is accumulated in memory; dropout is a
hash of each score's position; queries, keys and values are read from the output of the joint projection, and their
gradients written to one tensor of its shape.

The operators have a plain implementation for CPUs that drops the same scores; tests compare the two.
"""

import importlib.util
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


HAS_TRITON = importlib.util.find_spec("triton") is not None
# Blocks of these head sizes fit a multiprocessor's registers.
HEAD_SIZES = (32, 64)
# All keys of a sequence of this length fit one program.
MAX_SEQLEN = 128
# Queries of one program of the forward pass; keys or queries that a pass loads at a time.
_BLOCK, _STEP = 64, 64
_LOG2_E = 1.4426950408889634

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _mixed(bits):
        # The finalizer of MurmurHash3; uint32 wraps.
        bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
        bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
        return bits ^ (bits >> 16)

    @triton.jit
    def _kept(row_keys, column_keys, threshold):
        """Return which scores dropout keeps; the keys are mixed already and broadcast to the scores' shape."""
        bits = row_keys + column_keys
        bits = (bits ^ (bits >> 16)) * 0x7FEB352D
        return (bits ^ (bits >> 15)) >= threshold

    @triton.jit
    def _forward_kernel(
        qkv,
        out,
        lse,
        cu_seqlens,
        seeds,
        tokens,
        scale_log2,
        threshold,
        keep_scale,
        HEADS: tl.constexpr,
        SIZE: tl.constexpr,
        DROPOUT: tl.constexpr,
        BLOCK: tl.constexpr,
        STEP: tl.constexpr,
    ):
        head, sequence = tl.program_id(1), tl.program_id(2)
        start = tl.load(cu_seqlens + sequence)
        length = tl.load(cu_seqlens + sequence + 1) - start
        first = tl.program_id(0) * BLOCK
        if first >= length:
            return
        rows, columns, features = first + tl.arange(0, BLOCK), tl.arange(0, STEP), tl.arange(0, SIZE)
        stride = 3 * HEADS * SIZE
        base = qkv + start.to(tl.int64) * stride + head * SIZE
        real_rows = rows < length
        queries = tl.load(base + rows[:, None] * stride + features, mask=real_rows[:, None], other=0.0)
        if DROPOUT:
            seed = tl.load(seeds).to(tl.uint32, bitcast=True)
            row_keys = _mixed(((start + rows) * HEADS + head).to(tl.uint32) ^ seed)
            column_seed = tl.load(seeds + 1).to(tl.uint32, bitcast=True)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        sums = tl.zeros((BLOCK, SIZE), tl.float32)
        for begin in range(0, length, STEP):
            at = begin + columns
            real = at < length
            offsets = at[:, None] * stride + features
            keys = tl.load(base + HEADS * SIZE + offsets, mask=real[:, None], other=0.0)
            values = tl.load(base + 2 * HEADS * SIZE + offsets, mask=real[:, None], other=0.0)
            scores = tl.where(real[None, :], tl.dot(queries, tl.trans(keys)) * scale_log2, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            probabilities = tl.exp2(scores - new_largest[:, None])
            shrink = tl.exp2(largest - new_largest)
            total = total * shrink + tl.sum(probabilities, 1)
            if DROPOUT:
                column_keys = _mixed(at.to(tl.uint32) ^ column_seed)
                kept = _kept(row_keys[:, None], column_keys[None, :], threshold)
                probabilities = tl.where(kept, probabilities, 0.0)
            sums = sums * shrink[:, None] + tl.dot(probabilities.to(values.dtype), values)
            largest = new_largest
        sums = sums * (keep_scale / total)[:, None]
        place = out + (start.to(tl.int64) + rows[:, None]) * (HEADS * SIZE) + head * SIZE + features
        tl.store(place, sums.to(out.dtype.element_ty), mask=real_rows[:, None])
        tl.store(lse + head.to(tl.int64) * tokens + start + rows, largest + tl.log2(total), mask=real_rows)

    @triton.jit
    def _backward_kernel(
        grad_out,
        qkv,
        out,
        lse,
        grad_qkv,
        cu_seqlens,
        seeds,
        tokens,
        scale,
        scale_log2,
        threshold,
        keep_scale,
        HEADS: tl.constexpr,
        SIZE: tl.constexpr,
        DROPOUT: tl.constexpr,
        MAX_SEQLEN: tl.constexpr,
        STEP: tl.constexpr,
    ):
        """Compute all gradients of one head of one sequence."""
        head, sequence = tl.program_id(0), tl.program_id(1)
        start = tl.load(cu_seqlens + sequence)
        length = tl.load(cu_seqlens + sequence + 1) - start
        if length == 0:
            return
        columns, steps, features = tl.arange(0, MAX_SEQLEN), tl.arange(0, STEP), tl.arange(0, SIZE)
        stride, out_stride = 3 * HEADS * SIZE, HEADS * SIZE
        offset = start.to(tl.int64) * stride + head * SIZE
        base, grad_base = qkv + offset, grad_qkv + offset
        out_offset = start.to(tl.int64) * out_stride + head * SIZE
        out_base, grad_out_base = out + out_offset, grad_out + out_offset
        lse_base = lse + head.to(tl.int64) * tokens + start
        if DROPOUT:
            seed = tl.load(seeds).to(tl.uint32, bitcast=True)
            column_seed = tl.load(seeds + 1).to(tl.uint32, bitcast=True)
            column_keys = _mixed(columns.to(tl.uint32) ^ column_seed)
        real_columns = (columns < length)[:, None]
        column_offsets = columns[:, None] * stride + features
        keys = tl.load(base + HEADS * SIZE + column_offsets, mask=real_columns, other=0.0)
        values = tl.load(base + 2 * HEADS * SIZE + column_offsets, mask=real_columns, other=0.0)
        grad_keys = tl.zeros((MAX_SEQLEN, SIZE), tl.float32)
        grad_values = tl.zeros((MAX_SEQLEN, SIZE), tl.float32)
        # Scores stand transposed, (keys, queries). Beyond the sequence keys are 0 and their gradients are not stored.
        for begin in range(0, length, STEP):
            rows = begin + steps
            real = rows < length
            queries = tl.load(base + rows[:, None] * stride + features, mask=real[:, None], other=0.0)
            row_offsets = rows[:, None] * out_stride + features
            grads = tl.load(grad_out_base + row_offsets, mask=real[:, None], other=0.0)
            outs = tl.load(out_base + row_offsets, mask=real[:, None], other=0.0)
            delta = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
            normalizers = tl.load(lse_base + rows, mask=real, other=float("inf"))
            scores = tl.dot(keys, tl.trans(queries)) * scale_log2
            probabilities = tl.exp2(scores - normalizers[None, :])
            score_grads = tl.dot(values, tl.trans(grads))
            dropped = probabilities
            if DROPOUT:
                row_keys = _mixed(((start + rows) * HEADS + head).to(tl.uint32) ^ seed)
                kept = _kept(row_keys[None, :], column_keys[:, None], threshold)
                dropped = tl.where(kept, probabilities * keep_scale, 0.0)
                score_grads = tl.where(kept, score_grads * keep_scale, 0.0)
            grad_values += tl.dot(dropped.to(grads.dtype), grads)
            score_grads = (probabilities * (score_grads - delta[None, :])).to(queries.dtype)
            grad_keys += tl.dot(score_grads, queries)
            grad_queries = tl.dot(tl.trans(score_grads), keys) * scale
            place = grad_base + rows[:, None] * stride + features
            tl.store(place, grad_queries.to(grad_qkv.dtype.element_ty), mask=real[:, None])
        place = grad_base + HEADS * SIZE + column_offsets
        tl.store(place, (grad_keys * scale).to(grad_qkv.dtype.element_ty), mask=real_columns)
        tl.store(place + HEADS * SIZE, grad_values.to(grad_qkv.dtype.element_ty), mask=real_columns)


def has_kernel(device: torch.device, head_size: int, max_seqlen: int) -> bool:
    """Return whether `packed_attention` runs there and is faster than PyTorch's flash kernel.

    Args:
        device: the device to compute on. A GPU needs Triton; on a CPU the plain implementation runs.
        head_size: features of an attention head.
        max_seqlen: tokens of the longest sequence.
    """
    return head_size in HEAD_SIZES and max_seqlen <= MAX_SEQLEN and (device.type != "cuda" or HAS_TRITON)


def _constants(dropout: float, scaling: float) -> tuple[float, int, float]:
    """Return scaling·log₂e, the hash threshold below which a score is dropped, and 1/(1 − dropout)."""
    return scaling * _LOG2_E, min(round(dropout * 2**32), 2**32 - 1), 1 / (1 - dropout)


@torch.library.custom_op("hfbert::packed_attention", mutates_args=())
def packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, seeds: Tensor, max_seqlen: int, dropout: float, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend within each sequence of a packed row.

    Args:
        qkv: (tokens, 3, heads, head size), contiguous: queries, keys, values.
        cu_seqlens: (sequences + 1,) int32, start of each sequence and end of the last.
        seeds: (2,) int32, random; they determine the dropped scores.
        max_seqlen: no sequence is longer; at most MAX_SEQLEN.
        dropout: probability of dropping an attention probability.
        scaling: of the scores.

    Returns:
        The attended values (tokens, heads, head size), and for the backward pass log₂ of each score row's normalizer,
        (heads, tokens).
    """
    return _launch_forward(qkv, cu_seqlens, seeds, max_seqlen, dropout, scaling)


def _launch_forward(
    qkv: Tensor, cu_seqlens: Tensor, seeds: Tensor, max_seqlen: int, dropout: float, scaling: float
) -> tuple[Tensor, Tensor]:
    tokens, _, heads, size = qkv.shape
    out = qkv.new_empty(tokens, heads, size)
    lse = qkv.new_empty(heads, tokens, dtype=torch.float32)
    scale_log2, threshold, keep_scale = _constants(dropout, scaling)
    _forward_kernel[(-(-max_seqlen // _BLOCK), heads, len(cu_seqlens) - 1)](
        qkv, out, lse, cu_seqlens, seeds, tokens, scale_log2, threshold, keep_scale,
        HEADS=heads, SIZE=size, DROPOUT=dropout > 0, BLOCK=_BLOCK, STEP=_STEP, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("hfbert::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, seeds: Tensor,
    max_seqlen: int, dropout: float, scaling: float,
) -> Tensor:  # fmt: skip
    """Return the gradient of `packed_attention`'s qkv.

    Args:
        grad_out: (tokens, heads, head size), the gradient of the attended values.
        qkv: (tokens, 3, heads, head size), as in the forward pass.
        out: (tokens, heads, head size), the attended values.
        lse: (heads, tokens), log₂ of each score row's normalizer.
        cu_seqlens, seeds, max_seqlen, dropout, scaling: as in the forward pass.

    Returns:
        (tokens, 3, heads, head size).
    """
    return _launch_backward(grad_out, qkv, out, lse, cu_seqlens, seeds, max_seqlen, dropout, scaling)


def _launch_backward(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, seeds: Tensor,
    max_seqlen: int, dropout: float, scaling: float,
) -> Tensor:  # fmt: skip
    tokens, _, heads, size = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    scale_log2, threshold, keep_scale = _constants(dropout, scaling)
    _backward_kernel[(heads, len(cu_seqlens) - 1)](
        grad_out.contiguous(), qkv, out, lse, grad_qkv, cu_seqlens, seeds, tokens, scaling, scale_log2, threshold,
        keep_scale, HEADS=heads, SIZE=size, DROPOUT=dropout > 0, MAX_SEQLEN=MAX_SEQLEN, STEP=_STEP, num_warps=8,
        num_stages=1,
    )  # fmt: skip
    return grad_qkv


@packed_attention.register_fake
def _(qkv: Tensor, cu_seqlens: Tensor, seeds: Tensor, max_seqlen: int, dropout: float, scaling: float) -> Any:
    tokens, _, heads, size = qkv.shape
    return qkv.new_empty(tokens, heads, size), qkv.new_empty(heads, tokens, dtype=torch.float32)


@packed_attention_backward.register_fake
def _(grad_out: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(qkv)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, seeds, *ctx.options = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, seeds)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    gradient = packed_attention_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None, None, None


packed_attention.register_autograd(_backward, setup_context=_setup_context)


def murmur_mix(bits: Tensor) -> Tensor:
    """Mix int32 bits by the finalizer of MurmurHash3 (Appleby 2011, public domain); products wrap.

    The Triton function `_mixed` computes the same in uint32.
    """
    # >> copies the sign bit; the masks clear the copies.
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * (0x85EBCA6B - (1 << 32))
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * (0xC2B2AE35 - (1 << 32))
    return bits ^ ((bits >> 16) & 0xFFFF)


def kept_scores(start: int, length: int, heads: int, seeds: Tensor, dropout: float) -> Tensor:
    """Tell which scores of a sequence dropout keeps.

    The plain counterpart of the Triton function `_kept`.

    Args:
        start: the sequence's offset in the packed row, in tokens.
        length: tokens of the sequence.
        heads: number of attention heads.
        seeds: (2,) int32, as for `packed_attention`.
        dropout: probability of dropping a score.

    Returns:
        (heads, length, length) bool, True for a score that is kept.
    """
    # (heads, length, 1) + (length,), then uint32 arithmetic in int64
    rows = (start + torch.arange(length))[None, :] * heads + torch.arange(heads)[:, None]
    row_keys = murmur_mix(rows.to(torch.int32) ^ seeds[0])[..., None]
    column_keys = murmur_mix(torch.arange(length, dtype=torch.int32) ^ seeds[1])
    bits = (row_keys + column_keys).to(torch.int64) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    return (bits ^ (bits >> 15)) >= _constants(dropout, 1.0)[1]


def _plain_sequences(qkv: Tensor, cu_seqlens: Tensor, seeds: Tensor, dropout: float, scaling: float) -> Any:
    """Yield for each sequence its slice of the row and, for every head, everything both passes on CPUs need."""
    for start, end in pairwise(cu_seqlens.tolist()):
        if start == end:
            continue
        query, key, value = qkv[start:end].float().permute(1, 2, 0, 3)  # (heads, length, head size) each
        scores = query @ key.transpose(1, 2) * scaling
        normalizers = scores.logsumexp(-1)  # (heads, length)
        keep = kept_scores(start, end - start, qkv.shape[2], seeds, dropout) / (1 - dropout)
        yield slice(start, end), query, key, value, (scores - normalizers[..., None]).exp(), normalizers, keep


@packed_attention.register_kernel("cpu")
def _(qkv: Tensor, cu_seqlens: Tensor, seeds: Tensor, max_seqlen: int, dropout: float, scaling: float) -> Any:
    tokens, _, heads, size = qkv.shape
    out, lse = qkv.new_zeros(tokens, heads, size), qkv.new_zeros(heads, tokens, dtype=torch.float32)
    for place, _, _, value, probabilities, normalizers, keep in _plain_sequences(
        qkv, cu_seqlens, seeds, dropout, scaling
    ):
        out[place] = (probabilities * keep @ value).transpose(0, 1).to(out.dtype)
        lse[:, place] = normalizers * _LOG2_E
    return out, lse


@packed_attention_backward.register_kernel("cpu")
def _(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, seeds: Tensor,
    max_seqlen: int, dropout: float, scaling: float,
) -> Tensor:  # fmt: skip
    grad_qkv = torch.zeros_like(qkv)
    for place, query, key, value, probabilities, _, keep in _plain_sequences(qkv, cu_seqlens, seeds, dropout, scaling):
        grads, outs = grad_out[place].float().transpose(0, 1), out[place].float().transpose(0, 1)
        score_grads = grads @ value.transpose(1, 2) * keep - (grads * outs).sum(-1, keepdim=True)
        score_grads = probabilities * score_grads * scaling
        parts = (
            score_grads @ key,
            score_grads.transpose(1, 2) @ query,
            (probabilities * keep).transpose(1, 2) @ grads,
        )
        grad_qkv[place] = torch.stack(parts).permute(2, 0, 1, 3).to(qkv.dtype)
    return grad_qkv

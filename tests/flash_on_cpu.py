"""PyTorch's flash attention over packed rows, with plain arithmetic as its kernels for CPUs.

The operator is the real one: its schema, its autograd formula and its place in compiled graphs are PyTorch's own.
Importing this registers the kernels. Dropout is left out.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch


def _sequences(
    query: torch.Tensor, key: torch.Tensor, starts: torch.Tensor, key_starts: torch.Tensor, limits: tuple[int, int]
) -> Iterator[tuple[slice, slice]]:
    """Where the queries and keys of each sequence are; none longer than is said."""
    assert starts.dtype == key_starts.dtype == torch.int32 and query.stride(-1) == key.stride(-1) == 1
    for (start, end), (key_start, key_end) in zip(
        pairwise(starts.tolist()), pairwise(key_starts.tolist()), strict=True
    ):
        assert end - start <= limits[0] and key_end - key_start <= limits[1]
        if start < end and key_start < key_end:
            yield slice(start, end), slice(key_start, key_end)


def _scores(query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * scale
    return scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf")) if causal else scores


def forward(
    query: Any, key: Any, value: Any, starts: Any, key_starts: Any, longest: int, key_longest: int,
    dropout: float, causal: bool, debug: bool, *, scale: float, **unused: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """aten::_flash_attention_forward. What no sequence covers is undefined, here NaN."""
    output = torch.full_like(query, float("nan"))
    normalizers = torch.zeros(query.shape[1], query.shape[0])
    for own, others in _sequences(query, key, starts, key_starts, (longest, key_longest)):
        scores = _scores(query[own], key[others], causal, scale)
        normalizers[:, own] = scores.logsumexp(-1)
        output[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[others].float()).to(output.dtype)
    state = torch.zeros(2, dtype=torch.uint64)
    return output, normalizers, state, torch.zeros((), dtype=torch.uint64), torch.empty(0, dtype=query.dtype)


def backward(
    gradient: Any, query: Any, key: Any, value: Any, output: Any, normalizers: Any, starts: Any, key_starts: Any,
    longest: int, key_longest: int, dropout: float, causal: bool, state: Any, unused: Any, *, scale: float, **more: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """aten::_flash_attention_backward."""
    gradients = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for own, others in _sequences(query, key, starts, key_starts, (longest, key_longest)):
        probabilities = (_scores(query[own], key[others], causal, scale) - normalizers[:, own, None]).exp()
        grads = gradient[own].float()
        delta = (grads * output[own].float()).sum(-1).t()[..., None]
        score_grads = torch.einsum("qhd,khd->hqk", grads, value[others].float()) - delta
        score_grads = probabilities * score_grads * scale
        gradients[0][own] = torch.einsum("hqk,khd->qhd", score_grads, key[others].float()).to(query.dtype)
        gradients[1][others] = torch.einsum("hqk,qhd->khd", score_grads, query[own].float()).to(key.dtype)
        gradients[2][others] = torch.einsum("hqk,qhd->khd", probabilities, grads).to(value.dtype)
    return gradients


_library = torch.library.Library("aten", "IMPL")
_library.impl("_flash_attention_forward", forward, "CPU")
_library.impl("_flash_attention_backward", backward, "CPU")

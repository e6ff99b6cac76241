"""The fastest attention implementation for a model, a device and a precision."""

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .configuration_hfbert import HFBertConfig
from .layout_hfbert import UNPADDED


def fastest_attention(
    model: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
    dropout: float,
    packing: bool = False,
    training: bool = False,
) -> str:
    """Return the name of the fastest attention implementation for `model` on `device`, computed in `dtype`.

    On a CPU our own models compute on real tokens alone, except for answers to questions, whose softmax is over all
    positions, padding too, and in a compiled graph, whose shapes must not depend on the data. For the training of
    others a process times both there. Without gradients PyTorch's fused attention reads and writes least.

    Args:
        model: any model of transformers.
        device: the device to compute on.
        dtype: the precision to compute in.
        dropout: of the attention probabilities in training; 0 for inference.
        packing: batches are packed rows, without padding. Only read for devices other than a CPU.
        training: whether gradients are computed.

    Returns:
        A name for `set_attn_implementation`: UNPADDED, "sdpa" or "eager".
    """
    if device.type != "cpu":
        return UNPADDED if packing else "sdpa"
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    if model.config.model_type == HFBertConfig.model_type and not (hasattr(model, "qa_outputs") or compiled):
        return UNPADDED
    if not training:
        return "sdpa"
    return fastest_padded_attention(dtype, dropout)


@cache
def fastest_padded_attention(dtype: torch.dtype, dropout: float) -> str:
    """Time both passes of stock attention on the CPU, on a padded batch of the base size.

    The two take turns, and the best of each counts. PyTorch's fused attention must be beaten by more than chance. The
    result is kept for the process.

    Args:
        dtype: the precision to compute in.
        dropout: of the attention probabilities.

    Returns:
        "eager" or "sdpa".
    """
    shape = (4, 12, 128, 64)
    query, key, value = (torch.ones(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.zeros(shape[0], 1, shape[2], shape[2], dtype=dtype)
    gradient = torch.ones(shape, dtype=dtype)

    def eager() -> torch.Tensor:
        scores = torch.matmul(query, key.transpose(2, 3)) * shape[-1] ** -0.5 + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
        return torch.matmul(F.dropout(weights, dropout), value)

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def seconds(attend: Callable[[], torch.Tensor]) -> float:
        start = time.perf_counter()
        torch.autograd.grad(attend(), (query, key, value), gradient)
        return time.perf_counter() - start

    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        turns = [(seconds(eager), seconds(fused)) for _ in range(4)]
    eager_seconds, fused_seconds = (min(times) for times in zip(*turns, strict=True))
    return "eager" if 1.1 * eager_seconds < fused_seconds else "sdpa"


def choose_attention(encoder: PreTrainedModel) -> None:
    """Set the fastest attention for inference, in place.

    Args:
        encoder: on its device and in its dtype. It is left alone if its attention is neither "sdpa" nor "eager".
    """
    if encoder.config._attn_implementation in ("sdpa", "eager"):
        encoder.set_attn_implementation(fastest_attention(encoder, encoder.device, encoder.dtype, 0.0))

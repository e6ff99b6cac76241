"""Linear layers by oneDNN's own operators on CPUs, where PyTorch's choice is slower: for inference and training."""

import time
import types
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .kernels_hfbert import HFBertOutputProjection, is_transformed, needs_plain_backward


# What is timed to choose: both feed-forward layers of the base size, which are two thirds of a layer's arithmetic.
_TIMED_TOKENS, _TIMED_HIDDEN, _TIMED_INTERMEDIATE = 256, 768, 3072
_TIMED_ROUNDS = 4
# As many times as fast oneDNN must be. Below that noise would decide, and runs of one seed would differ in their bits.
_NEEDED_SPEED = 1.1


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if this build of PyTorch and this processor have the operators of this module."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_unchanged(module: nn.Module) -> bool:
    """Return whether `module` computes as its class does: it has no hook and no other forward."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class PackedLinear(nn.Module):
    """nn.Linear whose weight stands in memory as oneDNN's matrix product reads it, optionally with GELU behind it.

    For CPUs and without gradients; 1.05 to 1.5 times as fast, GELU included (benchmarks/inference.py).
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        # Not parameters or buffers: they can be neither moved nor saved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.activation = "none"

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        algorithm = "none" if self.activation == "gelu" else ""  # of GELU: the exact one
        return torch.ops.mkldnn._linear_pointwise(values, self._weight, self._bias, self.activation, [], algorithm)


def train_with_onednn(model: nn.Module) -> bool:
    """Have the linear layers of a float32 model on a CPU computed by oneDNN, forward and backward; returns whether.

    Parameters and hooks stay as they are. `onednn_is_faster` says whether it is worth it: on an AMD EPYC a
    training step of the base size takes 0.9 of the time so (benchmarks/pretraining_step.py, --onednn false against
    true).
    """
    parameter = next(model.parameters())
    if parameter.dtype != torch.float32 or not has_onednn(parameter.device, parameter.dtype):
        return False
    for module in model.modules():
        # Another subclass may compute something else, and so may a forward that was replaced, as offloading does.
        if type(module) in (nn.Linear, HFBertOutputProjection) and "forward" not in vars(module):
            module.forward = types.MethodType(_forward, module)
    return True


def onednn_is_faster() -> bool:
    """Return whether this processor computes float32 products faster by oneDNN than by MKL, PyTorch's choice."""
    return has_onednn(torch.device("cpu"), torch.float32) and onednn_speed() >= _NEEDED_SPEED


@cache
def onednn_speed() -> float:
    """Return how many times as fast oneDNN is at the float32 products of BERT's training.

    A process times them once, some 40 GFLOP in all: the outputs and the input gradients of feed-forward layers.
    The two ways take turns, and the best of each counts, so that other work on the machine slows neither alone.
    """
    sizes = ((_TIMED_HIDDEN, _TIMED_INTERMEDIATE), (_TIMED_INTERMEDIATE, _TIMED_HIDDEN))
    products: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
    for inputs, outputs in sizes:
        weight, bias = torch.ones(outputs, inputs), torch.ones(outputs)
        products.append((torch.ones(_TIMED_TOKENS, inputs), weight, bias))
        products.append((torch.ones(_TIMED_TOKENS, outputs), weight.t(), None))
    seconds = 0.0, 0.0
    with torch.no_grad():
        for arguments in products:
            ways = partial(F.linear, *arguments), partial(_product, *arguments)
            turns = [[_seconds(way) for way in ways] for _ in range(_TIMED_ROUNDS)]
            best = [min(turn[way] for turn in turns) for way in range(len(ways))]
            seconds = seconds[0] + best[0], seconds[1] + best[1]
    return seconds[0] / seconds[1]


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _forward(self: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    if is_transformed():
        return F.linear(values, self.weight, self.bias)
    return _Linear.apply(values, self.weight, self.bias)


def _product(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        product = F.linear if needs_plain_backward(gradient) else _product
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None,
            # MKL is faster for this product.
            rows.t() @ values.reshape(-1, values.shape[-1]) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )

"""Linear layers by oneDNN's own operators on CPUs, where PyTorch's choice is slower: for inference and training."""

import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .kernels_hfbert import is_transformed, needs_plain_backward
from .modeling_hfbert import HFBertOutputProjection


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have the operators that are called here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """nn.Linear whose weight stands in memory as oneDNN's matrix product reads it, optionally with GELU behind it.

    For CPUs and without gradients; 1.05 to 1.5 times as fast, GELU included (benchmarks/inference.py).
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight_shape = linear.weight.shape
        # Not parameters or buffers: they can be neither moved nor saved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None)
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.activation = "none"

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        algorithm = "none" if self.activation == "gelu" else ""  # of GELU: the exact one
        return torch.ops.mkldnn._linear_pointwise(values, self._weight, self._bias, self.activation, [], algorithm)


def train_with_onednn(model: nn.Module) -> bool:
    """Have the linear layers of a float32 model on a CPU computed by oneDNN, forward and backward; returns whether.

    On AMD's processors alone, where MKL, which PyTorch asks for float32 products, is slower: a training step of the
    base size takes 0.9 of the time (benchmarks/pretraining_step.py, --onednn false against true). Parameters and hooks
    stay as they are.
    """
    parameter = next(model.parameters())
    if not has_onednn(parameter.device, parameter.dtype) or parameter.dtype != torch.float32 or not _is_amd():
        return False
    for module in model.modules():
        # Another subclass may compute something else.
        if type(module) in (nn.Linear, HFBertOutputProjection):
            module.forward = types.MethodType(_forward, module)
    return True


def _is_amd() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and "AuthenticAMD" in info.read_text(encoding="utf-8")


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
            # This product MKL is the faster at.
            rows.t() @ values.reshape(-1, values.shape[-1]) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )

"""A copy of an encoder for inference: of a precision, with the fastest attention, matrices laid out for the CPU."""

import copy
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

from .environment import fastest_attention


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


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have the operators that PackedLinear calls."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def inference_copy(encoder: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in eval mode, in `dtype` (default: the encoder's) and with the fastest attention for it; yours stays as
    it is.

    On a CPU its linear layers are packed. Parameters that keep their type are shared, not copied. Under autocast every
    batch would cast every weight anew.
    """
    dtype = encoder.dtype if dtype is None else dtype
    memo: dict[int, Any] = {}
    if can_pack(encoder.device, dtype):
        for module in encoder.modules():
            # A subclass may compute something else.
            if type(module) is nn.Linear:
                memo[id(module)] = PackedLinear(module, dtype)
    for parameter in encoder.parameters():
        if parameter.dtype == dtype:
            memo[id(parameter)] = parameter
    made = copy.deepcopy(encoder, memo).to(dtype).eval()
    for module in made.modules():
        dense, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
        if isinstance(dense, PackedLinear) and isinstance(activation, GELUActivation):
            dense.activation, module.intermediate_act_fn = "gelu", nn.Identity()
    choose_attention(made)
    return made


def choose_attention(encoder: nn.Module) -> None:
    """Set the fastest attention for inference, where the present one is one of those that fit everywhere."""
    if encoder.config._attn_implementation in ("sdpa", "eager"):
        precision = "bf16" if encoder.dtype == torch.bfloat16 else "no"
        encoder.set_attn_implementation(fastest_attention(encoder, encoder.device, precision, 0.0))

"""Modules and compilation for training on a GPU in bfloat16.

`train_on_gpu` replaces the classes of some modules by subclasses with the same parameters, so checkpoints, parameter
names and hooks on modules stay valid. `compile_layers` compiles the repeated parts of a model. Both are for training
loops: a model opened by from_pretrained computes as stock BERT does. Measurements: benchmarks/gpu_matrix.py.
"""

import math
import shutil
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_hfbert import autocast_dtype
from .kernels_hfbert import HFBertDropout, HFBertOutputProjection
from .modeling_hfbert import (
    HFBertEmbeddings,
    HFBertLMPredictionHead,
    HFBertMaskedPrediction,
    HFBertSelfAttention,
)
from .triton_attention import has_kernel, murmur_mix, packed_attention


# The vocabulary projection is padded to a multiple of this. Fast kernels need rows of a multiple of 16 bytes, unlike
# 30,522 columns of bfloat16: an H200 reaches 226 TFLOP/s with them, 702 with 30,528 (benchmarks/gpu_micro.py).
_CLASSES_MULTIPLE = 64
# Logit of a padding class: its exponential is 0 beside any other.
_NO_CLASS = -1e4


class _LayerNorm(nn.LayerNorm):
    """LayerNorm in float32 with an output of autocast's dtype.

    CUDA's autocast returns float32, which doubles the bytes of the residual stream.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        normalized = super().forward(values)
        return normalized.to(autocast_dtype(values.device) or normalized.dtype)


class _SelfAttention(HFBertSelfAttention):
    """Self-attention with one joint projection to query, key and value."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layout, query_subset = kwargs.get("layout"), kwargs.get("query_subset")
        if (
            layout is None
            or layout.cu_seqlens is None
            or query_subset is not None
            or self.is_causal
            or not has_kernel(hidden_states.device, self.attention_head_size, layout.max_seqlen)
        ):
            return super().forward(hidden_states, attention_mask, **kwargs)
        projected = _joint_product(hidden_states, self.query, self.key, self.value)
        # (1, tokens, 3·hidden size) → (tokens, 3, heads, head size)
        projected = projected.view(-1, 3, self.config.num_attention_heads, self.attention_head_size)
        dropout = self.dropout.p if self.training else 0.0
        seeds = random_seeds(projected.device)
        attended, _ = packed_attention(projected, layout.cu_seqlens, seeds, layout.max_seqlen, dropout, self.scaling)
        return attended.view(hidden_states.shape), None

    def project(
        self, query_states: torch.Tensor, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if query_states is not hidden_states:
            key, value = _joint_product(hidden_states, self.key, self.value).chunk(2, dim=-1)
            return self.query(query_states), key, value
        query, key, value = _joint_product(hidden_states, self.query, self.key, self.value).chunk(3, dim=-1)
        return query, key, value


def _joint_product(hidden_states: torch.Tensor, *layers: nn.Linear) -> torch.Tensor:
    """(…, hidden size) → (…, layers · hidden size) by one matrix product."""
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return F.linear(hidden_states, weight, bias)


class _LMPredictionHead(HFBertLMPredictionHead):
    """Logits for the loss over a vocabulary padded to a multiple of `_CLASSES_MULTIPLE`."""

    def loss_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        missing = -self.decoder.out_features % _CLASSES_MULTIPLE
        weight = F.pad(self.decoder.weight, (0, 0, 0, missing))
        bias = F.pad(self.bias, (0, missing), value=_NO_CLASS)
        return F.linear(self.transform(hidden_states), weight, bias)


class _Dropout(HFBertDropout):
    """Dropout by a hash of each element's position, in compiled code.

    The compiler's generator computes ten rounds of Philox per element, which take twice as long as the memory traffic
    of a residual and its LayerNorm. The hash takes a dozen integer instructions, and the backward pass recomputes it
    instead of reading a mask.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or not torch.compiler.is_compiling():
            return super().forward(input)
        return torch.where(keep_mask(input.shape, self.p, input.device), input / (1 - self.p), 0.0)


def keep_mask(shape: torch.Size, probability: float, device: torch.device) -> torch.Tensor:
    """Draw the mask of a dropout from PyTorch's generator of the device.

    Two random seeds and the element's position pass twice through `murmur_mix`.

    Args:
        shape: of the mask.
        probability: of False, an element that is dropped.
        device: the device to compute on.

    Returns:
        Booleans of `shape`.
    """
    seeds = random_seeds(device)
    positions = torch.arange(shape.numel(), dtype=torch.int32, device=device)
    random = murmur_mix(murmur_mix(positions ^ seeds[0]) + seeds[1])
    return (random >= round(probability * (1 << 32)) - (1 << 31)).view(shape)


def random_seeds(device: torch.device) -> torch.Tensor:
    """Draw the two seeds of a hash, (2,) int32, from PyTorch's generator of the device."""
    return torch.randint(-(1 << 31), (1 << 31) - 1, (2,), dtype=torch.int32, device=device)


class _GELU(GELUActivation):
    """GELU by `_Gelu` in compiled code."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() or values.dtype != torch.bfloat16:
            return super().forward(values)
        return _Gelu.apply(values)


class _Gelu(torch.autograd.Function):
    """x·Φ(x) for bfloat16, exact to 1e-7; the erf of CUDA's library takes longer than the memory traffic."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values)
        wide = values.float()
        return (wide * _normal(wide)[0]).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (values,) = ctx.saved_tensors
        wide = values.float()
        distribution, exponential = _normal(wide)
        slope = distribution + wide * exponential * (1 / math.sqrt(2 * math.pi))
        return (gradient.float() * slope).to(values.dtype)


def _normal(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Φ(x), the normal distribution function, and exp(-x²/2).

    Abramowitz and Stegun 1964, formula 7.1.26: erf(z) = 1 - (a₁t + … + a₅t⁵)·exp(-z²), t = 1/(1 + pz), z ≥ 0.
    """
    t = 1 / (1 + (0.3275911 / math.sqrt(2)) * values.abs())
    tail: torch.Tensor | float = 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = coefficient + t * tail
    exponential = torch.exp(-0.5 * values * values)
    tail = 0.5 * t * tail * exponential
    return torch.where(values >= 0, 1 - tail, tail), exponential


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: _LayerNorm,
    HFBertDropout: _Dropout,
    GELUActivation: _GELU,
    HFBertSelfAttention: _SelfAttention,
    HFBertLMPredictionHead: _LMPredictionHead,
}
# Replaced modules read the weights of these submodules without calling them.
_READ_WEIGHTS = {HFBertSelfAttention: ("query", "key", "value"), HFBertLMPredictionHead: ("decoder",)}


def train_on_gpu(model: nn.Module) -> None:
    """Replace the modules of an HFBert model by the faster ones of this file, in place.

    Parameters keep their names and values. A module stays as it is if it would bypass a projection with hooks or of
    another class, such as LoRA's.
    """
    for module in model.modules():
        replacement = _REPLACEMENTS.get(type(module))
        read = [getattr(module, name) for name in _READ_WEIGHTS.get(type(module), ())]
        if replacement is not None and all(map(_is_plain, read)):
            module.__class__ = replacement


def _is_plain(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    is_linear = type(layer) in (nn.Linear, HFBertOutputProjection)
    return is_linear and layer.bias is not None and not any(hooks)


def can_compile() -> bool:
    """Return whether torch.compile can make GPU kernels here: it needs Triton and a C compiler."""
    from torch.utils._triton import has_triton

    return has_triton() and any(map(shutil.which, ("cc", "gcc", "clang")))


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compile a model's layers, embeddings and MLM loss separately, in place.

    All layers share one graph for every number of tokens, so compilation takes seconds where the whole model takes a
    minute. Pooler, small heads and the choice of positions stay uncompiled. The process's
    `torch._dynamo.config.specialize_float` is set.

    Args:
        model: an HFBert model, or any model of transformers whose layers are GradientCheckpointingLayers.
        **options: further arguments of torch.compile, such as mode or backend.
    """
    options = {"dynamic": True} | options
    # Dropout and scaling are constants; as symbols, which dynamic=True makes of floats, each graph is traced twice.
    torch._dynamo.config.specialize_float = True
    for module in model.modules():
        # The method, not the module: PyTorch counts recompilations per code object, which is then this class's own.
        if isinstance(module, GradientCheckpointingLayer | HFBertEmbeddings):
            module.forward = torch.compile(module.forward, **options)  # type: ignore[method-assign]  # in place
        elif isinstance(module, HFBertMaskedPrediction):
            loss = torch.compile(module._prediction_loss, **options)
            module._prediction_loss = loss  # type: ignore[method-assign]  # in place

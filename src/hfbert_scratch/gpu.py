"""Train on a GPU in bfloat16: the model's arithmetic in the form tensor cores and fusing compilers are fast at.

`train_on_gpu` exchanges the classes of some modules for subclasses with the same parameters, so checkpoints, parameter
names and hooks on modules stay as they are. `compile_layers` compiles the parts of a model that repeat. Both are for
training loops: a model opened by from_pretrained computes as stock BERT does. Figures: benchmarks/gpu_matrix.py.
"""

import shutil
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .kernels_hfbert import autocast_dtype
from .modeling_hfbert import HFBertEmbeddings, HFBertMaskedPrediction, HFBertOutputProjection, HFBertSelfAttention


# Classes the vocabulary is padded to in the product: rows of 128 bytes, which TMA and wgmma kernels want. BERT's 30,522
# columns of bfloat16 are no multiple of 16 bytes (NVIDIA, Matrix Multiplication Background, section 4).
_CLASSES_MULTIPLE = 64
# Logit of a class that does not exist: its exponential is 0 beside any other.
_NO_CLASS = -1e4


class _LayerNorm(nn.LayerNorm):
    """LayerNorm in float32 whose output has autocast's dtype.

    CUDA's autocast returns float32, and with it a residual stream of twice the bytes.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        normalized = super().forward(values)
        return normalized.to(autocast_dtype(values.device) or normalized.dtype)


class _SelfAttention(HFBertSelfAttention):
    """Query, key and value by one product with their weights side by side."""

    def project(
        self, query_states: torch.Tensor, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if query_states is not hidden_states:
            return self.query(query_states), *_joint_product(hidden_states, self.key, self.value)
        query, key, value = _joint_product(hidden_states, self.query, self.key, self.value)
        return query, key, value


def _joint_product(hidden_states: torch.Tensor, *layers: nn.Linear) -> tuple[torch.Tensor, ...]:
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return F.linear(hidden_states, weight, bias).chunk(len(layers), dim=-1)


class _OutputProjection(HFBertOutputProjection):
    """The product with the vocabulary, padded to a multiple of `_CLASSES_MULTIPLE` classes and cut again."""

    def forward(self, hidden_states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        missing = -self.out_features % _CLASSES_MULTIPLE
        weight, bias = F.pad(self.weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=_NO_CLASS)
        return F.linear(hidden_states, weight, bias)[..., : self.out_features]


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: _LayerNorm,
    HFBertSelfAttention: _SelfAttention,
    HFBertOutputProjection: _OutputProjection,
}


def train_on_gpu(model: nn.Module) -> None:
    """Have the modules of one of our models computed as above, in place. Parameters keep their names and values.

    A projection that is no plain nn.Linear, such as LoRA's, or that has hooks is left as it is.
    """
    for module in model.modules():
        replacement = _REPLACEMENTS.get(type(module))
        if replacement is _SelfAttention and not all(map(_is_plain, (module.query, module.key, module.value))):
            continue
        if replacement is not None:
            module.__class__ = replacement


def _is_plain(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is nn.Linear and layer.bias is not None and not any(hooks)


def can_compile() -> bool:
    """Return whether torch.compile can make GPU kernels here: it needs Triton and a C compiler."""
    from torch.utils._triton import has_triton

    return has_triton() and any(map(shutil.which, ("cc", "gcc", "clang")))


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compile a model's layers, embeddings and MLM loss, each on its own, in place.

    All layers share one graph, for every number of tokens, so compilation takes seconds where the whole model takes
    a minute. What stays outside are the pooler, small heads and the choice of positions.

    Args:
        model: ours or any model of transformers with layers of its GradientCheckpointingLayer.
        options: further arguments of torch.compile, such as mode or backend.
    """
    options = {"dynamic": True} | options
    for module in model.modules():
        # The method and not the module: the code PyTorch counts recompilations of is then this class's alone.
        if isinstance(module, GradientCheckpointingLayer | HFBertEmbeddings):
            module.forward = torch.compile(module.forward, **options)
        elif isinstance(module, HFBertMaskedPrediction):
            module._prediction_loss = torch.compile(module._prediction_loss, **options)

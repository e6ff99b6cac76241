"""A copy of an encoder for inference: of a precision, with the fastest attention, matrices laid out for the CPU."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from .attention import choose_attention
from .onednn import PackedLinear, has_onednn


def inference_copy(encoder: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A copy in eval mode, in `dtype` (default: the encoder's) and with the fastest attention for it; yours stays as
    it is.

    On a CPU its linear layers are packed. Parameters that keep their type are shared, not copied. Under autocast every
    batch would cast every weight anew.
    """
    dtype = encoder.dtype if dtype is None else dtype
    memo: dict[int, Any] = {}
    if has_onednn(encoder.device, dtype):
        for module in encoder.modules():
            # A subclass may compute something else.
            if type(module) is nn.Linear:
                memo[id(module)] = PackedLinear(module, dtype)
    for parameter in encoder.parameters():
        if parameter.dtype == dtype:
            memo[id(parameter)] = parameter
    made: Any = copy.deepcopy(encoder, memo)  # its `to` is decorated, which hides the signature
    made = made.to(dtype).eval()
    for module in made.modules():
        dense, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
        if isinstance(dense, PackedLinear) and isinstance(activation, GELUActivation):
            dense.activation, module.intermediate_act_fn = "gelu", nn.Identity()
    choose_attention(made)
    return made

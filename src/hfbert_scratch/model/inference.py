"""Inference: a copy of a model for it, its mode, and the size of its batches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode without gradients; restore every module's mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def default_batch_tokens(device: torch.device) -> int:
    """Return the fastest number of tokens in a forward pass: 2048 on a CPU, 16384 on a GPU.

    On a CPU fewer tokens slow down the matrix products, and for more glibc no longer reuses the memory of the
    activations (2048 against 512 and 4096: benchmarks/inference.py --batch_tokens).
    """
    return 2048 if device.type == "cpu" else 16384

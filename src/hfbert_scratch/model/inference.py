"""Inference: a copy of a model for it, its mode, and the size of its batches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from .attention import choose_attention
from .onednn import PackedLinear, has_onednn, is_unchanged


Model = TypeVar("Model", bound=PreTrainedModel)


def inference_copy(encoder: Model, dtype: torch.dtype | None = None) -> Model:
    """Copy an encoder for inference: in eval mode, in `dtype` and with the fastest attention for it.

    On a CPU the copy's linear layers are packed. Parameters that keep their type are shared. (Under autocast every
    batch would cast every weight again.)

    Args:
        encoder: stays as it is.
        dtype: of the copy; None for the encoder's.
    """
    dtype = encoder.dtype if dtype is None else dtype
    memo: dict[int, Any] = {}
    if has_onednn(encoder.device, dtype):
        # Parts of a layer with an adapter read each other's weights.
        adapted = {part for module in encoder.modules() if hasattr(module, "base_layer") for part in module.modules()}
        for module in encoder.modules():
            # A subclass may compute something else.
            if type(module) is nn.Linear and is_unchanged(module) and module not in adapted:
                memo[id(module)] = PackedLinear(module, dtype)
    for parameter in encoder.parameters():
        if parameter.dtype == dtype:
            memo[id(parameter)] = parameter
    for module in encoder.modules():
        # What pruning and weight norm compute anew before each forward pass; a graph's results cannot be copied.
        computed = [value for value in vars(module).values() if isinstance(value, torch.Tensor) and not value.is_leaf]
        memo |= {id(value): value.detach() for value in computed}
    copied: Any = copy.deepcopy(encoder, memo)  # its `to` is decorated, which hides the signature
    copied = copied.to(dtype).eval()
    for module in copied.modules():
        dense, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
        is_gelu = isinstance(activation, GELUActivation) and is_unchanged(activation)
        if isinstance(dense, PackedLinear) and is_gelu:
            dense.activation, module.intermediate_act_fn = "gelu", nn.Identity()
    choose_attention(copied)
    return copied


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


def masked_lm_logits(outputs: Any) -> torch.Tensor:
    """Return the logits, (batch_size, sequence_length, vocab_size), of any model with a masked-LM head."""
    return outputs["prediction_logits" if "prediction_logits" in outputs else "logits"]


def default_batch_tokens(device: torch.device) -> int:
    """Return the fastest number of tokens in a forward pass: 2048 on a CPU, 16384 on a GPU.

    On a CPU fewer tokens slow down the matrix products, and for more glibc no longer reuses the memory of the
    activations (2048 against 512 and 4096: benchmarks/inference.py --batch_tokens).
    """
    return 2048 if device.type == "cpu" else 16384

"""FSDP2 beside everything that expects whole tensors: checkpoints, evaluation, the gradient's norm.

A sharded run writes the same files as any other, so that it can be continued with another number of processes, with
or without sharding, and its model opens like any other.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, convert_outputs_to_fp32, parse_flag_from_env
from safetensors.torch import load_file, load_model
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from ..utils.errors import InputError


def is_enabled() -> bool:
    """Return True if `accelerate launch` got a configuration with FSDP, and there are processes to share a model."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def enable_on_cpu() -> None:
    """Have Accelerate shard on CPUs too, where it would silently make DDP of it; before Accelerator is made."""
    PartialState(cpu=True)
    # What it asks before it looks at FSDP's settings; nothing else depends on it once the device is known.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def check_settings(accelerator: Accelerator) -> None:
    """Raise InputError for FSDP1; gather weights in bfloat16 if products are computed in it.

    They are stored, and their gradients summed, in float32.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise InputError("FSDP1 is not supported; set fsdp_version: 2, as in recipes/accelerate/fsdp2.yaml")
    gathered_as = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    # Inputs stay as they are: the counts the loss is divided by would be rounded.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=gathered_as, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def autocast_forward(accelerator: Accelerator, model: nn.Module) -> None:
    """Give a sharded model the forward that Accelerate gives any other one: autocast, and float32 outputs."""
    forward = model.forward

    @wraps(forward)
    def autocast(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **kwargs)

    model.forward = convert_outputs_to_fp32(autocast)


def is_sharded(model: nn.Module) -> bool:
    """Return True if `model` was prepared with FSDP2."""
    return isinstance(model, FSDPModule)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor, gathered if it is sharded; all processes must call this then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """A whole tensor moved to where `example` is, and cut as it is."""
    tensor = tensor.to(example.device)
    if not isinstance(example, DTensor):
        return tensor
    # Every process has the whole of it: no need to send anything.
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def full_state_dict(model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """Gather a sharded model's state on the host, where `keep`; all processes must call this.

    Tied tensors come once.
    """
    state = {}
    for name, parameter in model.named_parameters():
        tensor = full_tensor(parameter.detach())
        if keep:
            state[name] = tensor.cpu()
    persistent = model.state_dict().keys()
    return state | {name: tensor.cpu() for name, tensor in model.named_buffers() if name in persistent}


def meta_copy(model: nn.Module) -> PreTrainedModel:
    """A model of the class that `model` had before it was sharded, to save_pretrained `full_state_dict` with.

    The class that FSDP makes of it lies in torch's files, which save_pretrained would copy in place of ours.
    """
    model_class: Any = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    with torch.device("meta"):
        return model_class(model.config)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load model.safetensors of a checkpoint into a model, sharded or not, wherever its parameters are."""
    if not is_sharded(model):
        load_model(model, path, device=str(next(model.parameters()).device))
        return
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shard_like(tensors[name], parameter))


@contextmanager
def summon_full_params(model: nn.Module) -> Iterator[None]:
    """Hold a sharded model's parameters whole on every process.

    Then the processes may call it, or parts of it, each as often as it likes: evaluation gives them different numbers
    of batches.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)  # of accelerate's last group too: one gather more

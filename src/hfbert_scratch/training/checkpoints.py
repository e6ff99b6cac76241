"""Atomic checkpoints with checksums and without pickle: written beside, flushed, renamed.

A checkpoint is a directory `step-N`: whatever the caller writes into it (a model directory that AutoModel opens,
optimizer.safetensors, training_state.json), and a manifest.json with the size and SHA-256 of every file, itself
checksummed. A kill at any moment leaves earlier checkpoints intact.

They are written while the run waits, on purpose: a copy in a thread would need the model's and the optimizer's memory
once more on the host, and a run that ends on a signal would have to wait for it all the same.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..utils.errors import CheckpointError
from ..utils.files import writing
from .fsdp import full_tensor, shard_like


MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)")


def write_checkpoint(
    root: Path, step: int, write: Callable[[Path], None], max_to_keep: int, protected_step: int | None = None
) -> Path:
    """Write a checkpoint, whole or not at all, and delete older ones.

    Args:
        root: directory of the checkpoints; made if it is not there.
        step: optimizer step of the checkpoint, part of its name.
        write: writes its files into the directory that it gets.
        max_to_keep: number of the newest checkpoints that stay, at least 1.
        protected_step: step of a checkpoint that stays as well. None: no other stays.

    Returns:
        The checkpoint, root/step-N.

    Raises:
        OutputError: if the disk is full or not writable; everything earlier is intact.
    """
    final = root / f"step-{step}"
    temporary = root / f".writing-step-{step}"
    remedy = "the earlier ones are intact: free some space or fix the permissions, and start the same command again"
    with writing(f"the checkpoint {final}", remedy):
        try:
            root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write(temporary)
            _write_manifest(temporary, step)
            for path in [*sorted(temporary.rglob("*")), temporary]:
                _flush(path)
            if final.exists():
                _remove(final)
            os.replace(temporary, final)
            _flush(root)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)  # to leave room
            raise
    steps = checkpoint_steps(root)
    # Later ones are of a run that fell back from them, because they are damaged.
    kept = {protected_step, *[known for known in steps if known <= step][-max_to_keep:]}
    for old in steps:
        if old not in kept:
            _remove(root / f"step-{old}")
    return final


def checkpoint_steps(root: Path) -> list[int]:
    """Return the steps with a checkpoint in `root`, ascending; other files are ignored."""
    if not root.is_dir():
        return []
    matches = [_NAME.fullmatch(path.name) for path in root.iterdir() if path.is_dir()]
    return sorted(int(match.group(1)) for match in matches if match)


def newest_checkpoint(root: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest complete checkpoint in `root`.

    Args:
        root: directory of the checkpoints.
        warn: called with a sentence for each damaged one; the one before it is taken.

    Returns:
        Its directory. None: there is no checkpoint.

    Raises:
        CheckpointError: if all are damaged.
    """
    steps = checkpoint_steps(root)
    problems = []
    for step in reversed(steps):
        directory = root / f"step-{step}"
        try:
            verify_checkpoint(directory)
        except CheckpointError as error:
            problems.append(str(error))
            warn(f"{error}; falling back to the checkpoint before it")
        else:
            return directory
    if problems:
        raise CheckpointError(
            f"every checkpoint in {root} is damaged ({problems[0]}); restore one, or remove them to start anew"
        )
    return None


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with the manifest, by size and SHA-256.

    Args:
        directory: of the checkpoint.

    Raises:
        CheckpointError: naming the first file that differs.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files, checksum = manifest["files"], manifest["checksum"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / MANIFEST} is missing or not readable ({error})") from None
    if checksum != _manifest_checksum(files):
        raise CheckpointError(f"{directory / MANIFEST} does not match its own checksum")
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["size"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, not {expected['size']}: it is truncated")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} does not match its SHA-256: it is damaged")


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, keep: bool = True
) -> dict[str, torch.Tensor]:
    """Collect the optimizer's state without pickle, independent of the order of parameters and of sharding.

    Args:
        optimizer: not wrapped by Accelerate.
        model: unwrapped; its names of parameters are the keys.
        keep: return the state. False: this process only helps to gather sharded tensors.

    Returns:
        `parameter name/state name` → whole tensor on the host; empty without `keep`.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensor = full_tensor(torch.as_tensor(value)).detach()
            if keep:
                tensors[f"{names[parameter]}/{key}"] = tensor.cpu().contiguous()
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    """Load the optimizer's state, each tensor placed and sharded like its parameter.

    Args:
        optimizer: not wrapped by Accelerate; its state is set in place.
        model: unwrapped, on its device.
        path: safetensors file with the result of `optimizer_tensors`.

    Raises:
        CheckpointError: if names or shapes are not this model's.
    """
    parameters = dict(model.named_parameters())
    for key, value in load_file(path).items():
        name, _, slot = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise CheckpointError(f"{path}: {key} of shape {tuple(value.shape)} does not belong to this model")
        if value.dim():
            optimizer.state[parameter][slot] = shard_like(value, parameter)
        else:
            # As torch keeps them: step counters stay on the host unless the optimizer is fused.
            fused = any(group.get("fused") for group in optimizer.param_groups)
            optimizer.state[parameter][slot] = value.to(parameter.device) if fused else value


def _write_manifest(directory: Path, step: int) -> None:
    files: dict[str, Any] = {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"step": step, "files": files, "checksum": _manifest_checksum(files)}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _manifest_checksum(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # where a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    """Rename first: a deletion cut short leaves nothing that looks like a checkpoint."""
    grave = directory.with_name(f".deleting-{directory.name}")
    shutil.rmtree(grave, ignore_errors=True)
    os.replace(directory, grave)
    shutil.rmtree(grave, ignore_errors=True)

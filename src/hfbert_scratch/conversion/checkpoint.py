"""Read a checkpoint's files: the configuration, and every tensor once, under its current name."""

import pickle
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..model.checks_hfbert import wrapper_mapping
from ..model.loading import PICKLE, SAFETENSORS, is_local, read_config, shard_names
from ..utils.environment import note_commit
from ..utils.errors import InputError, one_line
from ..utils.files import split_revision


OUTPUT_BIAS, STOCK_OUTPUT_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
_PROJECTION = "cls.predictions.decoder.weight"


@dataclass
class Checkpoint:
    """The content of a checkpoint's files, ours or stock's.

    Attributes:
        directory: the files' directory, of a name on the Hub the cached one.
        config: config.json as it stands.
        tensors: every parameter once, by its current name.
        notes: sentences for the user about parts that are missing, unused or changed.
        tied: whether the output projection is the matrix of the word embeddings; False if the file proves otherwise.
        key_mapping: from_pretrained's, for a file whose names have the prefixes of a wrapper (module., _orig_mod. …).
        missing: parameters of the architecture that the file does not hold.
    """

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    tied: bool = True
    key_mapping: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def stated_architecture(self) -> str | None:
        """The class that config.json names first, if any."""
        return (self.config.get("architectures") or [None])[0]


def read_checkpoint(source: str | Path, model_type: str) -> Checkpoint:
    """Read the checkpoint `source`, a directory or a name on the Hub.

    Args:
        source: the checkpoint.
        model_type: the type that config.json must state, "hfbert" or "bert".

    Returns:
        The content of its files. `missing` is empty: the architecture is not known yet.

    Raises:
        InputError: if `source` does not exist, is damaged or of another type, holds values that are not finite, or is
            a stock checkpoint that names code of its own.
    """
    directory = _find_directory(source)
    path = directory / "config.json"
    config = read_config(directory)
    # Configurations of 2018 and 2019 name no model_type.
    stated = config.get("model_type", "bert" if "num_hidden_layers" in config else None)
    if stated != model_type:
        already = stated == {"bert": "hfbert", "hfbert": "bert"}[model_type]
        remedy = "it need not be converted" if already else f"only {model_type!r} can be converted"
        raise InputError(f"{path}: model_type is {stated!r}; {remedy}")
    if model_type == "bert" and "auto_map" in config:
        raise InputError(f"{path} names code of its own (auto_map); only stock BERT can be converted")
    tensors = _read_weights(directory)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{directory}: {name} holds values that are not finite; the training diverged")
    checkpoint = Checkpoint(directory, config, tensors)
    _use_current_names(checkpoint)
    return checkpoint


def pretraining_architecture(names: Collection[str]) -> str:
    """Choose stock's class by the pretraining heads that a checkpoint holds.

    Args:
        names: parameters, by their current names (`cls.predictions.…`, `cls.seq_relationship.…`).

    Returns:
        "BertForPreTraining", "BertForMaskedLM" or "BertForNextSentencePrediction"; "BertModel" without these heads.
    """
    masked, pairs = (
        any(name.startswith(f"cls.{head}.") for name in names) for head in ("predictions", "seq_relationship")
    )
    if masked:
        return "BertForPreTraining" if pairs else "BertForMaskedLM"
    return "BertForNextSentencePrediction" if pairs else "BertModel"


def _find_directory(source: str | Path) -> Path:
    if is_local(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    name, revision = split_revision(source)

    def download(weights: str) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt", weights]))

    try:
        directory = download("model*.safetensors")
        if not any(directory.glob("model*.safetensors")):
            directory = download("pytorch_model*.bin")
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise InputError(
            f"{source} is neither a directory nor a model that the Hub gives ({one_line(error)})"
        ) from None
    note_commit(name, directory.name)
    return directory


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Read all tensors by the names in the files, from safetensors if there are any."""
    for name in (SAFETENSORS, PICKLE):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return _read_file(directory / name)
        if index.is_file():
            tensors: dict[str, torch.Tensor] = {}
            for shard in shard_names(index):
                tensors |= _read_file(directory / shard)
            return tensors
    raise InputError(f"{directory} is not a checkpoint: it has neither model.safetensors nor pytorch_model.bin")


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path} is damaged, or holds code besides weights, which is not run") from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} is truncated or damaged ({one_line(error)})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no dictionary of tensors")
    # Tied weights share memory in a pickle; safetensors refuses shared tensors.
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in loaded.items()}


def _use_current_names(checkpoint: Checkpoint) -> None:
    """Remove a wrapper's prefixes, rename the parameters of old files as stock does, and keep one name for each."""
    tensors: dict[str, torch.Tensor] = {}
    checkpoint.key_mapping = wrapper_mapping(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        for prefix, replacement in checkpoint.key_mapping.items():
            name = re.sub(prefix, replacement, name)
        if name.endswith("embeddings.position_ids"):
            continue
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        tensors[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    if checkpoint.key_mapping:
        checkpoint.notes.append("the weights are named without the prefixes of a wrapper (module., _orig_mod. …)")
    # Given both names of the output bias, stock computes with this one.
    if STOCK_OUTPUT_BIAS in tensors:
        tensors[OUTPUT_BIAS] = tensors.pop(STOCK_OUTPUT_BIAS)
    if _PROJECTION in tensors and checkpoint.config.get("tie_word_embeddings", True):
        embeddings = tensors.setdefault(_WORD_EMBEDDINGS, tensors[_PROJECTION])
        checkpoint.tied = torch.equal(embeddings, tensors[_PROJECTION])
        if checkpoint.tied:
            del tensors[_PROJECTION]
    checkpoint.tensors = tensors

"""Checkpoint directories of stock `bert` to ours and back, exactly: the same tensors, another config.json.

Both use the original's parameter names, so what changes is what config.json says, and the oddities of old files. Every
conversion ends by loading both directories and comparing what the two models compute.
"""

import json
import math
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..model import configuration_hfbert, kernels_hfbert, modeling_hfbert
from ..model.configuration_hfbert import HEADS, HFBertConfig
from ..model.loading import PICKLE, SAFETENSORS, is_local, read_config, shard_names
from ..model.modeling_hfbert import WRAPPED
from ..text.tokenizer import SPECIAL_TOKENS, write_vocabulary
from ..utils.errors import InputError, one_line
from ..utils.files import read_json, writing
from .tensorflow import CONFIG_FILE, is_tensorflow_checkpoint, write_as_stock


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
_PROJECTION = "cls.predictions.decoder.weight"
_BIAS, _STOCK_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
# Fields of one configuration that the other does not have; what they say is carried over by hand.
_ONLY_OURS = ("auto_map", "sparse_prediction", "left_to_right")
_ONLY_STOCK = ("is_decoder", "add_cross_attention", "use_cache", "position_embedding_type", "gradient_checkpointing")
# Heads that read the pooler's output.
_POOLED = (
    "HFBertModel",
    "HFBertForPreTraining",
    "HFBertForNextSentencePrediction",
    "HFBertForSequenceClassification",
    "HFBertForMultipleChoice",
)


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    `largest_difference` between the outputs of the two models on a random batch is 0.0, or the conversion would have
    failed; `notes` are sentences about what is missing, unused or means something else now.
    """

    directory: Path
    architecture: str
    largest_difference: float
    notes: list[str]


@dataclass
class _Checkpoint:
    """A checkpoint as read: tensors under today's names, each once."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    # Whether the vocabulary projection is the word embeddings' matrix; False where the file shows that it is not.
    tied: bool = True
    # Whether a wrapper of the model had named the tensors.
    wrapped: bool = False
    # Parameters of the architecture that the file does not hold.
    missing: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------- the two ways


def to_stock(source: str | Path, target: str | Path) -> Conversion:
    """Write our checkpoint `source` (a directory or a name on the Hub) as one of stock `bert` into `target`.

    The result needs neither this package nor trust_remote_code. `left_to_right` becomes stock's `is_decoder`; options
    that only steer our training (`sparse_prediction`) are left out.

    Raises InputError if `source` is no HFBert checkpoint or `target` is not empty, OutputError if `target` cannot be
    written.
    """
    checkpoint = _read_checkpoint(source, "hfbert")
    name = _our_architecture(checkpoint)
    config = _our_config(checkpoint, checkpoint.config)
    if config.left_to_right:
        _refuse_pooled(checkpoint, name)
    _compare_with_architecture(checkpoint, name, config)

    fields = {key: value for key, value in config.to_dict().items() if key not in _ONLY_OURS}
    # Gone from transformers 5, but other readers of stock checkpoints (CTranslate2) still ask for it.
    fields |= {"model_type": "bert", "position_embedding_type": "absolute"}
    fields |= {key: float(fields[key]) for key in ("initializer_range", "layer_norm_eps")}
    stock_name = name.removeprefix("HF")
    if name == "HFBertForQuestionAnswering":
        # Stock sizes the span head by the number of labels; ours has always two outputs.
        fields |= {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    if config.left_to_right:
        fields["is_decoder"] = True
        checkpoint.notes.append("left_to_right=True is is_decoder=True in stock bert")
        if name == "HFBertForMaskedLM":
            stock_name = "BertLMHeadModel"
            checkpoint.notes.append(
                "BertLMHeadModel shifts the labels by itself; HFBertForMaskedLM takes them shifted"
            )
    tensors = dict(checkpoint.tensors)
    if not config.tie_word_embeddings and _BIAS in tensors:
        # Untied, stock adds the bias of this name and ignores the other.
        tensors[_STOCK_BIAS] = tensors[_BIAS].clone()

    with new_directory(target) as directory:
        stock_config = transformers.BertConfig.from_dict(fields)
        stock_config.architectures = [stock_name]
        stock_config.save_pretrained(directory)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        _copy_tokenizer(checkpoint, directory)
        _complete_tokenizer(checkpoint, directory, config)
        difference = _largest_difference(checkpoint, ours=(checkpoint.directory, name), stock=(directory, stock_name))
    return Conversion(Path(target), stock_name, difference, checkpoint.notes)


def from_stock(source: str | Path, target: str | Path) -> Conversion:
    """Write the stock `bert` checkpoint `source` (a directory or a name on the Hub) as one of ours into `target`.

    A directory of the original's, with bert_config.json and TensorFlow's files, is read as well (see
    `tensorflow_checkpoint`).

    Reads safetensors and pytorch_model.bin (as plain weights, no code of the file is run), whole or in shards, with
    the names of any age: gamma/beta in LayerNorms, position_ids, a second name for the output bias. A head or pooler
    that the file lacks is named in the notes, as are weights the architecture has no place for; the latter are kept.

    Raises InputError if `source` is no stock checkpoint, is damaged, lacks weights of the encoder, or has what this
    architecture does not (cross-attention, relative positions), or if `target` is not empty; OutputError if `target`
    cannot be written.
    """
    if is_tensorflow_checkpoint(source):
        return _from_tensorflow(source, target)
    checkpoint = _read_checkpoint(source, "bert")
    stated = checkpoint.config
    for key, only in (("add_cross_attention", False), ("position_embedding_type", "absolute")):
        if stated.get(key, only) != only:
            raise InputError(
                f"{checkpoint.directory / 'config.json'}: {key} is {stated[key]!r}; only {only!r} can be converted"
            )
    name = _our_architecture(checkpoint)
    fields = {key: value for key, value in stated.items() if key not in _ONLY_STOCK}
    if stated.get("is_decoder"):
        _refuse_pooled(checkpoint, name)
        fields["left_to_right"] = True
        checkpoint.notes.append("is_decoder=True without cross-attention is left_to_right=True here")
    config = _our_config(checkpoint, fields | {"model_type": "hfbert"})
    _compare_with_architecture(checkpoint, name, config)

    with new_directory(target) as directory:
        config.architectures = [name]
        config.save_pretrained(directory)
        for module in (configuration_hfbert, kernels_hfbert, modeling_hfbert):
            shutil.copy(module.__file__, directory)
        save_file(checkpoint.tensors, directory / "model.safetensors", metadata={"format": "pt"})
        _copy_tokenizer(checkpoint, directory)
        _complete_tokenizer(checkpoint, directory, config)
        stock_name = _stock_architecture(checkpoint, name)
        difference = _largest_difference(checkpoint, ours=(directory, name), stock=(checkpoint.directory, stock_name))
    return Conversion(Path(target), name, difference, checkpoint.notes)


def _from_tensorflow(source: str | Path, target: str | Path) -> Conversion:
    """By way of a stock directory, so that nothing is checked or compared in two ways."""
    with tempfile.TemporaryDirectory() as stock:
        notes = write_as_stock(source, Path(stock))
        try:
            result = from_stock(stock, target)
        except InputError as error:
            message = str(error).replace(f"{stock}/config.json", f"{source}/{CONFIG_FILE}").replace(stock, str(source))
            raise InputError(message) from None
    result.notes[:0] = notes
    return result


# ---------------------------------------------------------------------------------------------------- reading


def _read_checkpoint(source: str | Path, model_type: str) -> _Checkpoint:
    directory = _find_directory(source)
    path = directory / "config.json"
    config = read_config(directory)
    # Configurations of 2018 and 2019 name no model_type.
    found = config.get("model_type", "bert" if "num_hidden_layers" in config else None)
    if found != model_type:
        already = found == {"bert": "hfbert", "hfbert": "bert"}[model_type]
        remedy = "it need not be converted" if already else f"only {model_type!r} can be converted"
        raise InputError(f"{path}: model_type is {found!r}; {remedy}")
    if model_type == "bert" and "auto_map" in config:
        raise InputError(f"{path} names code of its own (auto_map); only stock BERT can be converted")
    tensors = _read_weights(directory)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{directory}: {name} holds values that are not finite; the training diverged")
    checkpoint = _Checkpoint(directory, config, tensors)
    _use_todays_names(checkpoint)
    return checkpoint


def _find_directory(source: str | Path) -> Path:
    if is_local(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(str(source), allow_patterns=["*.json", "*.txt", "model*.safetensors"]))
        if not any(directory.glob("model*.safetensors")):
            directory = Path(snapshot_download(str(source), allow_patterns=["*.json", "*.txt", "pytorch_model*.bin"]))
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise InputError(
            f"{source} is neither a directory nor a model that the Hub gives ({one_line(error)})"
        ) from None
    return directory


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint, from safetensors if there are any, by the names in the files."""
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
    # Tied weights share their memory in such a file; safetensors takes every tensor on its own.
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in loaded.items()}


def _use_todays_names(checkpoint: _Checkpoint) -> None:
    """One name per parameter, the one of today, as stock itself reads old files; without a wrapper's prefixes."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if WRAPPED.search(name):
            checkpoint.wrapped, name = True, WRAPPED.sub("", name)
        if name.endswith("embeddings.position_ids"):
            continue
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        tensors[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    if checkpoint.wrapped:
        checkpoint.notes.append("the weights are named without the prefixes of a wrapper (module., _orig_mod.)")
    # Of two names for the output bias, this is the one stock computes with.
    if _STOCK_BIAS in tensors:
        tensors[_BIAS] = tensors.pop(_STOCK_BIAS)
    if _PROJECTION in tensors and checkpoint.config.get("tie_word_embeddings", True):
        embeddings = tensors.setdefault(_WORD_EMBEDDINGS, tensors[_PROJECTION])
        checkpoint.tied = torch.equal(embeddings, tensors[_PROJECTION])
        if checkpoint.tied:
            del tensors[_PROJECTION]
    checkpoint.tensors = tensors


# ---------------------------------------------------------------------------------------------------- understanding


def _our_architecture(checkpoint: _Checkpoint) -> str:
    """The class of ours that config.json names or, if it names none we have, that the weights show."""
    named = (checkpoint.config.get("architectures") or [None])[0]
    ours = {"BertLMHeadModel": "HFBertForMaskedLM"} | {name.removeprefix("HF"): name for name in HEADS.values()}
    ours |= {name: name for name in HEADS.values()}
    if named in ours:
        return ours[named]
    parts = {".".join(name.split(".")[:2]) for name in checkpoint.tensors}
    if "cls.predictions" in parts:
        name = "HFBertForPreTraining" if "cls.seq_relationship" in parts else "HFBertForMaskedLM"
    else:
        name = "HFBertForNextSentencePrediction" if "cls.seq_relationship" in parts else "HFBertModel"
    checkpoint.notes.append(f"config.json names the architecture {named!r}; by its weights it is taken for {name}")
    return name


def _refuse_pooled(checkpoint: _Checkpoint, name: str) -> None:
    """Left to right, stock pools the first token, which has seen nothing else, and ours the last."""
    if name not in _POOLED:
        return
    raise InputError(
        f"{checkpoint.directory}: a left-to-right {name} pools the last token here and the first in stock bert; only "
        "heads without a pooler can be converted, such as HFBertForMaskedLM and HFBertForTokenClassification"
    )


def _stock_architecture(checkpoint: _Checkpoint, name: str) -> str:
    named = (checkpoint.config.get("architectures") or [None])[0]
    return named if named == "BertLMHeadModel" else name.removeprefix("HF")


def _our_config(checkpoint: _Checkpoint, fields: dict[str, Any]) -> HFBertConfig:
    try:
        config = HFBertConfig.from_dict(fields)
    # @strict raises errors of its own, which have no common base but this.
    except Exception as error:
        raise InputError(f"{checkpoint.directory / 'config.json'}: {one_line(error)}") from None
    if not checkpoint.tied:
        config.tie_word_embeddings = False
        checkpoint.notes.append("the output projection differs from the word embeddings: tie_word_embeddings=False")
    return config


def _compare_with_architecture(checkpoint: _Checkpoint, name: str, config: HFBertConfig) -> None:
    """Fill in `missing`; refuse wrong shapes and an incomplete encoder, note what else is missing or has no place."""

    def bare(parameter: str) -> str:
        # Files of the base model have no prefix, and either kind of model loads either kind of file.
        return parameter.removeprefix("bert.")

    with torch.device("meta"):
        model = getattr(modeling_hfbert, name)(config)
    expected = {parameter: tuple(value.shape) for parameter, value in model.named_parameters()}
    found = {bare(parameter): tuple(value.shape) for parameter, value in checkpoint.tensors.items()}
    for parameter, shape in expected.items():
        if found.get(bare(parameter), shape) != shape:
            raise InputError(
                f"{checkpoint.directory}: {parameter} has shape {found[bare(parameter)]} in the weights, "
                f"but {shape} by config.json; the two files do not belong together"
            )
    checkpoint.missing = [parameter for parameter in expected if bare(parameter) not in found]
    encoder = [parameter for parameter in checkpoint.missing if bare(parameter).startswith(("embeddings", "encoder"))]
    if encoder:
        raise InputError(
            f"{checkpoint.directory}: the weights lack {len(encoder)} parameters of the encoder that config.json asks "
            f"for, the first {encoder[0]}; the file is incomplete or belongs to a smaller model"
        )
    if checkpoint.missing:
        checkpoint.notes.append(
            f"not in the weights, so {name} starts with random ones: {', '.join(checkpoint.missing)}"
        )
    unused = sorted(found.keys() - {bare(parameter) for parameter in expected})
    if unused:
        shown = ", ".join(unused[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
        checkpoint.notes.append(f"kept in the weights, but not used by {name}: {shown}")


# ---------------------------------------------------------------------------------------------------- writing


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A directory beside `target` that takes its place when the block ends; after an error nothing is left of it."""
    target = Path(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with writing(target):
            if target.exists() and not target.is_dir():
                raise InputError(f"the output directory {target} is a file")
            if target.is_dir() and any(target.iterdir()):
                raise InputError(f"the output directory {target} is not empty; name a new one")
            partial.mkdir(parents=True)
            yield partial
            if target.is_dir():
                target.rmdir()
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_tokenizer(checkpoint: _Checkpoint, directory: Path) -> None:
    present = [name for name in TOKENIZER_FILES if (checkpoint.directory / name).is_file()]
    for name in present:
        shutil.copyfile(checkpoint.directory / name, directory / name)
    if not {"tokenizer.json", "vocab.txt"} & set(present):
        checkpoint.notes.append("there is no tokenizer beside the model; put its files into the directory")


def _complete_tokenizer(checkpoint: _Checkpoint, directory: Path, config: HFBertConfig) -> None:
    """Add what readers other than today's transformers ask for: the class, which old tokenizers leave to the model's
    type; a length limit; the vocabulary as text; the special tokens in a file of their own.

    Where only vocab.txt is there and nothing says whether text is lower-cased, the vocabulary tells: it is, unless
    some entry beside [CLS] and its like has an upper-case letter.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    path = directory / "tokenizer_config.json"
    stated = read_json(path, "the tokenizer's configuration") if path.is_file() else {}
    limit = min(stated.get("model_max_length") or math.inf, config.max_position_embeddings)
    completed = {"tokenizer_class": "BertTokenizer"} | stated | {"model_max_length": limit}
    if not (directory / "tokenizer.json").is_file() and "do_lower_case" not in stated:
        words = (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()
        cased = any(word != word.lower() for word in words if not re.fullmatch(r"\[\w+\]", word))
        completed["do_lower_case"] = not cased
        checkpoint.notes.append(
            f"do_lower_case={not cased}: the vocabulary has {'' if cased else 'no '}upper-case letters"
        )
    if completed != stated:
        path.write_text(json.dumps(completed, indent=2) + "\n", encoding="utf-8")
    serialized, vocabulary = directory / "tokenizer.json", directory / "vocab.txt"
    if serialized.is_file() and not vocabulary.is_file():
        content = read_json(serialized, "the tokenizer")
        model = content.get("model") if isinstance(content, dict) else None
        if isinstance(model, dict) and model.get("type") == "WordPiece":
            write_vocabulary(model["vocab"], directory)
    special_tokens = directory / "special_tokens_map.json"
    if not special_tokens.is_file():
        roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
        named = {role: completed.get(role, usual) for role, usual in roles.items()}
        special_tokens.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")


def random_batch(config: transformers.PreTrainedConfig, architecture: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A padded batch for `architecture` (ours or stock's) to compare two readers of a checkpoint with: input_ids,
    attention_mask and token_type_ids, (3, at most 32), for multiple choice with two choices in the middle.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (3, min(32, config.max_position_embeddings))
    if architecture.endswith("ForMultipleChoice"):
        shape = (3, 2, shape[1])
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, ..., shape[-1] // 2 + 1 :] = 0
    return {
        "input_ids": torch.randint(config.vocab_size, shape, generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(config.type_vocab_size, shape, generator=generator),
    }


@torch.no_grad()
def _largest_difference(checkpoint: _Checkpoint, ours: tuple[Path, str], stock: tuple[Path, str]) -> float:
    """Load both (directory, class), one of them the `checkpoint`, and compare their outputs on a random padded batch;
    parameters that the checkpoint lacks are random in both, and made equal first.

    Raises RuntimeError unless every number is the same.
    """
    options: dict[str, Any] = {"dtype": torch.float32}
    if checkpoint.wrapped:
        options["key_mapping"] = {WRAPPED.pattern: ""}
    our_model = getattr(modeling_hfbert, ours[1]).from_pretrained(ours[0], **options)
    stock_model = getattr(transformers, stock[1]).from_pretrained(stock[0], **options)
    for name in checkpoint.missing:
        stock_model.get_parameter(name).copy_(our_model.get_parameter(name))
    inputs = random_batch(our_model.config, ours[1])
    left, right = our_model.eval()(**inputs), stock_model.eval()(**inputs)
    compared = [name for name in left if isinstance(left[name], torch.Tensor) and name in right]
    difference = max((left[name] - right[name]).abs().max().item() for name in compared)
    if difference != 0.0:
        raise RuntimeError(f"{stock[1]} from {stock[0]} and {ours[1]} from {ours[0]} differ by {difference}")
    return difference

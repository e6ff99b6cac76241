"""Convert checkpoint directories between stock `bert` and ours, exactly: the same tensors, another config.json.

Both use the original's parameter names, so only config.json changes, and the oddities of old files. Every conversion
ends by loading both directories and comparing the outputs of the two models.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from ..model import modeling_hfbert
from ..model.configuration_hfbert import HEADS, WRAPPED, HFBertConfig
from ..utils.directories import atomic_directory
from ..utils.errors import InputError, one_line
from .checkpoint import OUTPUT_BIAS, STOCK_OUTPUT_BIAS, Checkpoint, pretraining_architecture, read_checkpoint
from .tensorflow import CONFIG_FILE, is_tensorflow_checkpoint, write_as_stock
from .tokenizer_files import copy_tokenizer


# Fields of one configuration that the other lacks; to_stock and from_stock translate them.
_ONLY_OURS = ("auto_map", "sparse_prediction", "left_to_right", "bilstm")
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
    """The result of a conversion.

    Attributes:
        directory: the written directory.
        architecture: the class that its config.json names.
        largest_difference: between the outputs of the two models on a random batch; 0.0, or the conversion fails.
        notes: sentences about parts that are missing, unused or mean something else now.
    """

    directory: Path
    architecture: str
    largest_difference: float
    notes: list[str]


def to_stock(source: str | Path, target: str | Path) -> Conversion:
    """Write our checkpoint `source` as a stock `bert` checkpoint, which needs neither this package nor remote code.

    `left_to_right` becomes stock's `is_decoder`. Options of our training alone (`sparse_prediction`) are left out.

    Args:
        source: a checkpoint directory or a name on the Hub.
        target: the directory to write, new or empty.

    Returns:
        The written directory, its architecture and notes.

    Raises:
        InputError: if `source` is not an HFBert checkpoint or is damaged, or if `target` is not empty.
        OutputError: if `target` cannot be written.
        RuntimeError: if the outputs of the two models differ.
    """
    checkpoint = read_checkpoint(source, "hfbert")
    name = _our_architecture(checkpoint)
    config = _our_config(checkpoint, checkpoint.config)
    if config.bilstm:
        raise InputError(f"{checkpoint.directory} has a bilstm, for which stock bert has no place")
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
    if not config.tie_word_embeddings and OUTPUT_BIAS in tensors:
        # Untied, stock adds the bias of this name and ignores the other.
        tensors[STOCK_OUTPUT_BIAS] = tensors[OUTPUT_BIAS].clone()

    with atomic_directory(target) as directory:
        stock_config = transformers.BertConfig.from_dict(fields)
        stock_config.architectures = [stock_name]
        stock_config.save_pretrained(directory)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        checkpoint.notes += copy_tokenizer(checkpoint.directory, directory, config.max_position_embeddings)
        difference = _largest_difference(checkpoint, ours=(checkpoint.directory, name), stock=(directory, stock_name))
    return Conversion(Path(target), stock_name, difference, checkpoint.notes)


def from_stock(source: str | Path, target: str | Path) -> Conversion:
    """Write the stock `bert` checkpoint `source` as one of ours.

    Reads safetensors and pytorch_model.bin (weights only; no code of the file runs), in one file or in shards, with
    the parameter names of every age: gamma/beta in LayerNorms, position_ids, a second name for the output bias. The
    notes name a head or pooler that the file lacks, and weights that the architecture does not use; these are kept.

    Args:
        source: a checkpoint directory, a name on the Hub, or a directory of the original's TensorFlow files with
            bert_config.json.
        target: the directory to write, new or empty.

    Returns:
        The written directory, its architecture and notes.

    Raises:
        InputError: if `source` is not a stock checkpoint, is damaged, lacks weights of the encoder or has features
            that this architecture lacks (cross-attention, relative positions), or if `target` is not empty.
        OutputError: if `target` cannot be written.
        RuntimeError: if the outputs of the two models differ.
    """
    if is_tensorflow_checkpoint(source):
        return _from_tensorflow(source, target)
    checkpoint = read_checkpoint(source, "bert")
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

    with atomic_directory(target) as directory:
        config.architectures = [name]
        config.save_pretrained(directory)
        save_file(checkpoint.tensors, directory / "model.safetensors", metadata={"format": "pt"})
        checkpoint.notes += copy_tokenizer(checkpoint.directory, directory, config.max_position_embeddings)
        stock_name = _stock_architecture(checkpoint, name)
        difference = _largest_difference(checkpoint, ours=(directory, name), stock=(checkpoint.directory, stock_name))
    return Conversion(Path(target), name, difference, checkpoint.notes)


def _from_tensorflow(source: str | Path, target: str | Path) -> Conversion:
    """Convert by way of a stock directory, so that checks and comparisons exist once."""
    with tempfile.TemporaryDirectory() as stock:
        notes = write_as_stock(source, Path(stock))
        try:
            result = from_stock(stock, target)
        except InputError as error:
            message = str(error).replace(f"{stock}/config.json", f"{source}/{CONFIG_FILE}").replace(stock, str(source))
            raise InputError(message) from None
    result.notes[:0] = notes
    return result


def _our_architecture(checkpoint: Checkpoint) -> str:
    """Return our class by the name in config.json or, if we have no such class, by the weights."""
    stated = checkpoint.stated_architecture
    ours = {"BertLMHeadModel": "HFBertForMaskedLM"} | {name.removeprefix("HF"): name for name in HEADS.values()}
    ours |= {name: name for name in HEADS.values()}
    if stated in ours:
        return ours[stated]
    name = f"HF{pretraining_architecture(checkpoint.tensors)}"
    checkpoint.notes.append(f"config.json names the architecture {stated!r}; by its weights it is taken for {name}")
    return name


def _refuse_pooled(checkpoint: Checkpoint, name: str) -> None:
    """Refuse left-to-right heads with a pooler: stock pools the first token, which sees only itself, ours the last."""
    if name not in _POOLED:
        return
    raise InputError(
        f"{checkpoint.directory}: a left-to-right {name} pools the last token here and the first in stock bert; only "
        "heads without a pooler can be converted, such as HFBertForMaskedLM and HFBertForTokenClassification"
    )


def _stock_architecture(checkpoint: Checkpoint, name: str) -> str:
    stated = checkpoint.stated_architecture
    return stated if stated == "BertLMHeadModel" else name.removeprefix("HF")


def _our_config(checkpoint: Checkpoint, fields: dict[str, Any]) -> HFBertConfig:
    try:
        config = HFBertConfig.from_dict(fields)
    # Errors of @strict have no other common base.
    except Exception as error:
        raise InputError(f"{checkpoint.directory / 'config.json'}: {one_line(error)}") from None
    if not checkpoint.tied:
        config.tie_word_embeddings = False
        checkpoint.notes.append("the output projection differs from the word embeddings: tie_word_embeddings=False")
    return config


def _compare_with_architecture(checkpoint: Checkpoint, name: str, config: HFBertConfig) -> None:
    """Fill in `missing`; refuse wrong shapes and an incomplete encoder, note other missing and all unused weights."""

    def bare(parameter: str) -> str:
        # Files of the base model have no prefix; every model loads files with and without it.
        return parameter.removeprefix("bert.")

    with torch.device("meta"):
        model = getattr(modeling_hfbert, name)(config)
    expected = {parameter: tuple(value.shape) for parameter, value in model.named_parameters()}
    shapes = {bare(parameter): tuple(value.shape) for parameter, value in checkpoint.tensors.items()}
    for parameter, shape in expected.items():
        if shapes.get(bare(parameter), shape) != shape:
            raise InputError(
                f"{checkpoint.directory}: {parameter} has shape {shapes[bare(parameter)]} in the weights, "
                f"but {shape} by config.json; the two files do not belong together"
            )
    checkpoint.missing = [parameter for parameter in expected if bare(parameter) not in shapes]
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
    unused = sorted(shapes.keys() - {bare(parameter) for parameter in expected})
    if unused:
        shown = ", ".join(unused[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
        checkpoint.notes.append(f"kept in the weights, but not used by {name}: {shown}")


def random_batch(config: transformers.PreTrainedConfig, architecture: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make a padded batch, on which two readers of a checkpoint are compared.

    Args:
        config: of the model, ours or stock's.
        architecture: class name of the model.
        seed: of the token ids.

    Returns:
        input_ids, attention_mask and token_type_ids [3, at most 32]; for multiple choice [3, 2, at most 32].
    """
    generator = torch.Generator().manual_seed(seed)
    shape: tuple[int, ...] = (3, min(32, config.max_position_embeddings))
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
def _largest_difference(checkpoint: Checkpoint, ours: tuple[Path, str], stock: tuple[Path, str]) -> float:
    """Load both (directory, class), one of them the `checkpoint`, and compare their outputs on a random padded batch.

    Parameters that the checkpoint lacks are random in both models and are made equal first. Raises RuntimeError
    unless every number is the same.
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
    names = [name for name in left if isinstance(left[name], torch.Tensor) and name in right]
    difference = max((left[name] - right[name]).abs().max().item() for name in names)
    if difference != 0.0:
        raise RuntimeError(f"{stock[1]} from {stock[0]} and {ours[1]} from {ours[0]} differ by {difference}")
    return difference

# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""HFBert's configuration: BERT's field names and defaults, the published sizes, and the checks of all that comes in.

Fields are validated when a configuration is made; checkpoints, inputs and labels by the `check_…` functions, which
modeling_hfbert.py calls. This file travels with every checkpoint and imports nothing else of this package.
"""

import difflib
import math
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from safetensors import safe_open
from torch.autograd import forward_ad
from transformers.activations import ACT2FN
from transformers.utils import logging


try:
    from transformers import PreTrainedConfig
except ImportError:
    raise ImportError(
        "HFBert's code needs transformers 5.17 or newer; for older ones, its publisher can make a stock bert "
        "checkpoint of the same weights: hfbert convert --to stock"
    ) from None

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100  # PyTorch's and transformers' convention for positions without a label

# The code beside every checkpoint; each file imports only those before it.
TRAVELLING_FILES = ("configuration_hfbert.py", "layout_hfbert.py", "kernels_hfbert.py", "modeling_hfbert.py")

# Prefixes that wrappers put before the names of weights: DistributedDataParallel, torch.compile, FSDP1, a Lightning
# module's attribute, PEFT.
WRAPPED = re.compile(
    r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module|model|base_model\.model)\.)+|_orig_mod\.|_fsdp_wrapped_module\."
)

# Auto class → our class: the single source of the exports, the Auto registration and every config.json's auto_map.
HEADS = {
    "AutoModel": "HFBertModel",
    "AutoModelForPreTraining": "HFBertForPreTraining",
    "AutoModelForMaskedLM": "HFBertForMaskedLM",
    "AutoModelForNextSentencePrediction": "HFBertForNextSentencePrediction",
    "AutoModelForSequenceClassification": "HFBertForSequenceClassification",
    "AutoModelForTokenClassification": "HFBertForTokenClassification",
    "AutoModelForQuestionAnswering": "HFBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "HFBertForMultipleChoice",
}

# name → (layers, hidden size). BASE and LARGE: the paper, section 3. The others: the smaller models published with
# google-research/bert (Turc et al. 2019, arXiv:1908.08962). All have heads of 64 and an intermediate size of 4·hidden.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}

# Far above any BERT, far below what would exhaust memory before the first clear message.
MAX_SIZES = {
    "vocab_size": 10_000_000,
    "hidden_size": 65_536,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 1_024,
    "intermediate_size": 1_048_576,
    "max_position_embeddings": 1_048_576,
    "type_vocab_size": 1_024,
}


@strict
class HFBertConfig(PreTrainedConfig):
    """Configuration of every HFBert model; a stock `bert` config.json reads as one, and the other way round.

    Fields of `BertConfig` keep their meaning and defaults (BERT-BASE, uncased vocabulary). Three are added.

    Args:
        sparse_prediction: in training with labels, MLM heads return logits (labels other than -100, vocab_size) in
            place of (batch_size, sequence_length, vocab_size), for the same loss in less time and memory.
        left_to_right: a position sees itself and earlier ones only, the paper's "LTR" ablation (section 5.1). The
            pooler then reads the last token of a sequence in place of the first.
        bilstm: a bidirectional LSTM reads the last layer before the heads do ("+ BiLSTM" of section 5.1); the pooler
            then reads the last states of its two directions.

    Raises:
        StrictDataclassError: naming the field, for a value of the wrong type or outside its range.
        ValueError: for a misspelled field, or a stock option this architecture lacks (decoder, relative positions).
    """

    model_type = "hfbert"
    # Trainer gathers everything else of an output as predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["masked_lm_loss", "next_sentence_loss"]

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True
    sparse_prediction: bool = False
    left_to_right: bool = False
    bilstm: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        model_type = kwargs.pop("model_type", None)
        if model_type not in (None, "bert", self.model_type):
            logger.warning(f"This configuration is of model_type {model_type!r}; its weights may not be BERT's.")
        self._check_unsupported_fields(kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "HFBertConfig":
        """Make the configuration of a published size.

        Args:
            size: "tiny", "mini", "small", "medium", "base" or "large".
            overrides: values of single fields.

        Raises:
            ValueError: for an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}; the published sizes are {', '.join(SIZES)}")
        layers, hidden_size = SIZES[size]
        fields = {
            "num_hidden_layers": layers,
            "hidden_size": hidden_size,
            "num_attention_heads": hidden_size // 64,
            "intermediate_size": 4 * hidden_size,
        }
        return cls(**(fields | overrides))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the full `auto_map`: a checkpoint of one head opens through every Auto class."""
        fields = super().to_dict()
        fields["auto_map"] = {"AutoConfig": "configuration_hfbert.HFBertConfig"} | {
            auto_class: f"modeling_hfbert.{name}" for auto_class, name in HEADS.items()
        }
        return fields

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save config.json and the code it names, also for a user's subclass or without a model."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for name in TRAVELLING_FILES:
            source, target = Path(__file__).with_name(name), Path(save_directory, name)
            if source.is_file() and not (target.exists() and source.samefile(target)):
                shutil.copyfile(source, target)

    def validate_architecture(self) -> None:
        """Check all fields; @strict calls it after construction and on saving.

        Raises:
            ValueError: naming the field and the values it may hold.
        """
        super().validate_architecture()
        # Attributes set after construction too: their file could not be opened again.
        self._check_unsupported_fields(vars(self))
        for name, largest in MAX_SIZES.items():
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise ValueError(f"{name} is {value}; it must be between 1 and {largest}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; a dropout probability is at least 0 and below 1")
        for name in ("initializer_range", "layer_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if isinstance(self.dtype, str) and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype is {self.dtype!r}; it must be a type of torch, such as 'float32' or 'bfloat16'")
        if self.chunk_size_feed_forward < 0:
            raise ValueError(f"chunk_size_feed_forward is {self.chunk_size_feed_forward}; 0 means no chunks")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.bilstm and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}; the two directions of a bilstm halve it")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; known activations: {', '.join(sorted(ACT2FN))}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size}")

    def _check_unsupported_fields(self, kwargs: dict[str, Any]) -> None:
        """Refuse stock options this encoder lacks, which would change the result silently, and misspelled fields."""
        for option in ("is_decoder", "add_cross_attention"):
            if kwargs.get(option):
                raise ValueError(f"{option}=True: HFBert is an encoder; left_to_right=True gives causal attention")
        if kwargs.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError(
                f"position_embedding_type {kwargs['position_embedding_type']!r}: only 'absolute' is supported"
            )
        fields = self.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
        for name in kwargs:
            close = () if name in fields else difflib.get_close_matches(name, fields, n=1, cutoff=0.88)
            if close:
                raise ValueError(f"unknown field {name!r}; did you mean {close[0]!r}?")


def is_transformed() -> bool:
    """Return whether operations are recorded or transformed here: no value may be read, only PyTorch differentiates.

    True under torch.compile, export and jit.trace, forward-mode differentiation, the transforms of torch.func (vmap,
    grad, jvp …) and dispatch modes (make_fx, fake tensors).
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype autocast uses for matrix products on `device` now, or None where it is off."""
    # The meta device has no autocast and raises when asked. torch.amp.is_autocast_available would say so, but
    # Dynamo of PyTorch 2.11 cannot trace it and breaks the graph in every layer.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def check_cu_seqlens(
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    shape: torch.Size,
    device: torch.device,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return a packed row's cu_seq_lens_q on `device`; check its numbers on the CPU only, where reading is free."""
    if shape[0] != 1:
        raise ValueError(
            f"cu_seq_lens_q divides one packed row, and the input has shape {tuple(shape)}; concatenate "
            "its sequences to shape (1, tokens)"
        )
    if attention_mask is not None:
        raise ValueError("a packed row has no padding: leave out attention_mask beside cu_seq_lens_q")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.long, torch.int32):
        raise ValueError(
            f"cu_seq_lens_q is of {cu_seqlens.dtype} and shape {tuple(cu_seqlens.shape)}; it must be of "
            "torch.int32 and shape (sequences + 1,)"
        )
    cu_seqlens = cu_seqlens.to(device)
    if device.type == "cpu" and not is_transformed():
        lengths = cu_seqlens.diff()
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != shape[1] or lengths.min() < 0 or lengths.max() > max_seqlen:
            raise ValueError(
                f"cu_seq_lens_q is {cu_seqlens.tolist()}; it must rise from 0 to the row's {shape[1]} tokens in "
                f"steps of at most {max_seqlen} (max_length_q, or else max_position_embeddings)"
            )
    return cu_seqlens


def check_read_positions(
    read_positions: torch.Tensor | tuple[()], pooled: torch.Tensor | None, shape: torch.Size, device: torch.device
) -> torch.Tensor:
    """Return positions in the flattened batch, (count,) on `device`."""
    if not isinstance(read_positions, torch.Tensor):
        return torch.empty(0, dtype=torch.long, device=device)
    if read_positions.dim() != 1 or read_positions.dtype not in (torch.long, torch.int32):
        raise ValueError(
            f"read_positions is of {read_positions.dtype} and shape {tuple(read_positions.shape)}; it must be of "
            "torch.long and shape (count,): positions in the flattened batch, row · sequence_length + column"
        )
    read_positions = read_positions.to(device, torch.long)
    if device.type == "cpu" and not is_transformed():
        pooled = torch.arange(shape[0], device=device) * shape[1] if pooled is None else pooled
        lowest, highest = (int(bound) for bound in torch.cat([pooled, read_positions]).aminmax())
        if lowest < 0 or highest >= shape.numel():
            raise ValueError(
                f"read_positions go from {lowest} to {highest}; the batch of shape {tuple(shape)} has positions "
                f"0 … {shape.numel() - 1}"
            )
    return read_positions


def check_attention_mask(mask: torch.Tensor, shape: torch.Size, num_heads: int) -> None:
    """Refuse a mask of the wrong shape or, where values can be read, with wrong numbers."""
    (batch_size, length), sizes = shape, tuple(mask.shape)
    pairs = (sizes[0], 1, *sizes[1:]) if len(sizes) == 3 else sizes
    allowed = ((1, batch_size), (1, num_heads), (1, length), (length,))
    fits = len(pairs) == 4 and all(size in choices for size, choices in zip(pairs, allowed, strict=True))
    if sizes != (batch_size, length) and not fits:
        raise ValueError(
            f"attention_mask has shape {sizes}, the input {tuple(shape)}; a mask is (batch_size, sequence_length) or "
            f"(batch_size, sequence_length, sequence_length), with a dimension for the {num_heads} heads or without"
        )
    if mask.dtype == torch.bool or is_transformed() or mask.device.type not in ("cpu", "cuda"):
        return
    if mask.is_floating_point() and len(sizes) != 2:
        if bool(((mask == 0) | (mask == 1)).all() & (mask == 1).any()):
            raise ValueError(
                f"attention_mask of {mask.dtype} and shape {sizes} holds 0 and 1, and would be added to the scores; "
                "pass attention_mask.bool(), True where a token sees another"
            )
    elif mask.device.type == "cpu" and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"attention_mask of {mask.dtype} and shape {sizes} holds other numbers than 1 for tokens and 0 for padding"
        )


def check_not_wrapped(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse weights named by a wrapper: transformers would initialise all of them at random."""
    wrapped = sorted(filter(WRAPPED.search, unexpected))
    prefix = WRAPPED.search(wrapped[0]) if missing and wrapped else None
    if prefix is not None:
        pattern = ("" if prefix.start() else "^") + re.escape(prefix[0])
        raise ValueError(
            f"a wrapper of the model named the checkpoint's weights ({wrapped[0]}); open it with "
            f"from_pretrained(..., key_mapping={{{pattern!r}: ''}})"
        )


def stock_output_bias(
    state_dict: dict[str, torch.Tensor] | None, checkpoint_files: list[str] | None
) -> torch.Tensor | None:
    """Return the output bias under stock's second name, cls.predictions.decoder.bias; None if there is none."""
    name = "cls.predictions.decoder.bias"
    if state_dict is not None:
        return state_dict.get(name)
    for file in checkpoint_files or ():
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118, it is no dictionary
                    return tensors.get_tensor(name)
        elif file.endswith(".bin"):
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            if name in tensors:
                return tensors[name]
    return None


def check_stock_output_bias(stock_bias: torch.Tensor, vocab_size: int, device: torch.device) -> None:
    """Refuse a second output bias that cannot take the first one's place."""
    if len(stock_bias) != vocab_size or device.type == "meta":
        raise ValueError(
            f"the checkpoint holds a second output bias, cls.predictions.decoder.bias, of {len(stock_bias)} numbers, "
            f"which does not fit one of {vocab_size} on {device}; convert it first (hfbert convert)"
        )


def check_vocabulary_sizes(head: Any) -> None:
    """Refuse an MLM head whose projection was resized with the embeddings and whose bias was not."""
    weight, bias = getattr(head.decoder, "weight", None), head.bias
    if weight is not None and weight.dim() == 2 and weight.shape[0] != bias.shape[0]:
        raise ValueError(
            f"the word embeddings hold {weight.shape[0]} tokens and the output bias {bias.shape[0]}; resize the "
            "model with its head, model.resize_token_embeddings(number of tokens), not its encoder alone"
        )


def check_length(sequence_length: int, limit: int) -> None:
    """Refuse a sequence that has more tokens than there are positions."""
    if sequence_length > limit:
        raise ValueError(
            f"a sequence of {sequence_length} tokens does not fit max_position_embeddings={limit}: "
            f"truncate it (tokenizer(..., truncation=True, max_length={limit}))"
        )


def check_choices(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Size:
    """Return (batch_size, num_choices); refuse inputs without a dimension for the choices."""
    tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    if tokens is None or tokens.dim() != 3:
        shape = None if tokens is None else tuple(tokens.shape)
        raise ValueError(f"multiple choice takes (batch_size, num_choices, sequence_length), got {shape}")
    return tokens.shape[:2]


def check_inputs(
    config: HFBertConfig,
    ids: dict[str, torch.Tensor | None],
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Size, torch.device]:
    """Return shape (batch_size, sequence_length) and device; refuse inputs that are not 2-D, disagree or do not exist.

    Args:
        ids: input_ids, token_type_ids and position_ids by name.
        inputs_embeds, attention_mask, kwargs: see `HFBertModel.forward`.
    """
    check_no_decoder_inputs(kwargs)
    input_ids = ids["input_ids"]
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    tokens: Any = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    if tokens.dim() != 2:
        name, shape = "input_ids", "(batch_size, sequence_length)"
        if inputs_embeds is not None:
            tokens, name, shape = inputs_embeds, "inputs_embeds", "(batch_size, sequence_length, hidden_size)"
        raise ValueError(
            f"{name} must have shape {shape}, got {tuple(tokens.shape)}; add the batch dimension with {name}[None]"
        )
    if tokens.numel() == 0:
        raise ValueError(f"the input holds no tokens: its shape is {tuple(tokens.shape)}")
    for name, tensor in ids.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2 or tensor.shape == tokens.shape:
            continue
        # One row of positions or segments serves every sequence; a mask must be given per sequence.
        if tensor.shape != (1, tokens.shape[1]):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the input {tuple(tokens.shape)}")
    for name, tensor in ids.items():
        if tensor is not None and tensor.dtype not in (torch.long, torch.int32):
            raise ValueError(f"{name} is of {tensor.dtype}; it must be of torch.long or torch.int32")
    if isinstance(attention_mask, torch.Tensor):
        check_attention_mask(attention_mask, tokens.shape, config.num_attention_heads)
    return tokens.shape, tokens.device


def index_error_message(
    config: HFBertConfig, ids: dict[str, torch.Tensor | None], word_embeddings: torch.nn.Module
) -> str:
    """Build the message for an id without an embedding. Called only after the lookup failed, on the CPU."""
    fields = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
    for name, tensor in ids.items():
        field = fields.get(name, "max_position_embeddings")
        size = getattr(config, field)
        table = getattr(word_embeddings, "weight", None)
        if name == "input_ids" and table is not None and table.shape[0] != size:
            return (
                f"the word embeddings hold {table.shape[0]} tokens and vocab_size is {size}; resize both with "
                "model.resize_token_embeddings(number of tokens)"
            )
        if tensor is None:
            continue
        bad = (tensor < 0) | (tensor >= size)
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            value = int(tensor[row, column])
            return f"{name}[{row}, {column}] is {value}; it must be 0 … {size - 1} ({field} {size})"
    return "an id has no embedding"


def check_no_decoder_inputs(kwargs: dict[str, Any]) -> None:
    """Refuse the arguments of decoders, which an encoder would ignore silently."""
    for name in ("encoder_hidden_states", "encoder_attention_mask", "cache", "past_key_values"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} is for decoders, and HFBert is an encoder: leave it out, or use stock bert")


def check_not_packed(task: str, kwargs: dict[str, Any]) -> None:
    """Refuse packed rows in heads whose softmax is over several vectors of a row."""
    if kwargs.get("cu_seq_lens_q") is not None:
        raise ValueError(f"{task} takes padded batches, not packed rows: leave out cu_seq_lens_q")


HFBertConfig.register_for_auto_class()

__all__ = ["HEADS", "SIZES", "HFBertConfig"]

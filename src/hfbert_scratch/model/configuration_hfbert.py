# Copyright 2026 The hfbert-scratch authors. Licensed under the Apache License, Version 2.0.
"""HFBert's configuration: BERT's field names and defaults, their checks, and the published sizes.

This file travels with every checkpoint and imports nothing else of this package.
"""

import difflib
import math
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
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
TRAVELLING_FILES = (
    "configuration_hfbert.py",
    "checks_hfbert.py",
    "layout_hfbert.py",
    "kernels_hfbert.py",
    "modeling_hfbert.py",
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


HFBertConfig.register_for_auto_class()

__all__ = ["HEADS", "SIZES", "HFBertConfig"]

"""A file for each export format, and their table. A new format is a file with a `write` function and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..source import ExportSource
from . import ctranslate2, gguf, onnx, openvino, sentence_transformers, web


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        write: writes a directory, opens it again and returns the largest difference from our own forward pass.
        packages: distributions to install → modules imported while writing and verifying.
        verified_with: the program that opens the result.
        tolerance: the largest absolute difference accepted; vectors after a LayerNorm and logits are of the order
            of 1.
        heads: stock's names of the architectures that the format holds; None for all.
        encoder_only: write the encoder of a checkpoint with pretraining heads.
        needs_tokenizer: refuse a checkpoint without one.
        can_quantize: the format can hold 8-bit weights.
    """

    write: Callable[[ExportSource, Path], float]
    packages: dict[str, str]
    verified_with: str
    tolerance: float
    heads: tuple[str, ...] | None = None
    encoder_only: bool = False
    needs_tokenizer: bool = False
    can_quantize: bool = False

    def holds(self, architecture: str, left_to_right: bool) -> bool:
        """Return True if a model of this architecture and attention can be written."""
        return self.heads is None or (architecture in self.heads and not left_to_right)


# Stock `bert` is the format that all others are written from; conversion.stock writes it.
STOCK = "stock"

_ONNX_PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript"}
_ONNX_RUNTIME = _ONNX_PACKAGES | {"onnxruntime": "onnxruntime"}

FORMATS: dict[str, Format] = {
    "onnx": Format(onnx.write, _ONNX_RUNTIME, "ONNX Runtime", 1e-4, can_quantize=True),
    "web": Format(
        web.write,
        _ONNX_RUNTIME,
        "ONNX Runtime",
        1e-4,
        heads=tuple(web.TASKS),
        needs_tokenizer=True,
        can_quantize=True,
    ),
    "openvino": Format(openvino.write, _ONNX_PACKAGES | {"openvino": "openvino"}, "OpenVINO", 1e-4),
    "ctranslate2": Format(
        ctranslate2.write,
        {"ctranslate2": "ctranslate2"},
        "CTranslate2",
        1e-4,
        heads=("BertModel",),
        encoder_only=True,
        needs_tokenizer=True,
    ),
    "gguf": Format(
        gguf.write,
        {"gguf": "gguf"},
        "our encoder built from the file",
        0.0,
        heads=("BertModel",),
        encoder_only=True,
        needs_tokenizer=True,
    ),
    "sentence-transformers": Format(
        sentence_transformers.write,
        {"sentence-transformers": "sentence_transformers"},
        "sentence-transformers",
        1e-5,
        heads=("BertModel", "BertForSequenceClassification"),
        encoder_only=True,
        needs_tokenizer=True,
    ),
}

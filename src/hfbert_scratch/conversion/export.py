"""Export a checkpoint to another program's format.

Every format starts from the stock conversion, which is exact, and leaves a directory that its readers open as it is.
At the end the written directory is opened again, and its outputs are compared with our own forward pass.
"""

import dataclasses
import importlib.metadata
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import transformers
from torch import nn

from ..evaluation import read_task_file
from ..model import modeling_hfbert
from ..model.loading import drop_random_pooler, open_model, short_name
from ..utils.directories import atomic_directory
from ..utils.errors import InputError
from ..utils.files import read_json
from .formats import FORMATS, STOCK
from .source import POOLINGS, ExportSource
from .stock import to_stock
from .tokenizer_files import TOKENIZER_FILES, copy_existing, has_tokenizer


# Exports of these hold the encoder alone, with a note; a fine-tuned head is never dropped silently.
_PRETRAINING_HEADS = ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction")


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        directory: the written directory.
        format: a key of FORMATS, or "stock".
        architecture: stock's class name of the exported model.
        largest_difference: from our own forward pass; at most `tolerance`.
        tolerance: the largest absolute difference accepted for this format.
        verified_with: the program that opened the result, with its version.
        notes: sentences about parts that are missing, unused or left out.
    """

    directory: Path
    format: str
    architecture: str
    largest_difference: float
    tolerance: float
    verified_with: str
    notes: list[str]


def export(
    source: str | Path,
    target: str | Path,
    format: str,
    *,
    pooling: str = "mean",
    quantize: bool = False,
    web_library: str | Path | None = None,
) -> Export:
    """Write our checkpoint `source` in another format, open the result and compare it with our own forward pass.

    Args:
        source: a checkpoint directory or a name on the Hub.
        target: the directory to write, new or empty.
        format: "stock", "onnx", "web", "openvino", "ctranslate2", "gguf" or "sentence-transformers".
        pooling: "mean" or "cls"; how gguf and sentence-transformers make one vector of the token vectors.
        quantize: 8-bit weights, for onnx and web.
        web_library: for web, the node_modules directory of transformers.js to copy beside the page; None: the page
            loads the library from a public mirror.

    Returns:
        The written directory, the largest difference and notes.

    Raises:
        InputError: if `source` is not an HFBert checkpoint, lacks weights or has a head that the format cannot hold,
            if the format cannot be quantized or is no page, if a package is not installed, or if `target` is not
            empty.
        OutputError: if `target` cannot be written.
        RuntimeError: if the result differs from our own forward pass by more than the tolerance.
    """
    _check_options(format, pooling, quantize, web_library)
    if format == STOCK:
        converted = to_stock(source, target)
        verified_with = f"stock {converted.architecture}"
        return Export(converted.directory, STOCK, converted.architecture, 0.0, 0.0, verified_with, converted.notes)
    row = FORMATS[format]
    with tempfile.TemporaryDirectory() as temporary, atomic_directory(target) as directory:
        prepared = _prepare_source(source, Path(temporary), format)
        prepared = dataclasses.replace(
            prepared,
            pooling=pooling,
            quantize=quantize,
            web_library=None if web_library is None else Path(web_library),
        )
        _require_packages(row.packages, format)
        difference = row.write(prepared, directory)
        if not difference <= row.tolerance:
            raise RuntimeError(f"{format} of {source} differs by {difference:.3g} from our own forward pass")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in row.packages)
    verified_with = f"{row.verified_with} ({versions})"
    return Export(
        Path(target), format, prepared.architecture, difference, row.tolerance, verified_with, prepared.notes
    )


def _check_options(format: str, pooling: str, quantize: bool, web_library: str | Path | None) -> None:
    """Refuse unknown formats, and options that the format lacks."""
    if format != STOCK and format not in FORMATS:
        raise InputError(f"format {format!r} is not known; choose one of {', '.join((STOCK, *FORMATS))}")
    if pooling not in POOLINGS:
        raise InputError(f"pooling {pooling!r} is not known; choose one of {', '.join(POOLINGS)}")
    if quantize and (format == STOCK or not FORMATS[format].can_quantize):
        able = [name for name, row in FORMATS.items() if row.can_quantize]
        raise InputError(f"--quantize is for {' and '.join(able)}, not {format}; leave it out")
    if web_library is not None and format != "web":
        raise InputError(f"--web_library is for web, not {format}; leave it out")


def _prepare_source(source: str | Path, temporary: Path, format: str) -> ExportSource:
    """Convert `source` to stock in `temporary`; return the export's source with notes. Refuse unsupported models."""
    row = FORMATS[format]
    _refuse_stock(source)
    converted = to_stock(source, temporary / "stock")
    architecture, notes = converted.architecture, converted.notes
    model = _our_model(source, architecture)
    if row.encoder_only and architecture in _PRETRAINING_HEADS:
        notes = [f"{format} holds the encoder of {architecture}, without the pretraining heads"]
        architecture, model = "BertModel", _our_model(source, "BertModel")
    left_to_right = model.config.left_to_right
    if not row.holds(architecture, left_to_right):
        part = "left-to-right attention" if left_to_right else f"the head of {architecture}"
        able = [STOCK, *(name for name, other in FORMATS.items() if other.holds(architecture, left_to_right))]
        raise InputError(f"{format} cannot hold {part}; choose {' or '.join(able)}")
    if row.needs_tokenizer and not has_tokenizer(converted.directory):
        raise InputError(f"{source} holds no tokenizer, which {format} needs; put its files beside the model")
    if row.encoder_only and architecture == "BertModel":
        if model.pooler is None:
            # Readers of these formats expect a pooler. A random one would pass for trained.
            model.pooler = modeling_hfbert.HFBertPooler(model.config).eval()
            nn.init.zeros_(model.pooler.dense.weight)
            nn.init.zeros_(model.pooler.dense.bias)
            notes = [note for note in notes if not note.startswith("not in the weights")]
            notes.append("the checkpoint has no pooler: pooler_output will be 0")
        model.save_pretrained(temporary / "encoder")
        copy_existing(converted.directory, temporary / "encoder", *TOKENIZER_FILES)
        converted = to_stock(temporary / "encoder", temporary / "stock_encoder")
    return ExportSource(
        converted.directory,
        architecture,
        model,
        name=short_name(source),
        task=read_task_file(str(source)),
        notes=list(notes),
    )


def _require_packages(packages: dict[str, str], format: str) -> None:
    missing = [name for name, module in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"format {format!r} needs packages that are not installed: pip install {' '.join(missing)} "
            "(for all formats: the extra hfbert-scratch[export])"
        )


def _refuse_stock(source: str | Path) -> None:
    config = Path(source) / "config.json"
    if config.is_file():
        fields = read_json(config, "the model's configuration")
        if isinstance(fields, dict) and fields.get("model_type") == "bert":
            raise InputError(f"{source} is a stock bert checkpoint; convert it first: hfbert convert --to hfbert")


def _our_model(source: str | Path, architecture: str) -> transformers.PreTrainedModel:
    """Open our model in eval mode and float32, without a pooler if the checkpoint has none."""
    name = "HFBertForMaskedLM" if architecture == "BertLMHeadModel" else f"HF{architecture}"
    model, missing = open_model(getattr(modeling_hfbert, name), source)
    if name == "HFBertModel":
        missing = drop_random_pooler(model, missing)
    if missing:
        raise InputError(f"{source} has no weights for {', '.join(missing[:3])} of {name}; train that head first")
    model.set_attn_implementation("eager")  # exporters trace plain operations
    return model.eval()

"""ONNX, in the directory layout of transformers.js: onnx/model.onnx beside config.json and the tokenizer."""

import logging
from pathlib import Path

import torch
from torch import nn

from ...utils.files import read_json, write_json
from ..source import INPUTS, ExportSource
from ..tokenizer_files import TOKENIZER_FILES, copy_existing


def write(source: ExportSource, directory: Path) -> float:
    """Write the graph, run it in ONNX Runtime, and return the largest difference from our own forward pass.

    On request its quantized copy takes the place of the graph; a note says how much that changes.
    """
    (directory / "onnx").mkdir()
    path = directory / "onnx" / "model.onnx"
    export_graph(source, path)
    copy_existing(source.stock, directory, "config.json", *TOKENIZER_FILES)
    config = read_json(directory / "config.json", "the model's configuration")
    difference = _difference(source, path)
    if source.quantize:
        quantized = path.with_name("model_quantized.onnx")
        quantize_graph(path, quantized)
        source.notes.append(
            f"8-bit weights: {path.stat().st_size / 1e6:.1f} MB became {quantized.stat().st_size / 1e6:.1f} MB; "
            f"largest difference on random inputs {_difference(source, quantized):.2g}, check it on yours"
        )
        path.unlink()
    # In a browser transformers.js looks for a quantized file unless config.json names another one.
    dtype = "q8" if source.quantize else "fp32"
    write_json(directory / "config.json", config | {"transformers.js_config": {"dtype": dtype}})
    return difference


def quantize_graph(path: Path, target: Path) -> None:
    """Write `target`, a copy of the ONNX file `path` with 8-bit weights whose activations are quantized as they come.

    Weights are unsigned and one scale serves a matrix, as in the files of transformers.js.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(_is_no_advice)  # to preprocess the graph, which gains nothing here
    try:
        quantize_dynamic(path, target, weight_type=QuantType.QUInt8)
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _difference(source: ExportSource, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return source.largest_difference(lambda batch: dict(zip(names, session.run(None, batch), strict=True)))


def export_graph(source: ExportSource, path: Path) -> None:
    """Write the ONNX file `path`; batch size, length and number of choices stay free in the graph."""
    batch = source.batches()[0]
    dynamic = dict.fromkeys(range(batch["input_ids"].ndim), torch.export.Dim.DYNAMIC)
    # The exporter warns about every torchvision operator that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = torch.onnx.export(
        _Positional(source.model).eval(),
        tuple(batch[name] for name in INPUTS),
        dynamo=True,
        dynamic_shapes=((dynamic,) * len(INPUTS),),
        input_names=list(INPUTS),
        output_names=list(source.output_names),
        verbose=False,
    )
    assert program is not None, "with dynamo=True there is one"
    program.save(str(path), external_data=False)


class _Positional(nn.Module):
    """The model with positional inputs in the order of INPUTS and a tuple of outputs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model(**dict(zip(INPUTS, inputs, strict=True)), return_dict=True).to_tuple()

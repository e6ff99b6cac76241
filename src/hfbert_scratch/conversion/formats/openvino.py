"""OpenVINO, in the directory layout of optimum-intel and sentence-transformers."""

import tempfile
from pathlib import Path

from ..source import Arrays, ExportSource
from ..tokenizer_files import TOKENIZER_FILES, copy_existing
from .onnx import export_graph


def write(source: ExportSource, directory: Path) -> float:
    """Write openvino_model.xml and .bin, run them, and return the largest difference from our own forward pass."""
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        export_graph(source, Path(temporary) / "model.onnx")
        model = openvino.convert_model(Path(temporary) / "model.onnx")
        openvino.save_model(model, directory / "openvino_model.xml", compress_to_fp16=False)
    copy_existing(source.stock, directory, "config.json", *TOKENIZER_FILES)
    # By default OpenVINO computes in the fastest precision of the hardware; this checks the file in float32.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(directory / "openvino_model.xml", "CPU", hints)

    def run(batch: Arrays) -> Arrays:
        results = compiled(batch)
        return {name: results[name] for name in source.output_names}

    return source.largest_difference(run)

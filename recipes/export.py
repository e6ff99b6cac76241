"""Export a checkpoint to the format of another program, then open the result and compare it with our own forward pass.

    python recipes/export.py --format onnx --model runs/base/model --output_dir runs/base-onnx

stock: a plain `bert` checkpoint. onnx: ONNX Runtime, transformers.js, fastembed. openvino: OpenVINO, optimum-intel.
ctranslate2: CTranslate2. gguf: llama.cpp and what is built on it. sentence-transformers: SentenceTransformer, for a
sequence classifier CrossEncoder. All but stock need packages: pip install hfbert-scratch[export].

Supports: every head in stock, onnx and openvino; the encoder in ctranslate2, gguf and sentence-transformers, also
from checkpoints with pretraining heads.
Does not support: quantization, which these programs' own tools do; cased vocabularies and other activations than GELU
in gguf; left-to-right models except in stock, onnx and openvino.
"""

import dataclasses
from typing import Literal

import transformers

from hfbert_scratch.conversion.export import export
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


@dataclasses.dataclass
class ExportArguments:
    """What the command line sets."""

    format: Literal["stock", "onnx", "gguf", "ctranslate2", "openvino", "sentence-transformers"] = argument(
        help="Format to write"
    )
    model: str = argument(help="Directory of the checkpoint, or its name on the Hub")
    output_dir: str = argument(help="Directory to write, new or empty")
    pooling: Literal["mean", "cls"] = argument(
        "mean", help="How gguf and sentence-transformers make one vector of a text"
    )


@command_line
def main() -> None:
    """Export, check, tell."""
    arguments = parse_arguments(ExportArguments, description=__doc__)
    # What is missing or not used is told below, by name.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result = export(arguments.model, arguments.output_dir, arguments.format, pooling=arguments.pooling)
    for note in result.notes:
        print(f"note: {note}")
    print(
        f"{result.directory}: {result.architecture} as {result.format}, opened by {result.checked_by}: largest "
        f"difference from our own forward pass {result.largest_difference:.2g} (tolerance {result.tolerance:g})"
    )


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch[export]==0.1.0"]
# ///
"""Export a checkpoint to another program's format, open the result and compare it with our own forward pass.

    hfbert export --format onnx --model runs/base/model --output_dir runs/onnx
    hfbert export --format web --model runs/base/model --output_dir runs/web \\
        --quantize true

stock: a plain `bert` checkpoint, as `hfbert convert --to stock` writes it. onnx: ONNX Runtime, transformers.js,
fastembed. web: a folder with a page that runs the model in the browser by transformers.js (python -m http.server
shows it). openvino: OpenVINO, optimum-intel. ctranslate2: CTranslate2. gguf: llama.cpp and programs built on it.
sentence-transformers: SentenceTransformer, for a sequence classifier CrossEncoder. All but stock need packages: pip
install hfbert-scratch[export].

Supports: every head in stock, onnx and openvino; in web the heads for blanks, classes, entities and answers; the
encoder in ctranslate2, gguf and sentence-transformers, also from checkpoints with pretraining heads.
Does not support: quantization except in onnx and web (use these programs' own tools); cased vocabularies and other
activations than GELU in gguf; left-to-right models except in stock, onnx and openvino.
"""

import dataclasses
from typing import Literal

import transformers

from hfbert_scratch.conversion.export import export
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


@dataclasses.dataclass
class ExportArguments:
    """The command line."""

    format: Literal["stock", "onnx", "web", "gguf", "ctranslate2", "openvino", "sentence-transformers"] = argument(
        help="Format to write"
    )
    model: str = argument(help="Directory of the checkpoint, or its name on the Hub")
    output_dir: str = argument(help="Directory to write, new or empty")
    pooling: Literal["mean", "cls"] = argument(
        "mean", help="How gguf and sentence-transformers make one vector of a text"
    )
    quantize: bool = argument(False, help="onnx, web: 8-bit weights, a quarter of the size and less exact")
    web_library: str | None = argument(
        None,
        help="web: node_modules directory of `npm install @huggingface/transformers`, copied beside the page; "
        "default: the page loads the library from cdn.jsdelivr.net",
    )


@command_line
def main() -> None:
    """Export, verify, report."""
    arguments = parse_arguments(ExportArguments, description=__doc__)
    # The notes printed below name missing and unused weights; transformers need not warn of them.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = dataclasses.asdict(arguments)
    result = export(options.pop("model"), options.pop("output_dir"), options.pop("format"), **options)
    for note in result.notes:
        print(f"note: {note}")
    print(
        f"{result.directory}: {result.architecture} as {result.format}, opened by {result.verified_with}: largest "
        f"difference from our own forward pass {result.largest_difference:.2g} (tolerance {result.tolerance:g})"
    )


if __name__ == "__main__":
    main()

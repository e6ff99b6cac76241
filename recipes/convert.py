# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Convert a checkpoint directory between ours and stock `bert`, exactly.

    hfbert convert --to stock --model runs/base/model --output_dir runs/stock
    hfbert convert --to hfbert --model google-bert/bert-base-uncased \\
        --output_dir runs/bert-base-uncased
    hfbert convert --to hfbert --model uncased_L-12_H-768_A-12 \\
        --output_dir runs/original

`--to stock` writes a directory for programs that know `bert` but not this package; it needs no trust_remote_code.
`--to hfbert` converts any stock checkpoint, old ones included, for further pretraining or fine-tuning here.
At the end the outputs of both models are compared; they are bit-identical.

Supports: directories and models on the Hub, every head, safetensors and pytorch_model.bin, one file or shards, also
with the prefixes of DistributedDataParallel and torch.compile (module., _orig_mod.); the original's directories of
bert_config.json, vocab.txt and bert_model.ckpt, with hfbert-scratch[tensorflow] installed.
Does not support: decoders with cross-attention, relative positions, other architectures (RoBERTa, XLM-R, DistilBERT),
TensorFlow 2's layouts.
"""

import dataclasses
from typing import Literal

import transformers

from hfbert_scratch.conversion.stock import from_stock, to_stock
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


@dataclasses.dataclass
class ConversionArguments:
    """The command line."""

    to: Literal["stock", "hfbert"] = argument(help="Format to write")
    model: str = argument(help="Directory of the checkpoint, or its name on the Hub")
    output_dir: str = argument(help="Directory to write, new or empty")


@command_line
def main() -> None:
    """Convert, compare, report."""
    arguments = parse_arguments(ConversionArguments, description=__doc__)
    # The notes printed below name missing and unused weights; transformers need not warn of them.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    convert = to_stock if arguments.to == "stock" else from_stock
    result = convert(arguments.model, arguments.output_dir)
    for note in result.notes:
        print(f"note: {note}")
    print(f"{result.directory}: {result.architecture}, largest difference of outputs {result.largest_difference}")


if __name__ == "__main__":
    main()

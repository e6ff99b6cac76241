# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Look at what a model is fed: a corpus, the training instances made from it, or a tokenizer.

    hfbert inspect corpus runs/corpus                       # documents, lengths, frequencies
    hfbert inspect batch runs/corpus --row 5 --rows 2       # instances 5 and 6 of the first epoch, masked
    hfbert inspect tokenizer runs/tokenizer --corpus runs/corpus

Prints text, in colour on a terminal. A predicted token is written [before→after]: [cat→[MASK]], [cat→dog] where a
random token replaces it, [cat→cat] where it stays. --output_dir keeps the figures as inspection.json and the
histograms as inspection.png.

Supports: the options of pairs and masks of hfbert pretrain: with its seed and length, the instances of its run.
Does not support: text that is not built into a corpus yet, left-to-right labels.
"""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.inspection import (
    Inspection,
    inspect_batch,
    inspect_corpus,
    inspect_tokenizer,
    painted,
    plain,
)
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line
from hfbert_scratch.utils.files import write_json, writing
from hfbert_scratch.utils.plots import draw_histograms


@dataclass(kw_only=True)
class InspectArguments(PretrainingDataArguments):
    """The command line."""

    what: str = argument(help="the first word of the command", choices=("corpus", "batch", "tokenizer"))
    directory: str = argument(help="of the corpus or the tokenizer, the second word")
    tokenizer: str | None = argument(None, help="of a corpus; default: where the one it was built with lay")
    corpus: str | None = argument(None, help="counts the tokens of a tokenizer")
    split: str = argument("train", help="train or validation", choices=("train", "validation"))
    row: int = argument(0, help="number of the first document or instance", at_least=0)
    rows: int = argument(3, help="documents or instances to show", at_least=0)
    max_seq_length: int = argument(128, help="tokens of an instance, special ones included", at_least=5)
    epoch: int = argument(0, help="pass over the corpus, from 0", at_least=0)
    output_dir: str | None = argument(None, help="keep inspection.json and inspection.png there")
    # Not an option here: it replaces no token.
    left_to_right: bool = dataclasses.field(default=False, init=False)


@command_line
def main() -> None:
    """Open, look, print."""
    arguments = parse_arguments(InspectArguments, argv=words_as_options(sys.argv[1:]), description=__doc__)
    result = look(arguments)
    print("\n".join(result.lines))
    if arguments.output_dir is not None:
        output = Path(arguments.output_dir)
        with writing(f"--output_dir {output}"):
            output.mkdir(parents=True, exist_ok=True)
        write_json(output / "inspection.json", result.figures)
        draw_histograms(result.histograms, output / "inspection.png")
        print(f"{output}: inspection.json, inspection.png")


def words_as_options(argv: list[str]) -> list[str]:
    """Return the command line with its first two words, unless they are options, as --what and --directory."""
    options = ["--what", "--directory"]
    words = []
    while options and argv and not argv[0].startswith("-"):
        words += [options.pop(0), argv[0]]
        argv = argv[1:]
    return words + argv


def look(arguments: InspectArguments) -> Inspection:
    """Inspect the directory."""
    paint = painted if sys.stdout.isatty() and "NO_COLOR" not in os.environ else plain
    if arguments.what == "tokenizer":
        tokenizer = load_tokenizer(arguments.directory)
        corpus = None if arguments.corpus is None else Corpus.open(arguments.corpus, tokenizer)
        return inspect_tokenizer(tokenizer, corpus, paint=paint)
    corpus = Corpus.open(arguments.directory)
    tokenizer = load_tokenizer(arguments.tokenizer or corpus.manifest["arguments"]["tokenizer"])
    corpus = Corpus.open(arguments.directory, tokenizer, arguments.max_seq_length if arguments.what == "batch" else 0)
    rows: dict[str, Any] = {"split": arguments.split, "first": arguments.row, "count": arguments.rows, "paint": paint}
    if arguments.what == "corpus":
        return inspect_corpus(corpus, tokenizer, **rows)
    rows |= {"max_seq_length": arguments.max_seq_length, "epoch": arguments.epoch}
    return inspect_batch(corpus, tokenizer, arguments, **rows)


if __name__ == "__main__":
    main()

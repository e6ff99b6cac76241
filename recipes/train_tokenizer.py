"""Train a WordPiece tokenizer on your own text.

    hfbert tokenizer --text data/*.txt --output_dir runs/tokenizer --vocab_size 30522

reads .txt, .jsonl and .parquet files (also .gz and .zst of the first two), directories of these, directories saved by
`datasets`, and data sets of the Hub (hub:NAME:CONFIGURATION:SPLIT), and leaves a directory that
`AutoTokenizer.from_pretrained` opens, with record.json beside the tokenizer's files.

Supports: cased and uncased vocabularies of any size, uncased ones that keep accents and vowel signs, any language
BERT's word rules fit, text of any size (it is streamed, twice), the same result for the same text.
Does not support: other algorithms than WordPiece, adding tokens to a trained vocabulary, segmenting text without
blanks between its words.
"""

import dataclasses
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from hfbert_scratch.text.readers import read_documents
from hfbert_scratch.text.sources import TextSource, describe_sources, find_sources
from hfbert_scratch.text.tokenizer import TextLosses, save_tokenizer, tokenizer_hash, train_wordpiece
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import write_json, writing
from hfbert_scratch.utils.progress import ProgressReporter


@dataclasses.dataclass
class TokenizerArguments:
    """The command line."""

    text: list[str] = argument(help="Files, directories, glob patterns, or hub:NAME[:CONFIGURATION[:SPLIT]]")
    output_dir: str = argument(help="Directory for the tokenizer")
    vocab_size: int = argument(30522, help="Number of tokens, special ones and characters included")
    lowercase: bool = argument(True, help="Uncased (lower case, no accents) or cased")
    strip_accents: bool = argument(
        True, help="Uncased only: strip accents and vowel signs; false keeps them, as Hindi and Vietnamese need"
    )
    model_max_length: int = argument(512, help="Longest sequence the model will take, stored with the tokenizer")
    text_column: str = argument("text", help="Field or column with the text in .jsonl, .parquet and data sets")
    encoding_errors: str = argument("strict", help="strict: refuse bytes that are not UTF-8; replace: put U+FFFD")


class Text:
    """Iterate over the documents of `sources`, several times, reporting the progress."""

    def __init__(self, arguments: TokenizerArguments, sources: list[TextSource]) -> None:
        self.arguments, self.sources = arguments, sources
        self.bytes = self.documents = self.passes = 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        # The first pass measures the unpacked text.
        progress = ProgressReporter(f"pass {self.passes}", total=self.bytes)
        self.documents = 0
        for document in read_documents(
            self.sources, text_column=self.arguments.text_column, encoding_errors=self.arguments.encoding_errors
        ):
            self.documents += 1
            progress.add(len(document.encode("utf-8")))
            yield document
        self.bytes = progress.done
        print(progress.line(), flush=True)
        if not self.documents:
            raise InputError(f"{describe_sources(self.sources)} holds no text")


@command_line
def main() -> None:
    """Train, save, compare, record."""
    arguments = parse_arguments(TokenizerArguments, description=__doc__)
    output = Path(arguments.output_dir)
    if arguments.model_max_length < 4:
        raise InputError(f"--model_max_length {arguments.model_max_length} leaves no room for text; use 512")
    with writing(f"--output_dir {output}"):
        output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    text = Text(arguments, find_sources(arguments.text))
    losses = TextLosses()
    tokenizer = train_wordpiece(
        text,
        vocab_size=arguments.vocab_size,
        lowercase=arguments.lowercase,
        strip_accents=arguments.strip_accents,
        model_max_length=arguments.model_max_length,
        losses=losses,
    )
    save_tokenizer(tokenizer, output)
    seconds = time.monotonic() - start
    record = {
        "arguments": dataclasses.asdict(arguments),
        "vocab_size": len(tokenizer),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "documents": text.documents,
        "bytes": text.bytes,
        "warnings": losses.warnings(),
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(text.bytes / 1e6 / seconds, 2),
        "versions": {name: version(name) for name in ("tokenizers", "transformers")}
        | {"python": platform.python_version()},
    }
    write_json(output / "record.json", record)
    for warning in losses.warnings():
        print(f"warning: {warning}")
    print(
        f"{output}: {len(tokenizer)} tokens from {text.documents} documents ({text.bytes / 1e6:.1f} MB) "
        f"in {seconds:.1f} s"
    )
    if len(tokenizer) < arguments.vocab_size:
        print(
            f"the text has no more pairs that occur twice: {len(tokenizer)} tokens instead of {arguments.vocab_size}; "
            "pretraining takes that size by itself; more text gives more tokens"
        )


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Train a WordPiece tokenizer on your own text, or add words of it to a checkpoint's vocabulary.

    hfbert tokenizer --text data/*.txt --output_dir runs/tokenizer
    hfbert tokenizer --extend bert-base-uncased --add 500 --text domain/*.txt \\
        --output_dir runs/extended

reads .txt, .jsonl and .parquet files (also .gz and .zst of the first two), directories of these, directories saved by
`datasets`, and data sets of the Hub (hub:NAME@REVISION:CONFIGURATION:SPLIT), and leaves a directory that
`AutoTokenizer.from_pretrained` opens, with record.json beside the tokenizer's files. With --extend the directory is
the checkpoint with a row for every new word, [unusedN] rows first; then follows hfbert pretrain --config continue.

Supports: cased and uncased vocabularies of any size, uncased ones that keep accents and vowel signs, any language
BERT's word rules fit, words as your segmenter left them (--pre_tokenizer segmented), text of any size (it is streamed,
twice), the same result for the same text.
Does not support: other algorithms than WordPiece, segmenting text without blanks between its words.
"""

import dataclasses
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from hfbert_scratch.text.readers import read_documents
from hfbert_scratch.text.sources import SOURCES_HELP, TextSource, describe_sources, find_sources
from hfbert_scratch.text.tokenizer import (
    FORMS,
    NO_FORM,
    TextLosses,
    describe_words,
    save_tokenizer,
    tokenizer_hash,
    train_wordpiece,
    word_warnings,
)
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import write_json, writing
from hfbert_scratch.utils.progress import ProgressReporter


# Documents on which pieces per word are counted, at most.
_SAMPLE_DOCUMENTS = 1000


@dataclasses.dataclass
class TokenizerArguments:
    """The command line."""

    text: list[str] = argument(help=SOURCES_HELP)
    output_dir: str = argument(help="directory for the tokenizer")
    extend: str | None = argument(
        None, help="a WordPiece checkpoint whose vocabulary gets words of the text", group="extend a checkpoint"
    )
    add: int = argument(
        0, help="with --extend: words to add, at most", group="extend a checkpoint", at_least=0, at_most=1_000_000
    )
    vocab_size: int = argument(30522, help="number of tokens, special ones and characters included")
    lowercase: bool = argument(True, help="uncased (lower case, no accents) or cased")
    strip_accents: bool = argument(
        True, help="uncased only: strip accents and vowel signs; false keeps them, as Hindi and Vietnamese need"
    )
    pre_tokenizer: str = argument(
        "bert",
        help="bert: ideographs are words of their own; segmented: blanks separate words, as a segmenter left them: "
        "--whole_word then masks these words",
        choices=("bert", "segmented"),
    )
    unicode_form: str = argument(
        NO_FORM,
        help="Unicode form to which the tokenizer brings every text, now and later; none: text stays as it is",
        choices=(NO_FORM, *FORMS),
    )
    model_max_length: int = argument(512, help="longest sequence the model will take, stored with the tokenizer")
    text_column: str = argument("text", help="field or column with the text in .jsonl, .parquet and data sets")
    encoding_errors: str = argument("strict", help="strict: refuse bytes that are not UTF-8; replace: put U+FFFD")

    def __post_init__(self) -> None:
        if bool(self.extend) != bool(self.add):
            raise InputError("--extend and --add are given together: a checkpoint, and how many words it gets")
        if self.extend:
            for name in (
                "vocab_size",
                "lowercase",
                "strip_accents",
                "pre_tokenizer",
                "unicode_form",
                "model_max_length",
            ):
                if getattr(self, name) != TokenizerArguments.__dataclass_fields__[name].default:
                    raise InputError(f"--{name} is for a new vocabulary; with --extend the checkpoint's rules stay")


class Text:
    """Iterate over the documents of `sources`, several times, reporting the progress."""

    def __init__(self, arguments: TokenizerArguments, sources: list[TextSource]) -> None:
        self.arguments, self.sources = arguments, sources
        self.bytes = self.documents = self.passes = 0
        self.sample: list[str] = []  # evenly spread over the text: every document whose number a power of two divides
        self._every = 1

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        # The first pass measures the unpacked text.
        progress = ProgressReporter(f"pass {self.passes}", total=self.bytes)
        self.documents = 0
        for document in read_documents(
            self.sources, text_column=self.arguments.text_column, encoding_errors=self.arguments.encoding_errors
        ):
            self.documents += 1
            if self.passes == 1 and self.documents % self._every == 0:
                self.sample.append(document)
                if len(self.sample) > _SAMPLE_DOCUMENTS:
                    self.sample, self._every = self.sample[1::2], 2 * self._every
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
    if arguments.extend:
        extend(arguments)
        return
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
        segmented=arguments.pre_tokenizer == "segmented",
        unicode_form=arguments.unicode_form,
        model_max_length=arguments.model_max_length,
        losses=losses,
    )
    save_tokenizer(tokenizer, output)
    seconds = time.monotonic() - start
    figures = describe_words(tokenizer, text.sample)
    warnings = losses.warnings() + word_warnings(figures)
    record = {
        "arguments": dataclasses.asdict(arguments),
        "vocab_size": len(tokenizer),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "documents": text.documents,
        "bytes": text.bytes,
        **figures,
        "warnings": warnings,
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(text.bytes / 1e6 / seconds, 2),
        "versions": {name: version(name) for name in ("tokenizers", "transformers")}
        | {"python": platform.python_version()},
    }
    write_json(output / "record.json", record)
    for warning in warnings:
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


def extend(arguments: TokenizerArguments) -> None:
    """Add words to a checkpoint's vocabulary, and print and record the difference."""
    from hfbert_scratch.conversion.vocabulary import MIN_COUNT, extend_vocabulary, table  # imports torch

    text = Text(arguments, find_sources(arguments.text))
    record = extend_vocabulary(str(arguments.extend), text, arguments.add, arguments.output_dir)
    write_json(Path(arguments.output_dir) / "record.json", {"arguments": dataclasses.asdict(arguments)} | record)
    words, sizes = record["words"], record["vocab_size"]
    shown = ", ".join(f"{word['word']} ({' '.join(word['pieces'])})" for word in words[:8])
    print(f"{len(words)} words added, {record['unused_rows']} of them in unused rows: {shown}, …")
    if len(words) < arguments.add:
        print(f"not more than {len(words)}: the text has no others of several pieces that occur {MIN_COUNT} times")
    if lost := record["newly_unknown"]:
        print(f"warning: {len(lost)} words of the text are unknown now: {', '.join(lost[:8])}")
    print(table(record))
    print(
        f"{arguments.output_dir}: {sizes['before']} tokens before, {sizes['after']} now; the new rows are means of "
        "old ones, which hfbert pretrain --config continue turns into words of their own"
    )


if __name__ == "__main__":
    main()

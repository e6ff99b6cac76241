# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Write pretraining data as google-research/bert does: every pair and mask fixed, the corpus read `dupe_factor` times.

    hfbert pretraining-data --corpus runs/corpus --tokenizer runs/tokenizer \\
        --output_dir runs/static

Leaves a directory that `datasets.load_from_disk` opens, with the columns any BertForPreTraining takes, for other
training loops (transformers' Trainer with its default collator, for one). `hfbert pretrain` does not need it: it
samples the same instances from the corpus while training, from a few bytes per token for any number of epochs.

Supports: the masking and pair options of hfbert pretrain. Does not support: resuming.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.static import write_static_instances
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import versions
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import write_json


@dataclass(kw_only=True)
class StaticArguments(PretrainingDataArguments):
    """The command line."""

    corpus: str = argument(help="directory written by hfbert corpus")
    tokenizer: str = argument(help="directory written by hfbert tokenizer; must be the corpus's")
    output_dir: str = argument(help="a new directory")
    max_seq_length: int = argument(128, help="tokens in a sequence, special ones included")
    dupe_factor: int = argument(
        10, help="passes over the corpus, each with fresh pairs and masks (10 in google-research/bert)", at_least=1
    )
    # Not an option here: other training loops make the labels of a left-to-right model themselves.
    left_to_right: bool = dataclasses.field(default=False, init=False)


@command_line
def main() -> None:
    """Sample, mask, write."""
    arguments = parse_arguments(StaticArguments, description=__doc__)
    output, start = Path(arguments.output_dir), time.monotonic()
    if output.exists() and any(output.iterdir()):
        raise InputError(f"output_dir {output} is not empty; name a new directory")
    tokenizer = load_tokenizer(arguments.tokenizer)
    corpus = Corpus.open(arguments.corpus, tokenizer, arguments.max_seq_length)
    if arguments.whole_word and (note := corpus.whole_word_note(tokenizer)):
        print(f"warning: {note}")
    rows = write_static_instances(
        corpus, tokenizer, arguments, output, arguments.max_seq_length, arguments.dupe_factor
    )
    record = {
        "arguments": dataclasses.asdict(arguments),
        "rows": rows,
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
    }
    write_json(output / "record.json", record)
    print(f"{output}: open it with datasets.load_from_disk")


if __name__ == "__main__":
    main()

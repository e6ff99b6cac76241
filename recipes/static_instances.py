"""Write pretraining data the way the original does: every pair and mask fixed, the corpus copied `dupe_factor` times.

    python recipes/static_instances.py --corpus runs/corpus --tokenizer runs/tokenizer --output_dir runs/static

leaves a directory that `datasets.load_from_disk` opens, with the columns any BertForPreTraining takes, for training
with other people's loops (transformers' Trainer with its default collator, for one). pretrain.py does not need it: it
draws the same rows from the corpus while training, in a few bytes a token for any number of epochs.

Supports: the masking and pair options of pretrain.py. Does not support: resuming.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hfbert_scratch.arguments import argument, parse_arguments
from hfbert_scratch.corpus import Corpus, describe_for_datasets
from hfbert_scratch.environment import versions
from hfbert_scratch.errors import InputError, OutputError, command_line
from hfbert_scratch.pretraining import PairSettings, static_instances
from hfbert_scratch.shard_writing import write_batch
from hfbert_scratch.tokenization import load_tokenizer


@dataclass(kw_only=True)
class StaticArguments:
    """The command line."""

    corpus: str = argument(help="directory written by build_corpus.py")
    tokenizer: str = argument(help="directory written by train_tokenizer.py; must be the corpus's")
    output_dir: str = argument(help="a new directory")
    max_seq_length: int = argument(128, help="tokens in a sequence, special ones included")
    dupe_factor: int = argument(10, help="passes over the corpus, each with fresh pairs and masks (original: 10)")
    max_predictions_per_seq: int = argument(0, help="at most; 0: 15 %% of the length, rounded up (20 of 128)")
    short_seq_prob: float = argument(0.1, help="share of document passes with a random shorter length")
    balanced_nsp: bool = argument(True, help="exactly half NotNext; false: the original's fair coin, about 55 %%")
    whole_word: bool = argument(False, help="mask all pieces of a word together")
    random_special: bool = argument(False, help="random tokens may be special ones, as in the original code")
    no_nsp: bool = argument(False, help="contiguous spans without next-sentence pairs")
    seed: int = argument(0, help="of pairs and masks")

    def __post_init__(self) -> None:
        if self.dupe_factor < 1:
            raise InputError(f"dupe_factor is {self.dupe_factor}; it must be at least 1")


@command_line
def main() -> None:
    """Draw, mask, write."""
    arguments = parse_arguments(StaticArguments, description=__doc__)
    output, start = Path(arguments.output_dir), time.monotonic()
    if output.exists() and any(output.iterdir()):
        raise InputError(f"output_dir {output} is not empty; name a new directory")
    tokenizer = load_tokenizer(arguments.tokenizer)
    corpus = Corpus.open(arguments.corpus, tokenizer, arguments.max_seq_length)
    names = {field.name for field in dataclasses.fields(PairSettings)} & set(dataclasses.asdict(arguments))
    settings = PairSettings(next_sentence=not arguments.no_nsp, **{name: getattr(arguments, name) for name in names})

    files: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    try:
        for split in corpus.manifest["splits"]:
            (output / split).mkdir(parents=True)
            files[split], rows[split] = [], 0
            # Held-out rows are never copied: one pass.
            passes = arguments.dupe_factor if split == "train" else 1
            drawn = static_instances(corpus, split, tokenizer, settings, arguments.max_seq_length, passes)
            for number, columns in enumerate(drawn):
                files[split].append(f"data-{number:05d}.arrow")
                write_batch(output / split / files[split][-1], as_arrow(columns))
                rows[split] += len(columns["input_ids"])
                print(f"{split}: {rows[split]} rows, {time.monotonic() - start:.0f} s", flush=True)
        describe_for_datasets(output, files)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error}); remove it and start again elsewhere") from error
    record = {
        "arguments": dataclasses.asdict(arguments),
        "rows": rows,
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
    }
    (output / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{output}: open it with datasets.load_from_disk")


def as_arrow(columns: dict[str, np.ndarray]) -> pa.RecordBatch:
    """Matrices become columns of fixed-size lists, without a copy."""
    arrays = {name: pa.array(values.reshape(-1)) for name, values in columns.items()}
    for name, values in columns.items():
        if values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], values.shape[1])
    return pa.record_batch(arrays)


if __name__ == "__main__":
    main()

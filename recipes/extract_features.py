# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Feature vectors of the texts in a file: from any layers of any encoder, per token or pooled (paper, section 5.3).

    hfbert features --model runs/pretrain/model --text sentences.txt \\
        --output_dir runs/features --layers -1 -2 -3 -4 --format jsonl

--text: plain text with one text a line, " ||| " between the two texts of a pair; or .jsonl or .parquet with a column
`text`. Leaves features-00000.jsonl (.npz, .parquet) and so on in output_dir, and record.json. jsonl is what
google-research/bert's extract_features.py writes; it is also by far the largest. Killed at any moment, the same
command continues with the part it was at and ends with the same files.

Supports: directories and Hub names that AutoModel opens as an encoder and that have a WordPiece tokenizer (BERT,
DistilBERT, ELECTRA); CPU or one GPU; float32 and bfloat16.
Does not support: several processes (split the text and give each an output_dir of its own); encoder-decoders; other
tokenizers, as RoBERTa's and XLM-R's, which `hfbert_scratch.features.encode` takes from Python.
"""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hfbert_scratch.features.encoder import POOLINGS, encode, load_encoder, weights_hash
from hfbert_scratch.features.files import FORMATS, FeatureFile, FeatureSchema, TextFile, write_parts
from hfbert_scratch.model.inference import default_batch_tokens, inference_copy
from hfbert_scratch.text.tokenizer import load_tokenizer, tokenizer_hash
from hfbert_scratch.training.accelerator import best_device, fastest_precision
from hfbert_scratch.training.hardware.throughput import clock
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware, hub_commits, versions
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import differences, read_json, write_json, writing


@dataclass(kw_only=True)
class FeatureArguments:
    """The command line."""

    model: str = argument(help="directory or Hub name of a checkpoint; its encoder is used")
    text: str = argument(help="texts: one a line, or .jsonl or .parquet; text and jsonl also as .gz")
    output_dir: str = argument(help="directory for the features; started again with the same command, it continues")
    tokenizer: str | None = argument(None, help="directory or Hub name; default: the model's")
    text_column: str = argument("text", help="of jsonl and parquet")
    pair_column: str | None = argument(None, help="of jsonl and parquet: the second text of pairs")
    layers: list[int] = argument(
        [-1, -2, -3, -4], help="0 the embeddings, 1 the first layer…, -1 the last; default: the last four"
    )
    pooling: str = argument("none", help="none: a vector per token; mean, max, cls, pooler: one per text")
    format: str = argument("jsonl", help="jsonl (as google-research/bert's), npz or parquet")
    max_seq_length: int | None = argument(None, help="longer texts are truncated; default: the model's limit")
    precision: str = argument("float32", help="float32, bfloat16, or auto: the faster, timed on CPUs")
    batch_tokens: int | None = argument(
        None, help="tokens in a forward pass, padding included; default: 2048 on a CPU, 16384 on a GPU"
    )
    part_texts: int = argument(1000, help="texts in a file", at_least=1)
    log_every: float = argument(10.0, help="seconds between progress lines")

    def __post_init__(self) -> None:
        for name, known in (
            ("format", FORMATS),
            ("pooling", ("none", *POOLINGS)),
            ("precision", ("float32", "bfloat16", "auto")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if len(set(self.layers)) < len(self.layers):
            raise InputError(f"layers {self.layers} names a layer twice")


class Record:
    """record.json of an output directory: the settings and the finished files. A continued run starts from it."""

    def __init__(self, directory: Path, arguments: FeatureArguments, settings: dict[str, Any]):
        self.path = directory / "record.json"
        self.entries: dict[str, Any] = {"status": "running", "settings": settings, "parts": [], "seconds": 0.0}
        if self.path.is_file():
            self.entries = read_json(self.path, "the record of an earlier run")
            if differing := differences(self.entries.get("settings", {}), settings):
                raise InputError(
                    f"{directory} holds features made with other settings ({differing}); "
                    "use those, or another output_dir"
                )
        elif directory.exists() and any(directory.iterdir()):
            raise InputError(f"output_dir {directory} is not empty and holds no features; name another")
        self.entries |= {"arguments": dataclasses.asdict(arguments), "versions": versions(), "from_hub": hub_commits()}
        # A deleted file and all files after it are written again.
        present = [(directory / part["file"]).is_file() for part in self.entries["parts"]]
        del self.entries["parts"][present.index(False) if False in present else len(present) :]
        self.write()

    @property
    def parts(self) -> list[dict[str, Any]]:
        return self.entries["parts"]

    def total(self, key: str) -> int:
        """Return the sum of `key` over the finished files."""
        return sum(part[key] for part in self.parts)

    def write(self, **entries: Any) -> None:
        """Write the record with `entries` added."""
        self.entries |= entries
        with writing(self.path.parent, "choose another output_dir"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.entries)


@command_line
def main() -> None:
    """Open the model, encode the texts, write the files."""
    arguments = parse_arguments(FeatureArguments, description=__doc__)
    texts = TextFile(Path(arguments.text), arguments.text_column, arguments.pair_column)
    count, fingerprint = texts.check()
    print(f"{arguments.text}: {count} texts", flush=True)
    device = best_device()
    model = load_encoder(arguments.model, device)
    model_hash = weights_hash(model)
    tokenizer: Any = load_tokenizer(arguments.tokenizer or arguments.model, model=arguments.model)
    precision = fastest_precision(device) if arguments.precision == "auto" else arguments.precision
    model = inference_copy(model, getattr(torch, precision))
    pooling = None if arguments.pooling == "none" else arguments.pooling
    batch_tokens = default_batch_tokens(device) if arguments.batch_tokens is None else arguments.batch_tokens
    encoder = partial(
        encode,
        model,
        tokenizer,
        layers=arguments.layers,
        pooling=pooling,
        max_seq_length=arguments.max_seq_length,
        batch_tokens=batch_tokens,
    )
    encoder([])  # refuses settings that do not fit the model before a file is written
    settings = {
        "texts": fingerprint,
        "model": model_hash,
        "tokenizer": tokenizer_hash(tokenizer),
        "precision": precision,
        "batch_tokens": batch_tokens,
    } | {name: getattr(arguments, name) for name in ("layers", "pooling", "format", "max_seq_length", "part_texts")}
    directory = Path(arguments.output_dir)
    record = Record(directory, arguments, settings)
    if record.parts:
        print(f"continuing after {len(record.parts)} finished parts, {record.total('texts')} texts", flush=True)
    schema = FeatureSchema(tuple(arguments.layers), pooling, model.config.hidden_size, tokenizer.convert_ids_to_tokens)
    extract(arguments, directory, texts, count, encoder, schema, record)
    cut = record.total("cut_texts")
    record.write(status="done", hardware=hardware(device), texts=count, tokens=record.total("tokens"), cut_texts=cut)
    if cut:
        print(f"{cut} of {count} texts were longer than max_seq_length and are represented by their beginning")
    print(f"{directory}: {len(record.parts)} {arguments.format} files, record.json")


def extract(
    arguments: FeatureArguments,
    directory: Path,
    texts: TextFile,
    count: int,
    encoder: Any,
    schema: FeatureSchema,
    record: Record,
) -> None:
    """Write the missing files, with a progress line every few seconds."""
    before, earlier = record.total("texts"), record.entries["seconds"]
    start = last_line = time.monotonic()
    finished = tokens = 0
    written = write_parts(directory, arguments.format, schema, texts, encoder, arguments.part_texts, len(record.parts))
    for item in written:
        now = time.monotonic()
        if isinstance(item, FeatureFile):
            record.parts.append(dataclasses.asdict(item))
            record.write(seconds=round(earlier + now - start, 1))
            continue
        finished += 1
        tokens += len(item.input_ids)
        if now - last_line >= arguments.log_every or before + finished == count:
            last_line = now
            rate = finished / (now - start)
            print(
                f"{before + finished}/{count} texts, {rate:.0f} texts/s, "
                f"{tokens / (now - start) / 1e3:.1f}k tokens/s, eta {clock((count - before - finished) / rate)}",
                flush=True,
            )


if __name__ == "__main__":
    main()

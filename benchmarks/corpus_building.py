"""From text to a corpus on disk, one core, against a `datasets.map` loop and the original script.

    python benchmarks/corpus_building.py [--text sentences.txt] [--tokenizer DIR]
        [--original bert/create_pretraining_data.py] [--lddl LDDL/lddl/dask/bert/pretrain.py]

Both sides read the same file, one sentence a line, a blank line between documents (the original's format; ours splits
the lines all the same). The other side is a `datasets.map` loop as one would write it: the fast tokenizer in batches,
then segment pairs document by document, saved to disk. With --original it is also the script published with the paper
(records built, not written), and static instances from text to disk are compared with it: `build_corpus` and
`static_instances` together. With --lddl it is also what NVIDIA's LDDL does, on the lines of a document joined. The
slower sides take the beginning of the text; their time is scaled to all of it.
Checked on the way: our token ids are the tokenizer's, sentence by sentence.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from generated_text import TextGenerator
from harness import record
from lddl_functions import LDDLFunctions
from one_core import compare_with_part, use_one_core
from original_script import OriginalScript

from hfbert_scratch.corpus.arguments import BuildArguments, PretrainingDataArguments
from hfbert_scratch.corpus.build import build_corpus
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.static import write_static_instances
from hfbert_scratch.text.tokenizer import load_tokenizer, save_tokenizer, train_wordpiece
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import InputError, command_line


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    text: str = argument("", help="text file, one sentence a line, a blank line between documents; default: generated")
    tokenizer: str = argument("", help="directory of a tokenizer; default: one trained on the text")
    original: str = argument("", help="create_pretraining_data.py, with tokenization.py beside it")
    lddl: str = argument("", help="lddl/dask/bert/pretrain.py of a copy of NVIDIA/LDDL")
    megabytes: int = argument(40, help="text to generate")
    megabytes_theirs: float = argument(4.0, help="of it for the slower sides")
    pairs: int = argument(3, help="timings of each side")


def datasets_loop(text: Path, tokenizer: Any, directory: Path, max_seq_length: int = 128) -> None:
    """Documents, `map` with the tokenizer, a loop that makes segment pairs, `save_to_disk`."""
    documents = datasets.Dataset.from_dict({"sentences": list(read_sentences(text))})

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        flat = [sentence for sentences in rows["sentences"] for sentence in sentences]
        ids = tokenizer(flat, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
        ids = iter(ids["input_ids"])
        return {"ids": [[next(ids) for _ in sentences] for sentences in rows["sentences"]]}

    tokenized = documents.map(tokenize, batched=True, remove_columns=["sentences"], batch_size=100)
    cls, sep, rng = tokenizer.cls_token_id, tokenizer.sep_token_id, random.Random(0)
    rows: dict[str, list] = {"input_ids": [], "token_type_ids": [], "next_sentence_label": []}
    columns = tokenized["ids"][:]
    for number, sentences in enumerate(columns):
        for a, b, label in segment_pairs(columns, number, sentences, max_seq_length - 3, rng):
            rows["input_ids"].append([cls, *a, sep, *b, sep])
            rows["token_type_ids"].append([0] * (len(a) + 2) + [1] * (len(b) + 1))
            rows["next_sentence_label"].append(label)
    datasets.Dataset.from_dict(rows).save_to_disk(str(directory))


def segment_pairs(
    documents: list[list[list[int]]], number: int, sentences: list[list[int]], room: int, rng: random.Random
) -> Iterator[tuple[list[int], list[int], int]]:
    """The pairs of one document, token by token and sentence by sentence."""
    chunk: list[list[int]] = []
    index = 0
    while index < len(sentences):
        chunk.append(sentences[index])
        if index == len(sentences) - 1 or sum(map(len, chunk)) >= room:
            split = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            a = [token for sentence in chunk[:split] for token in sentence]
            label = int(len(chunk) == 1 or rng.random() < 0.5)
            if label:
                other = (number + rng.randint(1, len(documents) - 1)) % len(documents)
                start = rng.randrange(len(documents[other]))
                b = [token for sentence in documents[other][start:] for token in sentence][: max(room - len(a), 1)]
                index -= len(chunk) - split
            else:
                b = [token for sentence in chunk[split:] for token in sentence]
            while len(a) + len(b) > room:
                longer = a if len(a) > len(b) else b
                longer.pop(0 if rng.random() < 0.5 else -1)
            yield a, b, label
            chunk = []
        index += 1


def read_sentences(text: Path) -> Iterator[list[str]]:
    """The documents of a file, as lists of sentences."""
    document: list[str] = []
    with open(text, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                document.append(line.strip())
            elif document:
                yield document
                document = []
    if document:
        yield document


class Workload:
    """The files of a comparison, and our side of it."""

    def __init__(self, arguments: BenchmarkArguments, directory: Path) -> None:
        self.directory = directory
        self.text, self.part = directory / "text.txt", directory / "part.txt"
        if arguments.text:
            shutil.copy(arguments.text, self.text)
        else:
            write_documents(self.text, TextGenerator().documents(arguments.megabytes * 1_000_000))
        write_documents(self.part, first_documents(self.text, arguments.megabytes_theirs * 1e6))
        self.scale = self.text.stat().st_size / self.part.stat().st_size
        self.tokenizer_directory = arguments.tokenizer or str(directory / "tokenizer")
        if not arguments.tokenizer:
            texts = [" ".join(document) for document in read_sentences(self.part)]
            save_tokenizer(train_wordpiece(texts, vocab_size=30_522), self.tokenizer_directory)
        self.tokenizer = load_tokenizer(self.tokenizer_directory)

    def corpus(self, text: Path, name: str = "corpus") -> Corpus:
        """Our corpus of `text`, built anew."""
        shutil.rmtree(self.directory / name, ignore_errors=True)
        # The file of a sentence a line has duplicates neither side but ours would drop.
        arguments = BuildArguments(text=[str(text)], tokenizer="benchmark", validation_share=0, drop_duplicates=False)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            corpus = build_corpus(arguments, self.tokenizer, self.directory / name)
        if corpus is None:
            raise InputError(f"{self.directory / name} is being built by another process")
        return corpus

    def static_instances(self, dupe_factor: int) -> None:
        """From the text to static instances of 128 tokens on disk."""
        output = self.directory / "static"
        shutil.rmtree(output, ignore_errors=True)
        write_static_instances(
            self.corpus(self.text), self.tokenizer, PretrainingDataArguments(seed=0), output, 128, dupe_factor
        )

    def compare(self, name: str, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> None:
        """Record a comparison of ours, on the text, with theirs, on its part."""
        result = compare_with_part(ours, theirs, pairs, self.scale)
        tokens, megabytes = self.corpus(self.text).split("train").num_tokens, self.text.stat().st_size / 1e6
        result |= {
            "megabytes": megabytes,
            "megabytes_per_second": megabytes / result["ours_seconds"],
            "theirs_megabytes_per_second": megabytes / result["theirs_seconds"],
            "tokens_per_second": tokens / result["ours_seconds"],
        }
        if name.startswith("corpus"):
            files = [file for file in (self.directory / "corpus").rglob("*") if file.is_file()]
            result["bytes_per_token"] = sum(file.stat().st_size for file in files) / tokens
            result["peak_megabytes"] = self.peak_memory()
        record(name, result)

    def peak_memory(self) -> float:
        """Megabytes that a process which only builds the corpus holds at most."""
        script = Path(__file__).parent.parent / "recipes" / "build_corpus.py"
        options = {"text": self.text, "tokenizer": self.tokenizer_directory, "output_dir": self.directory / "again"}
        command = [sys.executable, str(script), "--validation_share", "0", "--drop_duplicates", "false"]
        command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        watch = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        watched = subprocess.run([sys.executable, "-c", watch, *command], check=True, capture_output=True, text=True)
        return int(watched.stdout) / 1e3

    def check_ids(self) -> None:
        """Our ids of every sentence of the part are the tokenizer's; raises RuntimeError otherwise."""
        shard = self.corpus(self.part, "checked").split("train").shard(0)
        sentences = [sentence for document in read_sentences(self.part) for sentence in document]
        expected = self.tokenizer(sentences, add_special_tokens=False)["input_ids"]
        flat = np.fromiter((token for ids in expected for token in ids), dtype=shard.tokens.dtype)
        if not np.array_equal(flat, shard.tokens):
            raise RuntimeError("the corpus holds other ids than the tokenizer gives")


def first_documents(text: Path, size: float) -> Iterator[list[str]]:
    """Documents from the beginning of `text`, until they have `size` characters."""
    for document in read_sentences(text):
        yield document
        size -= sum(map(len, document))
        if size <= 0:
            return


def write_documents(path: Path, documents: Iterator[list[str]]) -> None:
    """The original's format."""
    with open(path, "w", encoding="utf-8") as file:
        for document in documents:
            file.write("\n".join(document) + "\n\n")


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    use_one_core()
    datasets.disable_progress_bars()
    kind = "own text" if arguments.text else "generated text"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        work = Workload(arguments, directory)
        work.check_ids()

        def loop() -> None:
            datasets_loop(work.part, work.tokenizer, directory / "theirs")

        def ours() -> None:
            work.corpus(work.text)

        work.compare(f"corpus building, {kind}, against a datasets.map loop", ours, loop, arguments.pairs)
        if arguments.lddl:
            lddl = LDDLFunctions(arguments.lddl, work.tokenizer)
            work.compare(
                f"corpus building, {kind}, against LDDL",
                ours,
                lambda: lddl.write(read_sentences(work.part), directory / "pairs.parquet"),
                arguments.pairs,
            )
        if not arguments.original:
            return
        vocabulary = Path(work.tokenizer_directory) / "vocab.txt"
        script = OriginalScript(arguments.original, vocabulary, work.tokenizer.backend_tokenizer.normalizer.lowercase)
        work.compare(
            f"corpus building, {kind}, against the original script",
            ours,
            lambda: script.instances(work.part, 1),
            arguments.pairs,
        )

        def original_instances(copies: int) -> None:
            script.write(script.instances(work.part, copies))

        for copies in (1, 5):
            work.compare(
                f"static instances, {kind}, dupe_factor {copies}, against the original script",
                partial(work.static_instances, copies),
                partial(original_instances, copies),
                arguments.pairs,
            )


if __name__ == "__main__":
    main()

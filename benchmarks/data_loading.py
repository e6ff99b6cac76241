"""Training data: drawing pairs, assembling and masking a batch, against DataLoader + DataCollatorForLanguageModeling.

    python benchmarks/data_loading.py --sequence_length 128

Ours starts from the corpus on disk and draws, assembles and masks every row anew. The other side starts from rows that
are already paired and tokenised, in memory, as `datasets` would hand them over, and only pads and masks. One process
and one thread each; tokens are the real ones.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import compare, record
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling

from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.dataset import TokenizedDocuments, write_documents
from hfbert_scratch.corpus.masking import collate
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    sequence_length: int = argument(128, help="tokens in a row")
    batch_size: int = argument(256, help="rows a batch")
    vocab_size: int = argument(30522, help="tokens")
    pairs: int = argument(5, help="timings of each side")


def random_corpus(directory: Path, vocab_size: int, tokens: int = 1_000_000) -> TokenizedDocuments:
    """Documents of random tokens, with sentences and documents as long as in prose."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(20), 0.8, tokens // 27)).astype(np.int64)
    counts: list[int] = []
    while sum(counts) < len(lengths):
        counts.append(min(int(rng.integers(2, 60)), len(lengths) - sum(counts)))
    write_documents(
        directory / "data.arrow",
        rng.integers(5, vocab_size, lengths.sum()).astype(np.uint16),
        lengths,
        np.array(counts),
    )
    return TokenizedDocuments([directory / "data.arrow"], {"pad": 0, "cls": 2, "sep": 3})


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    words = [f"{'##' if number % 3 == 0 else ''}w{number}" for number in range(arguments.vocab_size - 5)]
    tokenizer = bert_tokenizer({token: number for number, token in enumerate([*SPECIAL_TOKENS, *words])}, True)
    with tempfile.TemporaryDirectory() as directory:
        documents = random_corpus(Path(directory), arguments.vocab_size)
        options = PretrainingDataArguments(seed=0)
        sampler = options.sampler(documents, arguments.sequence_length)
        collator = options.collator(tokenizer, arguments.sequence_length)
        assembled = sampler.to_batch(sampler.sample_buffer(0, 0))
        dataset: Any = [
            {"input_ids": ids[:length].tolist(), "token_type_ids": types[:length].tolist()}
            for ids, types, length in zip(
                assembled["input_ids"], assembled["token_type_ids"], assembled["lengths"], strict=True
            )
        ]
        loader = DataLoader(
            dataset, arguments.batch_size, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        )

        def ours() -> None:
            instances = sampler.sample_buffer(0, 0)
            for start in range(0, len(instances), arguments.batch_size):
                batch, _ = collate(sampler, collator, instances[start : start + arguments.batch_size])
                for column in batch.values():
                    torch.from_numpy(column)

        def theirs() -> None:
            for _ in loader:
                pass

        tokens = int(assembled["lengths"].sum())
        result = compare(ours, theirs, arguments.pairs)
        result |= {
            "tokens_per_second": tokens / result["ours_seconds"],
            "theirs_tokens_per_second": tokens / result["theirs_seconds"],
            "rows": len(dataset),
        }
    record(f"training data, length {arguments.sequence_length}", result)


if __name__ == "__main__":
    main()

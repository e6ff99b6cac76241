"""Write pretraining data as the original does: every pair and mask fixed, for training loops of other libraries."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.files import writing
from .arguments import PretrainingDataArguments
from .dataset import Corpus, TokenizedDocuments, describe_for_datasets, write_batch
from .masking import collate


# Instances per file: 15 MB at a length of 128 and 16 bits an id.
_FILE_INSTANCES = 20_000
# Instances masked at once, so that they stay in the processor's cache.
_CACHED_INSTANCES = 512


def write_static_instances(
    corpus: Corpus,
    tokenizer: Any,
    arguments: PretrainingDataArguments,
    output: Path,
    max_seq_length: int,
    dupe_factor: int,
) -> dict[str, int]:
    """Write `dupe_factor` epochs of masked instances, the same that training draws from the corpus.

    The directory opens with `datasets.load_from_disk` and has the columns of any BertForPreTraining: input_ids,
    token_type_ids, attention_mask and labels (-100 at positions without a prediction), all (instances,
    max_seq_length), and for next-sentence prediction next_sentence_label (instances,).

    Args:
        corpus: the source; both of its splits are written.
        tokenizer: the corpus's.
        arguments: options of pairs and masks.
        output: a new directory.
        max_seq_length: tokens of an instance, special ones included.
        dupe_factor: passes over the train split. The validation split is passed once.

    Returns:
        Instances of each split.

    Raises:
        OutputError: if `output` cannot be written.
    """
    files: dict[str, list[str]] = {}
    written: dict[str, int] = {}
    start = time.monotonic()
    with writing(output, "remove it and start again elsewhere"):
        for split in corpus.manifest["splits"]:
            (output / split).mkdir(parents=True)
            files[split], written[split] = [], 0
            passes = dupe_factor if split == "train" else 1
            for columns in _columns(corpus.split(split), tokenizer, arguments, max_seq_length, passes):
                files[split].append(f"data-{len(files[split]):05d}.arrow")
                write_batch(output / split / files[split][-1], _as_arrow(columns))
                written[split] += len(columns["input_ids"])
                print(f"{split}: {written[split]} rows, {time.monotonic() - start:.0f} s", flush=True)
        describe_for_datasets(output, files)
    return written


def _columns(
    documents: TokenizedDocuments,
    tokenizer: Any,
    arguments: PretrainingDataArguments,
    max_seq_length: int,
    passes: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of one file after another, in the smallest integer types that hold the values."""
    sampler = arguments.sampler(documents, max_seq_length)
    collator = arguments.collator(tokenizer, max_seq_length)
    last_id = len(tokenizer) - 1
    # masked_positions, which serves static shapes only, is left out.
    types: dict[str, np.typing.DTypeLike] = {
        "input_ids": np.min_scalar_type(last_id),
        "token_type_ids": np.int8,
        "attention_mask": np.int8,
        "labels": np.promote_types(np.min_scalar_type(-1 - last_id), np.min_scalar_type(IGNORED_LABEL)),
        "next_sentence_label": np.int8,
    }
    for instances, _ in sampler.batches(_FILE_INSTANCES, epochs=passes):
        columns: dict[str, np.ndarray] = {}
        for begin in range(0, len(instances), _CACHED_INSTANCES):
            batch, _ = collate(sampler, collator, instances[begin : begin + _CACHED_INSTANCES])
            for name in types.keys() & batch.keys():
                values = batch[name]
                if name not in columns:
                    columns[name] = np.empty((len(instances), *values.shape[1:]), types[name])
                columns[name][begin : begin + len(values)] = values
        yield {name: columns[name] for name in types if name in columns}


def _as_arrow(columns: dict[str, np.ndarray]) -> pa.RecordBatch:
    """Turn matrices into columns of fixed-size lists, without a copy."""
    arrays = {name: pa.array(values.reshape(-1)) for name, values in columns.items()}
    for name, values in columns.items():
        if values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], values.shape[1])
    return pa.record_batch(arrays)

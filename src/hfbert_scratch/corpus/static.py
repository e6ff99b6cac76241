"""How instances are drawn and masked whatever their length, and the original's static data made of them."""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.files import writing
from .dataset import Corpus, Documents, describe_for_datasets, write_batch
from .masking import Masking, PretrainingCollator
from .segment_pairs import Instances, SegmentPairs


# Rows of a file of static instances: at a length of 128 and 16 bits an id, 15 MB.
_STATIC_ROWS = 20_000
# Rows made at once, so that they stay in the processor's cache.
_CACHED_ROWS = 512


@dataclass(frozen=True)
class PairSettings:
    """How instances are drawn and masked, whatever their length; see SegmentPairs, Masking, PretrainingCollator."""

    seed: int
    short_seq_prob: float = 0.1
    balanced_nsp: bool = True
    next_sentence: bool = True
    left_to_right: bool = False
    # max_predictions_per_seq: 0 for the share of the length, rounded up (20 of 128, 77 of 512).
    max_predictions_per_seq: int = 0
    masked_lm_prob: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    keep_share: float = 0.1
    whole_word: bool = False
    random_special: bool = False

    def pairs(self, documents: Documents, max_seq_length: int) -> SegmentPairs:
        """The instances of `documents` at this length."""
        return SegmentPairs(
            documents,
            max_seq_length=max_seq_length,
            seed=self.seed,
            short_seq_prob=self.short_seq_prob,
            balanced_nsp=self.balanced_nsp,
            next_sentence=self.next_sentence,
        )

    def collator(self, tokenizer: Any, max_seq_length: int) -> PretrainingCollator:
        """The masking of instances of this length."""
        most = self.max_predictions_per_seq or max(1, math.ceil(max_seq_length * self.masked_lm_prob))
        names = {field.name for field in dataclasses.fields(Masking)} - {"max_predictions_per_seq"}
        masking = Masking(max_predictions_per_seq=most, **{name: getattr(self, name) for name in names})
        return PretrainingCollator(tokenizer, masking, self.seed, self.left_to_right)


def collate(
    pairs: SegmentPairs, collator: PretrainingCollator, instances: Instances
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The model's inputs for `instances`, and the rows' lengths."""
    rows = pairs.assemble(instances) | {"epoch": instances.epoch, "index": instances.index}
    return collator(rows), rows["lengths"]


def write_static_instances(
    corpus: Corpus, tokenizer: Any, settings: PairSettings, output: Path, max_seq_length: int, dupe_factor: int
) -> dict[str, int]:
    """The original's static data: `dupe_factor` passes over the corpus, each with its own pairs and masks, baked in.

    Writes a directory for `datasets.load_from_disk` with what any BertForPreTraining takes: input_ids, token_type_ids,
    attention_mask, labels (-100 where nothing is predicted), all (rows, max_seq_length), and with NSP
    next_sentence_label (rows,). The same rows and masks as `dupe_factor` epochs of training from the corpus itself.
    Held-out rows are never copied: one pass.

    Returns the rows of each split. Raises OutputError if `output` cannot be written.
    """
    files: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    start = time.monotonic()
    with writing(output, "remove it and start again elsewhere"):
        for split in corpus.manifest["splits"]:
            (output / split).mkdir(parents=True)
            files[split], rows[split] = [], 0
            passes = dupe_factor if split == "train" else 1
            for columns in _static_columns(corpus.split(split), tokenizer, settings, max_seq_length, passes):
                files[split].append(f"data-{len(files[split]):05d}.arrow")
                write_batch(output / split / files[split][-1], _as_arrow(columns))
                rows[split] += len(columns["input_ids"])
                print(f"{split}: {rows[split]} rows, {time.monotonic() - start:.0f} s", flush=True)
        describe_for_datasets(output, files)
    return rows


def _static_columns(
    documents: Documents, tokenizer: Any, settings: PairSettings, max_seq_length: int, passes: int
) -> Iterator[dict[str, np.ndarray]]:
    pairs, collator = settings.pairs(documents, max_seq_length), settings.collator(tokenizer, max_seq_length)
    # As many bits as the values take; without what only static shapes need.
    last_id = len(tokenizer) - 1
    types = {
        "input_ids": np.min_scalar_type(last_id),
        "token_type_ids": np.int8,
        "attention_mask": np.int8,
        "labels": np.promote_types(np.min_scalar_type(-1 - last_id), np.min_scalar_type(IGNORED_LABEL)),
        "next_sentence_label": np.int8,
    }
    for instances, _ in pairs.batches(_STATIC_ROWS, epochs=passes):
        columns: dict[str, np.ndarray] = {}
        for begin in range(0, len(instances), _CACHED_ROWS):
            batch, _ = collate(pairs, collator, instances[begin : begin + _CACHED_ROWS])
            for name in types.keys() & batch.keys():
                rows = batch[name]
                if name not in columns:
                    columns[name] = np.empty((len(instances), *rows.shape[1:]), types[name])
                columns[name][begin : begin + len(rows)] = rows
        yield {name: columns[name] for name in types if name in columns}


def _as_arrow(columns: dict[str, np.ndarray]) -> pa.RecordBatch:
    """Matrices become columns of fixed-size lists, without a copy."""
    arrays = {name: pa.array(values.reshape(-1)) for name, values in columns.items()}
    for name, values in columns.items():
        if values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], values.shape[1])
    return pa.record_batch(arrays)

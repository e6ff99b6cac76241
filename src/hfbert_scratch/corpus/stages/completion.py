"""Complete a corpus whose shards are written: the validation split, the manifest and the files of `datasets`."""

import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...text.sample import TextSample
from ...text.sources import TextSource, combined_sha256
from ...utils.files import atomic, read_json, write_json
from ..arguments import BuildArguments
from ..dataset import (
    BUILD,
    FORMAT,
    MANIFEST,
    TOKEN_COUNTS,
    Corpus,
    TokenizedDocuments,
    describe_for_datasets,
    open_batch,
    write_batch,
)
from ..statistics import check_corpus, describe_pairs, describe_split, unigrams_of
from .index import Plan, Unit, open_index, open_plan
from .shards import counts_path, piece_path, record_path


# Tokens per file of the validation split.
_VALIDATION_TOKENS = 1 << 24


def complete(
    output: Path,
    arguments: BuildArguments,
    tokenizer: Any,
    settings: dict[str, Any],
    units: Sequence[Unit],
    seconds: float,
) -> Corpus:
    """Collect the validation split, count and check everything, and write the manifest.

    Args:
        output: the build, with all shards.
        arguments: its options.
        tokenizer: the one that made the shards.
        settings: what must not change when the build continues, without the text.
        units: the units of the text.
        seconds: the time this process has spent so far.

    Raises:
        InputError: if the corpus is unfit for pretraining, see `check_corpus`.
    """
    start = time.monotonic()
    plan = open_plan(output)
    shards = len(plan.borders) - 1
    records = [read_json(record_path(output, number), "corpus build") for number in range(shards)]
    indexed = [open_index(output, number).record for number in range(len(units))]
    files = {
        "train": _without_empty(output / "train", [f"data-{number:05d}.arrow" for number in range(shards)]),
        "validation": _collect_validation(output, shards),
    }
    counts = dict(zip(files, _add_counts(output, shards), strict=True))
    splits = {name: names for name, names in files.items() if names}
    sums = _sums(plan, indexed, records)
    manifest = _describe_corpus(output, arguments, tokenizer, settings["tokenizer_hash"], sums, splits, counts)
    manifest |= _timings(plan, indexed, records, seconds + time.monotonic() - start)
    sources = _describe_sources(units, indexed)
    names = ("bytes", "sha256", "revision")
    content = [{name: source[name] for name in names if name in source} for source in sources]
    manifest["identity"] = settings | {"sources": content}
    manifest["sources"] = sources
    describe_for_datasets(output, files)
    for name in splits:
        with atomic(output / name / TOKEN_COUNTS) as file:
            np.save(file, unigrams_of(counts[name]))
    write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / BUILD, ignore_errors=True)
    return Corpus.open(output)


def _describe_corpus(
    output: Path,
    arguments: BuildArguments,
    tokenizer: Any,
    tokenizer_hash: str,
    sums: dict[str, Any],
    splits: dict[str, list[str]],
    counts: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Describe the content of the splits for the manifest, and check it, the quick figures first."""
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "arguments": arguments.as_manifest(),
        "seed": arguments.seed,
        "max_seq_length": arguments.max_seq_length,
        "tokenizer_hash": tokenizer_hash,
        "vocab_size": len(tokenizer),
        "special_ids": special_ids,
        **sums,
        "splits": {
            name: {"files": names, **describe_split(counts[name], special_ids["unk"])}
            for name, names in splits.items()
        },
    }
    check_corpus(manifest)  # before what takes long
    manifest["pairs"] = {
        name: describe_pairs(
            TokenizedDocuments([output / name / file for file in names], special_ids),
            arguments.max_seq_length,
            arguments.next_sentence,
        )
        for name, names in splits.items()
    }
    manifest["warnings"] = check_corpus(manifest)
    return manifest


def _sums(plan: Plan, indexed: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up the counts of the units and the shards."""
    return {
        "documents_read": len(plan.kept),
        "duplicates": plan.duplicates,
        "duplicate_rate": round(plan.duplicates / len(plan.kept), 6),
        "null_texts": sum(record["null_texts"] for record in indexed),
        "cut_documents": sum(record["cut_documents"] for record in indexed),
        "documents_without_tokens": sum(record["without_text"] for record in records),
        "documents_with_literal_special_tokens": sum(record["literal_special_tokens"] for record in records),
        "sample": TextSample.merged(record["sample"] for record in records).as_dict(),
    }


def describe_source(source: TextSource, parts: int) -> dict[str, Any]:
    """Describe a source for the record of a build: enough to tell later whether it is still the same."""
    return {
        "name": source.name,
        "bytes": source.size,
        "modified": source.modified,
        "parts": parts,
        **({} if source.revision is None else {"revision": source.revision}),
    }


def _describe_sources(units: Sequence[Unit], indexed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Describe the sources with hashes of their content, combined from their units' hashes."""
    digests: dict[TextSource, list[str]] = {}
    for unit, record in zip(units, indexed, strict=True):
        digests.setdefault(unit.source, []).append(record["sha256"])
    return [
        describe_source(source, len(parts)) | {"sha256": combined_sha256(parts)} for source, parts in digests.items()
    ]


def _timings(
    plan: Plan, indexed: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """Summarise the amount of text, the speed of every stage, and the versions of the libraries."""
    spent = {stage: sum(record["seconds"][stage] for record in records) for stage in ("split", "tokenize", "write")}
    read_again = sum(record["seconds"]["read"] for record in records)
    spent = {"read": sum(record["seconds"] for record in indexed) + read_again, **spent, "all": seconds}
    megabytes = plan.bytes / 1e6
    return {
        "megabytes": round(megabytes, 3),
        "seconds": round(seconds, 2),
        "megabytes_per_second": {stage: round(megabytes / max(time, 1e-9), 2) for stage, time in spent.items()},
        "versions": {name: version(name) for name in ("datasets", "numpy", "pyarrow", "tokenizers")}
        | {"python": platform.python_version()},
    }


def _add_counts(output: Path, shards: int) -> np.ndarray:
    """Add up the counts of all shards, (2, …) int64: train and validation."""
    total = np.load(counts_path(output, 0)).astype(np.int64)
    for number in range(1, shards):
        total += np.load(counts_path(output, number))
    return total


def _without_empty(directory: Path, files: list[str]) -> list[str]:
    """Drop the files without documents, which would disturb readers."""
    return [file for file in files if open_batch(directory / file).num_rows]


def _collect_validation(output: Path, shards: int) -> list[str]:
    """Join the shards' validation documents into files of some million tokens; return their names."""
    files: list[str] = []
    batches: list[pa.RecordBatch] = []
    held = 0

    def write() -> None:
        name = f"data-{len(files):05d}.arrow"
        write_batch(output / "validation" / name, pa.Table.from_batches(batches).combine_chunks().to_batches()[0])
        files.append(name)

    for number in range(shards):
        batch = open_batch(piece_path(output, "validation", number))
        if batch.num_rows:
            batches.append(batch)
            held += len(batch.column("tokens").flatten())
        if held >= _VALIDATION_TOKENS:
            write()
            batches, held = [], 0
    if batches:
        write()
    return files

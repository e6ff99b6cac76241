"""Build a pretraining corpus: text → documents → sentences → token ids → Arrow, with a manifest that is checked.

The directory opens with `datasets.load_from_disk`: splits train and validation, one row a document with `tokens` and
`sentence_lengths`. manifest.json, written last, says what is inside. Segment pairs are drawn from it while training
(segment_pairs.py), so one corpus serves every sequence length, epoch and seed.

One process reads the text, drops duplicates and forms shards; worker processes split, tokenize and write them. What a
shard holds depends on the text and the arguments alone, so the result is the same for any number of processes or
hosts, and a build that was interrupted goes on behind its finished shards.
"""

import contextlib
import multiprocessing
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..text.readers import TextSource, describe_sources, find_sources
from ..text.sample import TextSample
from ..text.sentences import split_sentences
from ..text.tokenizer import check_tokenizer, tokenizer_hash
from ..utils.errors import InputError, OutputError
from ..utils.files import differences, lock, read_json, write_json, writing
from ..utils.progress import Progress
from .arguments import BuildArguments
from .dataset import (
    BUILD,
    FORMAT,
    MANIFEST,
    Corpus,
    TokenizedDocuments,
    describe_for_datasets,
    open_batch,
    write_batch,
)
from .shards import (
    BuildStats,
    Segmenter,
    ShardWriter,
    TextShard,
    is_written,
    piece_path,
    record_path,
    shard_documents,
)
from .statistics import check_corpus, describe_pairs, describe_split


# Tokens of a file of the validation split.
_VALIDATION_TOKENS = 1 << 24


# ---------------------------------------------------------------------------------------------------- building


def build_corpus(
    arguments: BuildArguments,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    num_proc: int = 1,
    num_hosts: int = 1,
    host_index: int = 0,
    segmenter: Segmenter = split_sentences,
) -> Corpus | None:
    """Build the corpus `output_dir` from `arguments.text`, or go on with it, or open it when it is finished.

    `tokenizer` is a transformers tokenizer with BERT's special tokens. `segmenter` takes a document and returns its
    sentences; with several processes it must be a function that can be imported. Several hosts run the same call with
    their `host_index` on a shared file system: each reads all text and writes the shards index, index + num_hosts, …;
    the one that finds all shards finished completes the corpus, the others return None.

    Raises InputError for unusable text or arguments, for a corpus nothing can be learnt from, and for a directory
    that holds something else; OutputError if it cannot be written.
    """
    check_tokenizer(tokenizer, arguments.tokenizer)
    if not 0 <= host_index < num_hosts:
        raise InputError(
            f"--host_index must be between 0 and {num_hosts - 1} (--num_hosts {num_hosts}), not {host_index}"
        )
    if num_proc < 1:
        raise InputError(f"--num_proc must be at least 1, not {num_proc}")
    output, start = Path(output_dir), time.monotonic()
    sources = find_sources(arguments.text)
    identity = _identity(arguments, tokenizer, sources, segmenter)
    if (output / MANIFEST).is_file():
        return _open_finished(output, identity)
    _check_output_dir(output)
    with (
        writing(f"the corpus {output}", "finished shards are kept, the same command goes on"),
        lock(output / BUILD / f"host-{host_index}.lock", wait=False) as alone,
    ):
        if not alone:
            raise OutputError(f"another build is writing to {output}; wait for it, or end it")
        _start_or_resume(output, identity)
        stats = BuildStats()
        shards = shard_documents(arguments, sources, stats)
        workers = _Workers(output, tokenizer, segmenter, num_proc)
        _tokenize_shards(output, shards, workers, num_hosts, host_index, sources)
        if stats.documents == 0:
            raise InputError(f"{describe_sources(sources)} holds no text")
        if (output / MANIFEST).is_file():
            return _open_finished(output, identity)
        with lock(output / BUILD / "completion.lock", wait=False) as first:
            records = _read_records(output, stats.shards) if first else None
            if records is None:
                print(f"{output}: this host is done; the last host to finish completes the corpus", flush=True)
                return None
            return _finalize(output, arguments, tokenizer, identity, stats, records, time.monotonic() - start)


def _open_finished(output: Path, identity: dict[str, Any]) -> Corpus:
    corpus = Corpus.open(output)
    _require_same_build(output, corpus.manifest["identity"], identity)
    return corpus


# ---------------------------------------------------------------------------------------------------- the directory


def _identity(
    arguments: BuildArguments, tokenizer: Any, sources: list[TextSource], segmenter: Segmenter
) -> dict[str, Any]:
    """What must be the same when a build goes on. Text counts by content, not by path."""
    identity = arguments.as_manifest()
    del identity["text"], identity["tokenizer"]
    identity["tokenizer_hash"] = tokenizer_hash(tokenizer)
    identity["segmenter"] = getattr(segmenter, "__qualname__", type(segmenter).__qualname__)
    identity["sources"] = [{"bytes": source.size, "sha256": source.sha256()} for source in sources]
    return identity


def _require_same_build(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    # The digests of the text are long and say nothing to a reader.
    texts = {} if before.get("sources") == now.get("sources") else {"sources": "other content"}
    others = differences(*({key: value for key, value in one.items() if key != "sources"} for one in (before, now)))
    if others or texts:
        differing = "; ".join([*(f"{key}: {value}" for key, value in texts.items()), *([others] if others else [])])
        raise InputError(
            f"{output} was begun with other arguments ({differing}); use them again, or another --output_dir"
        )


def _start_or_resume(output: Path, identity: dict[str, Any]) -> None:
    """Make `output` the directory of this build, or find that it is so already."""
    begun = output / BUILD / "identity.json"
    if begun.is_file():
        _require_same_build(output, read_json(begun, "corpus build"), identity)
    else:
        write_json(begun, identity)
    for split in ("train", "validation"):
        (output / split).mkdir(exist_ok=True)


def _check_output_dir(output: Path) -> None:
    """Before anything is written there: a directory that is no build's must be empty, or not be there."""
    if output.is_dir() and not (output / BUILD / "identity.json").is_file():
        strangers = sorted(path.name for path in output.iterdir() if path.name != BUILD)
        if strangers:
            raise InputError(f"--output_dir {output} is not empty (it has {strangers[0]}); name a new directory")


# ---------------------------------------------------------------------------------------------------- tokenizing


class _Workers:
    """Processes that turn shards into files; with one, the work is done in this process."""

    def __init__(self, output: Path, tokenizer: Any, segmenter: Segmenter, num_proc: int) -> None:
        self.num_proc = num_proc
        self._setup = (str(output), tokenizer.backend_tokenizer.to_str(), len(tokenizer), segmenter)

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[TextShard], Future]]:
        """A function that starts the work on a shard."""
        if self.num_proc == 1:
            writer = ShardWriter(*self._setup)

            def now(shard: TextShard) -> Future:
                done: Future = Future()
                done.set_result(writer.write(shard))
                return done

            yield now
            return
        # Not forked from here: the tokenizer's and Arrow's threads do not survive it. The server they are forked from
        # has imported everything once and started nothing.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        pool = ProcessPoolExecutor(self.num_proc, context, _start_worker, self._setup)
        try:
            yield lambda shard: pool.submit(_write_shard, shard)
        except BrokenProcessPool:
            raise OutputError(
                "a worker process was killed, perhaps for want of memory; use a smaller --num_proc or --shard_mb and "
                "run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker: "ShardWriter"


def _start_worker(*setup: Any) -> None:
    global _worker
    # The processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = ShardWriter(*setup)


def _write_shard(shard: TextShard) -> int:
    return _worker.write(shard)


def _tokenize_shards(
    output: Path,
    shards: Iterator[TextShard],
    workers: _Workers,
    num_hosts: int,
    host_index: int,
    sources: list[TextSource],
) -> None:
    """Have every unfinished shard of this host written."""
    packed = any(source.compression or source.format != "text" for source in sources)
    progress = Progress("corpus", total=0 if packed or num_hosts > 1 else sum(source.size for source in sources))
    running: deque[Future] = deque()
    with workers.running() as start:
        for shard in shards:
            if shard.number % num_hosts != host_index or is_written(output, shard.number):
                continue
            running.append(start(shard))
            # As many shards in memory as there are processes, and one to go on with.
            while len(running) > workers.num_proc:
                progress.add(running.popleft().result())
        while running:
            progress.add(running.popleft().result())
    print(progress.line(), flush=True)


def _read_records(output: Path, shards: int) -> list[dict[str, Any]] | None:
    """The records of all shards, None while some are missing."""
    if not all(is_written(output, number) for number in range(shards)):
        return None
    return [read_json(record_path(output, number), "corpus build") for number in range(shards)]


# ---------------------------------------------------------------------------------------------------- completing


def _finalize(
    output: Path,
    arguments: BuildArguments,
    tokenizer: Any,
    identity: dict[str, Any],
    stats: BuildStats,
    records: list[dict[str, Any]],
    seconds: float,
) -> Corpus:
    """Collect the validation split, count and check everything, and write the manifest."""
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
    files = {
        "train": _without_empty(output / "train", [f"data-{number:05d}.arrow" for number in range(stats.shards)]),
        "validation": _collect_validation(output, stats.shards),
    }
    documents = {
        name: TokenizedDocuments([output / name / file for file in names], special_ids)
        for name, names in files.items()
        if names
    }
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "arguments": arguments.as_manifest(),
        "seed": arguments.seed,
        "max_seq_length": arguments.max_seq_length,
        "tokenizer_hash": identity["tokenizer_hash"],
        "vocab_size": len(tokenizer),
        "special_ids": special_ids,
        "documents_read": stats.documents,
        "duplicates": stats.duplicates,
        "duplicate_rate": round(stats.duplicates / stats.documents, 6),
        "null_texts": stats.reading.null_texts,
        "cut_documents": stats.reading.cut_documents,
        "documents_without_tokens": sum(record["without_text"] for record in records),
        "documents_with_literal_special_tokens": sum(record["literal_special_tokens"] for record in records),
        # Records of earlier versions have no sample.
        "sample": TextSample.merged(record.get("sample", {}) for record in records).as_dict(),
        "splits": {
            name: {"files": files[name], **describe_split(split, len(tokenizer), special_ids["unk"])}
            for name, split in documents.items()
        },
    }
    check_corpus(manifest, arguments.next_sentence, arguments.validation_share)
    manifest["pairs"] = {
        name: describe_pairs(split, arguments.max_seq_length, arguments.next_sentence)
        for name, split in documents.items()
    }
    manifest["warnings"] = check_corpus(manifest, arguments.next_sentence, arguments.validation_share)
    manifest |= _timings(stats, records, seconds)
    manifest["identity"] = identity
    manifest["sources"] = [
        {"name": source.name, **content}
        for source, content in zip(find_sources(arguments.text), identity["sources"], strict=True)
    ]
    describe_for_datasets(output, files)
    write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / BUILD, ignore_errors=True)
    return Corpus.open(output)


def _timings(stats: BuildStats, records: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """How much text took how long, by stage and process, and with which versions."""
    spent = {stage: sum(record["seconds"][stage] for record in records) for stage in ("split", "tokenize", "write")}
    spent = {"read": stats.seconds, **spent, "all": seconds}
    megabytes = stats.bytes / 1e6
    return {
        "megabytes": round(megabytes, 3),
        "seconds": round(seconds, 2),
        "megabytes_per_second": {stage: round(megabytes / max(time, 1e-9), 2) for stage, time in spent.items()},
        "versions": {name: version(name) for name in ("datasets", "numpy", "pyarrow", "tokenizers")}
        | {"python": platform.python_version()},
    }


def _without_empty(directory: Path, files: list[str]) -> list[str]:
    """`files` without those of no document, which would be in the way of everyone who reads them."""
    return [file for file in files if open_batch(directory / file).num_rows]


def _collect_validation(output: Path, shards: int) -> list[str]:
    """Join the shards' validation documents into files of some million tokens; return the files' names."""
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

"""Build a pretraining corpus: text → documents → sentences → token ids → Arrow files, and a checked manifest.

One process reads the text, drops duplicates and forms shards; worker processes split, tokenize and write them. The
content of a shard depends only on the text and the arguments, so the result is the same for any number of processes
or hosts, and an interrupted build continues after its finished shards. manifest.json is written last.

Segment pairs are sampled while training (segment_pairs.py), so one corpus serves every sequence length, epoch and
seed.
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
from ..utils.progress import ProgressReporter
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


# Tokens per file of the validation split.
_VALIDATION_TOKENS = 1 << 24


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
    """Build a corpus, or continue an interrupted build, or open it if it is finished.

    Args:
        arguments: the text and the options that decide the content.
        tokenizer: a transformers tokenizer with BERT's special tokens.
        output_dir: a new directory, or that of the same build.
        num_proc: worker processes. With 1, the work is done in this process.
        num_hosts: hosts that run the same call on a shared file system. Each reads all text and writes every
            `num_hosts`-th shard.
        host_index: the number of this host, from 0.
        segmenter: splits a document into sentences; importable from its module if there are several processes.

    Returns:
        The corpus. None if other hosts have unfinished shards; the last host completes the corpus.

    Raises:
        InputError: if the text or an argument is unusable, the corpus is unfit for pretraining (see `check_corpus`),
            or the directory holds something else.
        OutputError: if the directory cannot be written, or another build is writing there.
    """
    check_tokenizer(tokenizer, arguments.tokenizer)
    _check_workers(num_proc, num_hosts, host_index)
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
            seconds = time.monotonic() - start
            return _finalize(output, arguments, tokenizer, sources, identity, stats, records, seconds)


def _check_workers(num_proc: int, num_hosts: int, host_index: int) -> None:
    if not 0 <= host_index < num_hosts:
        raise InputError(
            f"--host_index must be between 0 and {num_hosts - 1} (--num_hosts {num_hosts}), not {host_index}"
        )
    if num_proc < 1:
        raise InputError(f"--num_proc must be at least 1, not {num_proc}")


def _open_finished(output: Path, identity: dict[str, Any]) -> Corpus:
    """Open the finished corpus if this build is the one that made it."""
    corpus = Corpus.open(output)
    _require_same_build(output, corpus.manifest["identity"], identity)
    return corpus


def _identity(
    arguments: BuildArguments, tokenizer: Any, sources: list[TextSource], segmenter: Segmenter
) -> dict[str, Any]:
    """Collect the settings that must not change when a build continues. Text counts by content, not by path."""
    identity = arguments.as_manifest()
    del identity["text"], identity["tokenizer"]
    identity["tokenizer_hash"] = tokenizer_hash(tokenizer)
    identity["segmenter"] = getattr(segmenter, "__qualname__", type(segmenter).__qualname__)
    identity["sources"] = [{"bytes": source.size, "sha256": source.sha256()} for source in sources]
    return identity


def _require_same_build(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError if the build in `output` has other settings; the digests of the text are not printed."""
    text = "" if before.get("sources") == now.get("sources") else "sources: other content"
    others = differences(before | {"sources": None}, now | {"sources": None})
    if text or others:
        differing = "; ".join(filter(None, (text, others)))
        raise InputError(
            f"{output} was begun with other arguments ({differing}); use them again, or another --output_dir"
        )


def _start_or_resume(output: Path, identity: dict[str, Any]) -> None:
    """Make `output` the directory of this build, or check that it already is."""
    begun = output / BUILD / "identity.json"
    if begun.is_file():
        _require_same_build(output, read_json(begun, "corpus build"), identity)
    else:
        write_json(begun, identity)
    for split in ("train", "validation"):
        (output / split).mkdir(exist_ok=True)


def _check_output_dir(output: Path) -> None:
    """Refuse a non-empty directory that does not belong to a build."""
    if output.is_dir() and not (output / BUILD / "identity.json").is_file():
        strangers = sorted(path.name for path in output.iterdir() if path.name != BUILD)
        if strangers:
            raise InputError(f"--output_dir {output} is not empty (it has {strangers[0]}); name a new directory")


class _Workers:
    """A pool of processes that write shards; with `num_proc` 1, this process writes them."""

    def __init__(self, output: Path, tokenizer: Any, segmenter: Segmenter, num_proc: int) -> None:
        self.num_proc = num_proc
        self._setup = (str(output), tokenizer.backend_tokenizer.to_str(), len(tokenizer), segmenter)

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[TextShard], Future]]:
        """Start the workers; yield a function that submits a shard."""
        if self.num_proc == 1:
            writer = ShardWriter(*self._setup)

            def now(shard: TextShard) -> Future:
                done: Future = Future()
                done.set_result(writer.write(shard))
                return done

            yield now
            return
        # A plain fork would break the threads of the tokenizer and of Arrow. The fork server has imported everything
        # once and started no thread.
        methods = multiprocessing.get_all_start_methods()  # Windows has no fork server
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
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
    # Parallelism comes from the processes.
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
    """Write every unfinished shard of this host, and report the progress."""
    packed = any(source.compression or source.format != "text" for source in sources)
    progress = ProgressReporter(
        "corpus", total=0 if packed or num_hosts > 1 else sum(source.size for source in sources)
    )
    running: deque[Future] = deque()
    with workers.running() as start:
        for shard in shards:
            if shard.number % num_hosts != host_index or is_written(output, shard.number):
                continue
            running.append(start(shard))
            # Bounds the memory: one shard per process, and the next.
            while len(running) > workers.num_proc:
                progress.add(running.popleft().result())
        while running:
            progress.add(running.popleft().result())
    print(progress.line(), flush=True)


def _read_records(output: Path, shards: int) -> list[dict[str, Any]] | None:
    """Read the records of all shards; None if some are missing."""
    if not all(is_written(output, number) for number in range(shards)):
        return None
    return [read_json(record_path(output, number), "corpus build") for number in range(shards)]


def _finalize(
    output: Path,
    arguments: BuildArguments,
    tokenizer: Any,
    sources: list[TextSource],
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
    check_corpus(manifest)
    manifest["pairs"] = {
        name: describe_pairs(split, arguments.max_seq_length, arguments.next_sentence)
        for name, split in documents.items()
    }
    manifest["warnings"] = check_corpus(manifest)
    manifest |= _timings(stats, records, seconds)
    manifest["identity"] = identity
    manifest["sources"] = [
        {"name": source.name, **content} for source, content in zip(sources, identity["sources"], strict=True)
    ]
    describe_for_datasets(output, files)
    write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / BUILD, ignore_errors=True)
    return Corpus.open(output)


def _timings(stats: BuildStats, records: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Summarise the amount of text, the speed of every stage, and the versions of the libraries."""
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

"""Build a pretraining corpus: text → index → plan → shards of token ids, and a checked manifest.

Processes, tasks and hosts that see the same directory build together. Each indexes units of the text that nobody else
has (index.py); when all are indexed, one plans the shards; each writes shards that nobody else has (shards.py); the
last completes the corpus (completion.py). Units and shards depend only on the text and the arguments, so the result is
the same whoever does what, and an interrupted build continues after its finished units and shards.

Segment pairs are sampled while training (segment_pairs.py), so one corpus serves every sequence length, epoch and
seed.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..text.readers import count_parts
from ..text.sentences import split_sentences
from ..text.sources import Part, TextSource, combined_sha256, find_sources
from ..text.tokenizer import check_tokenizer, tokenizer_hash
from ..utils.errors import InputError, OutputError
from ..utils.files import differences, lock, read_json, write_json, writing
from ..utils.progress import ProgressReporter
from .arguments import BuildArguments
from .dataset import BUILD, MANIFEST, Corpus
from .stages.completion import complete, describe_source
from .stages.index import Unit, index_path, index_unit, is_planned, list_units, make_plan, open_index, open_plan
from .stages.shards import Segmenter, ShardReader, ShardWriter, is_written
from .stages.tasks import WorkQueue, do_all, only_task, worker_processes


# The stages of a build. Of every stage but the plan, any number of tasks do a part.
STAGES = ("index", "plan", "write")
# Larger packed files are named, for no second process can read one of them.
_LARGE_PACKED = 1_000_000_000


def build_corpus(
    arguments: BuildArguments,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    num_proc: int = 1,
    num_tasks: int = 1,
    task: int = 0,
    stage: str | None = None,
    segmenter: Segmenter = split_sentences,
) -> Corpus | None:
    """Build a corpus, or continue an interrupted build, or open it if it is finished.

    Args:
        arguments: the text and the options that decide the content.
        tokenizer: a transformers tokenizer with BERT's special tokens.
        output_dir: a new directory, or that of the same build.
        num_proc: processes of this task, this one among them.
        num_tasks: tasks that run the same call, on any hosts with a shared file system.
        task: the number of this task, from 0.
        stage: do a part of this stage only: "index", "plan" or "write". Default: all stages, waiting for the other
            tasks where a stage needs what they do.
        segmenter: splits a document into sentences; importable from its module if there are several processes.

    Returns:
        The corpus. None if it is not complete: after another stage than the last, or while other tasks write shards;
        the last of them completes it.

    Raises:
        InputError: if the text or an argument is unusable, the corpus is unfit for pretraining (see `check_corpus`),
            the text is not the one that was indexed, a stage before `stage` is unfinished, or the directory holds
            something else.
        OutputError: if the directory cannot be written, or another build is writing there.
    """
    check_tokenizer(tokenizer, arguments.tokenizer)
    _check_workers(num_proc, num_tasks, task, stage)
    output, start = Path(output_dir), time.monotonic()
    sources = find_sources(arguments.text)
    settings = _settings(arguments, tokenizer, segmenter)
    if (output / MANIFEST).is_file():
        return _open_finished(output, settings, sources)
    _check_output_dir(output)
    with (
        writing(f"the corpus {output}", "finished shards are kept, the same command goes on"),
        only_task(output / BUILD, task) as alone,
    ):
        if not alone:
            raise OutputError(f"another build is writing to {output}; wait for it, or end it")
        units = _start_or_resume(output, settings, sources, arguments)
        setup = (str(output), arguments, units, tokenizer.backend_tokenizer.to_str(), len(tokenizer), segmenter)
        with _workers(num_proc, setup) as workers:
            if not _Build(output, units, workers, num_proc, num_tasks, task, stage).run(arguments):
                return None
        if (output / MANIFEST).is_file():
            return _open_finished(output, settings, sources)
        with lock(output / BUILD / "completion.lock", wait=False) as first:
            if not first:
                print(f"{output}: another task completes the corpus", flush=True)
                return None
            return complete(output, arguments, tokenizer, settings, units, time.monotonic() - start)


def _check_workers(num_proc: int, num_tasks: int, task: int, stage: str | None) -> None:
    if not 0 <= task < num_tasks:
        raise InputError(f"--task must be between 0 and {num_tasks - 1} (--num_tasks {num_tasks}), not {task}")
    if num_proc < 1:
        raise InputError(f"--num_proc must be at least 1, not {num_proc}")
    if stage is not None and stage not in STAGES:
        raise InputError(f"--stage must be one of {', '.join(STAGES)}, not {stage!r}")


def _settings(arguments: BuildArguments, tokenizer: Any, segmenter: Segmenter) -> dict[str, Any]:
    """Collect the settings that must not change when a build continues. Text counts by content, not by path."""
    settings = arguments.as_manifest()
    del settings["text"], settings["tokenizer"]
    settings["tokenizer_hash"] = tokenizer_hash(tokenizer)
    settings["segmenter"] = getattr(segmenter, "__qualname__", type(segmenter).__qualname__)
    return settings


def _open_finished(output: Path, settings: dict[str, Any], sources: list[TextSource]) -> Corpus:
    """Open the finished corpus if this build is the one that made it."""
    corpus = Corpus.open(output)

    def same_content(number: int, source: TextSource, parts: int) -> bool:
        digests = [source.sha256(Part(part, parts)) for part in range(parts)]
        return combined_sha256(digests) == corpus.manifest["sources"][number]["sha256"]

    before = {name: value for name, value in corpus.manifest["identity"].items() if name != "sources"}
    _require_same_build(output, before, settings, corpus.manifest["sources"], sources, same_content)
    return corpus


def _require_same_build(
    output: Path,
    before: dict[str, Any],
    settings: dict[str, Any],
    described: list[dict[str, Any]],
    sources: list[TextSource],
    same_content: Callable[[int, TextSource, int], bool],
) -> None:
    """Raise InputError if the build in `output` has other settings or other text.

    A source with the name, size and time of change that are recorded is taken for the same; of others, the content is
    compared by `same_content`, whose arguments are number, source and parts.
    """
    others = differences(before, settings)
    text = "" if len(described) == len(sources) else "sources: other content"
    for number, (entry, source) in enumerate(zip(described, sources, strict=False)):
        if source.format == "hub":
            _require_same_revision(output, entry, source)
        elif text or source.size != entry["bytes"]:
            text = "sources: other content"
        elif entry["name"] != source.name or entry.get("modified") != source.modified:
            text = "" if same_content(number, source, entry.get("parts", 1)) else "sources: other content"
    if text or others:
        differing = "; ".join(filter(None, (text, others)))
        raise InputError(
            f"{output} was begun with other arguments ({differing}); use them again, or another --output_dir"
        )


def _require_same_revision(output: Path, entry: dict[str, Any], source: TextSource) -> None:
    """Raise InputError if `source` is another data set of the Hub than the recorded one, or names another commit."""
    there = entry.get("revision")
    now = there
    if entry["name"] != source.name:
        was = dataclasses.replace(source, name=entry["name"]).hub_name
        if was._replace(revision=None) != source.hub_name._replace(revision=None):
            raise InputError(
                f"{output} was begun with other arguments (sources: {entry['name']} there); use them again"
            )
        if source.hub_name.revision is not None:
            now = source.pinned().revision
    if there != now:
        raise InputError(
            f"{output} was begun with {entry['name']} at commit {there}, and {source.name} is at commit {now} now; "
            "name the former commit, or another --output_dir"
        )


def _start_or_resume(
    output: Path, settings: dict[str, Any], sources: list[TextSource], arguments: BuildArguments
) -> list[Unit]:
    """Make `output` the directory of this build, or check that it already is; return the units of its text."""
    begun = output / BUILD / "build.json"
    with lock(output / BUILD / "begin.lock", wait=True):
        if begun.is_file():
            build = read_json(begun, "corpus build")
            pinned = [
                dataclasses.replace(source, revision=entry.get("revision"))
                for source, entry in zip(sources, build["sources"], strict=False)
            ]
            units = list_units(pinned, [entry["parts"] for entry in build["sources"][: len(pinned)]])

            def same_content(number: int, source: TextSource, parts: int) -> bool:
                return all(
                    open_index(output, place).record["sha256"] == source.sha256(unit.part)
                    for place, unit in enumerate(units)
                    if unit.source.name == source.name and index_path(output, place).is_file()
                )

            _require_same_build(output, build["settings"], settings, build["sources"], sources, same_content)
        else:
            pinned = [source.pinned() if source.format == "hub" else source for source in sources]
            parts = [count_parts(source, arguments.text_column) for source in pinned]
            units = list_units(pinned, parts)
            described = [describe_source(source, count) for source, count in zip(pinned, parts, strict=True)]
            write_json(begun, {"settings": settings, "sources": described})
            _warn_of_large_files(pinned)
    for split in ("train", "validation"):
        (output / split).mkdir(exist_ok=True)
    return units


def _warn_of_large_files(sources: list[TextSource]) -> None:
    for source in sources:
        if source.compression and source.size > _LARGE_PACKED:
            print(
                f"warning: {source.name} has {source.size / 1e9:.1f} GB, and one process reads a packed file alone; "
                "split it, or unpack it",
                flush=True,
            )


def _check_output_dir(output: Path) -> None:
    """Refuse a directory that does not belong to a build, or to one of an earlier version."""
    if not output.is_dir() or (output / BUILD / "build.json").is_file():
        return
    if (output / BUILD / "identity.json").is_file():
        raise InputError(
            f"{output} was begun by an earlier version, which forms other shards; finish it with that version, or "
            "name another --output_dir"
        )
    strangers = sorted(path.name for path in output.iterdir() if path.name != BUILD)
    if strangers:
        raise InputError(f"--output_dir {output} is not empty (it has {strangers[0]}); name a new directory")


class _Worker:
    """Index units and write shards, in any process."""

    def __init__(
        self,
        output: str,
        arguments: BuildArguments,
        units: list[Unit],
        tokenizer: str,
        vocab_size: int,
        segmenter: Segmenter,
    ) -> None:
        self.output, self.arguments, self.units = Path(output), arguments, units
        self._writer_setup = (output, tokenizer, vocab_size, segmenter)

    def index(self, number: int) -> int:
        """Index a unit; return the bytes of its documents."""
        return index_unit(self.output, number, self.units[number], self.arguments)

    def write(self, number: int) -> int:
        """Write a shard; return its bytes of text."""
        return self._writer.write(self._reader.read(number))

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self.output, self.units, self.arguments)

    @cached_property
    def _writer(self) -> ShardWriter:
        return ShardWriter(*self._writer_setup)


_worker: _Worker


def _start_worker(*setup: Any) -> None:
    global _worker
    # Parallelism comes from the processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = _Worker(*setup)


def _call_worker(method: str, number: int) -> int:
    return getattr(_worker, method)(number)


@contextlib.contextmanager
def _workers(num_proc: int, setup: tuple[Any, ...]) -> Iterator["_Workers"]:
    """This process is the first worker, and works while the others start."""
    here = _Worker(*setup)
    if num_proc == 1:
        yield _Workers(lambda worker, method, number: _done(getattr(here, method)(number)), [_done(None)])
        return
    with ThreadPoolExecutor(1) as own, worker_processes(num_proc - 1, _start_worker, setup) as (processes, started):

        def submit(worker: int, method: str, number: int) -> Future:
            if worker == 0:
                return own.submit(getattr(here, method), number)
            return processes[worker - 1].submit(_call_worker, method, number)

        yield _Workers(submit, [_done(None), *started])


def _done(result: Any) -> Future:
    future: Future = Future()
    future.set_result(result)
    return future


class _Workers(NamedTuple):
    """The workers of this task."""

    submit: Callable[[int, str, int], Future]  # starts a method of a worker on a number: worker, method, number
    ready: list[Future]  # done when the worker has started


class _Build:
    """This task's part of the stages."""

    def __init__(
        self,
        output: Path,
        units: list[Unit],
        workers: _Workers,
        num_proc: int,
        num_tasks: int,
        task: int,
        stage: str | None,
    ) -> None:
        self.output, self.units, self.workers = output, units, workers
        self.num_proc, self.num_tasks, self.task, self.stage = num_proc, num_tasks, task, stage

    def run(self, arguments: BuildArguments) -> bool:
        """Do the stage that was asked for, or all of them; return whether all shards are written."""
        if self.stage in (None, "index") and not (self.index() and self.stage is None):
            return False
        if self.stage in (None, "plan"):
            self.plan(arguments)
            if self.stage == "plan":
                return False
        done = self.write()
        if not done:
            print(f"{self.output}: this task is done; the last task to finish completes the corpus", flush=True)
        return done

    def index(self) -> bool:
        """Index the units that no other task does; return whether all are indexed."""
        sources = {unit.source for unit in self.units}
        packed = any(source.compression or source.format != "text" for source in sources)
        total = 0 if packed else sum(source.size for source in sources)
        return self._do("index", len(self.units), self._is_indexed, total, wait_for_others=self.stage is None)

    def _is_indexed(self, number: int) -> bool:
        return index_path(self.output, number).is_file()

    def plan(self, arguments: BuildArguments) -> None:
        """Plan the shards, unless another task has."""
        missing = sum(not self._is_indexed(number) for number in range(len(self.units)))
        if missing:
            raise InputError(
                f"{missing} of the {len(self.units)} units of the text are not indexed; run --stage index again"
            )
        with lock(self.output / BUILD / "plan.lock", wait=True):
            if not is_planned(self.output):
                make_plan(self.output, self.units, arguments)

    def write(self) -> bool:
        """Write the shards that no other task does; return whether all are written."""
        if not is_planned(self.output):
            raise InputError(f"the shards of {self.output} are not planned; run --stage plan first")
        plan = open_plan(self.output)

        def is_done(number: int) -> bool:
            return is_written(self.output, number)

        return self._do("write", len(plan.borders) - 1, is_done, plan.bytes, wait_for_others=False)

    def _do(self, stage: str, count: int, is_done: Callable[[int], bool], total: int, wait_for_others: bool) -> bool:
        queue = WorkQueue(self.output / BUILD, stage, count, is_done, self.task)
        progress = ProgressReporter(f"corpus, {stage}", total=0 if self.num_tasks > 1 else total)
        workers = self.num_tasks * self.num_proc
        starts = [count * (self.task * self.num_proc + worker) // workers for worker in range(self.num_proc)]

        def submit(worker: int, number: int) -> Future:
            return self.workers.submit(worker, stage, number)

        done = do_all(queue, submit, self.workers.ready, starts, progress.add, wait_for_others)
        print(progress.line(), flush=True)
        return done

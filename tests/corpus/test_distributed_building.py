"""A corpus is the same, byte for byte, whoever built which part of it, in which order, and however often it failed."""

import errno
import gzip
import hashlib
import json
import os
import random
import re
import shlex
import subprocess
import types
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_helpers import documents, write_text
from training_helpers import RECIPES

from hfbert_scratch.corpus import build as building
from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.build import STAGES, build_corpus
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.stages import completion, index, shards
from hfbert_scratch.corpus.stages.tasks import WorkQueue
from hfbert_scratch.text import readers
from hfbert_scratch.utils.errors import InputError, OutputError


TEXTS = documents(260) + documents(40, seed=1)


def data_hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file that `datasets` opens."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and ".build" not in path.parts
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A directory with a file of every kind, and some documents in two of them."""
    directory = tmp_path_factory.mktemp("text")
    write_text(directory / "a.txt", TEXTS[:120])
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[100:180])
    (directory / "b.jsonl").write_text(rows)
    (directory / "c.txt.gz").write_bytes(gzip.compress("\n\n".join(TEXTS[160:220]).encode()))
    pq.write_table(pa.table({"text": TEXTS[210:280]}), directory / "d.parquet", row_group_size=10)
    return directory


@pytest.fixture(scope="module")
def small():
    """Units of a few documents, and some twenty shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PART_BYTES", 20_000)
        patch.setattr(index, "shard_size", lambda total: 20_000)
        yield


@pytest.fixture
def arguments(text):
    return BuildArguments([str(text)], "small", validation_share=0.1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, text, tokenizer, small):
    """The files of an undisturbed build."""
    output = tmp_path_factory.mktemp("expected") / "corpus"
    corpus = build_corpus(BuildArguments([str(text)], "small", validation_share=0.1), tokenizer, output)
    assert len(corpus.manifest["splits"]["train"]["files"]) > 8
    assert corpus.manifest["documents_read"] == 330 and corpus.manifest["duplicates"] == 50
    return data_hashes(output)


@pytest.mark.parametrize("num_proc", [2, 3])
def test_any_number_of_processes(tmp_path, arguments, tokenizer, expected, num_proc):
    build_corpus(arguments, tokenizer, tmp_path / "corpus", num_proc=num_proc)
    assert data_hashes(tmp_path / "corpus") == expected


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_four_tasks_that_do_a_few_units_and_shards_each_in_any_order(
    tmp_path, arguments, tokenizer, expected, monkeypatch, order
):
    """Each task is kept from doing all by itself: it may claim five times, and comes again."""
    claim = WorkQueue.claim
    monkeypatch.setattr(
        WorkQueue, "claim", lambda self, start: claim(self, start) if next(allowed, None) is not None else None
    )
    monkeypatch.setattr(WorkQueue, "take_over", lambda self, number: False)
    done = {stage: set() for stage in STAGES}
    for stage in STAGES:
        for task in order * 3:
            allowed = iter(range(5))
            before = set((tmp_path / "corpus").rglob("*.claim"))
            corpus = build_corpus(arguments, tokenizer, tmp_path / "corpus", num_tasks=4, task=task, stage=stage)
            if set((tmp_path / "corpus").rglob("*.claim")) - before:
                done[stage].add(task)
    assert len(done["index"]) == 4 and len(done["write"]) >= 3  # the claims are gone when the last task completes
    assert corpus is not None and data_hashes(tmp_path / "corpus") == expected


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (building, "count_parts", 3),
        (building, "index_unit", 3),
        (index, "write_batch", 3),
        (building, "make_plan", 1),
        (index, "write_json", 1),
        (shards, "write_documents", 3),
        (shards, "write_json", 3),
        (completion, "write_batch", 1),
        (completion, "write_json", 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_kill_or_a_full_disk_in_each_stage(
    tmp_path, arguments, tokenizer, expected, monkeypatch, module, name, call, error
):
    """A step fails at one of its calls; the same command goes on, and does nothing twice."""
    function, calls = getattr(module, name), []

    def failing(*positional, **keywords):
        calls.append(positional)
        if len(calls) == call:
            raise error
        return function(*positional, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises((OutputError, KeyboardInterrupt), match="cannot be written .No space left|^$"):
            build_corpus(arguments, tokenizer, tmp_path / "corpus")
    build = tmp_path / "corpus" / ".build"
    before = [len(list(build.glob(pattern))) for pattern in ("index-*.arrow", "shard-*.json")]
    again: list[list[int]] = [[], []]
    index_unit, write = building.index_unit, shards.ShardWriter.write
    monkeypatch.setattr(building, "index_unit", lambda *a: again[0].append(a[1]) or index_unit(*a))
    monkeypatch.setattr(shards.ShardWriter, "write", lambda self, s: again[1].append(s.number) or write(self, s))
    corpus = build_corpus(arguments, tokenizer, tmp_path / "corpus")
    assert corpus is not None and data_hashes(tmp_path / "corpus") == expected
    for done, numbers in zip(before, again, strict=True):
        assert len(set(numbers)) == len(numbers) and sorted(numbers) == list(range(done, done + len(numbers)))


def test_work_of_a_task_that_ended_is_taken_over(tmp_path, arguments, tokenizer, expected, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    for task, (module, name) in enumerate([(building, "index_unit"), (shards, "write_documents")]):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, killed)
            build_corpus(arguments, tokenizer, tmp_path / "corpus", num_tasks=4, task=task)
    assert list((tmp_path / "corpus" / ".build").glob("*.claim"))
    build_corpus(arguments, tokenizer, tmp_path / "corpus", num_tasks=4, task=3)
    assert data_hashes(tmp_path / "corpus") == expected


def test_the_order_in_which_a_directory_lists_its_files_has_no_influence(
    tmp_path, arguments, tokenizer, expected, monkeypatch
):
    rglob = Path.rglob
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rglob", lambda self, pattern: sorted(rglob(self, pattern), reverse=True))
        build_corpus(arguments, tokenizer, tmp_path / "corpus")
    assert data_hashes(tmp_path / "corpus") == expected
    one_by_one = BuildArguments([str(path) for path in sorted(Path(arguments.text[0]).iterdir())], "small")
    one_by_one.validation_share = 0.1
    build_corpus(one_by_one, tokenizer, tmp_path / "again")
    assert data_hashes(tmp_path / "again") == expected


def test_a_stage_says_which_one_is_missing_before_it(tmp_path, arguments, tokenizer, small):
    output = tmp_path / "corpus"
    with pytest.raises(InputError, match="are not planned; run --stage plan first"):
        build_corpus(arguments, tokenizer, output, stage="write")
    with pytest.raises(InputError, match=r"^\d+ of the \d+ units of the text are not indexed; run --stage index"):
        build_corpus(arguments, tokenizer, output, stage="plan")
    with pytest.raises(InputError, match="--stage must be one of index, plan, write, not 'all'"):
        build_corpus(arguments, tokenizer, output, stage="all")


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def planned(tmp_path, tokenizer, small):
    """A text, and a function that goes on with its build, which is planned."""
    source = write_text(tmp_path / "t.txt", TEXTS[:60])
    arguments = BuildArguments([str(source)], "small")
    for stage in ("index", "plan"):
        assert build_corpus(arguments, tokenizer, tmp_path / "corpus", stage=stage) is None
    return source, lambda: build_corpus(arguments, tokenizer, tmp_path / "corpus")


def test_text_that_changed_after_it_was_indexed(planned, monkeypatch):
    source, go_on = planned
    content = source.read_bytes()
    changed = content.replace(TEXTS[40].split(".")[0].encode(), b"Another" + b"x" * (len(TEXTS[40].split(".")[0]) - 7))
    assert len(changed) == len(content) and changed != content
    source.write_bytes(changed)
    with pytest.raises(InputError, match="begun with other arguments .sources: other content."):
        go_on()
    source.write_bytes(content)  # another time of change, the same content

    def late(output, units, arguments):
        source.write_bytes(changed)
        return shards.ShardReader(output, units, arguments)

    with monkeypatch.context() as patch:
        patch.setattr(building, "ShardReader", late)
        with pytest.raises(InputError, match=r"t\.txt \(part \d+ of \d+\) has changed since it was indexed; put"):
            go_on()
    assert list((source.parent / "corpus" / ".build").glob("shard-*.json"))
    source.write_bytes(content)
    assert go_on().manifest["documents_read"] == 60


def test_text_that_vanished_after_it_was_indexed(planned, monkeypatch):
    source, go_on = planned
    content = source.read_bytes()

    def late(output, units, arguments):
        source.unlink()
        return shards.ShardReader(output, units, arguments)

    with monkeypatch.context() as patch:
        patch.setattr(building, "ShardReader", late)
        with pytest.raises(InputError, match=r"t\.txt: cannot be read \(No such file or directory\)"):
            go_on()
    with pytest.raises(InputError, match=r"--text .*t\.txt: no such file"):
        go_on()
    source.write_bytes(content)
    assert go_on().manifest["documents_read"] == 60


def test_a_truncated_file_keeps_what_was_indexed_before_it(tmp_path, tokenizer):
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "a.txt", TEXTS[:60])
    packed = gzip.compress("\n\n".join(TEXTS[60:120]).encode())
    (tmp_path / "text" / "b.txt.gz").write_bytes(packed[: len(packed) // 2])
    arguments = BuildArguments([str(tmp_path / "text")], "small")
    with pytest.raises(InputError, match=r"b\.txt\.gz is truncated or damaged after \d+ bytes of text"):
        build_corpus(arguments, tokenizer, tmp_path / "corpus")
    assert (tmp_path / "corpus" / ".build" / "index-00000.arrow").is_file()


def test_parquet_without_the_column_is_refused_before_anything_is_read(tmp_path, tokenizer):
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text" / "a.txt", TEXTS[:60])
    pq.write_table(pa.table({"body": TEXTS[:3]}), tmp_path / "text" / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'text', only 'body'; see --text_column"):
        build_corpus(BuildArguments([str(tmp_path / "text")], "small"), tokenizer, tmp_path / "corpus")
    assert not list((tmp_path / "corpus" / ".build").glob("index-*"))


def test_a_build_that_an_earlier_version_began_is_named(tmp_path, tokenizer):
    source = write_text(tmp_path / "t.txt", TEXTS[:60])
    (tmp_path / "corpus" / ".build").mkdir(parents=True)
    (tmp_path / "corpus" / ".build" / "identity.json").write_text("{}")
    with pytest.raises(InputError, match="was begun by an earlier version, which forms other shards"):
        build_corpus(BuildArguments([str(source)], "small"), tokenizer, tmp_path / "corpus")


def test_a_finished_corpus_is_opened_without_reading_the_text_again(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(readers, "PART_BYTES", 1 << 26)
    source = write_text(tmp_path / "t.txt", TEXTS[:60])
    arguments = BuildArguments([str(source)], "small")
    manifest = build_corpus(arguments, tokenizer, tmp_path / "corpus").manifest
    assert manifest["sources"][0]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(readers.TextSource, "sha256", lambda *_: pytest.fail("hashed"))
        build_corpus(arguments, tokenizer, tmp_path / "corpus")
    # A copy elsewhere is the same text; the manifest of an earlier version has no times.
    copy = tmp_path / "copy.txt"
    copy.write_bytes(source.read_bytes())
    for name in ("modified", "parts"):
        del manifest["sources"][0][name]
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps(manifest))
    build_corpus(BuildArguments([str(copy)], "small"), tokenizer, tmp_path / "corpus")
    copy.write_bytes(copy.read_bytes().swapcase())
    with pytest.raises(InputError, match="sources: other content"):
        build_corpus(BuildArguments([str(copy)], "small"), tokenizer, tmp_path / "corpus")


# ---------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch):
    """A data set of two files on a Hub in memory, whose newest commit can be changed."""
    state = types.SimpleNamespace(commit="a" * 40, opened=[], asked=0)

    def dataset_info(self, repository, revision=None):
        state.asked += 1
        if repository == "no/where":
            raise OSError("private or not there")
        return types.SimpleNamespace(sha=revision if revision and len(revision) == 40 else state.commit)

    def load_dataset(repository, configuration, split, streaming, revision):
        state.opened.append((repository, configuration, split, revision))
        halves = [TEXTS[:100], TEXTS[100:200]]
        return datasets.IterableDataset.from_generator(
            lambda halves: ({"text": text} for half in halves for text in half), gen_kwargs={"halves": halves}
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_a_source_on_the_hub_is_pinned_to_its_commit(tmp_path, tokenizer, hub, monkeypatch):
    arguments = BuildArguments(["hub:some/set:en"], "small")
    assert build_corpus(arguments, tokenizer, tmp_path / "corpus", stage="index") is None
    hub.commit = "b" * 40  # the data set moves on, the build does not
    corpus = build_corpus(arguments, tokenizer, tmp_path / "corpus")
    assert set(hub.opened) == {("some/set", "en", "train", "a" * 40)} and hub.asked == 1
    assert corpus.manifest["sources"][0]["revision"] == "a" * 40 and corpus.manifest["sources"][0]["parts"] == 2
    assert corpus.manifest["identity"]["sources"][0]["revision"] == "a" * 40
    pinned = BuildArguments([f"hub:some/set@{'a' * 40}:en"], "small")
    assert build_corpus(pinned, tokenizer, tmp_path / "corpus").manifest == corpus.manifest
    with pytest.raises(
        InputError, match=f"at commit {'a' * 40}, and hub:some/set@main:en is at commit {'b' * 40} now"
    ):
        build_corpus(BuildArguments(["hub:some/set@main:en"], "small"), tokenizer, tmp_path / "corpus")
    with pytest.raises(InputError, match="sources: hub:some/set:en there"):
        build_corpus(BuildArguments(["hub:some/set:de"], "small"), tokenizer, tmp_path / "corpus")
    with pytest.raises(InputError, match="hub:no/where: the Hub does not tell its commit .private or not there."):
        build_corpus(BuildArguments(["hub:no/where"], "small"), tokenizer, tmp_path / "other")
    write_text(tmp_path / "t.txt", TEXTS[:200])
    local = build_corpus(BuildArguments([str(tmp_path / "t.txt")], "small"), tokenizer, tmp_path / "local")
    assert local.manifest["splits"] == corpus.manifest["splits"]
    assert Corpus.open(tmp_path / "corpus").manifest == corpus.manifest


# ---------------------------------------------------------------------------------------------------- parts


def read_parts(path: Path, count: int) -> list[str]:
    source = readers.TextSource(str(path), "text" if path.suffix == ".txt" else "jsonl")
    parts = [readers.Part(number, count) for number in range(count)]
    read = [list(readers.read_part(source, part, "text", "strict", readers.ReadStats())) for part in parts]
    hashed = [source.byte_range(part) for part in parts]
    assert [end for _, end in hashed[:-1]] == [begin for begin, _ in hashed[1:]]
    return [text for texts in read for text in texts]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_the_parts_of_a_file_have_its_documents_wherever_the_borders_fall(tmp_path, line_end):
    rng = random.Random(0)
    pieces = ["a", "bc def", " ", "\n", "\n", "\n\n", "\t", "\x0b", "\u2028", "é中", "\u200b\n", " " * 12]
    path, rows = tmp_path / "t.txt", tmp_path / "t.jsonl"
    for _ in range(120):
        content = "\ufeff" * rng.randint(0, 1) + "x\n" + "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        path.write_bytes(content.replace("\n", line_end).encode())
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in content.split("\n")]
        rows.write_bytes((line_end * rng.randint(1, 2)).join(lines).encode())
        for file in (path, rows):
            whole = read_parts(file, 1)
            for count in (2, 3, 7, 30):
                assert read_parts(file, count) == whole, (ascii(content), count)


def test_a_document_longer_than_several_parts_belongs_to_the_first(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one.\n" * 500 + "\nlast\n")
    assert read_parts(path, 9) == ["one.\n" * 500, "last\n"]
    path.write_text("no line end " * 500)
    assert read_parts(path, 9) == ["no line end " * 500]


def test_an_error_behind_the_first_part_names_the_byte(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n' * 50 + "bad\n" + '{"text": "good"}\n' * 50)
    with pytest.raises(InputError, match=r"t\.jsonl: the line at byte 850 is not JSON"):
        read_parts(path, 3)
    text = tmp_path / "t.txt"
    text.write_bytes(b"good\n\n" * 50 + b"caf\xe9\n\n" + b"good\n\n" * 50)
    with pytest.raises(InputError, match=r"t\.txt: byte 303, is not valid UTF-8"):
        read_parts(text, 3)


def test_the_slurm_script_submits_two_arrays_with_the_plan_between_them(tmp_path):
    """A stand-in for sbatch notes what it is given; the command it would start is one that the recipe can parse."""
    stub = tmp_path / "sbatch"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$*" >> "$LOG"\necho "$(wc -l < "$LOG");cluster"\n')
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    environment |= {"TASKS": "4", "CPUS": "8", "SBATCH": "--partition=cpu --time=1:00:00"}
    command = ["--text", "data/a b.txt", "--tokenizer", "t", "--output_dir", "o"]
    done = subprocess.run(
        ["bash", str(RECIPES / "slurm_corpus.sh"), *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "index: 1;cluster, plan: 2;cluster, write: 3;cluster\n"
    submitted = (tmp_path / "log").read_text().splitlines()
    common = "--partition=cpu --time=1:00:00"
    assert [re.findall(r"--(?:array|dependency)=\S+", line) for line in submitted] == [
        ["--array=0-3"],
        ["--dependency=afterok:1"],
        ["--array=0-3", "--dependency=afterok:2"],
    ]
    for line, stage, processes in zip(submitted, STAGES, (8, 1, 8), strict=True):
        assert common in line and f"--cpus-per-task={processes}" in line
        words = shlex.split(line.split("--wrap=exec")[1])
        assert words == ["hfbert", "corpus", *command, "--stage", stage, "--num_proc", str(processes)]

"""Corpora built by datatrove's executors: on this machine and on Ray for real, on Slurm by the script it submits."""

import hashlib
import json
from pathlib import Path

import pytest
from corpus_helpers import build, documents, write_text

from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.stages.executors import run_on
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError


pytestmark = pytest.mark.clients
pytest.importorskip("datatrove")


@pytest.fixture
def inputs(tmp_path, tokenizer):
    """Options of a build of one megabyte of text, and the data files of a plain one."""
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    texts = documents(2000, sentences=(5, 40))
    (tmp_path / "text").mkdir()
    for number in range(4):
        write_text(tmp_path / "text" / f"{number}.txt", texts[number * 500 : (number + 1) * 500])
    arguments = BuildArguments([str(tmp_path / "text")], str(tmp_path / "tokenizer"), shard_mb=1)
    plain = build(tmp_path, texts, tokenizer, "plain", shard_mb=1)
    assert len(plain.manifest["splits"]["train"]["files"]) > 1
    return arguments, hashes(tmp_path / "plain")


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*.arrow")
    }


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_two_workers_of_an_executor_build_the_same_corpus(tmp_path, inputs, executor):
    arguments, expected = inputs
    options = ["workers=2"]
    if executor == "ray":
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False)
    try:
        corpus = run_on(executor, arguments, str(tmp_path / "corpus"), num_tasks=2, options=options)
    finally:
        if executor == "ray":
            ray.shutdown()
    assert hashes(corpus.directory) == expected
    assert run_on(executor, arguments, str(tmp_path / "corpus"), num_tasks=2).manifest == corpus.manifest


def test_slurm_gets_three_jobs_that_wait_for_each_other(tmp_path, inputs, monkeypatch):
    arguments, _ = inputs
    stub, log = tmp_path / "sbatch", tmp_path / "log"
    note = f'echo "$* :: $(tr "\\n" " " < "${{@: -1}}")" >> {log}'
    stub.write_text(f'#!/bin/bash\n{note}\necho "Submitted batch job $(wc -l < {log})"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    options = ["partition=cpu", "time=4:00:00"]
    assert run_on("slurm", arguments, str(tmp_path / "c"), num_tasks=8, num_proc=4, options=options) is None
    jobs = [line for line in log.read_text().splitlines() if "launch_pickled_pipeline" in line]
    assert len(jobs) == 3 and all("--partition=cpu" in job and "--time=4:00:00" in job for job in jobs)
    assert ["--array=0-7" in job for job in jobs] == [True, False, True]
    assert "dependency" not in jobs[0].split("::")[0]
    assert all("--dependency=afterok:" in job.split("::")[0] for job in jobs[1:])
    assert json.loads((tmp_path / "c.logs" / "write" / "ranks_to_run.json").read_text()) == list(range(8))


def test_what_an_executor_does_not_know_is_named(tmp_path, inputs):
    arguments, _ = inputs
    for options, message in {
        ("nosuch=1",): "--executor_options: .*nosuch",
        ("workers",): "--executor_options workers: write NAME=VALUE",
    }.items():
        with pytest.raises(InputError, match=message):
            run_on("local", arguments, str(tmp_path / "c"), num_tasks=2, options=options)
    with pytest.raises(InputError, match="--executor must be one of local, slurm, ray, not 'spark'"):
        run_on("spark", arguments, str(tmp_path / "c"), num_tasks=2)

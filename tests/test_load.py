"""Load: a gigabyte of text in bounded memory and killed half-way, 200 checkpoints, 10,000 steps without growth.

    pytest -m slow -s tests/test_load.py

prints the figures. The text takes 1 GB, and each of the two corpora about 0.5 GB, all deleted at the end.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from corpus_helpers import small_tokenizer, words
from training_helpers import RECIPES, arguments, environment, make_inputs, start

from hfbert_scratch.text.tokenizer import save_tokenizer


pytestmark = pytest.mark.slow

TEXT_BYTES = 1_000_000_000
# Of all processes of a build together, at a gigabyte of text or more.
MEMORY_BOUND = 2 * 2**30
# What a run may grow by between its 6,000th and its 10,000th step: 1 kB a step kept by mistake would be 4 MB. Before,
# what is kept for every shape of a batch, at most 1,024 of them, by oneDNN still grows.
GROWTH_BOUND = 4 * 2**20


def write_zipf_text(directory: Path, size: int, seed: int = 0) -> Path:
    """`size` bytes of documents in ten files, their words drawn by Zipf's law from 50,000 made-up ones."""
    vocabulary = np.array(words(50_000), dtype=object)
    cumulative = np.cumsum(1 / np.arange(1, len(vocabulary) + 1))
    rng, lengths = np.random.default_rng(seed), random.Random(seed)
    directory.mkdir()
    for number in range(10):
        with open(directory / f"{number}.txt", "w", encoding="utf-8", newline="\n") as file:
            while file.tell() < size // 10:
                drawn = vocabulary[np.searchsorted(cumulative, rng.random(500_000) * cumulative[-1])]
                place = 0
                while place < len(drawn):
                    count = lengths.randint(3, 35)
                    file.write(" ".join(drawn[place : place + count]).capitalize())
                    # A document has 20 sentences on average.
                    file.write(".\n\n" if lengths.random() < 0.05 else ".\n" if lengths.random() < 0.2 else ". ")
                    place += count
    return directory


class Build:
    """recipes/build_corpus.py in a process group of its own, and the largest memory of all its processes together."""

    def __init__(self, text: Path, tokenizer: Path, output: Path):
        options = ["--text", text, "--tokenizer", tokenizer, "--output_dir", output, "--num_proc", "2"]
        self.output, self.peak = output, 0
        self.process = subprocess.Popen(
            [sys.executable, str(RECIPES / "build_corpus.py"), *map(str, options)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        """Resident memory, in which pages that processes share count for each: more than what is really used."""
        root = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            total = 0
            for process in [root, *root.children(recursive=True)] if root.is_running() else []:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.1)

    def kill_after(self, shards: int) -> None:
        """SIGKILL to the whole group as soon as so many shards are finished."""
        while len(list(self.output.glob(".build/shard-*.json"))) < shards:
            assert self.process.poll() is None, "the build ended before it was to be killed"
            time.sleep(0.05)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        code = self.process.wait()
        self._watcher.join()
        return code


def content(corpus: Path) -> dict[str, bytes | dict]:
    """The files of a corpus; of the manifest what does not say how long it took or where it lies."""
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    for name in ("seconds", "megabytes_per_second", "arguments"):
        del manifest[name]
    files = {str(path.relative_to(corpus)): path.read_bytes() for path in corpus.rglob("*.arrow")}
    return files | {"manifest": manifest}


def test_a_gigabyte_of_text_stays_below_two_of_memory_and_resumes_half_way(tmp_path):
    try:
        text = write_zipf_text(tmp_path / "text", TEXT_BYTES)
        with open(text / "0.txt", encoding="utf-8") as file:
            save_tokenizer(small_tokenizer([file.read(4_000_000)], vocab_size=8000), tmp_path / "tokenizer")
        began = time.monotonic()
        whole = Build(text, tmp_path / "tokenizer", tmp_path / "whole")
        assert whole.wait() == 0
        took = time.monotonic() - began
        killed = Build(text, tmp_path / "tokenizer", tmp_path / "killed")
        killed.kill_after(shards=32)  # of 64
        finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "train").glob("data-*.arrow")}
        resumed = Build(text, tmp_path / "tokenizer", tmp_path / "killed")
        assert resumed.wait() == 0
        kept = sum(path.stat().st_mtime_ns == changed for path, changed in finished.items())
        peaks = {
            name: build.peak / 2**20 for name, build in (("whole", whole), ("killed", killed), ("resumed", resumed))
        }
        print(
            f"\n{sum(file.stat().st_size for file in text.iterdir()) / 1e6:.0f} MB of text in {took:.0f} s; "
            f"peak of all processes in MiB: {', '.join(f'{name} {peak:.0f}' for name, peak in peaks.items())}; "
            f"{kept} of {len(finished)} shards kept"
        )
        assert kept >= 32
        assert max(peaks.values()) * 2**20 <= MEMORY_BOUND
        assert content(tmp_path / "killed") == content(tmp_path / "whole")
    finally:
        shutil.rmtree(tmp_path)


def test_of_200_checkpoints_the_last_three_are_left(tmp_path):
    inputs = make_inputs(tmp_path)
    changes = {"max_steps": 200, "save_every": 1, "keep_checkpoints": 3, "eval_every": 200, "log_every": 100}
    process = start(arguments(inputs, tmp_path / "run", **changes))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    print(f"\nleft: {', '.join(left)}")
    assert left == ["step-198", "step-199", "step-200"]


def test_ten_thousand_steps_do_not_grow_the_memory(tmp_path):
    inputs = make_inputs(tmp_path)
    changes = {"max_steps": 10_000, "log_every": 100, "eval_every": 1000, "save_every": 1000, "keep_checkpoints": 1}
    process = start(arguments(inputs, tmp_path / "run", **changes))
    memory: dict[int, int] = {}
    for line in process.stdout:
        if (step := re.match(r"step (\d+)/", line)) and int(step[1]) < 10_000:
            memory[int(step[1])] = psutil.Process(process.pid).memory_info().rss
    assert process.wait() == 0
    shown = [f"{step}: {memory[step] / 2**20:.1f}" for step in sorted(memory) if step % 1000 == 0]
    print(f"\nresident MiB at step {', '.join(shown)}")
    # After an evaluation and a checkpoint the allocator may hold on to what these used: the least of ten lines counts.
    early = min(memory[step] for step in range(6000, 7000, 100))
    late = min(memory[step] for step in range(9000, 10_000, 100))
    print(f"least of ten lines after step 6,000: {early / 2**20:.1f} MiB, before 10,000: {late / 2**20:.1f} MiB")
    assert late - early < GROWTH_BOUND

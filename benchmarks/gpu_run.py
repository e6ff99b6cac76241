"""Everything that wants a GPU, in one command: tests, kernels, training steps, inference, a reference pretraining.

    python benchmarks/gpu_run.py --output_dir runs/gpu --seconds 590     # or: make gpu

Needs no network and installs nothing; the interpreter must have torch, transformers and accelerate, and pytest for
the tests. Each part has its share of the time, is stopped when that is over and fails alone. output_dir holds at most
eight files of 16 MiB at the end: gpu.log (all that was printed), results.json, profile.txt (the longest kernels),
training.tgz (the reference run without its weights) and its weights in bfloat16, cut into model.part0 and so on
(`cat` them). `python benchmarks/gpu_report.py runs/gpu` brings the figures into docs/benchmarks.md.

The reference run wants a corpus (--corpus, --tokenizer; recipes/build_corpus.py); without one it is left out.
--rehearse runs all of it, tiny, on a CPU.
"""

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware, versions
from hfbert_scratch.utils.errors import command_line
from hfbert_scratch.utils.files import write_json


ROOT = Path(__file__).resolve().parents[1]
PART = 15 << 20  # bytes of a piece of the weights
MOST_PARTS = 3
# Seconds the last part leaves for packing up what it made.
PACKING_UP = 12


@dataclass(kw_only=True)
class RunArguments:
    """The command line. Seconds of 0 leave a part out."""

    output_dir: str = argument("runs/gpu", help="folder for the results")
    seconds: float = argument(590.0, help="for everything; the reference run gets what the other parts leave")
    tests: float = argument(110.0, help="seconds for tests/test_gpu.py")
    micro: float = argument(25.0, help="seconds for gpu_micro.py")
    matrix: float = argument(240.0, help="seconds for gpu_matrix.py")
    inference: float = argument(45.0, help="seconds for inference.py")
    finetuning: float = argument(0.0, help="seconds for fine-tuning the reference run on --task")
    only: str = argument("", help="cases of the matrix whose names hold this text")
    select: str = argument("", help="pytest's -k for the tests")
    corpus: str = argument("", help="corpus of the reference run; none: no such run")
    tokenizer: str = argument("", help="its tokenizer")
    settings: str = argument("gpu_reference", help="configuration of recipes/configs for it")
    task: str = argument("mrpc", help="task to fine-tune on")
    data_dir: str = argument("", help="that task's data")
    rehearse: bool = argument(False, help="tiny, on a CPU")


class Parts:
    """The parts of a run: each a command with a time limit, its output in gpu.log, its end in results.json."""

    def __init__(self, output: Path, seconds: float):
        self.output, self.began, self.seconds = output, time.monotonic(), seconds
        self.results: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "versions": versions(),
            "parts": {},
        }

    @property
    def left(self) -> float:
        """Seconds left of the whole."""
        return self.seconds - (time.monotonic() - self.began)

    def run(self, name: str, limit: float, *command: str, **environment: str) -> bool:
        """Run `python command…` for at most `limit` seconds; returns whether it ended well. Never raises."""
        limit = min(limit, self.left - PACKING_UP)
        if limit <= 5:
            return self.note(name, "left out", 0.0)
        self.say(f"{name}: at most {limit:.0f} s: {' '.join(command)}")
        began = time.monotonic()
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        variables = {
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with (self.output / "gpu.log").open("a", encoding="utf-8") as log:
            try:
                code = subprocess.run(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=os.environ | variables | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                ).returncode
                state = "done" if code == 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                state = "stopped: its time was over"
            except OSError as error:
                state = f"not started: {error}"
        return self.note(name, state, time.monotonic() - began)

    def note(self, name: str, state: str, seconds: float) -> bool:
        """Record how a part ended; returns whether it did its work."""
        self.results["parts"][name] = {"state": state, "seconds": round(seconds, 1)}
        write_json(self.output / "results.json", self.results)
        self.say(f"{name}: {state} after {seconds:.0f} s, {self.left:.0f} s left")
        return state == "done"

    def say(self, text: str) -> None:
        """Print, and write into the log."""
        print(text, flush=True)
        with (self.output / "gpu.log").open("a", encoding="utf-8") as log:
            log.write(f"== {text}\n")


def pretraining(parts: Parts, arguments: RunArguments, run: Path, seconds: float) -> bool:
    """The reference run: a schedule by time, so that the learning rate is 0 when the time is over."""
    # 30 seconds: Python's start, and the last evaluation, checkpoint and picture.
    minutes = max(0.2, (min(seconds, parts.left - PACKING_UP) - 30) / 60)
    tiny = ["--num_hidden_layers", "1", "--hidden_size", "32", "--num_attention_heads", "2", "--batch_size", "16"]
    tiny += ["--micro_batch_size", "16", "--eval_rows", "64"]
    options = ["--config", arguments.settings, "--corpus", arguments.corpus, "--tokenizer", arguments.tokenizer]
    options += ["--schedule", "time", "--max_time", f"{minutes:.2f}", "--output_dir", str(run)]
    options += tiny if arguments.rehearse else []
    return parts.run("pretraining", seconds, "recipes/pretrain.py", *options)


def pack_up(parts: Parts, run: Path) -> None:
    """Put the reference run's records into training.tgz and its weights, as bfloat16, into parts."""
    with tarfile.open(parts.output / "training.tgz", "w:gz") as archive:
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.suffix != ".safetensors" and path.name != ".lock":
                archive.add(path, path.relative_to(run))
    weights = run / "model" / "model.safetensors"
    if not weights.is_file():
        return
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    half = run / "bfloat16.safetensors"
    save_file(tensors, half, metadata={"format": "pt"})
    data = half.read_bytes()
    pieces = range(0, len(data), PART)
    parts.results["weights"] = {"bytes": len(data), "parts": len(pieces)}
    if len(pieces) > MOST_PARTS:
        parts.say(f"the weights are {len(data) >> 20} MiB, more than {MOST_PARTS} parts: they stay behind")
        return
    for number, start in enumerate(pieces):
        (parts.output / f"model.part{number}").write_bytes(data[start : start + PART])


@command_line
def main() -> None:
    """Run the parts one after the other."""
    arguments = parse_arguments(RunArguments, description=__doc__)
    output = Path(arguments.output_dir).resolve()
    output.mkdir(parents=True, exist_ok=True)
    parts = Parts(output, arguments.seconds)
    tiny = ("--tiny", "true") if arguments.rehearse else ()
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/test_gpu.py", "-k", arguments.select)
    parts.run("tests", arguments.tests, *tests)
    micro = ("benchmarks/gpu_micro.py", "--output", str(output / "micro.json"))
    parts.run("micro", arguments.micro, *micro, "--seconds", f"{max(1, arguments.micro - 8):.0f}", *tiny)
    matrix = ["benchmarks/gpu_matrix.py", "--output", str(output / "matrix.jsonl"), "--only", arguments.only]
    matrix += ["--profile", str(output / "profile.txt"), "--seconds", f"{max(1, arguments.matrix - 15):.0f}"]
    parts.run("matrix", arguments.matrix, *matrix, *tiny)
    workload = ("--size", "tiny", "--texts", "20") if arguments.rehearse else ("--size", "base", "--texts", "4000")
    inference = ("benchmarks/inference.py", *workload, "--precision", "bfloat16", "--pairs", "3")
    parts.run("inference", arguments.inference, *inference, BENCHMARK_RESULTS=str(output / "inference.json"))
    run = output.parent / f"{output.name}-reference"
    if arguments.corpus and pretraining(parts, arguments, run, parts.left - arguments.finetuning):
        options = ["--task", arguments.task, "--data_dir", arguments.data_dir, "--model", str(run / "model")]
        options += ["--output_dir", str(run / "finetuning"), "--cache_dir", str(run / "features")]
        options += ["--trackers", "none"]
        if arguments.finetuning:
            parts.run("finetuning", arguments.finetuning, "recipes/finetune.py", *options)
    if run.is_dir():
        pack_up(parts, run)
    gather(parts, run)


def summary(run: Path) -> dict[str, Any]:
    """Return what a pretraining came to, from its record and log."""
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = sorted(
        (entry["tokens_per_second"], entry["mfu"]) for entry in entries[1:] if "tokens_per_second" in entry
    )
    rate, mfu = speeds[len(speeds) // 2] if speeds else (0.0, 0.0)  # without the first line, which compiles
    kept = ("size", "batch_size", "micro_batch_size", "max_seq_length", "max_time")
    ways = {name: record["settings"][name] for name in ("packing", "compile", "cuda_graphs", "precision")}
    figures = {name: record[name] for name in ("steps", "tokens", "seconds", "results", "baseline", "derived")}
    arguments = {name: record["arguments"][name] for name in kept}
    return {"tokens_per_second_median": round(rate), "mfu": round(mfu, 4), "arguments": arguments} | ways | figures


def gather(parts: Parts, run: Path) -> None:
    """Put what the parts left as JSON into results.json, so that few files have to be brought back."""
    for name in ("micro", "inference"):
        path = parts.output / f"{name}.json"
        if path.is_file():
            parts.results[name] = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
    if (run / "record.json").is_file():
        parts.results["pretraining"] = summary(run)
    path = parts.output / "matrix.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        parts.results["matrix"] = [json.loads(line) for line in lines]
        path.unlink()
    write_json(parts.output / "results.json", parts.results)


if __name__ == "__main__":
    main()

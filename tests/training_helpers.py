"""Tiny pretraining runs for tests: in this process for speed, in processes of their own where they get killed."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from corpus_helpers import build, documents, small_tokenizer

from hfbert_scratch.text.tokenizer import save_tokenizer


ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
# Of a model from scratch.
SIZES = {
    "size": "tiny",
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
LOSSES = ("loss", "masked_lm_loss", "next_sentence_loss", "gradient_norm", "eval_masked_lm_loss")


def make_inputs(directory: Path) -> dict[str, Path]:
    """A tokenizer and a corpus with both splits."""
    tokenizer = small_tokenizer()
    save_tokenizer(tokenizer, directory / "tokenizer")
    build(directory, documents(200), tokenizer, max_seq_length=64, validation_share=0.1)
    return {"tokenizer": directory / "tokenizer", "corpus": directory / "corpus"}


def arguments(inputs: dict[str, Path], output: Path, **changes) -> list[str]:
    """The command line of a run that takes a second or two."""
    settings = {
        "corpus": inputs["corpus"],
        "tokenizer": inputs["tokenizer"],
        "output_dir": output,
        "max_seq_length": 32,
        "batch_size": 16,
        "micro_batch_size": 8,
        "max_steps": 20,
        "learning_rate": 2e-3,
        "precision": "float32",
        "onednn": "false",  # runs whose bits are compared must not depend on a timing
        "log_every": 1,
        "eval_every": 10,
        "save_every": 5,
        "eval_rows": 32,
        "trackers": "none",
    }
    settings |= ({} if "model" in changes else SIZES) | changes
    settings.setdefault("warmup_steps", min(4, settings["max_steps"]) if isinstance(settings["max_steps"], int) else 0)
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def forget_accelerator() -> None:
    """Forget the process's accelerator, as accelerate's own tests do: a new process would begin without one."""
    AcceleratorState._reset_state(reset_partial_state=True)


def pretrain_here(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> int:
    """Run recipes/pretrain.py in this process; returns its exit code."""
    forget_accelerator()
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *command])
    try:
        importlib.import_module("pretrain").main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def environment() -> dict[str, str]:
    """For processes of their own: one thread each, so that sums are added in one order, and no network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def launcher(processes: int, *options: str, config: str | None = None) -> tuple[str, ...]:
    """`accelerate launch` for processes on this host's CPUs; config: one of recipes/accelerate."""
    settings = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--main_process_port", "0"]
    if config:
        settings += ["--config_file", str(RECIPES / "accelerate" / f"{config}.yaml")]
    else:
        settings += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return (*settings, *options) if processes > 1 else ()


def start(command: list[str], *launcher: str, recipe: str = "pretrain", output: Any = None) -> subprocess.Popen:
    """Start a recipe in a process of its own, or through a `launcher`; output: a file for what it prints."""
    return start_python(*launcher, RECIPES / f"{recipe}.py", *command, output=output)


def start_python(*words: object, output: Any = None) -> subprocess.Popen:
    """Start `python WORDS` in a process of its own; output: a file for what it prints."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment(),
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Take back the signal handlers that a run sets; they would outlive it in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """Wait for a process; returns its exit code and what it printed."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def read_losses(output: Path) -> list[dict[str, float]]:
    """The log's losses and gradient norms, which must not depend on the machine's speed."""
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key in ("step", *LOSSES)} for line in lines]

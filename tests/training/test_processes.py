"""Several processes: sharded or not, another number than before, killed, restarted by their launcher."""

import re
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from finetuning_helpers import make_data, make_model, options, read
from helpers import fresh_process
from safetensors.torch import load_file
from training_helpers import (
    RECIPES,
    arguments,
    environment,
    finish,
    launcher,
    pretrain_here,
    read_losses,
    start,
)

from hfbert_scratch.training.checkpoints import newest_checkpoint


@pytest.fixture
def run(monkeypatch, inputs):
    """Run the recipe in this process; returns its exit code."""
    return lambda output, **changes: pretrain_here(monkeypatch, arguments(inputs, output, **changes))


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def assert_close_runs(left, right, tolerance=1e-5):
    """Losses and gradient norms equal but for the order in which float32 numbers were added."""
    for ours, theirs in zip(read_losses(left), read_losses(right), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_sharded_is_the_same_run_and_its_checkpoints_and_model_are_as_any_other(inputs, run, tmp_path):
    """FSDP2 by the shipped configuration: losses, the files, and a continuation without sharding by one process."""
    changes = {"num_hidden_layers": 2, "micro_batch_size": 4, "max_steps": 6, "eval_every": 2, "save_every": 3}
    process = start(arguments(inputs, tmp_path / "sharded", **changes), *launcher(2, config="fsdp2"))
    code, printed = finish(process)
    assert code == 0, printed
    for rank in (0, 1):
        assert re.search(rf"process {rank} of 2: \S+, cpu\S*, process id \d+", printed)
    assert run(tmp_path / "plain", **changes) == 0
    assert_close_runs(tmp_path / "sharded", tmp_path / "plain")
    for directory in ("model", "checkpoints/step-6"):
        ours, theirs = (
            {path.name for path in (tmp_path / name / directory).iterdir()} for name in ("sharded", "plain")
        )
        assert ours == theirs
    code = f"""
        from transformers import AutoModelForMaskedLM
        model, info = AutoModelForMaskedLM.from_pretrained(
            {str(tmp_path / "sharded" / "model")!r}, trust_remote_code=True, output_loading_info=True
        )
        assert type(model).__name__ == "HFBertForMaskedLM" and not info["missing_keys"], info
    """
    fresh_process("\n".join(line[8:] for line in code.splitlines()), tmp_path)

    shutil.rmtree(tmp_path / "sharded" / "checkpoints" / "step-6")
    assert run(tmp_path / "sharded", **changes) == 0
    assert_close_runs(tmp_path / "sharded", tmp_path / "plain")


@pytest.mark.slow
def test_sharded_fine_tuning_is_the_same_run(tmp_path):
    """Where the best step is not the last one, its weights are loaded into the sharded model, and predict as then."""
    data, model = make_data(tmp_path / "data", "mrpc"), make_model(tmp_path / "model")
    for name, config in (("sharded", "fsdp2"), ("plain", None)):
        line = options("mrpc", data, model, tmp_path / name, eval_every=10, micro_batch_size=4)
        code, printed = finish(start(line, *launcher(2, config=config), recipe="finetune"))
        assert code == 0, printed
    for ours, theirs in zip(read_losses(tmp_path / "sharded"), read_losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3), "40 long steps let rounding grow"
    ours, theirs = (read(tmp_path / name / "results.json") for name in ("sharded", "plain"))
    assert ours["best_step"] == theirs["best_step"]
    assert ours["scores"]["validation"]["accuracy"] == theirs["scores"]["validation"]["accuracy"]
    for path in (tmp_path / "plain" / "predictions").iterdir():
        assert (tmp_path / "sharded" / "predictions" / path.name).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_another_number_of_processes_goes_on_with_the_same_batches(inputs, tmp_path, capsys, before, after):
    """8 micro-batches a step; also across the border of an epoch, with dropout."""
    changes = {"micro_batch_size": 2, "max_steps": 180, "save_every": 90, "log_every": 10, "eval_every": 90}
    whole = tmp_path / "whole"
    assert finish(start(arguments(inputs, whole, **changes), *launcher(before)))[0] == 0
    shutil.copytree(whole, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "step-180")
    shutil.rmtree(tmp_path / "other" / "model")
    code, printed = finish(start(arguments(inputs, tmp_path / "other", **changes), *launcher(after)))
    assert code == 0 and f"step 90, written by {before} process(es)" in printed, printed
    assert_close_runs(tmp_path / "other", whole, tolerance=1e-4)


@pytest.mark.slow
def test_one_global_loss_whatever_the_layout(inputs, run, tmp_path):
    """1×32, 1×(4×8), 2×16, 2×(2×8), sharded and packed: the same update to a relative 1e-6, of lengths and masks that
    vary.

    With β₁ = β₂ = 0 and ε = 1 Adam's update is lr · g / (|g| + 1): a smooth function of the gradient, as SGD's.
    """
    sgd = {"adam_beta1": 0, "adam_beta2": 0, "adam_epsilon": 1, "learning_rate": 9, "weight_decay": 0, "dropout": 0}
    sgd |= {"batch_size": 32, "max_steps": 1, "warmup_steps": 0, "short_seq_prob": 0.5, "eval_every": 1}
    assert run(tmp_path / "start", **sgd | {"micro_batch_size": 32, "learning_rate": 1e-30}) == 0
    assert run(tmp_path / "1x32", **sgd, micro_batch_size=32) == 0
    assert run(tmp_path / "1x4x8", **sgd, micro_batch_size=8) == 0
    layouts = {"2x16": (16, None), "2x2x8": (8, None), "sharded": (8, "fsdp2")}
    layouts |= {f"{name} packed": layout for name, layout in layouts.items()}
    for name, (size, config) in layouts.items():
        command = arguments(inputs, tmp_path / name, **sgd, micro_batch_size=size, packing=name.endswith("packed"))
        code, printed = finish(start(command, *launcher(2, config=config)))
        assert code == 0, printed
    begin, reference = weights(tmp_path / "start"), weights(tmp_path / "1x32")

    def difference(left, right):
        return sum(((left[name] - right[name]).double() ** 2).sum() for name in left).sqrt()

    length = difference(reference, begin)
    assert length > 1e-2
    for name in ("1x4x8", *layouts):
        assert difference(weights(tmp_path / name), reference) / length < 1e-6, name


def workers(process):
    """The launched processes, in the order of their ranks."""
    found = []
    for child in psutil.Process(process.pid).children():
        rank = child.environ().get("RANK")
        if rank is not None:
            found.append((int(rank), child))
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def read_until(process, text):
    lines = []
    while True:
        line = process.stdout.readline()
        lines.append(line)
        if text in line:
            return "".join(lines)
        assert line or process.poll() is None, "".join(lines)


LONG = {"max_steps": 20_000, "log_every": 5, "save_every": 20_000, "eval_every": 20_000}


@pytest.mark.slow
def test_a_dead_process_ends_the_launch_and_is_named(inputs, tmp_path):
    process = start(arguments(inputs, tmp_path, **LONG), *launcher(2))
    read_until(process, "step 10/")
    workers(process)[1].kill()
    code, printed = finish(process, timeout=60)
    assert code == 1
    assert re.search(r"Root Cause.*\n\[0\]:\n.*\n.*host .*\n +rank +: 1 ", printed), printed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None], ids=["SIGTERM", "SIGINT", "launcher killed"])
def test_stopping_the_launcher_stops_all_processes_at_one_step_with_a_checkpoint(inputs, tmp_path, number):
    process = start(arguments(inputs, tmp_path, **LONG), *launcher(2))
    read_until(process, "step 10/")
    process.kill() if number is None else process.send_signal(number)
    _, printed = finish(process, timeout=60)
    step = int(re.search(r"stopped by .+ after step (\d+);", printed).group(1))
    assert newest_checkpoint(tmp_path / "checkpoints", pytest.fail).name == f"step-{step}"


@pytest.mark.slow
def test_with_max_restarts_a_killed_run_comes_back_by_itself_and_continues_exactly(inputs, tmp_path):
    """Each of the two processes is killed once; the launcher starts both again, and the weights are the same."""
    changes = {"max_steps": 120, "save_every": 5, "eval_every": 30, "log_every": 1}
    assert finish(start(arguments(inputs, tmp_path / "whole", **changes), *launcher(2)))[0] == 0
    process = start(arguments(inputs, tmp_path / "killed", **changes), *launcher(2, "--max_restarts", "2"))
    printed = ""
    for rank, step in ((1, 23), (0, 61)):
        printed += read_until(process, f"step {step}/")
        workers(process)[rank].kill()
    code, rest = finish(process)
    printed += rest
    assert code == 0, printed
    assert printed.count("continuing from") == 2
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_processes_that_do_not_meet_say_where(tmp_path, inputs):
    """Two processes are announced and one comes: it gives up after the stated time, with the address."""
    with_ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, str(RECIPES / "pretrain.py"), *arguments(inputs, tmp_path / "run", process_timeout=2)]
    result = subprocess.run(command, env=environment() | with_ranks, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "the 2 processes of this launch do not meet at 127.0.0.1:0" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()

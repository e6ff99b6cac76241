"""The largest micro-batch that fits, found before step 0, and the end of a run that runs out of memory."""

import pytest
import torch
import yaml
from finetuning_helpers import call, make_data, make_model, options, read
from training_helpers import arguments, make_inputs, pretrain_here, read_losses

from hfbert_scratch.pretraining import PretrainingArguments
from hfbert_scratch.training.hardware import memory
from hfbert_scratch.training.hardware.memory import is_out_of_memory


STILL = {"dropout": 0, "attention": "eager"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    root = tmp_path_factory.mktemp("task")
    return {"model": make_model(root / "model"), "data": make_data(root / "data", "cola")}


@pytest.fixture
def pretrain(inputs, monkeypatch):
    def run(output, **changes):
        own = {"max_steps": 3, "eval_every": 3, "save_every": 3} | STILL | changes
        return pretrain_here(monkeypatch, arguments(inputs, output, **own))

    return run


def room_for(monkeypatch, most, tried=None):
    """Pretend that a training pass fits for up to `most` sequences, and an evaluation always."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e12)

    def growth(device, step):
        size = (step.__defaults__ or (0,))[0]
        if tried is not None:
            tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        step()
        return 0.0

    monkeypatch.setattr(memory, "growth", growth)


@pytest.mark.parametrize(("most", "expected"), [(16, 16), (5, 4), (1, 1)])
def test_auto_takes_the_largest_that_fits_and_the_losses_stay(most, expected, pretrain, tmp_path, monkeypatch):
    assert pretrain(tmp_path / "fixed", micro_batch_size=8) == 0
    room_for(monkeypatch, most)
    assert pretrain(tmp_path / "auto", micro_batch_size="auto") == 0
    record = read(tmp_path / "auto" / "record.json")
    assert record["settings"]["micro_batch_size"] == expected == record["arguments"]["micro_batch_size"]
    assert yaml.safe_load((tmp_path / "auto" / "arguments.yaml").read_text())["micro_batch_size"] == expected
    for ours, theirs in zip(read_losses(tmp_path / "auto"), read_losses(tmp_path / "fixed"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_sizes_are_only_tried_while_the_growth_allows_it(pretrain, tmp_path, monkeypatch):
    """Of a host nothing can be taken back: a size is not tried where its growth is known to be too much."""
    tried = []
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e9)

    def growth(device, step):
        size = (step.__defaults__ or (0,))[0]
        tried.append(size)
        step()
        return size * 0.2e9

    monkeypatch.setattr(memory, "growth", growth)
    assert pretrain(tmp_path / "auto", micro_batch_size="auto") == 0
    assert tried == [0, 1, 2, 4] and read(tmp_path / "auto" / "record.json")["settings"]["micro_batch_size"] == 4


def test_the_memory_of_this_machine_is_measured(pretrain, tmp_path):
    """The whole batch of a tiny model fits; growth and free memory are the system's own figures."""
    assert pretrain(tmp_path / "auto", micro_batch_size="auto") == 0
    assert read(tmp_path / "auto" / "record.json")["settings"]["micro_batch_size"] == 16
    kept = []
    used = memory.growth(torch.device("cpu"), lambda: kept.append(torch.ones(1 << 26)))
    assert 0.8 * 2**28 < used < 1.5 * 2**28 and memory.free_memory(torch.device("cpu")) > 0


def test_a_phase_of_long_sequences_has_a_size_of_its_own_and_a_resumed_run_keeps_both(
    pretrain, tmp_path, monkeypatch, capsys
):
    tried = []
    room_for(monkeypatch, 8, tried)
    own = {"micro_batch_size": "auto", "long_max_seq_length": 64, "long_share": 0.5, "max_steps": 4, "save_every": 2}
    assert pretrain(tmp_path / "run", **own) == 0
    settings = read(tmp_path / "run" / "record.json")["settings"]
    assert settings["micro_batch_size"] == settings["long_micro_batch_size"] == 8
    tried.clear()
    assert pretrain(tmp_path / "run", **own) == 0 and tried == []
    assert "continuing from" in capsys.readouterr().out


@pytest.mark.parametrize(("length", "processes"), [(48, 1), (40, 3)])
def test_the_long_phase_takes_the_largest_size_that_divides_a_share_of_the_batch(length, processes, monkeypatch):
    """As many tokens as 8 sequences of 32 are 5 of 48, which do not divide 24, and 6 of 40, which do not divide 8."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    sizes = {"max_seq_length": 32, "long_max_seq_length": length, "batch_size": 24, "micro_batch_size": 8}
    planned = PretrainingArguments(corpus=["c"], tokenizer="t", output_dir="o", max_steps=10, **sizes)
    assert [phase.micro_batch_size for phase in planned.phases()] == [8, 4]


def test_two_phases_of_one_length_have_a_size_each(pretrain, tmp_path, monkeypatch):
    room_for(monkeypatch, 8)
    own = {"micro_batch_size": "auto", "long_max_seq_length": 32, "long_share": 0.5, "max_steps": 2}
    assert pretrain(tmp_path / "run", **own) == 0
    settings = read(tmp_path / "run" / "record.json")["settings"]
    assert settings["micro_batch_size"] == settings["long_micro_batch_size"] == 8


def test_fine_tuning_finds_its_size_too(task, tmp_path, monkeypatch):
    room_for(monkeypatch, 4)
    line = options("cola", task["data"], task["model"], tmp_path / "run", micro_batch_size="auto", max_steps=3)
    assert call(monkeypatch, "finetune", line) == 0
    assert read(tmp_path / "run" / "results.json")["hyperparameters"]["micro_batch_size"] == 4


def test_one_that_does_not_fit_is_told_what_to_shorten(pretrain, tmp_path, monkeypatch, capsys):
    room_for(monkeypatch, 0)
    assert pretrain(tmp_path / "run", micro_batch_size="auto") == 2
    assert "not even one of sequences of 32 tokens fits into memory" in capsys.readouterr().err
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.0)
    assert pretrain(tmp_path / "other", micro_batch_size="auto") == 2
    assert "an evaluation of sequences of 32 tokens does not fit" in capsys.readouterr().err


def test_a_run_that_runs_out_says_what_to_lower(pretrain, tmp_path, monkeypatch, capsys):
    calls = []
    backward = torch.Tensor.backward

    def fail_at_last(self, *rest, **options):
        calls.append(self)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return backward(self, *rest, **options)

    monkeypatch.setattr(torch.Tensor, "backward", fail_at_last)
    assert pretrain(tmp_path / "run", micro_batch_size=8) == 2
    error = capsys.readouterr().err
    assert "out of memory on cpu after step 1 with micro_batch_size 8; lower micro_batch_size (auto finds" in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(None)


@pytest.mark.parametrize(
    ("value", "message"),
    [("0", "micro_batch_size is 0; it must be at least 1"), ("many", "invalid int value: 'many'")],
)
def test_other_values_are_refused(value, message, pretrain, tmp_path, capsys):
    assert pretrain(tmp_path / "run", micro_batch_size=value) == 2
    assert message in capsys.readouterr().err

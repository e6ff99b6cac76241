"""--estimate: it says what the run then takes, and leaves no trace."""

import json
from pathlib import Path

import pytest
from finetuning_helpers import call, make_data, make_model, options
from training_helpers import arguments, finish, launcher, pretrain_here, start

from hfbert_scratch.finetuning import FinetuningArguments, fine_tune
from hfbert_scratch.training.estimate import Estimate, total
from hfbert_scratch.utils.errors import InputError
from hfbert_scratch.utils.quantities import count_text, size_text


def files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in files(directory))


def last_line(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_it_foretells_the_run_and_writes_nothing(inputs, tmp_path, monkeypatch, capsys):
    changes = {"num_hidden_layers": 2, "hidden_size": 128, "max_steps": 24, "eval_every": 8, "save_every": 8}
    command = arguments(inputs, tmp_path / "run", **changes)
    assert pretrain_here(monkeypatch, [*command, "--estimate", "--price", "3.6"]) == 0
    printed = capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "no directory, no lock"
    assert "held-out:" not in printed and "step 24/24" not in printed, "only the estimate is shown"
    for name in ("hours", "tokens/s", "memory", "disk", "money"):
        assert name in printed
    estimate = last_line(printed)
    assert pretrain_here(monkeypatch, command) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert estimate["steps"] == record["steps"] == 24 and 0 < estimate["timed_steps"] < 24
    assert estimate["tokens"] == pytest.approx(record["tokens"], rel=0.02)
    assert estimate["evaluations"] == 3 and estimate["host_bytes"] > 1e8
    assert estimate["disk_bytes"] == pytest.approx(size(tmp_path / "run"), rel=0.1)
    assert estimate["most_disk_bytes"] > estimate["disk_bytes"]
    assert estimate["seconds"] == pytest.approx(
        sum(estimate[f"{part}_seconds"] for part in ("start", "training", "evaluation")), abs=1e-3
    )
    assert estimate["money"] == pytest.approx(estimate["seconds"] / 1000, abs=1e-3)


def test_each_length_of_sequences_is_timed_for_itself(inputs, tmp_path, monkeypatch, capsys):
    changes = {"max_steps": 20, "long_max_seq_length": 64, "long_share": 0.5}
    assert pretrain_here(monkeypatch, [*arguments(inputs, tmp_path / "run", **changes), "--estimate"]) == 0
    estimate = last_line(capsys.readouterr().out)
    assert estimate["steps"] == 20 and estimate["timed_steps"] == 16, "two first steps of each are not timed"
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", **changes)) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert estimate["tokens"] == pytest.approx(record["tokens"], rel=0.03)


def test_a_schedule_by_time_takes_that_time(inputs, tmp_path, monkeypatch, capsys):
    command = arguments(inputs, tmp_path / "run", max_steps=30, schedule="time", max_time=0.001, warmup_steps=0)
    assert pretrain_here(monkeypatch, [*command, "--estimate"]) == 0
    assert last_line(capsys.readouterr().out)["steps"] < 30


def test_two_processes_estimate_together(inputs, tmp_path):
    code, printed = finish(start([*arguments(inputs, tmp_path / "run"), "--estimate"], *launcher(2)))
    assert code == 0 and not list(tmp_path.iterdir()), printed
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    assert json.loads(line)["steps"] == 20


def test_fine_tuning_and_a_sweep_are_estimated_without_a_cache(tmp_path, monkeypatch, capsys):
    data, model = make_data(tmp_path / "data", "mrpc"), make_model(tmp_path / "model")
    before = files(tmp_path)
    changes = {"max_steps": None, "batch_size": None, "micro_batch_size": None, "learning_rate": None}
    line = options("mrpc", data, model, tmp_path / "run", **changes)
    assert call(monkeypatch, "finetune", [*line, "--estimate", "--epochs", "3", "--batch_size", "16"]) == 0
    estimate = last_line(capsys.readouterr().out)
    assert (
        estimate["runs"] == 1
        and estimate["steps"] == 12
        and estimate["evaluations"] == pytest.approx(4 + 5 / 19, abs=1e-3)
    )
    grid = ["--batch_sizes", "16", "32", "--epoch_counts", "1", "3", "--seeds", "0", "1", "--learning_rates", "1e-3"]
    assert call(monkeypatch, "sweep", [*line, "--estimate", *grid]) == 0
    printed = capsys.readouterr().out
    sweep = last_line(printed)
    assert sweep["runs"] == 8 and sweep["steps"] == 2 * (4 + 12 + 2 + 6)
    assert "1 learning rates × 2 batch sizes × 2 numbers of epochs (1, 3) × 2 seeds" in printed
    assert sweep["cache_bytes"] == estimate["cache_bytes"] > 0
    assert files(tmp_path) == before and not (tmp_path / "run").exists()
    assert call(monkeypatch, "finetune", [*line, "--price", "2"]) == 2
    assert "give --estimate as well" in capsys.readouterr().err


def test_a_run_that_knows_no_estimate_refuses_it_before_it_writes(tmp_path):
    data, model = make_data(tmp_path / "data", "mrpc"), make_model(tmp_path / "model")
    asked = FinetuningArguments(
        task="mrpc", model=str(model), data_dir=str(data), output_dir=str(tmp_path / "run"), estimate=True
    )
    with pytest.raises(InputError, match="cannot be estimated; leave --estimate out"):
        fine_tune(asked)
    assert not (tmp_path / "run").exists()


def test_runs_beside_each_other_share_the_time_and_add_up_the_memory():
    parts = {"start_seconds": 1.0, "training_seconds": 8.0, "evaluation_seconds": 1.0, "evaluations": 1.0}
    sizes = {"host_bytes": 5, "device_bytes": 7, "checkpoint_bytes": 100, "model_bytes": 50, "cache_bytes": 3}
    one = Estimate(runs=1, steps=4, timed_steps=2, tokens=40.0, checkpoints=1, most_checkpoints=3, **parts, **sizes)
    both = total([one, one], parallel=2)
    assert (both.runs, both.steps, both.seconds) == (2, 8, 10.0)
    assert (both.host_bytes, both.device_bytes, both.disk_bytes) == (10, 7, 2 * 100 + 2 * 50 + 2 * 3)
    assert both.most_disk_bytes - both.disk_bytes == 2 * 2 * 100
    assert one.scaled(8).training_seconds == 16.0 and one.scaled(8).evaluation_seconds == 1.0


@pytest.mark.parametrize(
    ("number", "text"), [(40_123, "40,123"), (999_999, "999,999"), (1.25e6, "1.2 M"), (3.3e9, "3.3 B")]
)
def test_a_count_has_the_unit_that_suits_it(number, text):
    assert count_text(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512_000, "512 kB"), (1.32e6, "1.3 MB"), (3.9e9, "3.9 GB"), (2e12, "2.0 TB")]
)
def test_a_size_has_the_unit_that_suits_it(number, text):
    assert size_text(number) == text

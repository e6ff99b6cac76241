"""The sweep: its grid, its table, resumed after a kill, shared by processes."""

import subprocess
import sys
import time

import pytest
from finetuning_helpers import call, make_data, make_model, options, read
from training_helpers import RECIPES, environment


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return make_data(root / "data", "mrpc", train=32), make_model(root / "model")


def line(inputs, output, **changes):
    data, model = inputs
    grid = {"learning_rates": [1e-3, 3e-3], "batch_sizes": [16], "epoch_counts": [2], "seeds": [0, 1]}
    taken = {"learning_rate": None, "batch_size": None, "max_steps": None, "micro_batch_size": None, "trackers": None}
    return options("mrpc", data, model, output, **(taken | grid | changes))


def start(command, *launcher):
    return subprocess.Popen(
        [sys.executable, *launcher, str(RECIPES / "sweep.py"), *command],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trial_files(output):
    return sorted(output.glob("trials/*/trial.json"))


def check_table(output):
    table = read(output / "sweep.json")
    assert table["metric"] == "f1" and len(table["settings"]) == 2 and len(table["trials"]) == 4
    for row in table["settings"]:
        scores = [trial["score"] for trial in table["trials"] if trial["setting"] == row["setting"]]
        assert len(scores) == row["trials"] == 2
        assert row["mean"] == row["median"] == pytest.approx(sum(scores) / 2) and row["best"] == max(scores)
        assert row["std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    for trial in table["trials"]:
        assert trial["degenerate"] == (trial["score"] <= table["majority_baseline"])
    means = [row["mean"] for row in table["settings"]]
    assert means == sorted(means, reverse=True)
    assert table["best_trial"]["score"] == max(trial["score"] for trial in table["trials"])
    assert (output / "sweep.md").read_text().count("\n") == 6
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_sweep_goes_on_where_it_was(inputs, tmp_path, monkeypatch, capsys):
    process = start(line(inputs, tmp_path))
    while not trial_files(tmp_path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in trial_files(tmp_path)}
    assert 0 < len(finished) < 4
    assert call(monkeypatch, "sweep", line(inputs, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed.count("== lr") == 4 - len(finished) and "best trial: " in printed
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    check_table(tmp_path)
    # A finished sweep is a table that can be widened.
    assert call(monkeypatch, "sweep", line(inputs, tmp_path, seeds=[0, 1, 2], learning_rates=[1e-3])) == 0
    assert capsys.readouterr().out.count("== lr") == 1
    assert read(tmp_path / "sweep.json")["settings"][0]["trials"] == 3


def test_processes_share_the_trials(inputs, tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no")
    launcher += ("--num_machines", "1", "--dynamo_backend", "no", "--main_process_port", "0")
    process = start(line(inputs, tmp_path), *launcher)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert printed.count("== lr") == 4, "every trial once"
    check_table(tmp_path)


def test_a_trial_that_diverges_or_learns_nothing_is_marked(inputs, tmp_path, monkeypatch, capsys):
    changes = {"learning_rates": [1e-9], "seeds": [0], "epoch_counts": [1]}
    assert call(monkeypatch, "sweep", line(inputs, tmp_path / "nothing", **changes)) == 0
    (trial,) = read(tmp_path / "nothing" / "sweep.json")["trials"]
    table = read(tmp_path / "nothing" / "sweep.json")
    assert trial["degenerate"] == (trial["score"] <= table["majority_baseline"])

    from hfbert_scratch.training import loop as training

    monkeypatch.setattr(training, "linear_schedule", lambda *arguments: float("nan"))
    changes = {"learning_rates": [1e-3], "seeds": [0]}
    assert call(monkeypatch, "sweep", line(inputs, tmp_path / "diverged", **changes)) == 0
    table = read(tmp_path / "diverged" / "sweep.json")
    assert table["trials"][0]["score"] is None and table["settings"][0]["diverged"] == 1 and not table["best_trial"]


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"task": "all-glue"}, 2, "one for each"),
        ({"seeds": ["x"]}, 2, "seeds"),
        ({"learning_rates": [-1.0]}, 2, "learning_rate is -1.0"),
        ({"learning_rate": 1e-3}, 2, "learning_rate and learning_rates are both given"),
        ({"seed": 7}, 2, "--seed is not an option of this command: name the seeds of the trials with --seeds"),
        ({"early_stopping": 2}, 2, "--early_stopping is not an option of this command: every trial is scored"),
        ({"max_steps": 4, "epoch_counts": [2, 3]}, 2, "max_steps 4 makes trials of 2, 3 epochs the same"),
        ({"eval_every": 5}, 2, "eval_every and save_every go with keep_checkpoints 1"),
        ({"max_seq_length": 32}, 6, "max_seq_length: 64 there, 32 now"),
    ],
)
def test_bad_input_ends_in_one_sentence(inputs, tmp_path, monkeypatch, capsys, changes, code, named):
    if code == 6:
        assert call(monkeypatch, "sweep", line(inputs, tmp_path, seeds=[0], learning_rates=[1e-3])) == 0
    assert call(monkeypatch, "sweep", line(inputs, tmp_path, **changes)) == code
    assert named in capsys.readouterr().err

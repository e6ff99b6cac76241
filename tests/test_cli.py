"""The `hfbert` command: its table, what it starts on a machine, and what passes through it."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_helpers import RECIPES, arguments, environment, finish, start_python

import hfbert_cli
from hfbert_cli import COMMANDS, UsageError, main, noted_exit_code, overview, plan_launch, split_launch_options


LAUNCHES = RECIPES / "accelerate"


def start(*words: object) -> subprocess.Popen:
    """`hfbert WORDS` in a process of its own."""
    return start_python("-m", "hfbert_cli", *words)


@pytest.fixture(autouse=True)
def outside_a_launch(monkeypatch):
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def on_machine(monkeypatch, gpus: int) -> None:
    monkeypatch.setattr(hfbert_cli, "visible_gpus", lambda: gpus)


def test_help_fits_one_screen():
    lines = overview().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert all(any(f" {name} " in line for line in lines) for name in COMMANDS)


def test_every_recipe_has_one_command():
    programs = {path.stem for path in RECIPES.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert sorted(row.recipe for row in COMMANDS.values()) == sorted(programs)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fintune"], ["--hlep"], ["pretrain", "--launch", "x"]])
def test_nothing_heavy_is_imported_before_it_is_needed(words):
    code = (
        "import sys, time; import hfbert_cli; hfbert_cli.main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'accelerate', 'hfbert_scratch', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy; assert time.process_time() < 1"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fintune"], "unknown command 'fintune'; did you mean 'finetune'?"),
        (["recipes/build_corpus.py"], "unknown command 'recipes/build_corpus.py'; did you mean 'corpus'?"),
        (["xyzzy"], "unknown command 'xyzzy'; see hfbert --help for the known ones"),
        (["--hlep"], "unknown option '--hlep'; did you mean '--help'?"),
        (["pretrain", "--launch", "fspd2"], "did you mean 'fsdp2'?"),
        (["pretrain", "--launch"], "--launch needs a value: single, multi_gpu"),
        (["pretrain", "--launch", "single", "--num_processes", "2"], "--num_processes 2 does not go with one process"),
    ],
)
def test_mistakes_are_named_with_the_remedy(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_misspelled_option_of_a_command_is_named(tmp_path):
    code, printed = finish(start("pretrain", "--lauch", "single", "--corpus", "c", "--tokenizer", "t"))
    assert code == 2 and "did you mean" in printed


def test_the_options_of_the_launch_are_taken_out():
    words = ["--size", "tiny", "--launch=fsdp2", "--num-processes", "4", "--max_steps", "3"]
    assert split_launch_options(words) == (
        {"launch": "fsdp2", "num_processes": "4"},
        ["--size", "tiny", "--max_steps", "3"],
    )


@pytest.mark.parametrize(
    ("gpus", "options", "config", "processes"),
    [
        (0, {}, None, None),
        (1, {}, None, None),
        (8, {}, "multi_gpu", "8"),
        (8, {"num_processes": "4"}, "multi_gpu", "4"),
        (8, {"num_processes": "1"}, None, None),
        (0, {"num_processes": "2"}, "cpu_processes", "2"),
        (8, {"launch": "single"}, None, None),
        (8, {"launch": "one_gpu"}, None, None),
        (4, {"launch": "fsdp2"}, "fsdp2", "4"),
        (0, {"launch": "fsdp2", "num_processes": "2"}, "fsdp2", "2"),
        (4, {"launch": "multi_node", "num_machines": "3", "machine_rank": "1"}, "multi_node", "12"),
        (4, {"machine_rank": "1", "main_process_ip": "10.0.0.1"}, "multi_node", "8"),
    ],
)
def test_what_is_right_for_the_machine_is_started(gpus, options, config, processes, monkeypatch):
    on_machine(monkeypatch, gpus)
    planned = plan_launch(options, LAUNCHES)
    if config is None:
        assert planned == []
        return
    assert planned[:2] == ["--config_file", str(LAUNCHES / f"{config}.yaml")]
    assert planned[planned.index("--num_processes") + 1] == processes


def test_a_launch_without_gpus_or_inside_a_launch_is_refused(monkeypatch):
    on_machine(monkeypatch, 0)
    with pytest.raises(UsageError, match="none is visible; give --num_processes"):
        plan_launch({"launch": "multi_gpu"}, LAUNCHES)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert plan_launch({}, LAUNCHES) == []
    with pytest.raises(UsageError, match="--launch: this process was started by a launcher"):
        plan_launch({"launch": "multi_gpu"}, LAUNCHES)


def test_a_file_of_accelerate_is_a_launch(tmp_path):
    mine = shutil.copy(LAUNCHES / "cpu_processes.yaml", tmp_path / "mine.yaml")
    assert plan_launch({"launch": str(mine)}, LAUNCHES) == ["--config_file", str(mine)]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [(["75", "75"], 75), (["2", "2"], 2), (["75", "5"], 5), (["75", ""], 1), (["0", "75"], 1), ([], 1)],
)
def test_the_exit_code_of_several_processes_is_one(codes, expected, tmp_path):
    for rank, code in enumerate(codes):
        (tmp_path / str(rank)).write_text(code)
    assert noted_exit_code(tmp_path, 1) == expected


@pytest.mark.parametrize("launch", [(), ("--num_processes", 2)], ids=["one process", "two processes"])
def test_signals_and_exit_codes_pass_through(launch, inputs, tmp_path):
    command = arguments(inputs, tmp_path / "run", max_steps=4000, save_every=1000, eval_every=4000)
    code, printed = finish(start("pretrain", *launch, *command[:-2], "--optimizer", "adafactor"))
    assert code == 2 and "optimizer is adafactor" in printed
    assert "+ " in printed, "it says what it runs"
    process = start("pretrain", *launch, *command)
    log, deadline = Path(tmp_path / "run" / "log.jsonl"), time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    code, printed = finish(process)
    assert code == 75, printed
    assert '"status": "stopped"' in (tmp_path / "run" / "record.json").read_text()


def test_env_prints_what_a_report_needs():
    code, printed = finish(start("env"))
    assert code == 0 and "not available" not in printed
    for name in ("Python", "processor", "torch", "transformers", "GPU", "precision auto"):
        assert name in printed

"""Two hosts, as two network namespaces on this machine: one run over both; a host that dies; a cable that is cut."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from training_helpers import RECIPES, arguments, environment, finish, read_losses, start


SCRIPT = Path(__file__).with_name("two_hosts.sh")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="network namespaces need iproute2"),
]


@pytest.fixture
def hosts():
    subprocess.run([SCRIPT, "down"], check=True)
    setup = subprocess.run([SCRIPT, "up"], capture_output=True, text=True)
    if setup.returncode:
        subprocess.run([SCRIPT, "down"], check=True)
        pytest.skip(f"network namespaces cannot be made here: {setup.stderr.strip()}")
    yield
    subprocess.run([SCRIPT, "down"], check=True)


def launch(command, log, rank):
    """One launcher on each host, with nothing said about interfaces."""
    settings = ["--config_file", str(RECIPES / "accelerate" / "multi_node.yaml"), "--machine_rank", str(rank)]
    settings += ["--num_processes", "2", "--main_process_ip", "10.77.0.1", "--main_process_port", "29511"]
    program = [sys.executable, "-m", "accelerate.commands.launch", *settings, str(RECIPES / "pretrain.py"), *command]
    with log.open("w") as file:
        return subprocess.Popen([SCRIPT, "run", str(rank), *program], env=environment(), stdout=file, stderr=file)


@pytest.fixture
def pair(hosts, inputs, tmp_path):
    """Start a run over both hosts; returns the launchers and the files of what they print."""
    started = []

    def begin(outputs=("run", "run"), **changes):
        logs = [tmp_path / f"host-{rank}" for rank in (0, 1)]
        commands = [arguments(inputs, tmp_path / output, **changes) for output in outputs]
        started.extend(launch(commands[rank], logs[rank], rank) for rank in (0, 1))
        return started, logs

    yield begin
    for process in started:
        if process.poll() is None:
            for member in (*psutil.Process(process.pid).children(recursive=True), process):
                member.kill()
            process.wait()


def wait_for_step(launchers, logs, step):
    deadline = time.monotonic() + 240
    while f"step {step}/" not in logs[0].read_text():
        alive = all(process.poll() is None for process in launchers)
        assert alive and time.monotonic() < deadline, "".join(log.read_text() for log in logs)
        time.sleep(0.05)


def test_hosts_that_do_not_share_the_runs_directory_are_refused(pair, inputs, tmp_path):
    """Else one would go on from a checkpoint and the other begin anew."""
    assert finish(start(arguments(inputs, tmp_path / "run")))[0] == 0
    launchers, logs = pair(outputs=("run", "elsewhere"))
    assert [process.wait(240) for process in launchers] == [1, 1]
    assert "the processes find different checkpoints" in logs[0].read_text()


LONG = {"max_steps": 100_000, "save_every": 50, "eval_every": 100_000, "log_every": 5}


def test_a_run_over_two_hosts_is_the_run_of_one(pair, inputs, tmp_path):
    launchers, logs = pair()
    assert [process.wait(240) for process in launchers] == [0, 0], "".join(log.read_text() for log in logs)
    assert "process 1 of 2: " in logs[0].read_text()
    assert finish(start(arguments(inputs, tmp_path / "one")))[0] == 0
    for ours, theirs in zip(read_losses(tmp_path / "run"), read_losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_host_that_dies_ends_the_other_ones_launch(pair):
    launchers, logs = pair(**LONG)
    wait_for_step(launchers, logs, 10)
    for member in (*psutil.Process(launchers[1].pid).children(recursive=True), launchers[1]):
        member.kill()
    assert launchers[0].wait(60) == 1, logs[0].read_text()


def test_a_cut_cable_ends_both_after_the_time_limit(pair):
    launchers, logs = pair(process_timeout=20, **LONG)
    wait_for_step(launchers, logs, 10)
    subprocess.run([SCRIPT, "cut"], check=True)
    assert [process.wait(120) for process in launchers] == [1, 1], "".join(log.read_text() for log in logs)

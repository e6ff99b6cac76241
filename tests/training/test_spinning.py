"""Threads that wait for each other spin for a shorter time beside other work: when, and that no number changes."""

import threading
from types import SimpleNamespace

import pytest
import torch

from hfbert_scratch.training.hardware import spinning
from hfbert_scratch.training.hardware.spinning import Spinning


CPU = torch.device("cpu")


def cpu_times(busy):
    return SimpleNamespace(user=busy, nice=0.0, system=0.0)


@pytest.fixture
def machine(monkeypatch):
    """Two threads on two cores, with a clock and other work that tests set."""
    state = {"now": 100.0, "busy": 0.0, "own": 0.0}
    for name in spinning.USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(spinning.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(spinning, "mapped_files", lambda: ["/lib/libgomp.so.1"])
    monkeypatch.setattr(spinning.psutil, "cpu_times", lambda percpu: [cpu_times(state["busy"]), cpu_times(0.0)])
    monkeypatch.setattr(spinning.time, "monotonic", lambda: state["now"])
    monkeypatch.setattr(spinning.time, "process_time", lambda: state["own"])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield state
    torch.set_num_threads(threads)


def later(machine, own, others):
    machine["now"] += 2
    machine["own"] += 2 * own
    machine["busy"] += 2 * (own + others)


def helpers():
    return [thread for thread in threading.enumerate() if thread.name == "spinning"]


def test_other_work_shortens_it_and_its_end_restores_it(machine):
    waiting = Spinning(CPU)
    assert waiting.possible and waiting.look() is None
    later(machine, own=1.9, others=0.1)
    assert waiting.look() is None and not waiting.is_short
    later(machine, own=1.0, others=1.0)
    assert waiting.look() == "other work takes 1.0 of 2 cores: threads spin for a shorter time"
    assert waiting.is_short and len(helpers()) == 1
    assert waiting.look() is None, "not at every step"
    later(machine, own=1.0, others=1.0)
    assert waiting.look() is None and len(helpers()) == 1
    helper = helpers()[0]
    later(machine, own=1.9, others=0.1)
    assert waiting.look() == "the other work is over: threads spin as before"
    helper.join(10)
    assert not waiting.is_short and not helpers()


@pytest.mark.parametrize("name", spinning.USERS_OWN)
def test_what_the_user_set_stays(machine, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not Spinning(CPU).possible


def test_where_no_thread_waits_or_another_library_decides(machine, monkeypatch):
    assert not Spinning(torch.device("cuda")).possible
    torch.set_num_threads(1)
    assert not Spinning(CPU).possible
    torch.set_num_threads(2)
    monkeypatch.setattr(spinning, "mapped_files", lambda: ["/lib/libomp.so"])
    waiting = Spinning(CPU)
    later(machine, own=1.0, others=1.0)
    assert not waiting.possible and waiting.look() is None


def test_no_bit_changes(machine):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(512, 4096, generator=generator)
    waiting = Spinning(CPU)
    before = [values.sum(), values @ values.t(), values.softmax(1).sum(0)]
    waiting.shorten()
    during = [values.sum(), values @ values.t(), values.softmax(1).sum(0)]
    waiting.restore()
    assert all(map(torch.equal, before, during))


def test_this_machine_can_be_read(monkeypatch):
    cores = spinning.usable_cores()
    assert cores and spinning.busy_seconds(cores) >= 0

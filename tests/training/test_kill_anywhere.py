"""Twenty kills in one run, anywhere: while it starts, steps, evaluates, writes; then the same losses and weights.

HFBERT_TEST_SEED chooses other moments.
"""

import json
import os
import random
import time

import psutil
import pytest
import torch
from finetuning_helpers import make_data, make_model, options
from safetensors.torch import load_file
from training_helpers import arguments, launcher, make_inputs, read_losses, start

from hfbert_scratch.training.checkpoints import checkpoint_steps


pytestmark = pytest.mark.slow

KILLS = 20
MOMENTS = ("start", "step", "evaluation", "checkpoint")


class Killer:
    """Starts a command again and again and kills it, and what it launched, at a moment of a given kind."""

    def __init__(self, recipe, command, processes, output, every, rng):
        self.recipe, self.command, self.output, self.every, self.rng = recipe, command, output, every, rng
        self.launcher = launcher(processes)
        self.log = output.with_name("printed")
        self.starting = 0.0  # seconds from the launch to the first step, once `finish` has seen one

    def start(self):
        self.log.write_bytes(b"")
        with self.log.open("w") as file:
            return start(self.command, *self.launcher, recipe=self.recipe, output=file)

    def kill(self, moment):
        """Returns the newest checkpoint's step at the time."""
        done = max(checkpoint_steps(self.output / "checkpoints"), default=0)
        process = self.start()
        if moment == "start":
            time.sleep(self.rng.uniform(0.1, self.starting))
        else:
            self.wait(process, moment, done)
            time.sleep(self.rng.uniform(0, 0.03))
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        assert process.poll() is None, self.log.read_text()
        self.rng.shuffle(family)  # a launcher may see one of its processes die, or be the first to go
        for member in family:
            member.kill()
        process.wait()
        for member in family:
            if member is not process:
                member.wait(30)
        return done

    def wait(self, process, moment, done):
        goal = done + self.rng.randint(5, 14)
        if moment == "evaluation":
            goal = -(-goal // self.every) * self.every  # its line comes, then the evaluation
        deadline = time.monotonic() + 300
        reached = False
        while True:
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            reached = reached or f"step {goal}/" in self.log.read_text()
            if reached and (moment != "checkpoint" or list(self.output.glob("checkpoints/.writing-step-*"))):
                return
            time.sleep(0.001)

    def finish(self):
        began = time.monotonic()
        process = self.start()
        while process.poll() is None and "\nstep " not in self.log.read_text():
            time.sleep(0.01)
        self.starting = time.monotonic() - began
        assert process.wait(300) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_twenty_kills_then_the_same_losses_and_weights(tmp_path, recipe, processes):
    """With accumulation, across the border of an epoch, with dropout; a checkpoint every third step."""
    rng = random.Random(os.environ.get("HFBERT_TEST_SEED", f"{recipe}{processes}"))
    changes = {"max_steps": 300, "save_every": 3, "eval_every": 9, "log_every": 1}
    changes |= {"batch_size": 32, "micro_batch_size": 8}
    if recipe == "pretrain":
        inputs = make_inputs(tmp_path)

        def line(output):
            return arguments(inputs, output, **changes)
    else:
        data, model = make_data(tmp_path / "data", "mrpc"), make_model(tmp_path / "model")

        def line(output):
            return options("mrpc", data, model, output, **changes)

    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for output in (whole, killed):
        output.parent.mkdir()
    undisturbed = Killer(recipe, line(whole), processes, whole, 9, rng)
    undisturbed.finish()
    killer = Killer(recipe, line(killed), processes, killed, 9, rng)
    killer.starting = undisturbed.starting
    moments = [*MOMENTS * (KILLS // len(MOMENTS))]
    rng.shuffle(moments)
    reached = [killer.kill(moment) for moment in moments]
    if recipe == "pretrain":
        state = json.loads((whole / "checkpoints" / "step-300" / "training_state.json").read_text())
        assert state["progress"]["cursor"]["cursor"][0] >= 1, "into the second epoch"
    assert len(reached) == KILLS and max(reached) > 90, reached
    assert "continuing from" in killer.finish()
    assert read_losses(killed) == read_losses(whole)
    ours, theirs = (load_file(output / "model" / "model.safetensors") for output in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

"""Checkpoints: whole or not there, whatever happens to the disk or to the files afterwards."""

import errno
import json
import os
import random
import subprocess

import pytest
import torch
from helpers import disk
from safetensors.torch import save_file

from hfbert_scratch.training import checkpoints
from hfbert_scratch.training.checkpoints import (
    checkpoint_steps,
    newest_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from hfbert_scratch.utils.errors import CheckpointError, OutputError


def write_files(directory):
    (directory / "model.safetensors").write_bytes(os.urandom(1000))
    (directory / "deeper").mkdir()
    (directory / "deeper" / "state.json").write_text('{"a": 1}')


def write(root, step, max_to_keep=3):
    return write_checkpoint(root, step, write_files, max_to_keep)


def test_only_the_newest_are_kept_and_strangers_are_left_alone(tmp_path):
    (tmp_path / "step-old").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 2, 9, 10, 11):
        write(tmp_path, step)
    assert checkpoint_steps(tmp_path) == [9, 10, 11]
    assert {path.name for path in tmp_path.iterdir()} == {"step-old", "notes.txt", "step-9", "step-10", "step-11"}
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "step-11"


@pytest.mark.parametrize("keep, left", [(1, [15]), (2, [10, 15])])
def test_a_run_that_fell_back_keeps_what_it_writes(tmp_path, keep, left):
    for step in (10, 20):
        write(tmp_path, step)
    damage_truncate(tmp_path / "step-20" / "model.safetensors")
    assert newest_checkpoint(tmp_path, lambda text: None) == tmp_path / "step-10"
    write_checkpoint(tmp_path, 15, write_files, keep)
    assert checkpoint_steps(tmp_path) == left


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-2])  # the last byte of a JSON file is only its newline


def damage_flip(path):
    data = bytearray(path.read_bytes())
    bit = random.Random(0).randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, os.remove], ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "deeper/state.json", "manifest.json"])
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, name, damage):
    write(tmp_path, 1)
    broken = write(tmp_path, 2)
    damage(broken / name)
    with pytest.raises(CheckpointError, match=name):
        verify_checkpoint(broken)
    said = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "step-1"
    assert name in said[0]
    damage(tmp_path / "step-1" / name)
    with pytest.raises(CheckpointError, match="every checkpoint"):
        newest_checkpoint(tmp_path, said.append)


def test_no_bit_of_the_manifest_can_flip_unseen(tmp_path):
    manifest = write(tmp_path, 1) / "manifest.json"
    whole = manifest.read_bytes()
    content = json.loads(whole)
    for position in range(8 * len(whole)):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        manifest.write_bytes(data)
        try:
            verify_checkpoint(manifest.parent)
        except CheckpointError:
            continue
        # Only what carries no meaning may change: white space, or the step, which the directory's name says.
        changed = json.loads(data)
        assert changed["files"] == content["files"]


@pytest.mark.parametrize("failing", ["write", "flush", "rename"])
def test_a_full_disk_leaves_the_earlier_ones_and_nothing_half_done(tmp_path, monkeypatch, failing):
    write(tmp_path, 1, max_to_keep=1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_too_much(directory):
        write_files(directory)
        full()

    if failing == "flush":
        monkeypatch.setattr(checkpoints.os, "fsync", full)
    elif failing == "rename":
        monkeypatch.setattr(checkpoints.os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device.*earlier ones are intact"):
        write_checkpoint(tmp_path, 2, write_too_much if failing == "write" else write_files, max_to_keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    verify_checkpoint(tmp_path / "step-1")


def test_a_disk_that_is_full_or_read_only(tmp_path):
    """As the operating system and safetensors report it."""

    def write_weights(count):
        return lambda directory: save_file({"weight": torch.ones(count)}, directory / "model.safetensors")

    with disk(tmp_path / "disk", kibibytes=256) as small:
        write_checkpoint(small, 1, write_weights(20_000), max_to_keep=1)
        with pytest.raises(OutputError, match="step-2 cannot be written .*space.*earlier ones are intact"):
            write_checkpoint(small, 2, write_weights(60_000), max_to_keep=1)
        assert [path.name for path in small.iterdir()] == ["step-1"]
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(OutputError, match="step-2 cannot be written .*Read-only"):
            write_checkpoint(small, 2, write_weights(20_000), max_to_keep=1)
        assert newest_checkpoint(small, pytest.fail) == small / "step-1"


def test_an_interrupted_write_is_not_taken_for_a_checkpoint(tmp_path):
    write(tmp_path, 1)

    def killed(directory):
        write_files(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 2, killed, max_to_keep=3)
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "step-1"
    write(tmp_path, 2)
    assert checkpoint_steps(tmp_path) == [1, 2]


def test_no_checkpoint_at_all(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing", pytest.fail) is None

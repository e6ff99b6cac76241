"""Recipes as a user meets them: the demo's whole chain, the shipped configurations, static data, help and errors."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from corpus_helpers import documents, write_text
from training_helpers import RECIPES, environment, make_inputs
from transformers import default_data_collator

from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.masking import collate
from hfbert_scratch.model.kernels_hfbert import IGNORED_LABEL
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.arguments import parse_arguments
from hfbert_scratch.utils.directories import own_directory
from hfbert_scratch.utils.errors import OutputError


@pytest.fixture(autouse=True)
def recipes_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))


def call(monkeypatch, name: str, *options: object) -> int:
    """Run a recipe's main in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
    try:
        importlib.import_module(name).main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_demo_goes_from_text_to_a_checkpoint_that_a_process_without_the_package_opens(tmp_path):
    text = write_text(tmp_path / "text.txt", documents(150))
    command = [sys.executable, str(RECIPES / "demo.py"), "--text", str(text), "--output_dir", str(tmp_path / "demo")]
    command += ["--vocab_size", "300", "--max_steps", "40"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = done.stdout.split("== Result")[1]
    assert "held-out masked LM: loss" in result and "held-out next sentence: accuracy" in result
    answers = [line for line in done.stdout.splitlines() if line.startswith("    ") and line.endswith("%")]
    assert len(answers) == 6, "five words for each of the six sentences"
    assert all(line.count("%") == 5 for line in answers)
    assert (tmp_path / "demo" / "repository" / "README.md").is_file()
    record = json.loads((tmp_path / "demo" / "pretraining" / "record.json").read_text())
    assert f"{record['results']['eval_masked_lm_loss']:.3f}" in result


def test_a_second_demo_in_one_directory_is_refused_at_once(tmp_path, monkeypatch, capsys):
    with own_directory(tmp_path):
        assert call(monkeypatch, "demo", "--output_dir", tmp_path) == OutputError.exit_code
    assert f"another run is writing to {tmp_path}" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_the_demos_own_text_is_prose_and_the_same_every_time(tmp_path):
    demo_text = importlib.import_module("demo_text")
    counts = [demo_text.write_documents(tmp_path / f"{number}.jsonl", 400_000) for number in range(2)]
    assert counts[0] == counts[1] and counts[0][1] >= 400_000
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    texts = [json.loads(line)["text"] for line in (tmp_path / "0.jsonl").read_text(encoding="utf-8").splitlines()]
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs) and min(text.count("\n") for text in texts) >= 1
    assert not any(">>>" in paragraph or paragraph.startswith(":param") for paragraph in paragraphs)


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_launch_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines >= 1
    assert config.distributed_type in ("NO", "MULTI_GPU", "FSDP")


def test_the_batch_script_launches_once_a_host_and_requeues_what_stopped(tmp_path):
    """With Slurm's programs and the launcher replaced by shells that say how they were called."""
    record = tmp_path / "run" / "record.json"
    for name, body in {
        "scontrol": f'echo host-a; if [ "$1" = requeue ]; then echo "$2" >> {tmp_path}/requeued; fi',
        "srun": 'shift; SLURM_PROCID=1 exec "$@"',
        "accelerate": f'printf "%s\\n" "$@" > {tmp_path}/called; sleep 0.05; eval "$LEAVE"; exit 1',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    environment |= {"SLURM_JOB_NODELIST": "host-[a-b]", "SLURM_GPUS_ON_NODE": "4"}
    command = ["bash", str(RECIPES / "accelerate" / "slurm.sh"), "recipes/pretrain.py", "--output_dir", record.parent]

    def submit(leave: str) -> int:
        return subprocess.run(command, env=environment | {"LEAVE": leave}, cwd=RECIPES.parent).returncode

    record.parent.mkdir()
    record.write_text('{"status": "stopped"}')
    assert submit("true") == 1
    called = (tmp_path / "called").read_text().split()
    for option, value in (("--machine_rank", "1"), ("--num_machines", "2"), ("--num_processes", "8")):
        assert called[called.index(option) + 1] == value
    assert called[called.index("--main_process_ip") + 1] == "host-a"
    assert "--max_time" in called[called.index("recipes/pretrain.py") :]
    assert not (tmp_path / "requeued").exists(), "the record is of an earlier job: this one failed"
    assert submit(f"touch {record}") == 1
    assert (tmp_path / "requeued").read_text() == "7\n"


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_settings_are_valid(path):
    pretrain = importlib.import_module("pretrain")
    command = ["--config", path.stem, "--corpus", "c", "--tokenizer", "t", "--output_dir", "o"]
    arguments = parse_arguments(pretrain.PretrainingArguments, command, configs=RECIPES / "configs")
    phases = arguments.phases()
    assert phases[-1].last_step == arguments.max_steps
    assert arguments.collator(_Tokenizer(), phases[0].max_seq_length)


class _Tokenizer:
    """The least a collator asks of a tokenizer."""

    pad_token_id, cls_token_id, sep_token_id, mask_token_id = 0, 2, 3, 4
    all_special_ids = [0, 1, 2, 3, 4]

    def __len__(self):
        return 10

    def convert_ids_to_tokens(self, ids):
        return [str(number) for number in ids]


def test_static_instances_are_the_rows_of_training(tmp_path, monkeypatch):
    inputs = make_inputs(tmp_path)
    options = ("--corpus", inputs["corpus"], "--tokenizer", inputs["tokenizer"], "--output_dir", tmp_path / "static")
    assert call(monkeypatch, "create_pretraining_data", *options, "--max_seq_length", 64, "--dupe_factor", 2) == 0
    written = datasets.load_from_disk(str(tmp_path / "static"))
    tokenizer = load_tokenizer(inputs["tokenizer"])
    arguments = PretrainingDataArguments(seed=0)
    sampler = arguments.sampler(Corpus.open(inputs["corpus"], tokenizer).split("train"), 64)
    collator = arguments.collator(tokenizer, 64)
    drawn = [collate(sampler, collator, instances)[0] for instances, _ in sampler.batches(500, epochs=2)]
    for name in ("input_ids", "token_type_ids", "attention_mask", "labels", "next_sentence_label"):
        expected = np.concatenate([batch[name] for batch in drawn])
        assert (np.array(written["train"][name]) == expected).all(), name
    predicted = np.array(written["train"]["labels"]) != IGNORED_LABEL
    assert str(written["train"].features["labels"].feature.dtype) == "int16", "no more bits than the ids take"
    for rows in (written["train"], written["train"].with_format("torch")):
        batch = default_data_collator([rows[number] for number in range(2)])
        assert {tensor.dtype for tensor in batch.values()} == {torch.long}, "as every BertForPreTraining takes them"
    assert predicted.sum(axis=1).max() == 10, "15 % of 64, rounded up"
    assert json.loads((tmp_path / "static" / "record.json").read_text())["rows"]["train"] == len(written["train"])
    assert call(monkeypatch, "create_pretraining_data", *options) == 2, "never over something that is there"


def test_options_declared_once_are_those_of_every_recipe(monkeypatch):
    pretrain, static, build = map(importlib.import_module, ("pretrain", "create_pretraining_data", "build_corpus"))
    paths = ["--corpus", "c", "--tokenizer", "t", "--output_dir", "o"]
    arguments = parse_arguments(pretrain.PretrainingArguments, [*paths, "--max_steps", "9", "--left_to_right"])
    assert arguments.no_nsp, "left to right implies it"
    arguments = parse_arguments(static.StaticArguments, [*paths, "--mask_share", "1", "--keep_share", "0"])
    assert (arguments.mask_share, arguments.no_nsp) == (1.0, False)
    with pytest.raises(ValueError, match="unknown argument '--left_to_right'"):
        parse_arguments(static.StaticArguments, [*paths, "--left_to_right", "true"])
    options = ["--text", "a", "b", "--tokenizer", "t", "--output_dir", "o", "--no_nsp"]
    entries = parse_arguments(build.CorpusArguments, options).as_manifest()
    assert entries["text"] == ["a", "b"] and entries["next_sentence"] is False
    assert not entries.keys() & {"no_nsp", "output_dir", "num_proc"}, "the manifest's keys are a format"


@pytest.mark.parametrize(
    "name",
    ["train_tokenizer", "build_corpus", "pretrain", "create_pretraining_data", "convert", "export", "publish", "demo"],
)
def test_every_recipe_explains_itself(name, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.count("--") > 3
    assert importlib.import_module(name).__doc__.splitlines()[0] in " ".join(printed.split())


def test_debug_shows_where_an_error_comes_from(tmp_path, monkeypatch, capsys):
    options = ("--corpus", tmp_path / "none", "--tokenizer", tmp_path / "none", "--output_dir", tmp_path / "o")
    assert call(monkeypatch, "create_pretraining_data", *options) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert call(monkeypatch, "create_pretraining_data", *options, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_configuration_files_are_checked_like_the_command_line(tmp_path):
    pretrain = importlib.import_module("pretrain")
    required = ["--corpus", "c", "--tokenizer", "t", "--output_dir", "o", "--max_steps", "10"]

    def parse(content: str, *options: str):
        Path(tmp_path / "my.yaml").write_text(content)
        command = ["--config", str(tmp_path / "my.yaml"), *required, *options]
        return parse_arguments(pretrain.PretrainingArguments, command, configs=RECIPES / "configs")

    assert parse("batch_size: 64\nlearning_rate: 2e-5\ncompile: true\nmodel: null\n").learning_rate == 2e-5
    assert parse("batch_size: 64", "--batch_size", "128").batch_size == 128, "the command line wins"
    for content, named in (
        ("learning_rat: 1", "'learning_rat'; did you mean 'learning_rate'"),
        ("batch_size: many", "batch_size"),
        ("- a\n- b", "mapping"),
        ("batch_size: {a: 1}", "batch_size"),
        ("a: [", "not readable YAML"),
    ):
        with pytest.raises(ValueError, match=named):
            parse(content)

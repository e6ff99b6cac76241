"""Models kept at word counts: where they fall, that they stay, and how the Hub's clients open them by revision."""

import shutil
from pathlib import Path

import pytest
from finetuning_helpers import call, read
from helpers import fresh_process
from safetensors.torch import load_file
from training_helpers import arguments, handlers_restored, make_inputs, pretrain_here

from hfbert_scratch.publishing import repository


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 20 steps that kept two models, and was started again after its end."""
    directory = tmp_path_factory.mktemp("runs")
    inputs = make_inputs(directory)
    changes = {"checkpoint_words": "500,2k", "keep_checkpoints": 1, "save_every": 20}
    with pytest.MonkeyPatch.context() as monkeypatch, handlers_restored():
        assert pretrain_here(monkeypatch, arguments(inputs, directory / "run", **changes)) == 0
    return directory / "run", inputs


def test_models_are_kept_after_so_many_words(run, tmp_path, monkeypatch, capsys):
    directory, inputs = run
    record = read(directory / "record.json")
    assert sorted(path.name for path in (directory / "revisions").iterdir()) == ["chck_2k", "chck_500"]
    first, second = record["revisions"]["chck_500"], record["revisions"]["chck_2k"]
    assert 1 <= first < second < 20
    # 16 sequences of 32 pieces; a made-up word has one to four.
    words = record["tokens"] / 20 * second
    assert 1 < words / 2000 < 6
    # The model after that step, and not the last one: a shorter run with the same schedule has the same weights.
    kept = load_file(directory / "revisions" / "chck_500" / "model.safetensors")
    last = load_file(directory / "model" / "model.safetensors")
    assert kept.keys() == last.keys() and not kept["cls.predictions.bias"].equal(last["cls.predictions.bias"])
    changes = {"save_every": first, "eval_every": 20, "keep_checkpoints": 50}
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "again", **changes)) == 0
    same = load_file(tmp_path / "again" / "checkpoints" / f"step-{first}" / "model.safetensors")
    assert all(same[name].equal(tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("1Q", "checkpoint_words has '1Q'; write word counts as 1M, 500k or 20000"),
        ("0", "checkpoint_words has '0'"),
        ("500,3M", "checkpoint_words has 3M, and the run sees 0.00M words; leave it out"),
        ("500,501", "checkpoint_words 500 and 501 fall on one step"),
    ],
)
def test_counts_that_cannot_be_kept_are_named(run, tmp_path, monkeypatch, capsys, counts, message):
    command = arguments(run[1], tmp_path / "run", checkpoint_words=counts)
    assert pretrain_here(monkeypatch, command) == 2
    assert message in capsys.readouterr().err


def test_publish_pushes_them_as_branches(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(repository, "check_loads", lambda *_: None)
    calls = []

    class Hub:
        def create_repo(self, repo_id, **options):
            calls.append(("repo", repo_id))

        def create_branch(self, repo_id, *, branch, exist_ok):
            calls.append(("branch", branch))

        def upload_folder(self, *, folder_path, repo_id, commit_message, revision="main"):
            assert (Path(folder_path) / "model.safetensors").is_file()
            calls.append(("upload", revision))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(repository, "HfApi", Hub)
    line = ["--run", str(run[0]), "--license", "mit", "--output_dir", str(tmp_path / "out"), "--repo_id", "me/bert"]
    assert call(monkeypatch, "publish", [*line, "--push", "--revisions"]) == 0
    branches = [("branch", "chck_500"), ("upload", "chck_500"), ("branch", "chck_2k"), ("upload", "chck_2k")]
    assert calls == [("repo", "me/bert"), ("upload", "main"), *branches]
    assert "revisions: chck_500, chck_2k" in capsys.readouterr().out
    other = tmp_path / "other"
    shutil.copytree(run[0], other)
    shutil.rmtree(other / "revisions" / "chck_500")
    line[1], line[5] = str(other), str(tmp_path / "lacking")
    assert call(monkeypatch, "publish", [*line, "--push", "--revisions"]) == 2
    assert "lacks" in capsys.readouterr().err and not (tmp_path / "lacking").exists()


def test_the_babylm_way_opens_a_revision_without_the_package(run, tmp_path):
    """AutoModelForMaskedLM by name, revision and remote code, from a cache as the Hub's client fills it."""
    cache = tmp_path / "hub" / "models--me--bert"
    for number, revision in enumerate(("chck_500", "chck_2k"), start=1):
        commit = str(number) * 40
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
        shutil.copytree(run[0] / "revisions" / revision, cache / "snapshots" / commit)
    code = """
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
models = [
    AutoModelForMaskedLM.from_pretrained("me/bert", trust_remote_code=True, revision=revision)
    for revision in ("chck_500", "chck_2k")
]
tokenizer = AutoTokenizer.from_pretrained("me/bert", trust_remote_code=True, revision="chck_500")
inputs = tokenizer("ba be [MASK].", return_tensors="pt")
first, second = (model(**inputs).logits for model in models)
assert first.shape[-1] == models[0].config.vocab_size and not torch.equal(first, second)
"""
    fresh_process(f"import os\nos.environ['HF_HUB_CACHE'] = {str(tmp_path / 'hub')!r}\n{code}", tmp_path)

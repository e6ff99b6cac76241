"""A corpus, a stopped run, a fine-tuned checkpoint and a feature cache written by 0.1.0 open and continue.

data/version_0_1_0.tar.xz was written by the recipes of 0.1.0, before the package was divided into folders: a corpus of
200 made documents, a pretraining run stopped after step 1 of 8, the losses of the same run without a stop, and a
checkpoint fine-tuned on made pairs in MRPC's format, with the cache of their features.
"""

import json
import tarfile
from pathlib import Path

import datasets
import pytest
from finetuning_helpers import call
from training_helpers import arguments, pretrain_here, read_losses
from transformers import AutoModelForSequenceClassification, pipeline

from hfbert_scratch import HFBertForSequenceClassification


ARCHIVE = Path(__file__).parent / "data" / "version_0_1_0.tar.xz"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The unpacked archive as the current directory: its records name relative paths."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_goes_on_as_if_it_had_not_been_stopped(written, monkeypatch):
    assert datasets.load_from_disk("corpus")["train"].num_rows
    inputs = {"tokenizer": Path("tokenizer"), "corpus": Path("corpus")}
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "max_position_embeddings": 32}
    steps = {"max_steps": 8, "save_every": 4, "eval_every": 4}
    assert pretrain_here(monkeypatch, arguments(inputs, Path("stopped"), **sizes, **steps)) == 0
    for actual, expected in zip(
        read_losses(Path("stopped")), json.loads(Path("losses.json").read_text()), strict=True
    ):
        assert actual == pytest.approx(expected, rel=1e-4)  # another processor adds in another order


def test_a_checkpoint_opens_and_scores_as_it_did(written, monkeypatch):
    model = AutoModelForSequenceClassification.from_pretrained("finetuned/model")
    assert type(model) is HFBertForSequenceClassification
    line = ["--model", "finetuned/model", "--data_dir", "mrpc", "--output_dir", "scores", "--cache_dir", "cache"]
    assert call(monkeypatch, "evaluate_model", [*line, "--precision", "float32"]) == 0
    scores = [json.loads(Path(path).read_text()) for path in ("finetuned/results.json", "scores/results.json")]
    actual, expected = (score["scores"]["validation"] for score in scores[::-1])
    assert actual["f1"] == pytest.approx(expected["f1"])
    assert pipeline("text-classification", "finetuned/model")("a pair")[0]["label"] in model.config.label2id

"""More pretraining of a finished checkpoint on other text: what it starts from, and what it may forget."""

import json
import shutil

import pytest
import torch
import transformers
import yaml
from corpus_helpers import build, documents, small_tokenizer
from finetuning_helpers import read
from training_helpers import RECIPES, arguments, make_inputs, pretrain_here, start_python

from hfbert_scratch import HFBertConfig, HFBertForPreTraining
from hfbert_scratch.app.checkpoint import open_checkpoint
from hfbert_scratch.conversion.checkpoint import read_checkpoint
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.training.checkpoints import MANIFEST, write_checkpoint
from hfbert_scratch.utils.errors import InputError
from hfbert_scratch.utils.files import split_revision


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 64}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tokenizer, a corpus, and `other`: a corpus of other made-up words."""
    root = tmp_path_factory.mktemp("inputs")
    inputs = make_inputs(root)
    other = [text.replace("a", "o") for text in documents(120, seed=5)]
    build(root, other, small_tokenizer(), "other", max_seq_length=64, validation_share=0.2)
    return inputs | {"other": root / "other"}


@pytest.fixture
def pretrain(inputs, monkeypatch):
    def run(output, **changes):
        settings = {"max_steps": 2, "eval_every": 1, "save_every": 2} | changes
        return pretrain_here(monkeypatch, arguments(inputs, output, **settings))

    return run


def checkpoint(directory, inputs, kind="BertForPreTraining", vocab_size=None, config="BertConfig", **fields):
    """A checkpoint of a class of transformers, with the tokenizer's size unless `vocab_size` says otherwise."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(inputs["tokenizer"])
    size = len(tokenizer) if vocab_size is None else vocab_size
    torch.manual_seed(0)
    settings = getattr(transformers, config)(vocab_size=size, **(SIZES | fields))
    getattr(transformers, kind)(settings).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def test_both_texts_are_measured_before_during_and_after(pretrain, inputs, tmp_path, capsys):
    model = checkpoint(tmp_path / "model", inputs)
    output = tmp_path / "run"
    own = {"model": model, "also_evaluate": inputs["other"], "config": "continue", "max_steps": 4, "eval_every": 2}
    assert pretrain(output, **own) == 0
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    measured = {entry["step"]: entry for entry in log if "also_masked_lm_loss" in entry}
    assert list(measured) == [0, 2, 4] and all("eval_masked_lm_loss" in entry for entry in measured.values())
    results = read(output / "record.json")["results"]
    assert results["before"]["also_masked_lm_loss"] == measured[0]["also_masked_lm_loss"]
    assert results["also_masked_lm_loss"] == measured[4]["also_masked_lm_loss"]
    assert "also evaluated: MLM loss" in capsys.readouterr().out


def test_a_run_with_a_second_text_learns_the_same_as_one_without(pretrain, inputs, tmp_path):
    for name, option in (("with", {"also_evaluate": inputs["other"]}), ("without", {})):
        assert pretrain(tmp_path / name, **option) == 0
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("with", "without")]
    ours, theirs = ([e["loss"] for e in map(json.loads, log) if "loss" in e] for log in logs)
    assert ours == theirs
    assert pretrain(tmp_path / "without", also_evaluate=inputs["other"]) == 0, "begun without, it goes on with it"


def test_a_rise_of_the_other_loss_is_a_warning(pretrain, inputs, tmp_path, capsys):
    assert pretrain(tmp_path / "general", max_steps=30, eval_every=30, learning_rate=1e-2) == 0
    capsys.readouterr()
    own = {"model": tmp_path / "general" / "model", "corpus": inputs["other"], "also_evaluate": inputs["corpus"]}
    assert pretrain(tmp_path / "domain", **own, learning_rate=1.0, warmup_steps=0) == 0
    assert "warning: the model forgets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("BertForPreTraining", []),
        ("BertForMaskedLM", ["bert.pooler.dense.weight", "cls.seq_relationship.weight", "--no_nsp true"]),
        ("BertModel", ["cls.predictions.transform.dense.weight", "start from random numbers"]),
    ],
)
def test_checkpoints_without_heads_are_continued_and_said(kind, told, pretrain, inputs, tmp_path, capsys):
    assert pretrain(tmp_path / "run", model=checkpoint(tmp_path / "model", inputs, kind)) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in told) and ("start from random numbers" in printed) == bool(told)
    again = HFBertForPreTraining.from_pretrained(tmp_path / "run" / "model")
    assert torch.isfinite(again.bert.pooler.dense.weight).all()


def test_a_checkpoint_with_more_rows_than_tokens_keeps_them(pretrain, inputs, tmp_path):
    assert pretrain(tmp_path / "run", model=checkpoint(tmp_path / "model", inputs, vocab_size=512)) == 0
    assert HFBertConfig.from_pretrained(tmp_path / "run" / "model").vocab_size == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 64}, "tokens, the model embeds 64; use the one it was trained with"),
        ({"max_position_embeddings": 16}, "max_seq_length 32 exceeds the model's max_position_embeddings 16"),
        ({"config": "RobertaConfig", "kind": "RobertaForMaskedLM"}, "is a roberta model; this needs a bert"),
        ({"config": "DistilBertConfig", "kind": "DistilBertForMaskedLM"}, "is a distilbert model; this needs a bert"),
    ],
)
def test_checkpoints_that_cannot_be_continued_are_refused(changes, message, pretrain, inputs, tmp_path, capsys):
    assert pretrain(tmp_path / "run", model=checkpoint(tmp_path / "model", inputs, **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": "base"}, "size base (it has a size without a name)"),
        ({"num_hidden_layers": 3, "hidden_size": 32}, "num_hidden_layers 3 (it has 1)"),
        ({"max_position_embeddings": 512}, "max_position_embeddings 512 (it has 64)"),
        ({"initializer_range": 0.1}, "initializer_range 0.1 (it has 0.02)"),
        ({"sinusoidal_positions": "true"}, "sinusoidal_positions True (it has positions already)"),
    ],
)
def test_options_that_contradict_the_checkpoint_are_refused(option, message, pretrain, inputs, tmp_path, capsys):
    model = checkpoint(tmp_path / "model", inputs)
    capsys.readouterr()
    assert pretrain(tmp_path / "run", model=model, **option) == 2
    error = capsys.readouterr().err
    assert f"does not go with {message}; the checkpoint decides, leave it out of the command" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_what_the_command_leaves_open_is_the_checkpoint_s(pretrain, inputs, tmp_path, capsys):
    assert pretrain(tmp_path / "first", left_to_right="true", dropout=0.0) == 0
    start = {"model": tmp_path / "first" / "model"}
    assert pretrain(tmp_path / "silent", **start, hidden_size=32) == 0
    config = HFBertConfig.from_pretrained(tmp_path / "silent" / "model")
    assert config.left_to_right and config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0
    record = read(tmp_path / "silent" / "record.json")
    for told in (record["arguments"], record["settings"]):
        assert (told["size"], told["left_to_right"], told["no_nsp"]) == (None, True, True)
    assert pretrain(tmp_path / "told", **start, left_to_right="false", dropout=0.3) == 0
    config = HFBertConfig.from_pretrained(tmp_path / "told" / "model")
    assert not config.left_to_right and config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3
    assert pretrain(tmp_path / "refused", **start, next_sentence_weight=0.5) == 2
    assert "has no meaning without next-sentence prediction" in capsys.readouterr().err


def test_a_checkpoint_of_many_positions_is_continued_with_sequences_as_long(pretrain, inputs, tmp_path):
    build(tmp_path, documents(40), small_tokenizer(), "long", max_seq_length=600, validation_share=0.2)
    own = {"corpus": tmp_path / "long", "max_seq_length": 600, "batch_size": 2, "micro_batch_size": 2, "eval_rows": 2}
    model = checkpoint(tmp_path / "model", inputs, max_position_embeddings=640)
    assert pretrain(tmp_path / "run", model=model, **own, max_steps=1) == 0


def test_a_run_of_an_earlier_version_goes_on_as_it_began(pretrain, inputs, tmp_path):
    """It had a default for every option, recorded them all, and took dropout and attention from them."""
    assert pretrain(tmp_path / "first", left_to_right="true", dropout=0.0) == 0
    earlier = {"size": "base", "initializer_range": 0.02, "max_position_embeddings": 512}
    earlier |= {"dropout": 0.1, "left_to_right": False, "no_nsp": False}
    own = {"model": tmp_path / "first" / "model", "max_steps": 3, "save_every": 1}
    assert pretrain(tmp_path / "run", **own, left_to_right="false", dropout=0.1, max_time=1e-9) == 75
    checkpoints = tmp_path / "run" / "checkpoints"

    def as_before(directory):
        shutil.copytree(checkpoints / "step-1", directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        state = json.loads((directory / "training_state.json").read_text())
        state["settings"] |= earlier
        (directory / "training_state.json").write_text(json.dumps(state))

    write_checkpoint(checkpoints, 1, as_before, max_to_keep=1)
    assert pretrain(tmp_path / "run", **own, max_time=1e-9) == 75, "the same command, without these options"
    written = tmp_path / "saved.yaml"
    written.write_text(yaml.safe_dump(earlier))
    assert pretrain(tmp_path / "run", **own, config=written) == 0, "its arguments.yaml"
    record = read(tmp_path / "run" / "record.json")
    for told in (record["arguments"], record["settings"]):
        assert [told[name] for name in earlier] == [None, 0.02, None, 0.1, False, False], "0.02 is the checkpoint's"
    assert HFBertConfig.from_pretrained(tmp_path / "run" / "model").hidden_dropout_prob == 0.1


def test_another_case_is_refused(pretrain, inputs, tmp_path, capsys):
    cased = checkpoint(tmp_path / "model", inputs)
    save_tokenizer(transformers.BertTokenizer(vocab=small_vocabulary(), do_lower_case=False), cased)
    assert pretrain(tmp_path / "run", model=cased) == 2
    assert "its embeddings belong to other words" in capsys.readouterr().err


def small_vocabulary():
    return {
        token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ABCDEFGHIJKLMN"])
    }


def test_the_other_corpus_is_checked_before_the_run(pretrain, inputs, tmp_path, capsys):
    assert pretrain(tmp_path / "run", also_evaluate=tmp_path) == 2
    assert "is not a corpus" in capsys.readouterr().err
    build(tmp_path, documents(60), small_tokenizer(documents(60)), "foreign", max_seq_length=64)
    assert pretrain(tmp_path / "run", also_evaluate=tmp_path / "foreign") == 2
    assert "was built with another tokenizer" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["corpus", "also_evaluate"])
def test_a_corpus_without_held_out_documents_is_refused_before_anything_is_written(
    option, pretrain, inputs, tmp_path, capsys
):
    build(tmp_path, documents(60), small_tokenizer(), "whole", max_seq_length=64, validation_share=0)
    assert pretrain(tmp_path / "run", **{option: tmp_path / "whole"}) == 2
    assert "validation" in capsys.readouterr().err and not (tmp_path / "run").exists()


def two_revisions(tmp_path, inputs):
    """Write acme/bert, of 512 tokens at main and 600 at v1, into a Hub's cache."""
    root = tmp_path / "hub" / "models--acme--bert"
    for commit, revision, size in (("a" * 40, "main", 512), ("b" * 40, "v1", 600)):
        checkpoint(root / "snapshots" / commit, inputs, vocab_size=size)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit)


def test_a_name_on_the_hub_is_opened_at_its_revision(inputs, tmp_path, monkeypatch):
    """From the Hub's cache, in which two revisions of a name lie."""
    assert split_revision("acme/bert@v1.2") == ("acme/bert", "v1.2")
    assert split_revision("acme/bert") == ("acme/bert", None) and split_revision("./a@b") == ("./a@b", None)
    two_revisions(tmp_path, inputs)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    own = {"model": "acme/bert@v1", "tokenizer": "acme/bert@main", "max_steps": 1}
    process = start_python(RECIPES / "pretrain.py", *arguments(inputs, tmp_path / "run", **own))
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert HFBertConfig.from_pretrained(tmp_path / "run" / "model").vocab_size == 600
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["from_hub"] == {"acme/bert": "b" * 40}


def test_conversion_and_the_page_open_a_revision_too(inputs, tmp_path, monkeypatch):
    two_revisions(tmp_path, inputs)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_checkpoint("acme/bert@v1", "bert").config["vocab_size"] == 600
    assert read_checkpoint("acme/bert", "bert").config["vocab_size"] == 512
    assert open_checkpoint("acme/bert@v1").model.config.vocab_size == 600
    with pytest.raises(InputError, match="acme/bert@v3"):
        read_checkpoint("acme/bert@v3", "bert")

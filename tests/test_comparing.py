"""Encoders of many makers on the same tasks and seeds: tiny random ones, with the real tokenizers and heads."""

import numpy as np
import pytest
import torch
import transformers
from corpus_helpers import documents, small_tokenizer
from finetuning_helpers import call, command, make_data, make_model, options, read
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from hfbert_scratch.tasks.encoding import as_inner_word, num_truncated, special_tokens, token_ids, with_special_tokens
from hfbert_scratch.text.tokenizer import load_any_tokenizer, save_tokenizer
from hfbert_scratch.utils.errors import InputError


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 130}
# Family → configuration class, how its sizes are called, and its kind of tokenizer.
FAMILIES = {
    "bert": ("BertConfig", SIZES, "wordpiece"),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}, "wordpiece"),
    "electra": ("ElectraConfig", SIZES | {"embedding_size": 32}, "wordpiece"),
    "roberta": ("RobertaConfig", SIZES | {"type_vocab_size": 1}, "bytes"),
    "deberta": ("DebertaV2Config", SIZES | {"type_vocab_size": 0}, "unigram"),
    "modernbert": ("ModernBertConfig", SIZES | {"global_attn_every_n_layers": 1}, "bytes"),
}


def byte_level(texts):
    """RoBERTa's kind: byte-level BPE, <s> a </s></s> b </s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("cls", "pad", "sep", "unk", "mask"), special, strict=True))
    return tokenizer, names, ["input_ids", "attention_mask"]


def unigram(texts):
    """DeBERTa's kind: SentencePiece's unigram model, [CLS] a [SEP] b [SEP]."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="[UNK]")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    names = dict(zip(("pad", "cls", "sep", "unk", "mask"), special, strict=True))
    return tokenizer, names, ["input_ids", "token_type_ids", "attention_mask"]


def make_tokenizer(kind):
    texts = documents(60)
    if kind == "wordpiece":
        return small_tokenizer(texts)
    backend, names, inputs = (byte_level if kind == "bytes" else unigram)(texts)
    special = {f"{name}_token": token for name, token in names.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **special)


def make_encoder(directory, family):
    config, sizes, kind = FAMILIES[family]
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(0)
    roles = ("pad", "cls", "sep", "bos", "eos")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    ids = {name: number for name, number in ids.items() if number is not None}
    settings = getattr(transformers, config)(vocab_size=len(tokenizer), **sizes, **ids)
    transformers.AutoModel.from_config(settings).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for task in ("mrpc", "conll2003", "squad"):
        make_data(root / task, task, train=32, validation=16, test=2)
    return root


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {"ours": make_model(root / "ours")} | {name: make_encoder(root / name, name) for name in FAMILIES}


def compare(monkeypatch, names, output, data, **changes):
    line = {"tasks": ["mrpc"], "data_dir": data, "output_dir": output, "max_seq_length": 48, "batch_size": 16}
    line |= {"max_steps": 2, "seeds": [0, 1], "precision": "float32", "cache_dir": output.parent / "cache"}
    return call(monkeypatch, "compare", [*map(str, names), *command(line | changes)])


def test_seven_families_are_compared_on_pairs_and_words(encoders, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    assert compare(monkeypatch, encoders.values(), output, data, tasks=["mrpc", "conll2003"]) == 0
    results = read(output / "compare.json")
    assert len(results["results"]) == 2 * 7 and len(results["over_all_tasks"]) == 6
    for entry in results["results"]:
        assert len(entry["scores"]) == 2 and entry["mean"] == pytest.approx(np.mean(entry["scores"]))
        if entry["model"] == str(encoders["ours"]):
            assert "difference" not in entry
        else:
            figures = entry["difference"]
            assert figures["low"] <= figures["difference"] <= figures["high"]
    table = (output / "compare.md").read_text()
    assert table.count("\n| ") == 2 + 14 + 6 and (output / "compare.png").is_file()
    assert table in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in output.rglob("trial.json")}
    assert len(before) == 28
    assert compare(monkeypatch, encoders.values(), output, data, tasks=["mrpc", "conll2003"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("trial.json")}, "nothing ran again"


def test_the_same_model_twice_is_no_difference(encoders, data, tmp_path, monkeypatch):
    """Paired by seed and example, a copy differs by nothing, whatever the seeds do."""
    copy = make_model(tmp_path / "copy")
    assert compare(monkeypatch, [encoders["ours"], copy], tmp_path / "out", data) == 0
    entry = read(tmp_path / "out" / "compare.json")["results"][1]
    assert entry["difference"] == {
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "is_decided": False,
        "more_seeds": entry["difference"]["more_seeds"],
    }


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
def test_inputs_are_those_of_the_tokenizer_itself(kind):
    tokenizer = make_tokenizer(kind)
    first, second = "ba befi botu", "kimu lo"
    a, b = token_ids(tokenizer, [first, second])
    for pair, own in (((first,), (a, None)), ((first, second), (a, b))):
        ids, types = with_special_tokens(tokenizer, *own, 64)
        expected = tokenizer(*pair)
        assert ids.tolist() == expected["input_ids"]
        assert types.tolist() == expected.get("token_type_ids", [0] * len(ids))
        cut, _ = with_special_tokens(tokenizer, *own, len(ids) - 2)
        assert len(cut) == len(ids) - 2
        assert num_truncated(*own, len(ids) - 2, special_tokens(tokenizer).count(own[1] is not None)) == 2
    words = [as_inner_word(tokenizer, word) for word in second.split()]
    inside = tokenizer(f"{first} {second}", add_special_tokens=False)["input_ids"]
    assert inside == [*a, *np.concatenate(token_ids(tokenizer, words))], "words have the pieces they have in a text"


def test_a_fine_tuned_roberta_is_evaluated_again(encoders, data, tmp_path, monkeypatch):
    line = options("mrpc", data / "mrpc", encoders["roberta"], tmp_path / "run", max_steps=2)
    assert call(monkeypatch, "finetune", line) == 0
    again = {"model": tmp_path / "run" / "model", "data_dir": data / "mrpc", "output_dir": tmp_path / "again"}
    again |= {"cache_dir": tmp_path / "cache", "precision": "float32"}
    assert call(monkeypatch, "evaluate_model", command(again)) == 0
    scores = [read(tmp_path / name / "results.json")["scores"]["validation"] for name in ("run", "again")]
    assert scores[0]["accuracy"] == scores[1]["accuracy"] and not (tmp_path / "run" / "model" / "vocab.txt").exists()


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["ours"], {}, "give at least 2 different ones"),
        (["ours", "ours"], {}, "give at least 2 different ones"),
        (["ours", "bert"], {"seeds": [1]}, "seeds are 1; give at least 2 different ones"),
        (["ours", "bert"], {"tasks": ["mrpc", "rte"]}, "has no directory rte"),
        (["ours", "bert"], {"tasks": ["mrcp"]}, "did you mean 'mrpc'"),
        (["ours", "bert"], {"early_stopping": 2}, "--early_stopping is not an option of this command: every trial"),
        (["ours", "bert"], {"seed": 7}, "--seed is not an option of this command: name the seeds of the trials with"),
        (["ours", "bert"], {"keep_checkpoints": 1}, "--keep_checkpoints is not an option of this command: trials"),
        (["ours", "bert"], {"price": 2.5}, "--price is not an option of this command: estimate one trial with hfbert"),
        (["ours", "roberta"], {"tasks": ["squad"], "max_seq_length": 100}, "special tokens"),
        (["ours", "missing"], {}, "no checkpoint directory"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_trial(
    names, changes, message, encoders, data, tmp_path, monkeypatch, capsys
):
    paths = [encoders.get(name, tmp_path / name) for name in names]
    assert compare(monkeypatch, paths, tmp_path / "out", data, **changes) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_comparison_s_directory_is_refused(encoders, data, tmp_path, monkeypatch, capsys):
    pair = [encoders["ours"], encoders["bert"]]
    assert compare(monkeypatch, pair, tmp_path / "out", data, max_steps=1) == 0
    assert compare(monkeypatch, pair, tmp_path / "out", data, max_steps=2) == 6
    assert "holds a comparison with other settings (max_steps: 1 there, 2 now)" in capsys.readouterr().err


def test_a_tokenizer_that_no_encoder_has_is_named(tmp_path):
    backend = Tokenizer(models.BPE())
    backend.train_from_iterator(documents(5), trainers.BpeTrainer(vocab_size=200))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no cls_token, which fine-tuning an encoder needs"):
        load_any_tokenizer(tmp_path)

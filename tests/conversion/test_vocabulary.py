"""More words in a finished vocabulary: which ones, where they go, and who opens the result."""

import json
import random
from collections import Counter

import pytest
import torch
import transformers
from corpus_helpers import small_tokenizer, words, write_text
from finetuning_helpers import call, command, read

from hfbert_scratch import HFBertConfig, HFBertForPreTraining, HFBertForSequenceClassification
from hfbert_scratch.conversion.vocabulary import choose_words, extended_tokenizer
from hfbert_scratch.text.tokenizer import bert_tokenizer, load_tokenizer, save_tokenizer


UNUSED = 3
# Made-up words of a domain, of syllables that the vocabulary has as pieces.
DOMAIN = ["bodofika", "tamuteriso", "kelunosibe", "dofirasutima", "lonimedu"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def tokenizer():
    """A vocabulary with unused rows behind its special tokens, as google-research/bert's."""
    vocabulary = small_tokenizer().get_vocab()
    listed = sorted(vocabulary, key=vocabulary.__getitem__)
    listed[1:1] = [f"[unused{number}]" for number in range(UNUSED)]
    return bert_tokenizer({token: number for number, token in enumerate(listed)}, lowercase=True)


def checkpoint(directory, tokenizer, model_class=HFBertForPreTraining, **fields):
    torch.manual_seed(0)
    own = SIZES | {"vocab_size": len(tokenizer), "initializer_range": 0.2, "max_position_embeddings": 128} | fields
    config = HFBertConfig if model_class.__name__.startswith("HF") else transformers.BertConfig
    model = model_class(config(**own))
    output = model.get_output_embeddings()
    if output is not None:
        torch.nn.init.normal_(output.bias)
    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def domain_text(path):
    rng = random.Random(0)
    usual = words(400)
    lines = [" ".join(rng.choices(usual, k=8) + rng.choices(DOMAIN, k=4)) for _ in range(60)]
    return write_text(path, lines)


def extend(monkeypatch, model, text, output, add=5, **changes):
    line = {"extend": model, "text": text, "add": add, "output_dir": output} | changes
    return call(monkeypatch, "train_tokenizer", command(line))


@pytest.mark.parametrize("model_class", [HFBertForPreTraining, transformers.BertForPreTraining])
def test_words_take_unused_rows_then_new_ones_and_nothing_else_moves(model_class, tokenizer, tmp_path, monkeypatch):
    model = checkpoint(tmp_path / "model", tokenizer, model_class)
    output = tmp_path / "extended"
    assert extend(monkeypatch, model, domain_text(tmp_path / "text.txt"), output) == 0
    before, after = tokenizer.get_vocab(), load_tokenizer(output).get_vocab()
    kept = {token: number for token, number in before.items() if not token.startswith("[unused")}
    assert kept.items() <= after.items() and len(after) == len(before) + 2
    assert sorted(after[word] for word in DOMAIN) == [1, 2, 3, len(before), len(before) + 1]
    assert load_tokenizer(output).tokenize(DOMAIN[0]) == [DOMAIN[0]] and len(tokenizer.tokenize(DOMAIN[0])) > 1

    old = model_class.from_pretrained(model)
    new = model_class.from_pretrained(output)
    assert new.config.vocab_size == len(after) and new.cls.predictions.bias.shape == (len(after),)
    for word in DOMAIN:
        pieces = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
        for table, fresh in (
            (old.get_input_embeddings().weight, new.get_input_embeddings().weight),
            (old.cls.predictions.bias, new.cls.predictions.bias),
        ):
            torch.testing.assert_close(fresh[after[word]], table[pieces].mean(dim=0))
    for number in kept.values():
        assert torch.equal(new.get_input_embeddings().weight[number], old.get_input_embeddings().weight[number])
    sentence = tokenizer(" ".join(words(400)[:20]), return_tensors="pt")
    with torch.no_grad():
        logits = [model.eval()(**sentence)[0][..., 4 : len(before)] for model in (old, new)]
    torch.testing.assert_close(logits[0], logits[1])


def test_the_record_says_what_was_gained(tokenizer, tmp_path, monkeypatch, capsys):
    output = tmp_path / "extended"
    model = checkpoint(tmp_path / "model", tokenizer)
    assert extend(monkeypatch, model, domain_text(tmp_path / "text.txt"), output, add=9) == 0
    record, printed = read(output / "record.json"), capsys.readouterr().out
    assert {entry["word"] for entry in record["words"]} >= set(DOMAIN) and record["unused_rows"] == UNUSED
    assert record["after"]["pieces_per_word"] < record["before"]["pieces_per_word"]
    assert record["before"]["loss_per_word"] > record["after"]["loss_per_word"] > 0, "fewer pieces to guess"
    assert "pieces per word" in printed and "--config continue" in printed and record["held_out"]["documents"] == 6
    monkeypatch.undo()
    assert transformers.AutoTokenizer.from_pretrained(output).tokenize(DOMAIN[1]) == [DOMAIN[1]]
    line = {"to": "stock", "model": output, "output_dir": tmp_path / "stock"}
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "convert", command(line)) == 0
    stock = transformers.BertForMaskedLM.from_pretrained(tmp_path / "stock")
    assert stock.config.vocab_size == record["vocab_size"]["after"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "stock").tokenize(DOMAIN[2]) == [DOMAIN[2]]


def test_a_model_without_a_head_for_words_is_extended_without_a_loss(tokenizer, tmp_path, monkeypatch):
    model = checkpoint(tmp_path / "model", tokenizer, HFBertForSequenceClassification)
    assert extend(monkeypatch, model, domain_text(tmp_path / "text.txt"), tmp_path / "extended") == 0
    assert read(tmp_path / "extended" / "record.json")["after"]["loss_per_word"] is None
    config = json.loads((tmp_path / "extended" / "config.json").read_text())
    assert config["architectures"] == ["HFBertForSequenceClassification"]


def test_the_words_that_save_most_tokens_are_chosen(tokenizer):
    usual = next(word for word in words(400) if len(tokenizer.tokenize(word)) == 1)
    counts = Counter({DOMAIN[0]: 10, DOMAIN[1]: 40, DOMAIN[2]: 4, "ж": 30, "1984": 99, usual: 999})
    chosen = choose_words(counts, tokenizer, 3)
    assert {new.word for new in chosen} == {DOMAIN[0], DOMAIN[1], "ж"}, "unknown, rare, number, and one row already"
    assert chosen[0].word == DOMAIN[1]


def test_characters_of_other_scripts_get_rows(tokenizer, tmp_path):
    extended = extended_tokenizer(tokenizer, ["中", "жизнь"], tmp_path)
    assert extended.tokenize("中 жизнь") == ["中", "жизнь"] and tokenizer.tokenize("中") == ["[UNK]"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add": 0}, "--extend and --add are given together"),
        ({"add": -1}, "add is -1"),
        ({"vocab_size": 500}, "--vocab_size is for a new vocabulary"),
        ({"text": "usual"}, "the vocabulary suits it already"),
        ({"extend": "missing"}, "no tokenizer directory"),
    ],
)
def test_what_cannot_be_extended_is_refused(changes, message, tokenizer, tmp_path, monkeypatch, capsys):
    model = checkpoint(tmp_path / "model", tokenizer)
    own = {"text": domain_text(tmp_path / "text.txt")} | changes
    if own["text"] == "usual":
        own["text"] = write_text(tmp_path / "usual.txt", ["ba be bi bo bu. " * 20])
    if own.get("extend"):
        own["extend"] = tmp_path / own["extend"]
    own = {"model": own.pop("extend", model), "text": own.pop("text"), "output": tmp_path / "extended"} | own
    assert extend(monkeypatch, **own) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "extended").exists()

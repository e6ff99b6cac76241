"""Languages beyond blanks and full stops: scripts through the whole chain, and what the user decides about words."""

import json
import random
import sys

import numpy as np
import pytest
import transformers
from corpus_helpers import build, small_tokenizer, write_text
from finetuning_helpers import call, command, options, read
from task_helpers import write_jsonl
from test_scripts import SCRIPTS, paragraphs
from training_helpers import arguments, pretrain_here

from hfbert_scratch.corpus.masking import MaskingConfig, PretrainingCollator
from hfbert_scratch.text.sentences import load_splitter
from hfbert_scratch.text.tokenizer import describe_words, load_tokenizer, train_wordpiece, word_warnings
from hfbert_scratch.text.word_encoder import plain_backend, text_encoder
from hfbert_scratch.utils.errors import InputError


# Words of the kinds that segmenters find, joined by blanks.
CHINESE = "太阳 很早 升起 孩子们 走路 去 学校 姐姐 在 看书 天气 今天 很好 我们 喜欢 音乐".split()  # noqa: SIM905


def segmented_text(count=60, seed=0):
    rng = random.Random(seed)
    return [" 。 ".join(" ".join(rng.choices(CHINESE, k=8)) for _ in range(6)) + " 。" for _ in range(count)]


def train(monkeypatch, text, output, **changes):
    line = {"text": text, "output_dir": output, "vocab_size": 400} | changes
    return call(monkeypatch, "train_tokenizer", command(line))


def test_all_scripts_go_through_the_whole_chain_together(tmp_path, monkeypatch):
    """One vocabulary and one model for all of them, from text to a classifier that learns to tell scripts apart."""
    assert len(SCRIPTS) >= 20
    texts = {script: [text.replace("|", " ") for text in paragraphs(script)] for script in SCRIPTS}
    source = write_text(tmp_path / "text.txt", [text for own in texts.values() for text in own])
    own = {"vocab_size": 3000, "lowercase": "false"}
    assert train(monkeypatch, source, tmp_path / "tokenizer", **own) == 0
    line = {"text": source, "tokenizer": tmp_path / "tokenizer", "output_dir": tmp_path / "corpus"}
    line |= {"validation_share": 0.1, "max_seq_length": 64}
    assert call(monkeypatch, "build_corpus", command(line)) == 0
    splits = read(tmp_path / "corpus" / "manifest.json")["splits"]
    assert splits["train"]["unk_rate"] < 0.001 and splits["train"]["sentences"] > 5000
    inputs = {"tokenizer": tmp_path / "tokenizer", "corpus": tmp_path / "corpus"}
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "pretrained", max_steps=5)) == 0
    (tmp_path / "data").mkdir()
    for split, part in (("train", slice(0, 12)), ("validation", slice(12, 15))):
        rows = [{"text": text[:60], "label": script} for script, own in texts.items() for text in own[part]]
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    changes = {"max_steps": 300, "learning_rate": 1e-3, "eval_every": 300, "save_every": 300}
    model = tmp_path / "pretrained" / "model"
    line = options("custom-classification", tmp_path / "data", model, tmp_path / "run", **changes)
    assert call(monkeypatch, "finetune", line) == 0
    assert read(tmp_path / "run" / "results.json")["scores"]["validation"]["accuracy"] > 6 / len(SCRIPTS)


def test_words_of_a_segmenter_stay_words_and_are_masked_whole(tmp_path, monkeypatch):
    source = write_text(tmp_path / "text.txt", segmented_text())
    assert train(monkeypatch, source, tmp_path / "tokenizer", pre_tokenizer="segmented", vocab_size=60) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert type(tokenizer).__name__ == "BertTokenizer" and load_tokenizer(tmp_path / "tokenizer")
    pieces = tokenizer.tokenize("孩子们 去 学校")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "孩子们去学校" and "[UNK]" not in pieces
    assert sum(not piece.startswith("##") for piece in pieces) == 3, "a word of the text is a word of the model"
    assert small_tokenizer(segmented_text()).tokenize("孩子们") == ["孩", "子", "们"], "and characters without"

    corpus = build(tmp_path, segmented_text(), tokenizer, max_seq_length=64)
    assert corpus.whole_word_note(tokenizer) is None
    masking = MaskingConfig(max_predictions_per_seq=10, masked_lm_prob=0.3, whole_word=True)
    ids = np.array([tokenizer(" ".join(CHINESE))["input_ids"]])
    rows = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "lengths": np.array([ids.shape[1]])}
    collator = PretrainingCollator(tokenizer, masking, seed=0)
    batch = collator(rows | {"epoch": np.zeros(1, np.int64), "index": np.zeros(1, np.int64)})
    chosen = batch["labels"][0] != -100
    words = tokenizer(" ".join(CHINESE)).word_ids()
    assert chosen.any()
    for number in set(words) - {None}:
        own = [bool(masked) for masked, word in zip(chosen, words, strict=True) if word == number]
        assert len(set(own)) == 1, "all pieces of a word, or none"


@pytest.mark.parametrize(("form", "written"), [("NFC", "e\u0301t\u00e9 ﬁn"), ("NFKC", "e\u0301t\u00e9 ﬁn")])
def test_a_unicode_form_is_part_of_the_tokenizer(form, written, tmp_path, monkeypatch):
    """Text in any form gets the ids of the composed one, in transformers too."""
    text = write_text(tmp_path / "text.txt", ["\u00e9t\u00e9 fin ﬁn \u00e9t\u00e9. " * 20] * 3)
    own = {"unicode_form": form, "strip_accents": "false", "vocab_size": 40}
    assert train(monkeypatch, text, tmp_path / "tokenizer", **own) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer(written)["input_ids"] == tokenizer("\u00e9t\u00e9 ﬁn")["input_ids"]
    assert (tokenizer("ﬁn")["input_ids"] == tokenizer("fin")["input_ids"]) == (form == "NFKC")
    encoded = tokenizer("fin", "fin")
    assert encoded["input_ids"][0] == tokenizer.cls_token_id and set(encoded["token_type_ids"]) == {0, 1}
    ours = load_tokenizer(tmp_path / "tokenizer")
    encode = text_encoder(plain_backend(ours.backend_tokenizer.to_str()), np.dtype(np.int32))
    assert encode([written])[0].tolist() == tokenizer(written, add_special_tokens=False)["input_ids"]
    assert read(tmp_path / "tokenizer" / "record.json")["arguments"]["unicode_form"] == form


SPLITTER = """
def split(text):
    return [part for part in text.split("/") if part]

def words(text):
    return text

def fails(text):
    return text.no_such_method()
"""


def test_sentences_are_those_of_the_users_function(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(SPLITTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    texts = ["ka ke/ki ko ku/" * 4 + "ka ki ku" for _ in range(1)] + [f"ba be/bi bo b{v}/bu" * 3 for v in "aeiou"]
    source = write_text(tmp_path / "text.txt", texts * 2)
    line = {"text": source, "tokenizer": tmp_path / "tokenizer", "output_dir": tmp_path / "corpus"}
    small_tokenizer(texts * 2, 60).save_pretrained(tmp_path / "tokenizer")
    line |= {"sentence_splitter": "my_rules:split", "validation_share": 0, "max_seq_length": 64, "num_proc": 2}
    assert call(monkeypatch, "build_corpus", command(line)) == 0
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["sentences"] == 9 + 5 * 7 and manifest["identity"]["segmenter"] == "split"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rules", "write it as MODULE:FUNCTION"),
        ("no_such_module:split", "ModuleNotFoundError"),
        ("my_rules:missing", "AttributeError"),
        ("my_rules:words", "returns str; it must return a list of texts"),
        ("my_rules:fails", "AttributeError: 'str' object has no attribute 'no_such_method'"),
    ],
)
def test_a_splitter_that_does_not_work_is_named(name, message, tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(SPLITTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    with pytest.raises(InputError, match=message):
        load_splitter(name)


def test_words_of_many_pieces_and_unknown_ones_are_a_warning(tmp_path, monkeypatch, capsys):
    """A vocabulary of characters, on words of another language."""
    tokenizer = train_wordpiece(["ba be bi bo bu"] * 3, vocab_size=30)
    text = "bubobibe жизнь bubebo bu"
    figures = describe_words(tokenizer, [text])
    assert figures == {"pieces_per_word": len(tokenizer.tokenize(text)) / 4, "unknown_words": 0.25}
    assert len(word_warnings(figures)) == 2 and not word_warnings({"pieces_per_word": 1.2, "unknown_words": 0})
    rng = random.Random(0)
    text = [" ".join("".join(rng.choices("abcdefghijklmnopq", k=9)) for _ in range(50)) for _ in range(5)]
    assert train(monkeypatch, write_text(tmp_path / "text.txt", text), tmp_path / "tokenizer", vocab_size=50) == 0
    assert "pieces on average" in capsys.readouterr().out
    record = read(tmp_path / "tokenizer" / "record.json")
    assert record["pieces_per_word"] > 2.5 and any("pieces on average" in text for text in record["warnings"])

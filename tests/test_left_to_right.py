"""Fine-tuning a left-to-right model: it knows the order of words, alone and with a BiLSTM on top."""

import random

import pytest
import transformers
from corpus_helpers import small_tokenizer
from finetuning_helpers import BAD, GOOD, WORDS, call, command, make_data, make_model, options, read
from task_helpers import write_jsonl

from hfbert_scratch.text.tokenizer import save_tokenizer


def order_rows(count, seed):
    """Two words in either order among others: the label is which comes first, and no bag of words knows it."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        label = rng.randrange(2)
        first, second = (GOOD, BAD) if label else (BAD, GOOD)
        fill = [rng.choices(WORDS[2:], k=rng.randint(0, 2)) for _ in range(3)]
        examples.append({"sentence": " ".join([*fill[0], first, *fill[1], second, *fill[2]]), "label": label})
    return examples


@pytest.mark.parametrize("bilstm", ["false", "true"])
def test_a_left_to_right_model_learns_the_order_of_words(tmp_path, monkeypatch, bilstm):
    start = make_model(tmp_path / "start", left_to_right=True, num_hidden_layers=2)
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(data / "train.jsonl", order_rows(600, 0))
    write_jsonl(data / "validation.jsonl", order_rows(100, 1))
    changes = {"max_steps": 160, "max_seq_length": 24, "batch_size": 32, "micro_batch_size": 32, "bilstm": bilstm}
    line = options("sst2", data, start, tmp_path / "run", **changes)
    assert call(monkeypatch, "finetune", line) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["scores"]["validation"]["accuracy"] > 0.9
    # The checkpoint knows its LSTM, and evaluation finds the same.
    evaluated = {"model": tmp_path / "run" / "model", "data_dir": data, "output_dir": tmp_path / "again"}
    assert call(monkeypatch, "evaluate_model", command(evaluated | {"precision": "float32"})) == 0
    again = read(tmp_path / "again" / "results.json")["scores"]["validation"]["accuracy"]
    assert again == results["scores"]["validation"]["accuracy"]


def test_a_bilstm_is_for_our_models_without_packing(tmp_path, monkeypatch, capsys):
    tokenizer = small_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    stock = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes))
    stock.save_pretrained(tmp_path / "stock")
    save_tokenizer(tokenizer, tmp_path / "stock")
    data = make_data(tmp_path / "data", "sst2")
    for start, changes, message in (
        (tmp_path / "stock", {}, "; hfbert convert --to hfbert makes one"),
        (make_model(tmp_path / "ours", tokenizer), {"packing": "true"}, "packing does not go with a bilstm"),
    ):
        line = options("sst2", data, start, tmp_path / "run", bilstm="true", **changes)
        assert call(monkeypatch, "finetune", line) == 2
        assert message in capsys.readouterr().err

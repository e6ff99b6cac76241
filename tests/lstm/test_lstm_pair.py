"""The pair of LSTM language models: what a state sees, what it learns, that it resumes, reopens and gives features."""

import pytest
import torch
import torch.nn.functional as F
from finetuning_helpers import call, make_data, options, read
from safetensors.torch import load_file
from training_helpers import arguments, handlers_restored, pretrain_here, read_losses
from transformers import AutoModel, AutoModelForPreTraining

from hfbert_scratch.features.encoder import encode, load_encoder
from hfbert_scratch.features.tagger import combination_layers
from hfbert_scratch.lstm import LSTMPairConfig, LSTMPairForPreTraining, LSTMPairModel
from hfbert_scratch.text.tokenizer import load_tokenizer


def make(cls=LSTMPairModel):
    torch.manual_seed(0)
    return cls(LSTMPairConfig(vocab_size=50, lstm_size=8, hidden_dropout_prob=0.0, initializer_range=1.0)).eval()


@pytest.fixture(scope="module")
def pretrained(inputs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lstm")
    with pytest.MonkeyPatch.context() as monkeypatch, handlers_restored():
        assert pretrain_here(monkeypatch, arguments(inputs, directory / "run", **OPTIONS)) == 0
    return directory / "run"


OPTIONS = {"architecture": "lstm_pair", "num_hidden_layers": 2, "max_steps": 40, "learning_rate": 1e-2}


def test_each_direction_sees_its_own_side_alone_wherever_the_padding_begins():
    model = make()
    ids = torch.tensor([[5, 6, 7, 8, 9, 0, 0]])
    mask = (ids != 0).long()
    states = model(ids, mask).last_hidden_state
    torch.testing.assert_close(states[:, :5], model(ids[:, :5]).last_hidden_state)
    changed = ids.clone()
    changed[0, 2] = 20
    differs = (model(changed, mask).last_hidden_state != states)[0, :5]
    left, right = (part.any(-1).tolist() for part in differs.chunk(2, dim=-1))
    assert left == [False, False, True, True, True] and right == [True, True, True, False, False]
    read = model(ids, mask, read_positions=torch.tensor([1, 4])).last_hidden_state
    torch.testing.assert_close(read, states[0, [1, 4]])


def test_the_loss_is_that_of_both_neighbours():
    model = make(LSTMPairForPreTraining)
    ids = torch.tensor([[5, 6, 7, 8], [9, 4, 3, 0]])
    mask = (ids != 0).long()
    labels = torch.full_like(ids, -100)
    labels[0, :3], labels[1, :2] = ids[0, 1:], ids[1, 1:3]
    states = model.lstm_pair(ids, mask).last_hidden_state
    expected = []
    for row, length in ((0, 4), (1, 3)):
        for column in range(length):
            left, right = states[row, column].chunk(2)
            if column + 1 < length:
                expected.append(F.cross_entropy(model.cls(left), ids[row, column + 1]))
            if column:
                expected.append(F.cross_entropy(model.cls(right), ids[row, column - 1]))
    loss = model(ids, mask, labels=labels).loss
    assert loss.item() == pytest.approx(sum(expected).item() / 5, rel=1e-5)


def test_it_learns_and_resumes_bit_for_bit(pretrained, inputs, tmp_path, monkeypatch):
    losses = [entry["loss"] for entry in read_losses(pretrained) if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    record = read(pretrained / "record.json")
    assert record["results"]["eval_masked_lm_loss"] < record["baseline"]["loss"] + 0.5

    command = arguments(inputs, tmp_path / "run", **OPTIONS)
    # So short a time allows one step; then the same command goes on.
    assert pretrain_here(monkeypatch, [*command, "--max_time", "0.0001"]) == 75
    assert pretrain_here(monkeypatch, command) == 0
    assert read_losses(tmp_path / "run") == read_losses(pretrained)
    one, other = (load_file(path / "model" / "model.safetensors") for path in (pretrained, tmp_path / "run"))
    assert one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def test_it_opens_again_with_the_package_and_gives_features(pretrained):
    model = AutoModelForPreTraining.from_pretrained(pretrained / "model")
    encoder = AutoModel.from_pretrained(pretrained / "model").eval()
    assert torch.equal(model.lstm_pair.word_embeddings.weight, encoder.word_embeddings.weight)
    tokenizer = load_tokenizer(pretrained / "model")
    frozen = load_encoder(pretrained / "model")
    assert combination_layers("elmo", frozen.config.num_hidden_layers) == [0, 1, 2]
    texts = ["ba be bi", "bo"]
    for text, features in zip(texts, encode(frozen, tokenizer, texts, layers=[0, 1, 2]), strict=True):
        states = encoder(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        torch.testing.assert_close(torch.from_numpy(features.vectors), torch.cat(states), atol=1e-5, rtol=0)


def test_pooled_features_learn_a_task_with_the_encoder_frozen(pretrained, tmp_path, monkeypatch):
    data = make_data(tmp_path / "sst2", "sst2", train=128)
    line = options("sst2", data, pretrained / "model", tmp_path / "run", max_steps=80, learning_rate=1e-2)
    assert call(monkeypatch, "finetune", line) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["scores"]["validation"]["accuracy"] > results["majority_baseline"]["validation"]["accuracy"]
    before, after = (load_file(path / "model" / "model.safetensors") for path in (pretrained, tmp_path / "run"))
    frozen = [name for name in after if name.startswith("lstm_pair.")]
    assert frozen and all(before[name].equal(after[name]) for name in frozen)
    assert after["mix.scores"].any()
    evaluated = ["--model", str(tmp_path / "run" / "model"), "--data_dir", str(data), "--precision", "float32"]
    assert call(monkeypatch, "evaluate_model", [*evaluated, "--output_dir", str(tmp_path / "again")]) == 0
    again = read(tmp_path / "again" / "results.json")["scores"]["validation"]["accuracy"]
    assert again == results["scores"]["validation"]["accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "true"}, "packing true is not for architecture lstm_pair"),
        ({"model": "somewhere"}, "architecture lstm_pair starts from scratch"),
        ({"next_sentence_weight": 0}, "has no meaning without next-sentence prediction"),
    ],
)
def test_what_does_not_fit_is_named(inputs, tmp_path, monkeypatch, capsys, changes, message):
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", **OPTIONS | changes)) == 2
    assert message in capsys.readouterr().err

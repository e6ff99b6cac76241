"""Linear layers by oneDNN in training: the same losses and gradients, and only where they were asked for."""

import copy
import json

import pytest
import torch
from helpers import CASES, NO_DROPOUT, assert_same, batch, gradients, make
from torch import nn
from training_helpers import arguments, make_inputs, pretrain_here

from hfbert_scratch.model import onednn
from hfbert_scratch.model.onednn import has_onednn, onednn_is_faster, onednn_speed, train_with_onednn
from hfbert_scratch.training import run as training_run


pytestmark = pytest.mark.skipif(not has_onednn(torch.device("cpu"), torch.float32), reason="no oneDNN in this PyTorch")


@pytest.mark.parametrize("case", [case for case in CASES if case != "base"])
def test_losses_and_gradients_are_the_same(case):
    model = make(case, **NO_DROPOUT).train()
    loss = model(**batch(case)).loss
    expected = {"loss": loss.detach()} | gradients(model, loss)
    assert train_with_onednn(model)
    loss = model(**batch(case)).loss
    assert_same({"loss": loss.detach()} | gradients(model, loss), expected, 2e-6)


@pytest.mark.parametrize("shape", [(32,), (3, 32), (5, 7, 32), (4, 5, 6, 32), (0, 32), (2, 0, 32)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_inputs_of_any_shape(shape, bias):
    torch.manual_seed(0)
    plain = nn.Linear(32, 48, bias=bias)
    fast = nn.Sequential(copy.deepcopy(plain))
    assert train_with_onednn(fast)
    actual = []
    for module in (plain, fast):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        outputs = module(values)
        outputs.square().sum().backward()
        actual.append([outputs, values.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(actual[0], actual[1], atol=1e-4, rtol=1e-5)


def test_views_that_are_not_contiguous():
    plain = nn.Linear(32, 48)
    fast = copy.deepcopy(plain)
    train_with_onednn(fast)
    for values in (torch.randn(6, 5, 32)[:, 0], torch.randn(32, 9).t(), torch.randn(1, 32).expand(4, 32)):
        torch.testing.assert_close(fast(values), plain(values), atol=1e-5, rtol=1e-5)


def test_frozen_weights_get_no_gradient_and_hooks_are_called():
    model = make("single_label")
    train_with_onednn(model)
    model.bert.requires_grad_(False)
    calls = []
    model.classifier.register_forward_hook(lambda *_: calls.append(1))
    model(**batch("single_label")).loss.backward()
    assert calls and model.classifier.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.bert.parameters())


def test_a_model_that_was_trained_so_is_saved_copied_and_read_as_any_other(tmp_path):
    model = make("pretraining")
    plain = copy.deepcopy(model)
    train_with_onednn(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():  # a copy computes with its own weights
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(**batch(), return_dict=True).prediction_logits.any()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert_same(again.state_dict(), plain.state_dict(), 0.0)


def test_only_plain_float32_layers():
    class Doubled(nn.Linear):
        def forward(self, values):
            return 2 * super().forward(values)

    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 4))
    model[1].forward = lambda values: 3 * values  # as accelerate's hooks replace it
    values = torch.randn(3, 4)
    expected = model(values)
    assert train_with_onednn(model) and torch.equal(model(values), expected)
    assert not train_with_onednn(nn.Linear(4, 4, dtype=torch.bfloat16))


@pytest.fixture
def set_speed(monkeypatch):
    """Sets how many times as fast oneDNN was timed to be."""

    def set_to(speed):
        for module in (onednn, training_run):
            monkeypatch.setattr(module, "onednn_speed", lambda: speed)

    return set_to


@pytest.mark.parametrize("speed, is_faster", [(1.0, False), (1.09, False), (1.25, True)])
def test_the_faster_way_is_chosen_unless_noise_could_decide(set_speed, speed, is_faster):
    set_speed(speed)
    assert onednn_is_faster() is is_faster


def test_timing_the_two_ways_gives_a_speed():
    onednn_speed.cache_clear()
    assert 0.05 < onednn_speed() < 20
    assert onednn_speed() == onednn_speed() and onednn_speed.cache_info().misses == 1, "timed once a process"


def test_a_run_that_goes_on_keeps_its_linear_layers(set_speed, tmp_path, monkeypatch, capsys):
    inputs = make_inputs(tmp_path)
    common = {"onednn": "auto", "max_steps": 6}
    set_speed(2.0)
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", **common, max_time=1e-9)) == 75
    assert "linear layers by oneDNN: oneDNN was timed to be 2.00 times as fast" in capsys.readouterr().out
    set_speed(0.5)
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", **common)) == 0
    assert "linear layers by oneDNN: as the run began" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "record.json").read_text())["settings"]["onednn"] is True
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "other", **common)) == 0
    assert json.loads((tmp_path / "other" / "record.json").read_text())["settings"]["onednn"] is False
    said = {"onednn": "true", "max_steps": 6}
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "said", **said)) == 0
    assert json.loads((tmp_path / "said" / "record.json").read_text())["settings"]["onednn"] is True
    with_bfloat16 = arguments(inputs, tmp_path / "refused", onednn="true", precision="bfloat16")
    assert pretrain_here(monkeypatch, with_bfloat16) == 2

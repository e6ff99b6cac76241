"""What only a GPU can show: PyTorch's kernels over packed rows, compiled and recorded training. `make test-slow`."""

import pytest
import torch
from helpers import NO_DROPOUT, PACKABLE, PREDICTING, batch, gradients, make, prediction_batch, static_positions
from training_helpers import arguments, make_inputs, pretrain_here, read_losses

from hfbert_scratch.modeling_hfbert import UNPADDED
from hfbert_scratch.packing import pack
from hfbert_scratch.training import on_device


DEVICE = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def squared_error(found, exact):
    return sum(float((found[name] - exact[name]).square().sum()) for name in exact)


@pytest.mark.parametrize("case", [case for case in PACKABLE if case != "base"])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_without_padding_are_as_near_to_float32_as_with_it(case, packed):
    model = make(case, **NO_DROPOUT).train().to(DEVICE)
    inputs = prediction_batch(case) if case in PREDICTING else batch(case)
    model.set_attn_implementation("eager")
    exact = gradients(model, model(**on_device(inputs, DEVICE)).loss)
    errors = {}
    for attention in ("eager", UNPADDED):
        model.set_attn_implementation(attention)
        given = dict(inputs)
        if attention == UNPADDED and packed:
            if case in PREDICTING:
                given["masked_positions"] = static_positions(given["labels"], width=11)
            given = pack(given, 0, 1 if case in ("regression", "multi_label") else 16)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(**on_device(given, DEVICE)).loss
        errors[attention] = squared_error(gradients(model, loss), exact) ** 0.5
    assert 0 < errors[UNPADDED] < 1.5 * errors["eager"]


def test_the_kernel_drops_attention_probabilities():
    model = make("base", attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0).train().to(DEVICE, torch.bfloat16)
    model.set_attn_implementation(UNPADDED)
    packed = on_device(pack(batch(size=5), 0), DEVICE)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(model(**packed).last_hidden_state)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("packing", ["false", "true"])
def test_compiled_and_recorded_training_gives_the_same_losses(tmp_path, monkeypatch, packing):
    """Two micro-batches a step: a recorded gradient that is written over would halve what the first one adds."""
    inputs = make_inputs(tmp_path)
    common = {"max_steps": 20, "dropout": 0.0, "precision": "bfloat16", "packing": packing}
    for name, changes in {
        "plain": {},
        "compiled": {"compile": "true"},
        "recorded": {"compile": "true", "cuda_graphs": "true"},
    }.items():
        assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / name, **common, **changes)) == 0
    plain = read_losses(tmp_path / "plain")
    for name in ("compiled", "recorded"):
        for found, expected in zip(read_losses(tmp_path / name), plain, strict=True):
            assert found == pytest.approx(expected, rel=0.05), name

"""The modules that training on a GPU exchanges, on a CPU: the same losses and gradients, dropout's statistics."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    NO_DROPOUT,
    PACKABLE,
    PREDICTING,
    assert_same,
    batch,
    gradients,
    make,
    packed_batch,
    pair,
    prediction_batch,
    static_positions,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.activations import GELUActivation

from hfbert_scratch.model import gpu
from hfbert_scratch.model.gpu import compile_layers, keep_mask, train_on_gpu
from hfbert_scratch.model.layout_hfbert import UNPADDED
from hfbert_scratch.model.triton_attention import kept_scores, murmur_mix, packed_attention


def packed_inputs(case, size=5, multiple_of=16):
    inputs = prediction_batch(case, size=size) if case in PREDICTING else batch(case, size=size)
    padded = dict(inputs)
    if case in PREDICTING:
        inputs["masked_positions"] = static_positions(inputs["labels"], width=11)
    return padded, packed_batch(case, inputs, multiple_of)


@pytest.mark.parametrize("own_attention", [True, False])
@pytest.mark.parametrize("case", [case for case in PACKABLE if case != "base"])
def test_losses_and_gradients_are_the_padded_ones(case, own_attention, kernel_everywhere, monkeypatch):
    if not own_attention:
        monkeypatch.setattr(gpu, "has_kernel", lambda *_: False)
    model = make(case, **NO_DROPOUT, hidden_size=64, num_attention_heads=2).train()
    padded, packed = packed_inputs(case)
    model.set_attn_implementation("eager")
    expected = model(**padded).loss
    wanted = {"loss": expected.detach()} | gradients(model, expected)
    names = list(model.state_dict())
    train_on_gpu(model)
    assert list(model.state_dict()) == names
    model.set_attn_implementation(UNPADDED)
    for options in ({}, {"skip_logits": True}) if case in PREDICTING else ({},):
        loss = model(**packed, **options).loss
        assert_same({"loss": loss.detach()} | gradients(model, loss), wanted, 2e-6)


@pytest.mark.parametrize("hooked", [True, False])
def test_projections_of_others_are_called(hooked):
    """As by LoRA, which puts a module of its own in a projection's place, or by a hook."""
    model = make("base", num_hidden_layers=1)
    attention, calls = model.encoder.layer[0].attention.self, []
    if hooked:
        attention.value.register_forward_hook(lambda *_: calls.append(1))
    else:

        class Watched(nn.Linear):
            def forward(self, values):
                calls.append(1)
                return super().forward(values)

        attention.value.__class__ = Watched
    train_on_gpu(model)
    model(**batch())
    assert calls == [1]


def test_the_residual_stream_has_the_dtype_of_autocast():
    model = make("base", num_hidden_layers=1).train()
    dtypes = []
    model.encoder.layer[0].attention.self.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    train_on_gpu(model)
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(**batch())
    assert dtypes == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("case", PREDICTING)
def test_skipped_logits_leave_the_loss_alone(case):
    for training in (True, False):
        model = make(case, **NO_DROPOUT).train(training)
        inputs = prediction_batch(case)
        expected = model(**inputs)
        actual = model(**inputs, skip_logits=True)
        torch.testing.assert_close(actual.loss, expected.loss)
        assert "prediction_logits" in expected or "logits" in expected
        assert not {"prediction_logits", "logits"} & actual.keys()


# ------------------------------------------------------------------------------------------------- dropout and GELU


def correlation(left, right):
    """In standard deviations of what chance gives."""
    left, right = (each.flatten().double() - each.double().mean() for each in (left, right))
    return float((left * right).mean() / (left.std() * right.std()) * len(left) ** 0.5)


@pytest.mark.parametrize("draw", ["hidden", "scores"])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_is_of_the_right_rate_and_independent(draw, probability):
    torch.manual_seed(0)
    if draw == "hidden":
        masks = [keep_mask(torch.Size((1024, 768)), probability, torch.device("cpu")) for _ in range(2)]
    else:
        masks = [kept_scores(start, 128, 48, gpu.random_seeds(torch.device("cpu")), probability) for start in (0, 128)]
    for mask in masks:
        spread = (probability * (1 - probability) / mask.numel()) ** 0.5
        assert abs(float((~mask).double().mean()) - probability) < 4 * spread
        for axis in range(mask.dim()):  # neither rows nor columns differ by more than chance
            rates = (~mask).double().mean([other for other in range(mask.dim()) if other != axis])
            chance = (probability * (1 - probability) * mask.shape[axis] / mask.numel()) ** 0.5
            assert 0.7 < float(rates.std()) / chance < 1.3
        flat = mask.flatten()
        for lag in (1, 2, 3, 64, 128, 768):
            assert abs(correlation(flat[:-lag], flat[lag:])) < 4.5
    assert abs(correlation(*masks)) < 4.5


def test_the_hash_is_the_finalizer_of_murmurhash3():
    mixed = murmur_mix(torch.tensor([0, 1, -1], dtype=torch.int32)).to(torch.int64) & 0xFFFFFFFF
    assert mixed.tolist() == [0, 0x514E28B7, 0x81F16F39]


def test_gelu_is_pytorchs():
    values = torch.cat([torch.randn(50_000), torch.linspace(-20, 20, 5_000), torch.zeros(1)]).bfloat16()
    actual, expected = (values.clone().requires_grad_() for _ in range(2))
    gelu = GELUActivation()
    train_on_gpu(gelu)
    ours, theirs = torch.compile(gelu, backend="eager")(actual), F.gelu(expected)
    for outputs in (ours, theirs):
        outputs.backward(torch.linspace(-1, 1, len(values)).bfloat16())
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=2**-8)  # a bit of bfloat16
    torch.testing.assert_close(actual.grad, expected.grad, atol=5e-6, rtol=2**-7)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_on_joint_projections(dropout):
    torch.manual_seed(0)
    lengths = [5, 128, 0, 64, 1]
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    qkv = torch.randn(sum(lengths), 3, 2, 32)
    seeds, gradient = gpu.random_seeds(torch.device("cpu")), torch.randn(sum(lengths), 2, 32)
    actual, expected = (qkv.clone().requires_grad_() for _ in range(2))
    out, _ = packed_attention(actual, cu_seqlens, seeds, 128, dropout, 0.25)
    out.backward(gradient)
    parts = []
    for start, length in zip(cu_seqlens.tolist(), lengths, strict=False):
        query, key, value = expected[start : start + length].permute(1, 2, 0, 3)
        keep = kept_scores(start, length, 2, seeds, dropout) / (1 - dropout)
        parts.append(((query @ key.transpose(1, 2) * 0.25).softmax(-1) * keep @ value).transpose(0, 1))
    torch.cat(parts).backward(gradient)
    torch.testing.assert_close(out, torch.cat(parts), atol=2e-6, rtol=0)
    torch.testing.assert_close(actual.grad, expected.grad, atol=2e-6, rtol=0)


INTERPRETED = """
import torch
from hfbert_scratch.model import triton_attention as kernels
torch.manual_seed(0)
for lengths, size, dropout in (([5, 128, 0, 64, 33], 32, 0.1), ([70, 1, 128], 64, 0.0)):
    cu_seqlens = torch.tensor([0] + lengths).cumsum(0).int()
    qkv, gradient = torch.randn(sum(lengths), 3, 2, size), torch.randn(sum(lengths), 2, size)
    seeds = torch.tensor([123456789, -987654321], dtype=torch.int32)
    options = (cu_seqlens, seeds, 128, dropout, size**-0.5)
    expected = kernels.packed_attention(qkv, *options)
    found = kernels._launch_forward(qkv, *options)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    wanted = kernels.packed_attention_backward(gradient, qkv, *expected, *options)
    torch.testing.assert_close(kernels._launch_backward(gradient, qkv, *expected, *options), wanted, atol=5e-6, rtol=0)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter needs an older NumPy")
def test_the_triton_kernels_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


# -------------------------------------------------------------------------------------------------- compiled by layers


def test_layers_share_one_graph_for_all_lengths(kernel_everywhere):
    """Embeddings, a layer, the last layer with fewer queries and the MLM loss; dropout's numbers are drawn in them."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    model = make("pretraining", num_hidden_layers=3, hidden_size=64, num_attention_heads=2).train()
    model.set_attn_implementation(UNPADDED)
    train_on_gpu(model)
    compile_layers(model, backend=graphs)
    shapes = set()
    for size in (4, 5, 6, 5):
        _, packed = packed_inputs("pretraining", size, multiple_of=8)
        shapes.add(packed["input_ids"].shape)
        with torch.autocast("cpu", torch.bfloat16):
            losses = []
            for seed in (0, 0, 1):
                torch.manual_seed(seed)
                losses.append(model(**packed, skip_logits=True).loss)
        assert losses[0] == losses[1] != losses[2]
        losses[0].backward()
    assert len(shapes) == 3 and graphs.frame_count == 4
    torch._dynamo.reset()


def test_compiled_layers_give_the_same_gradients(kernel_everywhere):
    torch._dynamo.reset()
    model = make("pretraining", **NO_DROPOUT, hidden_size=64, num_attention_heads=2).train()
    model.set_attn_implementation(UNPADDED)
    _, packed = packed_inputs("pretraining")
    expected = gradients(model, model(**packed, skip_logits=True).loss)
    train_on_gpu(model)
    compile_layers(model, backend="aot_eager")
    assert_same(gradients(model, model(**packed, skip_logits=True).loss), expected, 2e-6)
    torch._dynamo.reset()


def test_layers_of_other_models_are_compiled():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    _, stock = pair("single_label", num_hidden_layers=3)
    inputs = batch("single_label")
    expected = stock(**inputs).logits
    compile_layers(stock, backend=graphs)
    torch.testing.assert_close(stock(**inputs).logits, expected)
    assert graphs.frame_count == 1
    torch._dynamo.reset()

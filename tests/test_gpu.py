"""What only a GPU can show: PyTorch's kernels over packed rows, compiled and recorded training. Part of `make gpu`."""

import importlib.util

import pytest
import torch
from helpers import (
    NO_DROPOUT,
    PACKABLE,
    PREDICTING,
    batch,
    gradients,
    make,
    packed_batch,
    prediction_batch,
    static_positions,
)
from torch import nn
from torch._dynamo.utils import counters
from training_helpers import arguments, make_inputs, pretrain_here, read_losses

from hfbert_scratch import HFBertConfig, HFBertForPreTraining
from hfbert_scratch.model.gpu import compile_layers, train_on_gpu
from hfbert_scratch.model.layout_hfbert import UNPADDED, pack
from hfbert_scratch.model.triton_attention import packed_attention
from hfbert_scratch.training.batches import on_device
from hfbert_scratch.training.hardware.cuda_graphs import RecordedPasses
from hfbert_scratch.training.optimizers import create_optimizer


DEVICE = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
builds_corpus = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="building a corpus needs the package datasets"
)
# The graphs of compile_layers: embeddings, a layer, the last layer with fewer queries, the MLM loss.
GRAPHS = 4


def squared_error(actual, exact):
    return sum(float((actual[name] - exact[name]).square().sum()) for name in exact)


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
            given = packed_batch(case, given, 16)
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


# ---------------------------------------------------------------------------------------- at the width of BERT-BASE


def wide_model(dropout: float, kind: str) -> HFBertForPreTraining:
    """Three layers of BERT-BASE's width, with gradients of zero; kind: plain, swapped, layers or model."""
    torch.manual_seed(0)
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    model = HFBertForPreTraining(HFBertConfig(num_hidden_layers=3, **rates)).train().to(DEVICE)
    model.set_attn_implementation(UNPADDED)
    torch._dynamo.reset()
    counters.clear()
    if kind != "plain":
        train_on_gpu(model)
    if kind == "layers":
        compile_layers(model)
    elif kind == "model":
        model.compile()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def wide_batch(rows: int = 24, length: int = 64, seed: int = 0) -> dict:
    """A packed row of BERT's vocabulary, of another number of tokens for another seed."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=generator)
    real = torch.arange(length) < lengths[:, None]
    ids = torch.randint(5, 30522, (rows, length), generator=generator) * real
    labels = torch.full_like(ids, -100)
    labels[:, 3:9] = ids[:, 3:9]
    inputs = {
        "input_ids": ids,
        "attention_mask": real.long(),
        "token_type_ids": torch.zeros_like(ids),
        "labels": labels,
        "masked_positions": torch.arange(3, 9).expand(rows, 6).contiguous(),
        "next_sentence_label": torch.arange(rows) % 2,
    }
    return pack(inputs, 0, 64)


def loss_of(model: nn.Module, inputs: dict, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return model(**on_device(inputs, DEVICE), skip_logits=True).loss


@pytest.mark.parametrize("kind, recorded", [("swapped", False), ("layers", False), ("layers", True), ("model", False)])
def test_gradients_are_as_near_to_float32_as_plain_ones(kind, recorded):
    """One graph for all lengths, no break; recorded passes add up what they should."""
    plain = wide_model(0.0, "plain")
    batches = [wide_batch(seed=seed) for seed in range(3)]
    assert len({inputs["input_ids"].shape for inputs in batches}) == 3
    plain.set_attn_implementation("sdpa")
    exact = [gradients(plain, plain(**on_device(inputs, DEVICE), skip_logits=True).loss) for inputs in batches]
    plain.set_attn_implementation(UNPADDED)
    errors = [
        squared_error(gradients(plain, loss_of(plain, inputs)), wanted) ** 0.5
        for inputs, wanted in zip(batches, exact, strict=True)
    ]
    model = wide_model(0.0, kind)

    def one_pass(inputs, totals):
        loss = 0.5 * loss_of(model, inputs)
        loss.backward()
        return loss

    passes = RecordedPasses(one_pass, DEVICE) if recorded else one_pass
    for _ in range(2):  # as it is, recorded, replayed
        for inputs, wanted, error in zip(batches, exact, errors, strict=True):
            for parameter in model.parameters():
                parameter.grad.zero_()
            for _ in range(2):  # two micro-batches
                passes(inputs, {})
            actual = {name: parameter.grad for name, parameter in model.named_parameters()}
            # The plain model's residual stream is float32, this one's bfloat16.
            assert squared_error(actual, wanted) ** 0.5 < 2 * error
    assert counters["stats"]["unique_graphs"] == {"swapped": 0, "layers": GRAPHS, "model": 1}[kind]
    assert not counters["graph_break"]


@pytest.mark.parametrize("kind", ["plain", "layers"])
def test_recorded_passes_draw_new_dropout_and_the_same_for_a_seed(kind):
    model, inputs = wide_model(0.1, kind), wide_batch()
    seeds = iter([0, 0, 0, 1, 0, 1, 2])

    def one_pass(inputs, totals):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(**on_device(inputs, DEVICE), skip_logits=True).loss
        loss.backward()
        return loss.detach()

    passes, losses = RecordedPasses(one_pass, DEVICE), []
    for seed in seeds:
        torch.manual_seed(seed)
        losses.append(passes(inputs, {}).item())
    assert losses[1:] == [losses[1], losses[1], losses[3], losses[1], losses[3], losses[6]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len({*losses[1:]}) == 3


def test_compiled_dropout_is_seeded_and_of_the_right_rate():
    model = wide_model(0.1, "layers")
    inputs = wide_batch()
    losses = [loss_of(model, inputs, seed).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    compiled = [loss_of(model, inputs, seed).item() for seed in range(20)]
    plain = wide_model(0.1, "plain")
    expected = [loss_of(plain, inputs, seed).item() for seed in range(20)]
    mean, spread = sum(expected) / 20, torch.tensor(expected).std().item()
    assert abs(sum(compiled) / 20 - mean) < 2 * spread


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("max_seqlen", [37, 128])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_triton_kernels_are_the_plain_attention(size, max_seqlen, dropout):
    """The same scores are dropped; in bfloat16 the rest differs by rounding."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([max_seqlen, 1, 0, max_seqlen // 3, max_seqlen // 2 + 5, max_seqlen])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    qkv = torch.randn(int(lengths.sum()), 3, 4, size, generator=generator).bfloat16()
    gradient = torch.randn(int(lengths.sum()), 4, size, generator=generator).bfloat16()
    seeds = torch.tensor([123456789, -987654321], dtype=torch.int32)
    results = []
    for device in ("cpu", "cuda"):
        given = qkv.clone().to(device).requires_grad_()
        out, _ = packed_attention(given, cu_seqlens.to(device), seeds.to(device), max_seqlen, dropout, size**-0.5)
        out.backward(gradient.to(device))
        results.append((out.detach().cpu().float(), given.grad.cpu().float()))
    for actual, wanted in zip(*results[::-1], strict=True):
        assert (actual - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("kind", ["plain", "layers"])
def test_a_training_step_never_waits_for_the_device(kind):
    model = wide_model(0.1, kind)
    optimizer = create_optimizer("adamw", model, learning_rate=1e-4)
    batches = [wide_batch(seed=seed) for seed in range(3)]
    pinned = [
        {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        for inputs in batches
    ]
    for number, inputs in enumerate(pinned):
        torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first step compiles and allocates
        try:
            loss_of(model, inputs).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------------------------ through the recipe


@builds_corpus
def test_compiled_and_recorded_training_gives_the_same_losses(tmp_path, monkeypatch):
    """Two micro-batches a step: a recorded gradient that is written over would halve what the first one adds."""
    inputs = make_inputs(tmp_path)
    common = {"max_steps": 20, "dropout": 0.0, "precision": "bfloat16"}
    for name, changes in {
        "plain": {"packing": "false", "compile": "false"},
        "as by default": {},
        "whole": {"compile": "true", "cuda_graphs": "false"},
    }.items():
        torch._dynamo.reset()
        assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / name, **common, **changes)) == 0
    plain = read_losses(tmp_path / "plain")
    for name in ("as by default", "whole"):
        for actual, expected in zip(read_losses(tmp_path / name), plain, strict=True):
            assert actual == pytest.approx(expected, rel=0.05), name


@builds_corpus
def test_a_run_goes_on_as_it_began(tmp_path, monkeypatch, capsys):
    """What auto comes to is the run's; resumed, its losses are those of the uninterrupted run within rounding."""
    inputs = make_inputs(tmp_path)
    common = {"max_steps": 20, "precision": "bfloat16", "dropout": 0.1}
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "whole", **common)) == 0
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "parts", **common, max_time=1e-6)) == 75
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "parts", **common)) == 0
    assert "attention hfbert_unpadded" in capsys.readouterr().out
    for actual, expected in zip(read_losses(tmp_path / "parts"), read_losses(tmp_path / "whole"), strict=True):
        assert actual == pytest.approx(expected, rel=0.05)

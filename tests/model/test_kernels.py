"""What kernels_hfbert.py computes faster equals the plain path: outputs, losses, gradients, dropout's statistics."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, NO_DROPOUT, PREDICTING, assert_same, batch, gradients, make, tensors, tiny_config
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from hfbert_scratch import HFBertForPreTraining
from hfbert_scratch.model import modeling_hfbert
from hfbert_scratch.model.kernels_hfbert import HFBertDropout, cross_entropy_sum, varlen_attention
from hfbert_scratch.model.layout_hfbert import UNPADDED, TokenLayout


# Padding at the end, at the start, in between, none at all, and rows of one length.
MASKS = {
    "right": [[1] * 12, [1] * 3 + [0] * 9, [1] * 11 + [0]],
    "left": [[0] * 4 + [1] * 8, [1] * 12, [0] * 9 + [1] * 3],
    "holes": [[1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0], [1] * 12, [1, 1, 0, 0] * 3],
    "none": [[1] * 12] * 3,
    "equal": [[1] * 7 + [0] * 5] * 3,
    "very short": [[1] + [0] * 11, [1, 1] + [0] * 10, [1] * 12],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("left_to_right", [False, True])
def test_unpadded_states_are_the_padded_ones_at_real_tokens_and_0_elsewhere(mask, left_to_right):
    model = make("base", left_to_right=left_to_right, **NO_DROPOUT).eval()
    inputs = batch() | {"attention_mask": torch.tensor(MASKS[mask])}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        padded = model(**inputs)
        model.set_attn_implementation(UNPADDED)
        unpadded = model(**inputs)
    torch.testing.assert_close(unpadded.last_hidden_state[real], padded.last_hidden_state[real], atol=1e-5, rtol=0)
    assert (unpadded.last_hidden_state[~real] == 0).all()
    first = real[:, 0]
    torch.testing.assert_close(unpadded.pooler_output[first], padded.pooler_output[first], atol=1e-5, rtol=0)


def test_a_batch_of_nothing_but_padding_comes_to_nothing():
    model = make("pretraining").train()
    model.set_attn_implementation(UNPADDED)
    inputs = batch("pretraining")
    inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    outputs = model.bert(inputs["input_ids"], inputs["attention_mask"])
    assert (outputs.last_hidden_state == 0).all()
    outputs = model(**inputs)
    assert outputs.masked_lm_loss == 0
    outputs.loss.backward()


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("base", "question_answering")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_unpadded_losses_and_gradients_are_the_padded_ones(case, checkpointing):
    model = make(case, **NO_DROPOUT, sparse_prediction=True).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = batch(case)
    actual = []
    for implementation in ("eager", UNPADDED):
        model.set_attn_implementation(implementation)
        outputs = model(**inputs)
        actual.append({"loss": outputs.loss.detach()} | gradients(model, outputs.loss))
    assert_same(actual[0], actual[1], 2e-6)


# ------------------------------------------------------------------------------------------- what is read of the end


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("changes", [{}, {"left_to_right": True}, {"num_hidden_layers": 1}], ids=str)
@pytest.mark.parametrize("attention", ["eager", UNPADDED])
def test_vectors_that_will_be_read_are_those_of_the_whole_batch(attention, changes, mask):
    model = make("base", **NO_DROPOUT, **changes).train()
    inputs = batch() | {"attention_mask": torch.tensor(MASKS[mask])}
    real = inputs["attention_mask"].flatten().nonzero().squeeze(1)
    weights = torch.randn(len(real) + 4, 32) / 10
    for read in (torch.cat([real.flip(0), real[[3, 0, 3, 3]]]), real[:1].int(), real[:0], ()):
        actual = []
        for implementation, read_positions in (("eager", None), (attention, read)):
            model.set_attn_implementation(implementation)
            outputs = model(**inputs, read_positions=read_positions)
            states = outputs.last_hidden_state
            if read_positions is None:
                states = states.flatten(0, 1)[read.long() if len(read) else real[:0]]
            pooled = outputs.pooler_output[inputs["attention_mask"][:, 0].bool()]
            loss = (states * weights[: len(states)]).sum() + pooled.sum()
            actual.append({"states": states.detach(), "pooled": pooled.detach()} | gradients(model, loss))
        assert_same(actual[0], actual[1], 1e-5)


def test_padding_that_is_read_is_0_without_padding_as_ever():
    model = make("base").eval()
    model.set_attn_implementation(UNPADDED)
    states = model(**batch(), read_positions=torch.tensor([35, 0])).last_hidden_state
    assert (states[0] == 0).all() and (states[1] != 0).any()


@pytest.mark.parametrize(
    "case", ["pretraining", "masked_lm", "next_sentence", "single_label", "multiple_choice", "token"]
)
def test_the_last_layer_is_computed_for_what_the_head_reads_alone(case):
    model = make(case, sparse_prediction=True).train()
    model.set_attn_implementation(UNPADDED)
    inputs = batch(case)
    rows = {}
    first, last = model.bert.encoder.layer
    modules = {
        "first": first.output,
        "last": last.output,
        "key": last.attention.self.key,
        "query": last.attention.self.query,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda _, args, output, name=name: rows.update({name: output.shape[1]}))
    model(**inputs)
    tokens, sequences = int(inputs["attention_mask"].sum()), inputs["attention_mask"].shape[:-1].numel()
    read = {"token": tokens}.get(case, sequences)
    if case in PREDICTING:
        read += int((inputs["labels"][:, 1:] != -100).sum())  # beside [CLS]
    assert rows == {"first": tokens, "key": tokens, "query": read, "last": read}


@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
def test_hidden_states_of_a_head_are_those_of_all_tokens(attention):
    for case in ("pretraining", "single_label"):
        model = make(case, **NO_DROPOUT).train()
        inputs = batch(case)
        expected = model(**inputs)
        model.set_attn_implementation(attention)
        outputs = model(**inputs, output_hidden_states=True)
        assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 12, 32)] * 3
        torch.testing.assert_close(outputs.loss, expected.loss)


@pytest.mark.parametrize(
    "read, message",
    [
        (torch.tensor([[1]]), r"shape \(1, 1\)"),
        (torch.tensor([0.0]), "torch.float32"),
        (torch.tensor([3, 36]), r"from 0 to 36; the batch of shape \(3, 12\) has positions 0 … 35"),
        (torch.tensor([-1]), "from -1 to 24"),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
def test_places_that_are_none_are_refused(read, message, attention):
    model = make("base")
    model.set_attn_implementation(attention)
    with pytest.raises(ValueError, match=message):
        model(**batch(), read_positions=read)


def test_unpadded_in_bfloat16_is_as_near_to_float32_as_the_padded_model():
    model = make("pretraining", **NO_DROPOUT).train()
    inputs = batch("pretraining")
    model.set_attn_implementation("eager")
    exact = gradients(model, model(**inputs).loss)
    errors = {}
    for implementation in ("eager", UNPADDED):
        model.set_attn_implementation(implementation)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        actual = gradients(model, loss)
        errors[implementation] = sum(float((actual[name] - exact[name]).square().sum()) for name in exact) ** 0.5
    assert 0 < errors[UNPADDED] < 1.3 * errors["eager"]


def test_hidden_states_are_asked_for_in_the_padded_shape_and_attentions_are_refused():
    model = make("base").eval()
    inputs = batch()
    expected = model(**inputs, output_hidden_states=True).hidden_states
    model.set_attn_implementation(UNPADDED)
    actual = model(**inputs, output_hidden_states=True).hidden_states
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"set_attn_implementation\('eager'\)"):
        model(**inputs, output_attentions=True)


def test_embeddings_positions_and_ready_made_masks_in_place_of_the_defaults():
    model = make("base").eval()
    inputs = batch()
    embedded = {name: value for name, value in inputs.items() if name != "input_ids"} | {
        "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach(),
        "position_ids": torch.arange(12).flip(0)[None],
    }
    four_dimensional = inputs | {"attention_mask": torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()}
    for given in (embedded, four_dimensional):
        model.set_attn_implementation("sdpa")
        expected = model(**given).last_hidden_state
        model.set_attn_implementation(UNPADDED)
        actual = model(**given).last_hidden_state
        real = inputs["attention_mask"].bool() if given is embedded else torch.ones(3, 12, dtype=torch.bool)
        torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="does not fit max_position_embeddings=40"):
        model(input_ids=torch.ones(1, 41, dtype=torch.long))


# Lengths that make several buckets, with and without padding within them.
LENGTHS = [80, 80, 60, 60, 58, 40, 40, 9, 7, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_with_dropout_is_the_plain_formula_with_the_same_probabilities_dropped(dtype, is_causal):
    """With one-hot values the output is the matrix of dropped probabilities itself."""
    torch.manual_seed(0)
    length, heads, dropout = 64, 4, 0.25
    query, key = (torch.randn(1, length, heads, 64, dtype=dtype, requires_grad=True) for _ in range(2))
    value = torch.eye(length, dtype=dtype)[:, None].expand(length, heads, length)[None].clone().requires_grad_()
    layout = TokenLayout(torch.Size((1, length))).unpadded(None, query.device)
    dropped = varlen_attention(query[0], key[0], value[0], layout, 0.125, dropout, is_causal).transpose(0, 1)
    scores = torch.einsum("qhd,khd->hqk", query[0].float(), key[0].float()) * 0.125
    if is_causal:
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    probabilities = scores.softmax(-1)
    kept = (dropped != 0).float()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(dropped.float(), probabilities * kept / (1 - dropout), atol=tolerance, rtol=tolerance)
    share = kept.sum() / (probabilities > 1e-20).sum()
    assert abs(share.item() - (1 - dropout)) < 0.02

    weights = torch.randn(heads, length, length)
    (dropped.float() * weights).sum().backward()
    actual = [tensor.grad.clone() for tensor in (query, key, value)]
    for tensor in (query, key, value):
        tensor.grad = None
    plain = torch.einsum("hqk,khd->hqd", probabilities * kept / (1 - dropout), value[0].float())
    (plain * weights).sum().backward()
    for mine, tensor in zip(actual, (query, key, value), strict=True):
        error = (mine.float() - tensor.grad.float()).norm() / tensor.grad.float().norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


def test_sequences_do_not_see_each_other_whatever_bucket_they_are_in():
    torch.manual_seed(0)
    tokens, heads = sum(LENGTHS), 2
    mask = (torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS)[:, None]).long()
    layout = TokenLayout(mask.shape).unpadded(mask, mask.device)
    assert len(layout.buckets) > 2
    assert any(bucket.indices is not None for bucket in layout.buckets)
    assert any(bucket.indices is None for bucket in layout.buckets)
    query, key, value = torch.randn(3, tokens, heads, 16).unbind(0)
    together = varlen_attention(query, key, value, layout, 0.25, 0.0, False)
    start = 0
    for length in LENGTHS:
        own = [tensor[start : start + length].transpose(0, 1) for tensor in (query, key, value)]
        alone = F.scaled_dot_product_attention(*own, scale=0.25).transpose(0, 1)
        torch.testing.assert_close(together[start : start + length], alone, atol=1e-6, rtol=0)
        start += length


def test_padding_and_unpadding_are_each_others_inverse():
    mask = torch.tensor(MASKS["holes"])
    values = torch.randn(3, 12, 5)
    layout = TokenLayout(mask.shape).unpadded(mask, mask.device)
    assert torch.equal(layout.pad(layout.unpad(values)), values * mask[..., None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_stated_share_scaled_and_its_gradient_is_the_same_mask(dtype):
    torch.manual_seed(1)
    dropout = HFBertDropout(0.1)
    values = torch.ones(1001, 997, dtype=dtype, requires_grad=True)
    actual = dropout(values)
    kept = actual != 0
    # Five standard deviations of a million draws, and the 1/65536 to which the probability is met.
    assert abs(kept.double().mean().item() - 0.9) < 5 * (0.09 / kept.numel()) ** 0.5 + 2**-16
    torch.testing.assert_close(actual[kept], torch.full_like(actual[kept], 1 / 0.9), atol=0, rtol=5e-3)
    # Neither rows nor columns, nor neighbours, which come from one random number, depend on each other.
    for dimension in (0, 1):
        means = kept.double().mean(dimension)
        assert means.std().item() < 1.15 * (0.09 / kept.shape[dimension]) ** 0.5
    flat = kept.flatten().double() - 0.9
    for distance in (1, 2, 3, 4, 997):
        assert abs((flat[distance:] * flat[:-distance]).mean().item()) < 5 * 0.09 / flat.numel() ** 0.5
    actual.float().sum().backward()
    assert torch.equal(values.grad != 0, kept)
    torch.testing.assert_close(values.grad[kept], actual.detach()[kept], atol=0, rtol=0)


def test_dropout_is_a_function_of_the_seed_and_off_in_evaluation():
    dropout, values = HFBertDropout(0.5), torch.randn(64, 64)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(dropout(values))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert isinstance(dropout, nn.Dropout)
    assert dropout.eval()(values) is values or torch.equal(dropout(values), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_over_a_vocabulary_is_pytorchs(dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(70, 30522)).to(dtype).requires_grad_()
    labels = torch.randint(0, 30522, (70,))
    labels[::7] = -100
    actual = cross_entropy_sum(logits, labels)
    actual.backward()
    gradient, logits.grad = logits.grad, None
    expected = F.cross_entropy(logits.float(), labels, reduction="sum")
    expected.backward()
    torch.testing.assert_close(actual, expected, atol=0, rtol=1e-6)
    torch.testing.assert_close(gradient, logits.grad, atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 1e-2)
    for label in (30522, -1):
        labels[3] = label
        with pytest.raises(IndexError, match="out of bounds"):
            cross_entropy_sum(logits, labels)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_the_activation_puts_out_is_not_kept_and_the_gradients_are_the_same_to_the_bit(precision, monkeypatch):
    model = make("pretraining", **NO_DROPOUT).train()
    storages = []
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_hook(
            lambda module, args, output: storages.append(StorageWeakRef(output.untyped_storage()))
        )

    def kept_and_gradients():
        storages.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(**batch("pretraining")).loss
        kept = [not storage.expired() for storage in storages]
        return kept, gradients(model, loss)

    kept, once_more = kept_and_gradients()
    assert kept == [False, False]
    monkeypatch.setattr(modeling_hfbert, "recompute_gelu", lambda activated: nullcontext())
    kept, plain = kept_and_gradients()
    assert kept == [True, True]
    assert plain.keys() == once_more.keys()
    assert all(torch.equal(plain[name], once_more[name]) for name in plain)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh", "silu"])
def test_any_activation_may_stand_there(activation):
    """Also where only the numbers that are kept say what the function was: compared with float64 differences."""
    model = make("base", hidden_act=activation, num_hidden_layers=1, **NO_DROPOUT).double().train()
    inputs = batch()
    weight = model.encoder.layer[0].intermediate.dense.weight

    def value():
        return model(**inputs).last_hidden_state.square().sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    with torch.no_grad():
        weight[3, 5] += 1e-6
        higher = value()
        weight[3, 5] -= 2e-6
        lower = value()
    torch.testing.assert_close(gradient[3, 5], (higher - lower) / 2e-6, rtol=1e-4, atol=1e-6)


def test_training_unpadded_with_dropout_follows_training_padded():
    """Other draws of dropout, the same learning: the area under the loss curve of a tiny run agrees."""
    means = []
    for implementation in ("eager", UNPADDED):
        torch.manual_seed(0)
        model = HFBertForPreTraining(tiny_config(vocab_size=40)).train()
        model.set_attn_implementation(implementation)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for step in range(120):
            inputs = batch("pretraining", size=16, seed=step % 8)
            inputs["input_ids"] %= 40
            inputs["labels"] = torch.where(inputs["labels"] == -100, -100, inputs["input_ids"])
            loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 4
        means.append(sum(losses) / len(losses))
    assert abs(means[0] - means[1]) < 0.1 * means[0]


def test_outputs_of_all_heads_are_the_padded_ones_in_evaluation():
    for case in CASES:
        model = make(case).eval()
        inputs = batch(case, labels=False)
        model.set_attn_implementation("sdpa")
        expected = tensors(model(**inputs))
        model.set_attn_implementation(UNPADDED)
        actual = tensors(model(**inputs))
        real = inputs["attention_mask"].bool()
        for name, theirs in expected.items():
            mine = actual[name]
            if theirs.shape[:2] == real.shape:
                mine, theirs = mine[real], theirs[real]
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0, msg=f"{case} {name}")

"""Packed rows: the same outputs, losses and gradients as the padded batch, by every way of attention."""

import pytest
import torch
from helpers import (
    NO_DROPOUT,
    NUM_LABELS,
    PACKABLE,
    PREDICTING,
    TINY,
    assert_same,
    batch,
    gradients,
    make,
    packed_batch,
    prediction_batch,
    static_positions,
)
from torch._dynamo.testing import CompileCounter
from transformers import DataCollatorWithFlattening
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hfbert_scratch.model.layout_hfbert import UNPADDED, pack


# On CPUs flex_attention has no backward pass. "kernel" is the operator of GPUs, with plain arithmetic as its kernel.
TRAINING = pytest.mark.parametrize("attention", ["eager", "sdpa", UNPADDED, "kernel"], indirect=True)
ALL = pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", UNPADDED, "kernel"], indirect=True)


@pytest.fixture
def attention(request):
    """The name of an attention implementation."""
    if request.param != "kernel":
        return request.param
    request.getfixturevalue("kernel_everywhere")
    return UNPADDED


def rows_of(packed_output, mask):
    """(1, tokens, …) → (rows, length, …), 0 where there is padding."""
    padded = packed_output.new_zeros(*mask.shape, *packed_output.shape[2:])
    padded[mask.bool()] = packed_output[0, : int(mask.sum())]
    return padded


def test_a_batch_becomes_a_row():
    packed = pack(
        {
            "input_ids": torch.tensor([[2, 11, 3, 0], [2, 21, 22, 3], [2, 3, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]),
            "labels": torch.tensor([[-100, 7, -100, -100], [-100, 8, 9, -100], [-100] * 4]),
            "masked_positions": torch.tensor([[1, 0], [1, 2], [0, 0]]),
            "next_sentence_label": torch.tensor([0, 1, 1]),
        },
        pad_token_id=5,
        multiple_of=8,
    )
    assert packed.pop("max_length_q") == 4
    assert packed.pop("cu_seq_lens_q").dtype == torch.int32
    assert {name: values.tolist() for name, values in packed.items()} == {
        "input_ids": [[2, 11, 3, 2, 21, 22, 3, 2, 3, 5, 5, 5, 5, 5, 5, 5]],
        "labels": [[-100, 7, -100, -100, 8, 9] + [-100] * 10],
        "masked_positions": [[1, 0, 4, 5, 7, 7]],
        "next_sentence_label": [0, 1, 1, -100, -100],
    }


@pytest.mark.parametrize(
    "multiple_of, cu_seqlens", [(1, [0, 3, 7, 9]), (8, [0, 3, 7, 9, 13, 16]), (9, [0, 3, 7, 9, 9, 9])]
)
def test_the_number_of_sequences_depends_on_the_shape_alone(multiple_of, cu_seqlens):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    packed = pack({"input_ids": mask, "attention_mask": mask}, 0, multiple_of)
    assert packed["cu_seq_lens_q"].tolist() == cu_seqlens
    assert packed["input_ids"].shape == (1, cu_seqlens[-1])


def test_padding_may_stand_anywhere():
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1]])
    labels = torch.tensor([[-100, -100, -100, 5], [-100, -100, 6, 7]])
    packed = pack({"attention_mask": mask, "labels": labels, "masked_positions": torch.tensor([[3, 2], [2, 3]])}, 0)
    assert packed["labels"].tolist() == [[-100, 5, -100, 6, 7]]
    assert packed["masked_positions"].tolist() == [[1, 0, 3, 4]]


def test_sequences_of_padding_need_a_label_that_does_not_count():
    with pytest.raises(ValueError, match=r"labels is of torch.float32"):
        pack(batch("regression"), 0, multiple_of=8, per_row=["labels"])


def test_a_tensor_with_an_entry_per_row_is_named_so_whatever_its_shape():
    inputs = batch("multi_label", size=4, length=NUM_LABELS)
    packed = pack(inputs, 0, per_row=["labels"])
    assert packed["labels"].equal(inputs["labels"]) and packed["input_ids"].shape[0] == 1
    with pytest.raises(ValueError, match=r"labels has shape \(4,\), not \(4, 12\) as attention_mask; .*per_row"):
        pack(batch("single_label", size=4), 0)


@ALL
@pytest.mark.parametrize("multiple_of", [1, 16])
@pytest.mark.parametrize("left_to_right", [False, True])
def test_states_are_the_padded_ones(attention, left_to_right, multiple_of):
    model = make("base", left_to_right=left_to_right).eval()
    inputs = batch(size=5)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        expected = model(**inputs)
        model.set_attn_implementation(attention)
        actual = model(**pack(inputs, 0, multiple_of))
    states = rows_of(actual.last_hidden_state, mask)
    torch.testing.assert_close(states, expected.last_hidden_state * mask[..., None], atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.pooler_output[:5], expected.pooler_output, atol=1e-5, rtol=0)
    assert actual.last_hidden_state.isfinite().all()


@TRAINING
@pytest.mark.parametrize("case", [case for case in PACKABLE if case != "base"])
def test_losses_and_gradients_are_the_padded_ones(attention, case):
    model = make(case, **NO_DROPOUT, sparse_prediction=True).train()
    inputs = batch(case, size=5)
    model.set_attn_implementation("eager")
    expected = model(**inputs).loss
    wanted = {"loss": expected.detach()} | gradients(model, expected)
    model.set_attn_implementation(attention)
    for multiple_of in (1, 16):
        loss = model(**packed_batch(case, inputs, multiple_of)).loss
        assert_same({"loss": loss.detach()} | gradients(model, loss), wanted, 2e-6)


@TRAINING
@pytest.mark.parametrize("case", PREDICTING)
def test_predictions_at_given_positions(attention, case):
    model = make(case, **NO_DROPOUT, sparse_prediction=True).train()
    inputs = prediction_batch(case, size=5)
    expected = model(**inputs).loss
    wanted = {"loss": expected.detach()} | gradients(model, expected)
    inputs["masked_positions"] = static_positions(inputs["labels"], width=11)
    model.set_attn_implementation(attention)
    loss = model(**pack(inputs, 0, 16)).loss
    assert_same({"loss": loss.detach()} | gradients(model, loss), wanted, 2e-6)


@TRAINING
@pytest.mark.parametrize("multiple_of", [1, 16])
def test_places_of_a_row_that_will_be_read(attention, multiple_of):
    model = make("base", **NO_DROPOUT).train()
    packed = pack(batch(size=5), 0, multiple_of)
    model.set_attn_implementation("eager")
    read = torch.tensor([40, 3, 3, 0, 17, 44])
    actual = []
    for implementation, read_positions in (("eager", None), (attention, read)):
        model.set_attn_implementation(implementation)
        outputs = model(**packed, read_positions=read_positions)
        states = outputs.last_hidden_state
        states = states[0, read] if read_positions is None else states
        pooled = outputs.pooler_output[:5]
        loss = (states * torch.arange(32) / 32).sum() + pooled.sum()
        actual.append({"states": states.detach(), "pooled": pooled.detach()} | gradients(model, loss))
    assert_same(actual[0], actual[1], 1e-5)


@ALL
def test_hidden_states_and_attentions_of_a_row(attention):
    model = make("base").eval()
    inputs = batch(size=4)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states
        model.set_attn_implementation(attention)
        actual = model(**pack(inputs, 0), output_hidden_states=True, output_attentions=attention == "eager")
        read = model(**pack(inputs, 0), output_hidden_states=True, read_positions=torch.tensor([3]))
    for mine, theirs in zip(actual.hidden_states, expected, strict=True):
        torch.testing.assert_close(rows_of(mine, mask), theirs * mask[..., None], atol=1e-5, rtol=0)
    assert read.hidden_states[-1].shape == actual.hidden_states[-1].shape
    if attention == "eager":
        numbers = mask.nonzero()[:, 0]
        apart = numbers[:, None] != numbers
        assert all((part[..., apart] == 0).all() for part in actual.attentions)


def test_rows_made_by_transformers_collator():
    model = make("masked_lm").eval()
    texts = [[2, 11, 12, 13, 3], [2, 21, 3], [2, 31, 32, 3]]
    flattened = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": ids} for ids in texts])
    labels = flattened.pop("labels")
    logits = model(**flattened).logits
    expected = torch.cat([model(torch.tensor([ids])).logits for ids in texts], dim=1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert torch.isfinite(model(**flattened, labels=labels).loss)


def test_an_attention_of_the_users_own_is_told_what_transformers_own_would_be():
    """Flash attention takes the cu_seqlens, or finds them in position_ids that were given, as for stock."""
    told = []

    def attend(module, query, key, value, attention_mask, **kwargs):
        told.append(kwargs | {"attention_mask": attention_mask})
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("recorded", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("recorded", flash_attention_mask)
    model = make("base", num_hidden_layers=1)
    model.set_attn_implementation("recorded")
    ids = torch.ones(1, 8, dtype=torch.long)
    cu_seqlens, positions = torch.tensor([0, 3, 8]), torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    model(ids, cu_seq_lens_q=cu_seqlens)
    model(ids, position_ids=positions)
    model(ids, position_ids=positions[0])
    model(ids)
    rows, given, of_one_row, plain = told
    assert rows["attention_mask"] is None and rows["max_length_q"] == rows["max_length_k"] == 8
    assert torch.equal(rows["cu_seq_lens_q"], cu_seqlens) and torch.equal(rows["cu_seq_lens_k"], cu_seqlens)
    assert torch.equal(given["position_ids"], positions) and torch.equal(of_one_row["position_ids"], positions)
    assert not {"position_ids", "cu_seq_lens_q"} & plain.keys()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input_ids": torch.ones(2, 8, dtype=torch.long)}, r"one packed row.*shape \(2, 8\)"),
        ({"attention_mask": torch.ones(1, 8)}, "leave out attention_mask"),
        ({"cu_seq_lens_q": torch.tensor([[0, 8]])}, r"shape \(1, 2\)"),
        ({"cu_seq_lens_q": torch.tensor([0.0, 8.0])}, "torch.float32"),
        ({"cu_seq_lens_q": torch.tensor([8])}, r"shape \(1,\)"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 7])}, "rise from 0 to the row's 8 tokens"),
        ({"cu_seq_lens_q": torch.tensor([1, 8])}, "rise from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 3, 8])}, "rise from 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 8]), "max_length_q": 4}, "at most 4"),
        ({"input_ids": torch.ones(1, 50, dtype=torch.long), "cu_seq_lens_q": torch.tensor([0, 50])}, "at most 40"),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
def test_a_row_that_cannot_be_is_refused(changes, message, attention):
    model = make("base")
    model.set_attn_implementation(attention)
    given = {"input_ids": torch.ones(1, 8, dtype=torch.long), "cu_seq_lens_q": torch.tensor([0, 3, 8])}
    with pytest.raises(ValueError, match=message):
        model(**(given | changes))


@pytest.mark.parametrize("case", ["multiple_choice", "question_answering"])
def test_heads_that_compare_positions_or_rows_refuse_a_packed_row(case):
    model, inputs = make(case), batch(case, size=1, length=8)
    inputs.pop("attention_mask")
    with pytest.raises(ValueError, match="takes padded batches, not packed rows"):
        model(**inputs, cu_seq_lens_q=torch.tensor([0, 3, 8]))


# ------------------------------------------------------------------------------------------ nothing read, one graph


def meta_step(multiple_of: int = 32):
    """A training step's model and inputs on the meta device, whose tensors have no numbers that could be read."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = make("pretraining", sparse_prediction=True, **dropout).train()
    model.set_attn_implementation(UNPADDED)
    inputs = prediction_batch("pretraining", size=6)
    inputs["masked_positions"] = static_positions(inputs["labels"], width=11)
    packed = pack(inputs, 0, multiple_of)
    counts = {"num_items_in_batch": torch.tensor(9), "num_sequences_in_batch": torch.tensor(3)}
    inputs = {name: value if isinstance(value, int) else value.to("meta") for name, value in (packed | counts).items()}
    return model.to("meta", torch.bfloat16), inputs


def test_a_packed_training_step_never_waits_for_the_device(kernel_everywhere):
    model, inputs = meta_step()
    outputs = model(**inputs)
    outputs.loss.backward()
    assert outputs.prediction_logits.shape == (66, TINY["vocab_size"])
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nor_does_a_padded_one():
    model = make("pretraining").train()
    inputs = prediction_batch("pretraining", size=6)
    inputs["masked_positions"] = static_positions(inputs["labels"], width=11)
    model.set_attn_implementation("sdpa")
    outputs = model.to("meta")(**{name: value.to("meta") for name, value in inputs.items()})
    outputs.loss.backward()


@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
def test_a_packed_row_compiles_without_a_graph_break(attention):
    torch._dynamo.reset()
    graphs = CompileCounter()
    model = make("pretraining", num_hidden_layers=1, **NO_DROPOUT).train()
    inputs = prediction_batch("pretraining", size=5)
    expected = model(**inputs)
    wanted = gradients(model, expected.loss)
    inputs["masked_positions"] = static_positions(inputs["labels"], width=11)
    model.set_attn_implementation(attention)
    loss = torch.compile(model, backend=graphs)(**pack(inputs, 0, 16)).loss
    assert graphs.frame_count == 1
    assert_same(gradients(model, loss), wanted, 2e-6)
    torch._dynamo.reset()


def test_the_kernel_compiles_without_a_graph_break(kernel_everywhere):
    torch._dynamo.reset()
    graphs = CompileCounter()
    model, inputs = meta_step()
    loss = torch.compile(model, backend=graphs)(**inputs).loss
    loss.backward()
    assert graphs.frame_count == 1
    torch._dynamo.reset()

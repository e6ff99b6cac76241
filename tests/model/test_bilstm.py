"""The bidirectional LSTM on top of the encoder: padded anywhere, in every head, saved and reopened."""

import copy

import pytest
import torch
from helpers import NO_DROPOUT, PREDICTING, batch, make, tensors
from huggingface_hub.errors import StrictDataclassError

from hfbert_scratch.conversion.stock import to_stock
from hfbert_scratch.model.layout_hfbert import UNPADDED
from hfbert_scratch.utils.errors import InputError


HEADS = ["base", "single_label", "token", "question_answering", "multiple_choice"]


@pytest.mark.parametrize("left_to_right", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
def test_a_sequence_gives_the_same_wherever_its_padding_stands(attention, left_to_right):
    model = make("base", bilstm=True, left_to_right=left_to_right)
    model.set_attn_implementation(attention)
    ids = torch.arange(10, 16)[None]
    alone = model(ids)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids, torch.zeros(1, 2, dtype=torch.long)], 1)
    positions = torch.tensor([[0, 0, 0, *range(6), 0, 0]])
    both = {"input_ids": padded, "attention_mask": (padded != 0).long(), "position_ids": positions}
    inside = model(**both)
    torch.testing.assert_close(inside.last_hidden_state[:, 3:9], alone.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(inside.pooler_output, alone.pooler_output, rtol=0, atol=1e-5)
    read = model(**both, read_positions=torch.tensor([4, 7])).last_hidden_state
    torch.testing.assert_close(read, inside.last_hidden_state[0, [4, 7]], rtol=0, atol=1e-6)


def test_every_token_sees_all_others_also_left_to_right():
    model = make("base", bilstm=True, left_to_right=True)
    ids = torch.arange(10, 16)[None]
    changed = ids.clone()
    changed[0, -1] = 30
    difference = (model(ids).last_hidden_state - model(changed).last_hidden_state).abs().amax(-1)[0]
    assert (difference > 1e-6).all()


@pytest.mark.parametrize("case", HEADS)
def test_every_head_trains_and_opens_again(case, tmp_path):
    model = make(case, bilstm=True, **NO_DROPOUT)
    inputs = batch(case)
    outputs = model(**inputs)
    if case != "base":
        outputs.loss.backward()
        encoder = model.base_model
        assert encoder.bilstm.weight_hh_l0.grad.any() and encoder.bilstm.weight_hh_l0_reverse.grad.any()
    model.save_pretrained(tmp_path)
    # Copied: the LSTM's product rounds otherwise where weights begin at another offset of a cache line, as in a file.
    again = copy.deepcopy(type(model).from_pretrained(tmp_path).eval())
    assert again.config.bilstm
    for name, tensor in tensors(again(**inputs)).items():
        assert torch.equal(tensor, tensors(outputs)[name]), name


def test_what_it_cannot_be_is_refused(tmp_path):
    with pytest.raises(StrictDataclassError, match="the two directions of a bilstm halve it"):
        make("base", bilstm=True, hidden_size=33, num_attention_heads=3)
    model = make(PREDICTING[1], bilstm=True)
    with pytest.raises(ValueError, match="a bilstm"):
        model(torch.arange(5, 9)[None], cu_seq_lens_q=torch.tensor([0, 2, 4], dtype=torch.int32))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="has a bilstm, for which stock bert has no place"):
        to_stock(tmp_path / "model", tmp_path / "stock")

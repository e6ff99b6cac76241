"""The arithmetic: the same as stock BERT's on the same weights, in every way the model can be run."""

import inspect

import pytest
import torch
import transformers
from accelerate import cpu_offload
from helpers import (
    CASES,
    NO_DROPOUT,
    NORMALIZING,
    PREDICTING,
    TINY,
    assert_same,
    batch,
    gradients,
    make,
    pair,
    prediction_batch,
    static_positions,
    tensors,
)
from huggingface_hub.errors import StrictDataclassError
from torch.nn.attention.flex_attention import create_block_mask

import hfbert_scratch
from hfbert_scratch.model import checks_hfbert
from hfbert_scratch.model.kernels_hfbert import cross_entropy
from hfbert_scratch.model.layout_hfbert import UNPADDED, pack


TOLERANCE = 1e-5
LABELS = {"labels", "next_sentence_label", "start_positions", "end_positions"}


def shared_tensors(ours, stock) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both outputs without what only ours returns, the two parts of the pretraining loss."""
    left = {
        name: value for name, value in tensors(ours).items() if name not in ("masked_lm_loss", "next_sentence_loss")
    }
    return left, tensors(stock)


# ---------------------------------------------------------------------------------------------------- stock's numbers


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_eval_outputs_are_stocks(case, attention):
    ours, stock = pair(case)
    ours.set_attn_implementation(attention)
    stock.set_attn_implementation(attention)
    left, right = shared_tensors(ours(**batch(case)), stock(**batch(case)))
    assert_same(left, right, TOLERANCE)


@pytest.mark.parametrize("case", [case for case in CASES if case != "base"])
def test_training_losses_and_gradients_are_stocks(case):
    ours, stock = pair(case, **NO_DROPOUT)
    ours.train()
    stock.train()
    left, right = ours(**batch(case)), stock(**batch(case))
    assert abs(left.loss - right.loss) <= TOLERANCE
    assert_same(gradients(ours, left.loss), gradients(stock, right.loss), TOLERANCE)


def test_gradients_of_the_base_model_are_stocks():
    ours, stock = pair("base", **NO_DROPOUT)
    collected = []
    for model in (ours.train(), stock.train()):
        outputs = model(**batch())
        loss = outputs.last_hidden_state.pow(2).mean() + outputs.pooler_output.sum()
        collected.append(gradients(model, loss))
    assert_same(*collected, TOLERANCE)


def test_parity_also_at_a_width_where_matrix_products_are_blocked():
    # From 256 columns on, adding the output bias after the product instead of in it changes the last bit.
    wide = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
    ours, stock = pair("masked_lm", **wide)
    inputs = batch("masked_lm", labels=False)
    assert torch.equal(ours(**inputs).logits, stock(**inputs).logits)


def without(*names: str):
    return lambda inputs: {name: value for name, value in inputs.items() if name not in names}


def with_positions(inputs):
    length = inputs["input_ids"].shape[-1]
    return inputs | {"position_ids": torch.arange(length).flip(0).expand_as(inputs["input_ids"]) + 3}


def with_shared_positions(inputs):
    return inputs | {"position_ids": torch.arange(inputs["input_ids"].shape[-1])[None] + 7}


def with_ready_mask(inputs):
    return inputs | {"attention_mask": (inputs["attention_mask"] == 1)[:, None, None, :].expand(-1, 1, 12, -1)}


VARIANTS = {
    "no token types": without("token_type_ids"),
    "no mask": without("attention_mask"),
    "ids only": without("attention_mask", "token_type_ids"),
    "position ids": with_positions,
    "one row of position ids": with_shared_positions,
    "int32 ids": lambda inputs: inputs | {"input_ids": inputs["input_ids"].int()},
    "boolean mask": lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].bool()},
    "mask of zeros and ones in float": lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].float()},
    "one row": lambda inputs: {name: value[:1] for name, value in inputs.items()},
    "one token": lambda inputs: {name: value[..., :1] for name, value in inputs.items()},
    "ready-made mask": with_ready_mask,
    "positions without a batch": lambda inputs: inputs | {"position_ids": torch.arange(12) + 7},
    "segments without a batch": lambda inputs: inputs | {"token_type_ids": torch.arange(12) // 6},
}
NOT_PER_CHOICE = (
    "ready-made mask",
    "one row of position ids",
    "positions without a batch",
    "segments without a batch",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_input_variants_are_stocks(variant):
    for case in ("base", "multiple_choice"):
        if case == "multiple_choice" and variant in NOT_PER_CHOICE:
            continue
        inputs = VARIANTS[variant](batch(case, labels=False))
        ours, stock = pair(case)
        left, right = shared_tensors(ours(**inputs), stock(**inputs))
        assert_same(left, right, TOLERANCE)
        if case == "base" and variant != "ready-made mask":
            ours.set_attn_implementation(UNPADDED)
            real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            unpadded = ours(**inputs).last_hidden_state[real]
            torch.testing.assert_close(unpadded, right["last_hidden_state"][real], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
def test_every_weight_acts_through_the_forward_of_its_module(attention):
    """Hooks, LoRA and offloading change a module's forward; a weight that is read past it would ignore them."""
    model = make("pretraining")
    model.set_attn_implementation(attention)
    inputs = batch("pretraining")
    del inputs["token_type_ids"]
    owners = {name: module for name, module in model.named_modules() if module._parameters}
    calls = set()
    for name, module in owners.items():
        module.register_forward_hook(lambda *_, name=name: calls.add(name))
    plain = model(**inputs).loss
    assert calls == owners.keys()
    segments = model.bert.embeddings.token_type_embeddings
    segments.register_forward_hook(lambda module, args, output: output + torch.arange(32) % 2)
    assert abs(model(**inputs).loss - plain) > 1e-3
    offloaded = cpu_offload(make("pretraining"), execution_device="cpu")
    offloaded.set_attn_implementation(attention)
    assert torch.equal(offloaded(**inputs).loss, plain)


@pytest.mark.parametrize("case", ["base", "masked_lm", "multiple_choice"])
def test_inputs_embeds_are_stocks_and_those_of_the_ids(case):
    ours, stock = pair(case)
    inputs = batch(case, labels=False)
    by_ids = ours(**inputs)
    inputs["inputs_embeds"] = ours.get_input_embeddings()(inputs.pop("input_ids"))
    assert_same(*shared_tensors(ours(**inputs), stock(**inputs)), TOLERANCE)
    assert torch.equal(ours(**inputs)[0], by_ids[0])


@pytest.mark.parametrize("case", ["base", "pretraining", "masked_lm", "token"])
def test_left_to_right_is_stocks_decoder(case):
    ours, stock = pair(case, left_to_right=True)
    inputs = batch(case, labels=False)
    left, right = shared_tensors(ours(**inputs), stock(**inputs))
    for name in ("pooler_output", "seq_relationship_logits"):  # of the last token here, of the first in stock
        left.pop(name, None)
    assert left
    assert_same(left, {name: right[name] for name in left}, TOLERANCE)


# Padding at the end, at the start, in between, and none.
PADDINGS = torch.tensor([[1] * 5 + [0] * 7, [0] * 4 + [1] * 8, [0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0], [1] * 12])


@pytest.mark.parametrize("attention", ["eager", "sdpa", UNPADDED])
@pytest.mark.parametrize("case", ["base", "pretraining", "next_sentence", "single_label", "multiple_choice"])
def test_left_to_right_pools_the_last_token_wherever_the_padding_stands(case, attention):
    model = make(case, left_to_right=True)
    model.set_attn_implementation(attention)
    bert = getattr(model, "bert", model)
    ids = batch(size=4, labels=False)["input_ids"].clamp(min=5)
    positions = PADDINGS.cumsum(1).sub(1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": PADDINGS, "position_ids": positions}
    pooled = bert(**inputs).pooler_output
    for row, mask in enumerate(PADDINGS.bool()):
        states = bert(ids[row][mask][None]).last_hidden_state
        torch.testing.assert_close(pooled[row], bert.pooler(states[:, -1:])[0], atol=TOLERANCE, rtol=0)
    read = bert(**inputs, read_positions=torch.tensor([1]))
    torch.testing.assert_close(read.pooler_output, pooled, atol=TOLERANCE, rtol=0)
    pairs = {"booleans": PADDINGS.bool(), "added numbers": torch.zeros(4, 12).masked_fill(PADDINGS == 0, -1e4)}
    for given in pairs.values():
        ready = inputs | {"attention_mask": given[:, None, None]}
        torch.testing.assert_close(bert(**ready).pooler_output, pooled, atol=TOLERANCE, rtol=0)
    packed = pack({"input_ids": ids, "attention_mask": PADDINGS}, 0, multiple_of=16)
    torch.testing.assert_close(bert(**packed).pooler_output[:4], pooled, atol=TOLERANCE, rtol=0)
    if case not in ("base", "multiple_choice"):
        before = model(**inputs)[-1]
        last = PADDINGS.mul(torch.arange(12)).amax(1)
        changed = ids.clone()
        changed[range(4), last] = (ids[range(4), last] + 3) % 90 + 5
        assert (model(**inputs | {"input_ids": changed})[-1] - before).abs().amax(1).min() > 1e-3


def test_left_to_right_is_stocks_language_model_and_sees_nothing_to_the_right():
    ours, _ = pair("masked_lm", left_to_right=True)
    stock = transformers.BertLMHeadModel(transformers.BertConfig(**TINY, is_decoder=True)).eval()
    stock.load_state_dict(ours.state_dict(), strict=False)
    stock.tie_weights()
    inputs = batch(labels=False)
    for attention in ("eager", "sdpa"):
        ours.set_attn_implementation(attention)
        torch.testing.assert_close(ours(**inputs).logits, stock(**inputs).logits, atol=TOLERANCE, rtol=0)
        changed = inputs | {"input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 6] = 7
        before, after = ours(**inputs).logits, ours(**changed).logits
        torch.testing.assert_close(after[:, :6], before[:, :6])
        assert (after[:, 6:] - before[:, 6:]).abs().max() > 0.01


@pytest.mark.parametrize("options", [{"chunk_size_feed_forward": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}])
def test_options_of_the_configuration_are_stocks(options):
    ours, stock = pair("masked_lm", **options)
    assert_same(*shared_tensors(ours(**batch("masked_lm")), stock(**batch("masked_lm"))), TOLERANCE)
    plain = make("masked_lm")
    plain.load_state_dict(ours.state_dict())
    changed = not torch.allclose(plain(**batch("masked_lm")).logits, ours(**batch("masked_lm")).logits, atol=1e-6)
    assert changed == ("chunk_size_feed_forward" not in options)


def test_an_untied_projection_is_its_own_matrix():
    model = make("masked_lm", tie_word_embeddings=False)
    assert model.cls.predictions.decoder.weight is not model.bert.embeddings.word_embeddings.weight
    tied = make("masked_lm")
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight


# ---------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("left_to_right", [False, True])
def test_attention_implementations_agree(left_to_right):
    model = make("base", left_to_right=left_to_right)
    inputs = batch(length=16)
    real = inputs["attention_mask"].bool()
    results = {}
    # Flex attention compiles itself, which takes a minute; its uncompiled form takes the same masks.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for attention in ("eager", "sdpa", "flex_attention"):
            model.set_attn_implementation(attention)
            results[attention] = model(**inputs).last_hidden_state[real]
    for attention in ("sdpa", "flex_attention"):
        torch.testing.assert_close(results[attention], results["eager"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_does_not_reach_the_tokens(attention):
    model = make("base")
    model.set_attn_implementation(attention)
    inputs = batch()
    changed = inputs | {"input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 50)}
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        model(**changed).last_hidden_state[real], model(**inputs).last_hidden_state[real], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_padding_alone_gives_finite_numbers(attention):
    model = make("base")
    model.set_attn_implementation(attention)
    inputs = batch()
    inputs["attention_mask"][1] = 0
    assert model(**inputs).last_hidden_state.isfinite().all()


def test_other_servers_may_bring_their_attention():
    # What vLLM asks of a model before it runs it on its own attention.
    assert make("base").is_backend_compatible()


def test_a_users_own_attention_function_is_called():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []

    def counting(module, query, key, value, attention_mask, **kwargs):
        calls.append((module.is_causal, kwargs["scaling"]))
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS["counting"] = counting
    try:
        model = make("base")
        model.set_attn_implementation("counting")
        model(**batch())
    finally:
        del ALL_ATTENTION_FUNCTIONS["counting"]
    assert calls == [(False, 8**-0.5)] * 2


# Masks of pairs in all their forms, from the booleans (batch, heads, length, length) that say who sees whom.
PAIR_MASKS = {
    "booleans": lambda mask: mask,
    "integers": lambda mask: mask.long(),
    "bytes": lambda mask: mask.byte(),
    "added numbers": lambda mask: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min),
    "added infinities": lambda mask: torch.zeros(mask.shape).masked_fill(~mask, -torch.inf),
    "added in double precision": lambda mask: torch.zeros(mask.shape).double().masked_fill(~mask, -1e300),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left_to_right", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", UNPADDED])
def test_a_mask_of_pairs_is_the_mask_of_its_tokens_in_every_form(attention, left_to_right, precision):
    model = make("base", left_to_right=left_to_right)
    inputs = batch(labels=False)
    mask = inputs.pop("attention_mask")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.set_attn_implementation(attention)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            expected = model(**inputs, attention_mask=mask).last_hidden_state[mask.bool()]
            for name, form in PAIR_MASKS.items():
                keys = mask.bool()[:, None, None, :]
                square = keys.expand(-1, 1, 12, -1)
                for given in (keys, square, square[:, 0]):
                    actual = model(**inputs, attention_mask=form(given)).last_hidden_state[mask.bool()]
                    tolerance = TOLERANCE if precision == torch.float32 else 0.1
                    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, msg=f"{name}, {given.shape}")


def test_a_block_mask_is_for_flex_attention():
    inputs = batch(labels=False)
    mask = inputs.pop("attention_mask")
    real = mask.bool()
    blocks = create_block_mask(lambda row, head, query, key: real[row, key], 3, None, 12, 12, device="cpu")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model = make("base", attn_implementation="flex_attention")
        expected = model(**inputs, attention_mask=mask).last_hidden_state[real]
        actual = model(**inputs, attention_mask=blocks).last_hidden_state[real]
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)
    models = [make("base", attn_implementation=name) for name in ("eager", "sdpa", UNPADDED)]
    for model in [*models, make("base", attn_implementation="flex_attention", left_to_right=True)]:
        with pytest.raises(ValueError, match="attention_mask is a BlockMask, .*; pass a tensor"):
            model(**inputs, attention_mask=blocks)


BAD_MASKS = {
    "0 and 1 in float": (torch.tensor([1.0] * 6 + [0.0] * 6).expand(3, 1, 12, 12), r"pass attention_mask.bool\(\)"),
    "0 and 1 in float, no heads": (torch.ones(3, 12, 12), r"pass attention_mask.bool\(\)"),
    "integers to be added": (torch.full((3, 1, 12, 12), -10000), "holds other numbers than 1"),
    "numbers to be added, one for each token": (torch.full((3, 12), -10000.0), "holds other numbers than 1"),
    "numbers of sequences": (torch.arange(12).expand(3, 12), "holds other numbers than 1"),
    "queries missing": (torch.ones(3, 7, 12, dtype=torch.bool), r"shape \(3, 7, 12\), the input \(3, 12\)"),
    "other heads": (torch.ones(3, 3, 12, 12, dtype=torch.bool), "for the 4 heads"),
    "one dimension": (torch.ones(12), r"shape \(12,\)"),
}


@pytest.mark.parametrize("attention", ["eager", UNPADDED])
@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_mask_that_can_be_misread_is_refused(kind, attention):
    model, (mask, message) = make("base"), BAD_MASKS[kind]
    model.set_attn_implementation(attention)
    with pytest.raises(ValueError, match=message):
        model(**batch() | {"attention_mask": mask})


# ---------------------------------------------------------------------------------------------------- predicting


@pytest.mark.parametrize("case", PREDICTING)
def test_sparse_prediction_is_the_dense_one_at_the_labels(case):
    inputs = prediction_batch(case)
    chosen = inputs["labels"] != -100
    sparse = make(case, **NO_DROPOUT, sparse_prediction=True).train()
    dense = make(case, **NO_DROPOUT).train()
    left, right = sparse(**inputs), dense(**inputs)
    assert left[1].shape == (chosen.sum(), TINY["vocab_size"])
    assert right[1].shape == (*chosen.shape, TINY["vocab_size"])
    torch.testing.assert_close(left[1], right[1][chosen], atol=1e-6, rtol=0)
    assert abs(left.loss - right.loss) <= 1e-6
    assert_same(gradients(sparse, left.loss), gradients(dense, right.loss), 1e-6)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("case", PREDICTING)
def test_given_positions_predict_as_the_labels_do(case, sparse):
    inputs = prediction_batch(case)
    model = make(case, **NO_DROPOUT, sparse_prediction=sparse).train()
    dynamic = model(**inputs)
    dynamic_gradients = gradients(model, dynamic.loss)
    static = model(**inputs, masked_positions=static_positions(inputs["labels"], width=11))
    assert abs(static.loss - dynamic.loss) <= 1e-6
    assert_same(gradients(model, static.loss), dynamic_gradients, 1e-6)
    if sparse:
        assert static[1].shape == (3 * 11, TINY["vocab_size"])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", PREDICTING)
def test_logits_are_dense_unless_sparse_ones_are_asked_for_and_trained_with(case, sparse):
    inputs = prediction_batch(case)
    shape = (3, 12, TINY["vocab_size"])
    model = make(case, sparse_prediction=sparse)
    position = 1 if "labels" in inputs else 0
    assert model(**inputs)[position].shape == shape
    assert model(**inputs, masked_positions=static_positions(inputs["labels"], 11))[position].shape == shape
    unlabelled = batch(case, labels=False)
    assert model.train()(**unlabelled)[0].shape == shape
    actual = model(**inputs)[1]
    assert (actual.shape == shape) != sparse
    if not sparse:
        stock = pair(case, **NO_DROPOUT)[1].train()
        torch.testing.assert_close(make(case, **NO_DROPOUT).train()(**inputs)[1], stock(**inputs)[1])


def test_one_task_of_pretraining_alone():
    inputs = batch("pretraining")
    model = make("pretraining")
    both = model(**inputs)
    assert torch.equal(both.loss, both.masked_lm_loss + both.next_sentence_loss)
    nsp = inputs.pop("next_sentence_label")
    only_mlm = model(**inputs)
    assert torch.equal(only_mlm.loss, both.masked_lm_loss) and only_mlm.next_sentence_loss is None
    del inputs["labels"]
    only_nsp = model(**inputs, next_sentence_label=nsp)
    assert torch.equal(only_nsp.loss, both.next_sentence_loss) and only_nsp.masked_lm_loss is None
    assert model(**inputs).loss is None


# ---------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("case", [*NORMALIZING, "pretraining"])
def test_micro_batches_with_the_global_count_sum_to_the_whole_batch(case):
    model = make(case, **NO_DROPOUT).train()
    whole = batch(case, size=4)
    labels = whole["labels"]
    counts = {"num_items_in_batch": (labels != -100).sum() if labels.dtype == torch.long else labels.numel()}
    if case == "pretraining":
        counts["num_sequences_in_batch"] = 4
    loss = model(**whole).loss
    expected = gradients(model, loss)
    parts = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 1), slice(1, 4))]
    summed = sum(model(**part, **counts).loss for part in parts)
    assert abs(summed - loss) <= 1e-6 * loss.abs()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert_same(gradients(model, summed), expected, 1e-6 * largest)


def test_uneven_micro_batches_show_that_the_count_matters():
    # Guards the test above: plain means over the same parts must not pass for it.
    model = make("masked_lm")
    whole = batch("masked_lm", size=4)
    parts = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 1), slice(1, 4))]
    mean_of_means = sum(model(**part).loss for part in parts) / 2
    assert abs(mean_of_means - model(**whole).loss) > 1e-3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["masked_lm", "pretraining", "token", "question_answering"])
def test_nothing_labelled_is_loss_zero_and_not_nan(case, training):
    inputs = batch(case)
    inputs.pop("next_sentence_label", None)
    for name in ("labels", "start_positions", "end_positions"):
        if name in inputs:
            inputs[name] = torch.full_like(inputs[name], 99 if case == "question_answering" else -100)
    model = make(case).train(training)
    loss = model(**inputs).loss
    assert loss.item() == 0.0
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())
    if case in PREDICTING:
        assert model(**inputs, masked_positions=torch.zeros(3, 4, dtype=torch.long)).loss.item() == 0.0
    if case != "question_answering":
        for count in (0, torch.tensor(0)):
            assert model(**inputs, num_items_in_batch=count).loss.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("base", "regression", "multi_label")])
def test_labels_may_be_any_integers_and_not_contiguous(case, dtype):
    model = make(case)
    inputs = batch(case)
    expected = model(**inputs).loss
    for name in LABELS & inputs.keys():
        if dtype.is_signed or inputs[name].min() >= 0:
            inputs[name] = torch.stack([inputs[name].to(dtype)] * 2, dim=-1)[..., 0]
    assert torch.equal(model(**inputs).loss, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "base"])
def test_losses_of_models_in_double_precision_are_stocks(case):
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch(case).items()}
    losses = [model.double()(**inputs).loss for model in pair(case)]
    assert abs(losses[0] - losses[1]) < (1e-12 if losses[1].dtype == torch.float64 else 1e-6)
    assert losses[0].dtype == torch.float64


@pytest.mark.parametrize("shape", [(36,), (1, 36), (3, 12, 1), (1, 3, 12)])
@pytest.mark.parametrize("case", ["masked_lm", "pretraining", "token"])
def test_labels_of_tokens_may_be_flat_as_for_stock(case, shape):
    inputs = batch(case)
    inputs["labels"] = inputs["labels"].view(shape)
    ours, stock = pair(case)
    torch.testing.assert_close(ours(**inputs).loss, stock(**inputs).loss, atol=TOLERANCE, rtol=0)


def test_labels_of_a_classifier_may_be_a_column():
    for case in ("single_label", "regression", "next_sentence"):
        model = make(case)
        inputs = batch(case)
        expected = model(**inputs).loss
        inputs["labels"] = inputs["labels"][:, None]
        assert torch.equal(model(**inputs).loss, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "base"])
def test_a_batch_of_one(case):
    ours, stock = pair(case)
    inputs = {name: value[:1] for name, value in batch(case).items()}
    left, right = shared_tensors(ours(**inputs), stock(**inputs))
    assert_same(left, right, TOLERANCE)


def test_problem_type_is_settled_by_the_first_labels():
    for labels, classes, expected in [
        (torch.tensor([0, 1, 2]), 3, "single_label_classification"),
        (torch.rand(3, 3), 3, "multi_label_classification"),
        (torch.rand(3), 1, "regression"),
    ]:
        model = make("single_label", num_labels=classes)
        model(**batch(labels=False), labels=labels)
        assert model.config.problem_type == expected


WRONG_LABELS = {
    "fractions for class ids": ({}, torch.tensor([0.2, 0.7, 0.1])),
    "whole floats for class ids": ({}, torch.tensor([0.0, 1.0, 2.0])),
    "several labels for one": ({}, torch.ones(3, 3)),
    "class ids for several labels": ({"problem_type": "multi_label_classification"}, torch.tensor([0, 2, 1])),
    "class ids for one of several": (
        {"problem_type": "multi_label_classification", "num_labels": 1},
        torch.tensor([0, 2, 1]),
    ),
    "class ids for several numbers": ({"problem_type": "regression"}, torch.tensor([0, 2, 1])),
    "any for a problem that is none": ({"problem_type": "multi_label"}, torch.tensor([0, 2, 1])),
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_labels_of_another_problem_than_the_configurations_are_refused(kind):
    overrides, labels = WRONG_LABELS[kind]
    overrides = {"problem_type": "single_label_classification"} | overrides
    message = rf"are not config.problem_type='{overrides['problem_type']}', which takes .*set config.problem_type"
    # transformers 5.17 already refuses a problem that is none when the configuration is made.
    message += "|Field 'problem_type' with value 'multi_label' doesn't match"
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make("single_label", **overrides)(**batch(labels=False), labels=labels)


def test_fractions_are_refused_for_a_single_class_and_its_loss_of_zero_is_named(monkeypatch):
    model, named = make("regression"), []
    model.config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match="fractions would be cut"):
        model(**batch(labels=False), labels=torch.rand(3))
    monkeypatch.setattr(checks_hfbert.logger, "warning_once", named.append)
    assert model(**batch(labels=False), labels=torch.zeros(3).long()).loss == 0  # as stock's
    assert "the loss is always 0" in named[0]


def test_labels_that_were_refused_do_not_settle_the_problem():
    model = make("single_label")
    with pytest.raises(ValueError, match="multi_label_classification"):
        model(**batch(labels=False), labels=torch.rand(3))
    assert model.config.problem_type is None
    model(**batch(labels=False), labels=torch.tensor([0, 1, 2], dtype=torch.int16))
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("base", "regression", "multi_label", "single_label")]
)
def test_labels_with_fractions_are_refused_by_every_head_that_takes_class_ids(case):
    inputs = batch(case)
    for name in LABELS:
        if name in inputs:
            with pytest.raises(ValueError, match=r"labels are of torch.float32; they must be integers"):
                make(case)(**inputs | {name: inputs[name].float()})


def test_loss_is_in_float32_under_autocast():
    model = make("pretraining").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch("pretraining"))
    assert outputs.loss.dtype == torch.float32
    assert abs(outputs.loss - make("pretraining", **NO_DROPOUT)(**batch("pretraining")).loss) < 1.0


# ---------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_attentions_are_stocks(case):
    ours, stock = pair(case, attn_implementation="eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    left, right = shared_tensors(ours(**batch(case), **options), stock(**batch(case), **options))
    assert_same(left, right, TOLERANCE)
    # The embeddings and two layers; two layers of probabilities.
    assert {"hidden_states.2", "attentions.1"} <= left.keys()
    assert "hidden_states.3" not in left and "attentions.2" not in left


@pytest.mark.parametrize("case", CASES)
def test_tuples_are_stocks(case):
    ours, stock = pair(case, attn_implementation="eager")
    options = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    left, right = ours(**batch(case), **options), stock(**batch(case), **options)
    assert isinstance(left, tuple)
    # Ours may go on: the two parts of the pretraining loss come last.
    for mine, theirs in zip(left, right, strict=False):
        assert isinstance(mine, tuple) == isinstance(theirs, tuple)
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)
    # Stock's base model ends with its empty cross-attentions.
    assert len(left) == len(right) + {"pretraining": 2, "base": -1}.get(case, 0)


@pytest.mark.parametrize("case", CASES)
def test_arguments_are_stocks_in_stocks_order(case):
    name, stock_name, _ = CASES[case]
    ours = list(inspect.signature(getattr(hfbert_scratch, name).forward).parameters)
    stock = [
        parameter
        for parameter in inspect.signature(getattr(transformers, stock_name).forward).parameters
        if not parameter.startswith("encoder_") and parameter not in ("past_key_values", "cache", "use_cache")
    ]
    assert [parameter for parameter in ours if parameter in stock] == stock


def test_submodules_are_called_alone_with_stocks_defaults_and_types():
    ours, stock = pair("base", attn_implementation="eager")
    ids, vectors = batch()["input_ids"], torch.randn(3, 7, 32)
    segments = torch.ones_like(ids)
    calls = [
        ("embeddings", (ids,), {}),
        ("embeddings", (), {"input_ids": ids, "token_type_ids": segments}),
        ("embeddings", (), {"inputs_embeds": vectors}),
        ("encoder", (vectors,), {}),
        ("encoder.layer.0", (vectors,), {}),
        ("encoder.layer.0.attention", (vectors,), {}),
        ("encoder.layer.0.attention.self", (vectors,), {}),
        ("encoder.layer.0.intermediate", (vectors,), {}),
        ("encoder.layer.0.attention.output", (vectors, vectors), {}),
        ("pooler", (vectors,), {}),
    ]
    for name, args, kwargs in calls:
        left, right = (model.get_submodule(name)(*args, **kwargs) for model in (ours, stock))
        if isinstance(right, dict):
            left, right = left.to_tuple(), right.to_tuple()
        assert type(left) is type(right), name
        torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=0, msg=name)


def test_trainer_predicts_what_it_does_for_stock(tmp_path):
    inputs = batch("pretraining", size=5)
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(5)]
    arguments = transformers.TrainingArguments(
        tmp_path, per_device_eval_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    actual, expected = (
        transformers.Trainer(model, arguments).predict(rows).predictions for model in pair("pretraining")
    )
    assert [part.shape for part in actual] == [part.shape for part in expected]


# ---------------------------------------------------------------------------------------------------- bad input


def edit(**changes):
    return lambda inputs: {name: changes[name](inputs) if name in changes else value for name, value in inputs.items()}


BAD_INPUTS = {
    "too long": (
        "base",
        lambda inputs: {"input_ids": torch.ones(1, 41, dtype=torch.long)},
        "41 tokens does not fit max_position_embeddings=40: truncate",
    ),
    "too long by embeddings": (
        "base",
        lambda inputs: {"inputs_embeds": torch.ones(1, 41, 32)},
        "41 tokens does not fit max_position_embeddings=40",
    ),
    "one dimension": (
        "base",
        lambda inputs: {"input_ids": inputs["input_ids"][0]},
        r"input_ids must have shape \(batch_size, sequence_length\), got \(12,\); add the batch dimension",
    ),
    "embeddings of one dimension too few": (
        "base",
        lambda inputs: {"inputs_embeds": torch.ones(12, 32)},
        r"inputs_embeds must have shape \(batch_size, sequence_length, hidden_size\), got \(12, 32\)",
    ),
    "no tokens": ("base", lambda inputs: {"input_ids": torch.ones(2, 0, dtype=torch.long)}, r"no tokens.*\(2, 0\)"),
    "no sequences": ("base", lambda inputs: {"input_ids": torch.ones(0, 7, dtype=torch.long)}, r"no tokens.*\(0, 7\)"),
    "neither ids nor embeddings": ("base", without("input_ids"), "exactly one of input_ids and inputs_embeds"),
    "both ids and embeddings": (
        "base",
        lambda inputs: inputs | {"inputs_embeds": torch.ones(3, 12, 32)},
        "exactly one of input_ids and inputs_embeds",
    ),
    "long mask": (
        "base",
        lambda inputs: inputs | {"attention_mask": torch.ones(3, 15)},
        r"attention_mask has shape \(3, 15\), the input \(3, 12\)",
    ),
    "short token types": (
        "base",
        lambda inputs: inputs | {"token_type_ids": inputs["token_type_ids"][:, :5]},
        r"token_type_ids has shape \(3, 5\), the input \(3, 12\)",
    ),
    "long positions": (
        "base",
        lambda inputs: inputs | {"position_ids": torch.arange(13)[None]},
        r"position_ids has shape \(1, 13\), the input \(3, 12\)",
    ),
    "transposed token labels": (
        "token",
        edit(labels=lambda inputs: inputs["labels"].T),
        r"labels have shape \(12, 3\), the input \(3, 12\)",
    ),
    "transposed predictions": (
        "pretraining",
        edit(labels=lambda inputs: inputs["labels"].T),
        r"labels have shape \(12, 3\), the input \(3, 12\)",
    ),
    "labels of another batch": (
        "single_label",
        edit(labels=lambda inputs: inputs["labels"][:2]),
        r"2 labels of shape \(2,\) do not fit logits of shape \(3, 3\)",
    ),
    "sentence labels of another batch": (
        "pretraining",
        edit(next_sentence_label=lambda inputs: inputs["next_sentence_label"][:2]),
        r"2 labels of shape \(2,\) do not fit logits of shape \(3, 2\)",
    ),
    "regression labels of another batch": (
        "regression",
        edit(labels=lambda inputs: inputs["labels"][:2]),
        r"2 labels of shape \(2,\) do not fit logits of shape \(3, 1\)",
    ),
    "one column of several labels": (
        "multi_label",
        edit(labels=lambda inputs: inputs["labels"][:, 0]),
        r"3 labels of shape \(3,\) do not fit logits of shape \(3, 3\)",
    ),
    "flat multiple choice": (
        "multiple_choice",
        lambda inputs: {"input_ids": inputs["input_ids"][0]},
        r"\(batch_size, num_choices, sequence_length\), got \(4, 12\)",
    ),
    "empty multiple choice": (
        "multiple_choice",
        lambda inputs: {},
        r"\(batch_size, num_choices, sequence_length\), got None",
    ),
    "start without end": ("question_answering", without("end_positions"), "start_positions and end_positions"),
    "narrow embeddings": (
        "base",
        lambda inputs: {"inputs_embeds": torch.ones(3, 12, 1)},
        "vectors of 1 numbers, and hidden_size is 32",
    ),
    "positions of three dimensions": (
        "base",
        lambda inputs: inputs | {"position_ids": torch.arange(12)[None, None]},
        r"position_ids has shape \(1, 1, 12\), the input \(3, 12\)",
    ),
    "segments outside, without a batch": (
        "base",
        lambda inputs: inputs | {"token_type_ids": torch.arange(12)},
        r"token_type_ids\[2\] is 2; it must be 0 … 1 \(type_vocab_size 2\)",
    ),
    "segments for each row alone": (
        "base",
        lambda inputs: inputs | {"token_type_ids": torch.ones(3, 1, dtype=torch.long)},
        r"token_type_ids has shape \(3, 1\), the input \(3, 12\)",
    ),
    **{
        f"{name} without numbers": (
            "base",
            lambda inputs, name=name: inputs | {name: torch.ones(3, 12, dtype=torch.long, device="meta")},
            f"{name} is on the meta device, which holds no numbers, the input on cpu",
        )
        for name in ("attention_mask", "token_type_ids", "position_ids")
    },
    "fractions of masked positions": (
        "masked_lm",
        lambda inputs: inputs | {"masked_positions": torch.ones(3, 2)},
        r"masked_positions is of torch.float32 and shape \(3, 2\); it must be of torch.long and shape \(3, predic",
    ),
    "masked positions of other rows": (
        "masked_lm",
        lambda inputs: inputs | {"masked_positions": torch.ones(2, 2, dtype=torch.long)},
        r"masked_positions is of torch.int64 and shape \(2, 2\)",
    ),
    "masked positions outside": (
        "pretraining",
        lambda inputs: inputs | {"masked_positions": torch.full((3, 2), 12)},
        "masked_positions go from 12 to 12; the labels have columns 0 … 11",
    ),
    "causal against the configuration": (
        "masked_lm",
        lambda inputs: inputs | {"is_causal": True},
        "is_causal=True contradicts left_to_right=False",
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_is_named(kind):
    case, change, message = BAD_INPUTS[kind]
    with pytest.raises(ValueError, match=message):
        make(case)(**change(batch(case)))


NO_TENSORS = {"list": torch.Tensor.tolist, "ndarray": torch.Tensor.numpy, "int": lambda tensor: 1}


@pytest.mark.parametrize("attention", ["sdpa", UNPADDED])
@pytest.mark.parametrize("case", CASES)
def test_an_argument_that_is_no_tensor_is_named(case, attention):
    model = make(case)
    model.set_attn_implementation(attention)
    inputs = batch(case)
    extra = {"position_ids": torch.zeros_like(inputs["input_ids"]), "read_positions": torch.tensor([1])}
    if case in PREDICTING:
        extra["masked_positions"] = torch.zeros(3, 2, dtype=torch.long)
    names = [name for name in inputs | extra if name != "read_positions" or case == "base"]
    for name in names:
        for kind, change in NO_TENSORS.items():
            with pytest.raises(TypeError, match=rf"^{name} is a {kind}; .*: torch.as_tensor\({name}\)"):
                model(**inputs | {name: change((inputs | extra)[name])})
    embedded = torch.zeros(*inputs["input_ids"].shape, 32)
    for kind, change in NO_TENSORS.items():
        with pytest.raises(TypeError, match=f"^inputs_embeds is a {kind}"):
            model(inputs_embeds=change(embedded))
    if case not in ("multiple_choice", "question_answering"):
        with pytest.raises(TypeError, match="^cu_seq_lens_q is a list"):
            model(inputs["input_ids"][:1], cu_seq_lens_q=[0, 12])


def test_cross_entropy_counts_labels_only():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    labels = torch.tensor([0, -100, 1])
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(cross_entropy(logits, labels, None), expected)
    torch.testing.assert_close(cross_entropy(logits, labels, 4), expected / 2)
    assert cross_entropy(logits, torch.full((3,), -100), None) == 0

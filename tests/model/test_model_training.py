"""Training with the model: accumulation, checkpointing, dropout, resizing, compilation, the first weights."""

import copy

import pytest
import torch
import transformers
from helpers import (
    CASES,
    NO_DROPOUT,
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
    tiny_config,
)
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize, prune

from hfbert_scratch import HFBertForMaskedLM, HFBertForPreTraining
from hfbert_scratch.model.kernels_hfbert import HFBertOutputProjection


TOLERANCE = 1e-5


# ---------------------------------------------------------------------------------------------------- accumulation


def trainer_update(case: str, data: list[dict], accumulation: int, directory) -> dict[str, torch.Tensor]:
    """What one SGD step of transformers' Trainer on all of `data`, in `accumulation` parts, adds to the weights."""
    model = make(case, **NO_DROPOUT)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = transformers.TrainingArguments(
        str(directory),
        per_device_train_batch_size=len(data) // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    transformers.Trainer(model, arguments, train_dataset=data).train()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", [case for case in CASES if case != "base"])
def test_accumulation_in_transformers_trainer_does_not_change_the_update(case, tmp_path):
    inputs = batch(case, size=8)
    if case == "question_answering":
        inputs["start_positions"][-1] = inputs["end_positions"][-1] = 3
    if case == "pretraining":
        # No normaliser reaches this head through Trainer: means of means are equal for equal counts only.
        inputs["labels"] = inputs["input_ids"].where(torch.arange(12) < 3, -100)
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    data = [{name: value[row] for name, value in inputs.items()} for row in range(8)]
    whole, parts = (trainer_update(case, data, accumulation, tmp_path) for accumulation in (1, 4))
    largest = max(update.abs().max().item() for update in whole.values())
    assert largest > 0
    assert_same(parts, whole, 1e-5 * largest)


# ---------------------------------------------------------------------------------------------------- training aids


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    for case in ("pretraining", "token"):
        model = make(case, **NO_DROPOUT).train()
        expected = gradients(model, model(**batch(case)).loss)
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        layer = model.bert.encoder.layer[0]
        calls = []
        layer.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert_same(gradients(model, model(**batch(case)).loss), expected, 0.0)
        assert len(calls) == 2, "the layer must have been computed again in the backward pass"


def test_gradient_checkpointing_keeps_dropout():
    model = make("masked_lm", hidden_dropout_prob=0.5).train()
    torch.manual_seed(3)
    expected = gradients(model, model(**batch("masked_lm")).loss)
    model.gradient_checkpointing_enable()
    torch.manual_seed(3)
    assert_same(gradients(model, model(**batch("masked_lm")).loss), expected, 0.0)


def test_dropout_acts_in_training_only():
    model = make("base")
    assert torch.equal(model(**batch())[0], model(**batch())[0])
    model.train()
    assert not torch.equal(model(**batch())[0], model(**batch())[0])
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        lone = make("base", **(NO_DROPOUT | {field: 0.5})).train()
        assert not torch.equal(lone(**batch())[0], lone(**batch())[0]), field


@pytest.mark.parametrize("case", ["single_label", "token", "multiple_choice"])
def test_classifier_dropout_is_its_own_rate_or_else_that_of_the_layers(case):
    assert make(case).dropout.p == 0.1
    assert make(case, hidden_dropout_prob=0.3).dropout.p == 0.3
    model = make(case, **NO_DROPOUT, classifier_dropout=0.5)
    assert torch.equal(model(**batch(case)).logits, model(**batch(case)).logits)
    model.train()
    assert not torch.equal(model(**batch(case)).logits, model(**batch(case)).logits)
    silent = make(case, hidden_dropout_prob=0.5, classifier_dropout=0.0)
    assert silent.dropout.p == 0.0


@pytest.mark.parametrize("case", PREDICTING)
@pytest.mark.parametrize("size", [120, 64])
def test_resizing_the_vocabulary_is_stocks(case, size):
    models = pair(case)
    for model in models:
        torch.manual_seed(1)
        model.resize_token_embeddings(size)
    ours, stock = models
    assert ours.config.vocab_size == ours.cls.predictions.bias.shape[0] == size
    assert ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    assert ours.get_output_embeddings().out_features == size
    kept = min(size, TINY["vocab_size"])
    inputs = batch(case, labels=False)
    inputs["input_ids"] %= kept
    torch.testing.assert_close(ours(**inputs)[0], stock(**inputs)[0], atol=TOLERANCE, rtol=0)
    labels = torch.full_like(inputs["input_ids"], size - 1)
    loss = ours.train()(**inputs, labels=labels).loss
    assert gradients(ours, loss)["cls.predictions.bias"][size - 1] != 0


def test_a_resized_model_survives_saving(tmp_path):
    model = make("masked_lm")
    model.resize_token_embeddings(101, pad_to_multiple_of=8)
    model.save_pretrained(tmp_path)
    again = HFBertForMaskedLM.from_pretrained(tmp_path)
    assert again.config.vocab_size == 104
    assert torch.equal(again(**batch()).logits, model(**batch()).logits)


def test_a_replaced_output_layer_is_used_with_its_bias():
    model = make("masked_lm")
    replacement = torch.nn.Linear(32, 50)
    model.set_output_embeddings(replacement)
    hidden = model.bert(**batch()).last_hidden_state
    expected = replacement(model.cls.predictions.transform(hidden))
    torch.testing.assert_close(model(**batch()).logits, expected)
    assert model.get_output_embeddings().out_features == 50


class PlainLinear(torch.nn.Module):
    """A projection by someone else: it takes over weight and bias and is called with vectors alone."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, vectors):
        return torch.nn.functional.linear(vectors, self.weight, self.bias)


def test_the_modules_of_the_head_are_called_and_replaced_as_stocks():
    vectors, pooled = torch.randn(3, 5, 32), torch.randn(3, 32)
    for case, inputs in (("masked_lm", (vectors,)), ("next_sentence", (pooled,)), ("pretraining", (vectors, pooled))):
        ours, stock = pair(case)
        torch.testing.assert_close(ours.cls(*inputs), stock.cls(*inputs), atol=0, rtol=0)
    ours, stock = pair("masked_lm")
    assert torch.equal(ours.get_output_embeddings()(vectors), stock.get_output_embeddings()(vectors))
    decoder = ours.cls.predictions.decoder
    assert decoder.bias is ours.cls.predictions.bias
    assert not any("decoder" in name for name, _ in ours.named_parameters())
    copied = copy.deepcopy(ours)
    assert copied.cls.predictions.decoder.bias is copied.cls.predictions.bias is not decoder.bias
    expected = ours(**batch()).logits
    ours.cls.predictions.decoder = PlainLinear(decoder)
    assert torch.equal(ours(**batch()).logits, expected)
    copied.cls.predictions.decoder.bias = torch.nn.Parameter(torch.ones(TINY["vocab_size"]))
    assert torch.equal(copied.cls.predictions.bias, torch.ones(TINY["vocab_size"]))
    assert "cls.predictions.decoder.bias" not in copied.state_dict()


@pytest.mark.parametrize("case", PREDICTING)
def test_other_embeddings_are_tied_with_a_bias_of_their_size(case):
    model, ids = make(case), batch(labels=False)["input_ids"] % 50
    model.set_input_embeddings(torch.nn.Embedding(50, 32))
    model.config.vocab_size = 50
    model.tie_weights()
    assert model(ids)[0].shape == (3, 12, 50) and model.cls.predictions.bias.shape == (50,)


def test_the_output_bias_is_removed_as_in_stock(tmp_path):
    ours, stock = pair("masked_lm")
    for model in (ours, stock):
        model.cls.predictions.decoder.bias = None
    expected = stock(**batch("masked_lm"))
    for name in ("loss", "logits"):
        torch.testing.assert_close(ours(**batch("masked_lm"))[name], expected[name], atol=TOLERANCE, rtol=0)
    ours.save_pretrained(tmp_path)
    again = HFBertForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch()).logits, expected.logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", PREDICTING)
def test_a_copy_of_the_projection_alone_is_a_layer_of_its_own_as_in_stock(case):
    """PEFT trains such a copy (modules_to_save)."""
    ours, stock = pair(case)
    for model in (ours, stock):
        predictions = model.cls.predictions
        predictions.decoder = copy.deepcopy(predictions.decoder)
        with torch.no_grad():
            for parameter in predictions.decoder.parameters():
                parameter.mul_(1.5)
        assert dict(model.named_parameters())["cls.predictions.decoder.bias"].shape == (TINY["vocab_size"],)
    losses = [model(**batch(case)).loss for model in (ours, stock)]
    torch.testing.assert_close(*losses, atol=TOLERANCE, rtol=0)
    left, right = (gradients(model, loss) for model, loss in zip((ours, stock), losses, strict=True))
    assert_same(left, right, TOLERANCE)
    assert type(copy.deepcopy(make(case)).cls.predictions.decoder) is HFBertOutputProjection


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("case", PREDICTING)
def test_the_projection_is_pruned_as_stocks(case, name):
    ours, stock = pair(case)
    for model in (ours, stock):
        prune.l1_unstructured(model.cls.predictions.decoder, name, 0.5)
    left, right = (tensors(model(**batch(case))) for model in (ours, stock))
    for model in (ours, stock):
        prune.remove(model.cls.predictions.decoder, name)
    pruned, expected = (tensors(model(**batch(case))) for model in (ours, stock))
    for key in right:
        torch.testing.assert_close(left[key], right[key], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(pruned[key], expected[key], atol=TOLERANCE, rtol=0)
    assert "bias" not in dict(ours.cls.predictions.decoder.named_parameters())


class Halved(torch.nn.Module):
    def forward(self, values):
        return values / 2


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("case", PREDICTING)
def test_the_projection_is_parametrized_as_stocks(case, name):
    """Weight norm, spectral norm and the like stand on this."""
    ours, stock = pair(case, **NO_DROPOUT)
    plain = ours(**batch(case)).loss
    for model in (ours, stock):
        parametrize.register_parametrization(model.cls.predictions.decoder, name, Halved())
    losses = [model(**batch(case)).loss for model in (ours, stock)]
    torch.testing.assert_close(*losses, atol=TOLERANCE, rtol=0)
    assert losses[0] != plain
    left, right = (gradients(model, loss) for model, loss in zip((ours, stock), losses, strict=True))
    assert_same(left, right, TOLERANCE)
    twin = copy.deepcopy(ours)
    assert torch.equal(twin(**batch(case)).loss, losses[0])
    for model in (ours, stock):
        parametrize.remove_parametrizations(model.cls.predictions.decoder, name)
    losses = [model(**batch(case)).loss for model in (ours, stock)]
    torch.testing.assert_close(*losses, atol=TOLERANCE, rtol=0)
    assert ours.cls.predictions.decoder.bias is ours.cls.predictions.bias


def test_a_projection_of_another_class_replaces_ours_as_in_stock():
    class Doubled(torch.nn.Linear):
        def forward(self, vectors):
            return 2 * super().forward(vectors)

    torch.manual_seed(3)
    projection = Doubled(32, TINY["vocab_size"])
    ours, stock = pair("masked_lm")
    for model in (ours, stock):
        model.set_output_embeddings(projection)
        assert model.get_output_embeddings() is projection
    torch.testing.assert_close(ours(**batch()).logits, stock(**batch()).logits, atol=TOLERANCE, rtol=0)
    for model in (ours, stock):
        torch.manual_seed(4)
        model.resize_token_embeddings(110)
    torch.testing.assert_close(ours(**batch()).logits, stock(**batch()).logits, atol=TOLERANCE, rtol=0)


def test_a_projection_with_packed_weights_keeps_the_bias():
    """Libraries that quantize put several weights into a byte: the weight's shape does not tell the classes."""

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(TINY["vocab_size"] * 16, 1), requires_grad=False)

    model = make("masked_lm")
    bias = model.cls.predictions.bias
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(Packed())
    model.tie_weights()
    assert model.cls.predictions.bias is bias


def test_stocks_state_dict_loads_with_the_bias_stock_computes_with():
    ours, stock = pair("pretraining")
    weights = stock.state_dict()
    weights["cls.predictions.decoder.bias"] = torch.randn(TINY["vocab_size"])
    ours.load_state_dict(weights)
    assert torch.equal(ours.cls.predictions.bias, weights["cls.predictions.decoder.bias"])


# ---------------------------------------------------------------------------------------------------- compilation


@pytest.fixture
def graphs():
    """A compiler that counts the graphs it is given. (fullgraph=True would let shapes that depend on data pass.)"""
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_a_graph_break(case, graphs):
    model = make(case, num_hidden_layers=1)
    inputs = batch(case)
    expected = tensors(model(**inputs))
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        assert_same(tensors(compiled(**inputs)), expected, 1e-6)
    assert graphs.frame_count == 1


def test_the_training_step_compiles_without_a_graph_break(graphs):
    model = make("pretraining", num_hidden_layers=1, **NO_DROPOUT).train()
    inputs = prediction_batch("pretraining")
    inputs["masked_positions"] = static_positions(inputs["labels"], width=11)
    counts = {"num_items_in_batch": torch.tensor(9), "num_sequences_in_batch": torch.tensor(3)}
    expected = model(**inputs, **counts)
    expected_gradients = gradients(model, expected.loss)
    compiled = torch.compile(model, backend=graphs)
    loss = compiled(**inputs, **counts).loss
    assert graphs.frame_count == 1
    assert abs(loss - expected.loss) <= 1e-6
    assert_same(gradients(model, loss), expected_gradients, 1e-6)


def dynamic_shapes(inputs):
    """Free sizes for every tensor but the classes of several labels."""
    free = torch.export.Dim.DYNAMIC
    fixed = {1: None} if inputs.get("labels", inputs["input_ids"]).is_floating_point() else {}
    return {
        name: dict.fromkeys(range(value.dim()), free) | (fixed if name == "labels" and value.dim() == 2 else {})
        for name, value in inputs.items()
    }


@pytest.mark.parametrize(
    ("left_to_right", "labels", "case"),
    [(left_to_right, False, case) for left_to_right in (False, True) for case in CASES]
    + [(False, True, case) for case in CASES if case != "base"],
)
def test_exports_with_any_batch_size_and_length(left_to_right, labels, case):
    model = make(case, num_hidden_layers=1, left_to_right=left_to_right)
    inputs = batch(case, size=2, length=8, labels=labels)
    exported = torch.export.export(model, (), inputs, dynamic_shapes=dynamic_shapes(inputs))
    other = batch(case, size=3, length=15, seed=1, labels=labels)
    assert_same(tensors(exported.module()(**other)), tensors(model(**other)), TOLERANCE)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("multi_label", "regression")])
def test_the_older_onnx_exporter_writes_a_graph_for_any_batch_size_and_length(case, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, file = make(case, num_hidden_layers=1), tmp_path / "model.onnx"
    inputs, other = (batch(case, size=size, length=size + 6, labels=False) for size in (2, 4))
    names = ["input_ids", "attention_mask"]
    axes = {0: "batch", inputs["input_ids"].dim() - 1: "length"}
    torch.onnx.export(
        model,
        tuple(inputs[name] for name in names),
        file,
        input_names=names,
        dynamic_axes=dict.fromkeys(names, axes),
        opset_version=17,
        dynamo=False,
    )
    session = runtime.InferenceSession(file)
    actual = session.run(None, {name: other[name].numpy() for name in names})
    expected = model(**{name: other[name] for name in names}).to_tuple()
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(mine), theirs.detach(), atol=TOLERANCE, rtol=0)


# ---------------------------------------------------------------------------------------------------- initialisation


def test_initial_weights_are_a_normal_cut_at_two_standard_deviations():
    torch.manual_seed(0)
    model = HFBertForPreTraining(tiny_config(vocab_size=3000, hidden_size=128, initializer_range=0.05))
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.abs().max() <= 0.1, name
            if parameter.numel() > 10_000:
                # The standard deviation of a normal cut at ±2σ is 0.8796σ.
                assert parameter.std().item() == pytest.approx(0.8796 * 0.05, rel=0.03), name
                assert parameter.mean().abs() < 0.002, name
    assert (model.bert.embeddings.word_embeddings.weight[0] == 0).all()
    assert (model.bert.embeddings.word_embeddings.weight[1:] != 0).any(dim=1).all()


def test_initial_loss_is_that_of_a_guess():
    torch.manual_seed(0)
    outputs = HFBertForPreTraining(tiny_config()).eval()(**batch("pretraining"))
    assert outputs.masked_lm_loss.item() == pytest.approx(torch.tensor(TINY["vocab_size"]).log().item(), rel=0.05)
    assert outputs.next_sentence_loss.item() == pytest.approx(0.693, rel=0.05)

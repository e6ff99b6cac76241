"""Derivatives, transforms and recordings of the model are stock's, though its kernels are differentiated by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import NO_DROPOUT, batch, make, pair
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from hfbert_scratch.model.kernels_hfbert import HFBertDropout, cross_entropy_sum, varlen_attention
from hfbert_scratch.model.layout_hfbert import UNPADDED, TokenLayout
from hfbert_scratch.model.onednn import has_onednn, train_with_onednn


# As many classes as the loss has a kernel of its own for.
WIDE = {"vocab_size": 5000, "num_hidden_layers": 1, **NO_DROPOUT}


def loss_of(model: nn.Module, parameters: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return functional_call(model, parameters, (), inputs).loss


def detached(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def gradient_penalty(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    parameters = dict(model.named_parameters())
    first = torch.autograd.grad(model(**inputs).loss, parameters.values(), create_graph=True, allow_unused=True)
    penalty = sum(gradient.square().sum() for gradient in first if gradient is not None)
    second = torch.autograd.grad(penalty, parameters.values(), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, second, strict=True) if gradient is not None}


def batched_backward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    loss = model(**inputs).loss * torch.ones(3)
    parameters = [parameter for name, parameter in model.named_parameters() if "attention" in name]
    return torch.autograd.grad(loss, parameters, torch.eye(3), is_grads_batched=True)


def functional_gradient(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    return grad(lambda parameters: loss_of(model, parameters, inputs))(detached(model))


def per_sample_gradients(model: nn.Module, inputs: dict[str, torch.Tensor], randomness: str = "error") -> Any:
    def one(parameters, sample):
        return loss_of(model, parameters, {name: value[None] for name, value in sample.items()})

    return vmap(grad(one), in_dims=(None, 0), randomness=randomness)(detached(model), inputs)


def one_sample_after_the_other(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    rows = range(len(inputs["input_ids"]))
    actual = [functional_gradient(model, {name: value[row][None] for name, value in inputs.items()}) for row in rows]
    return {name: torch.stack([gradients[name] for gradients in actual]) for name in actual[0]}


def functional_jvp(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    parameters = detached(model)
    return jvp(lambda given: loss_of(model, given, inputs), (parameters,), (parameters,))


def dual_numbers(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, value) for name, value in detached(model).items()}
        return forward_ad.unpack_dual(loss_of(model, duals, inputs)).tangent


def functional_hessian(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    parameters = detached(model)
    name = next(name for name in parameters if name.endswith("attention.output.LayerNorm.bias"))
    gradient = jacrev(lambda bias: loss_of(model, parameters | {name: bias}, inputs))
    return jacfwd(gradient, randomness="different")(parameters[name])


def loss_itself(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    return model(**inputs).loss


class ByPosition(nn.Module):
    """The loss as a function of tensors alone, as tracers want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, labels=labels, return_dict=False)[0]


def recorded(record: Callable) -> Callable:
    """Record the loss of one batch and compute that of another of the same shape by the recording."""

    def compute(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
        given = [inputs[name] for name in ("input_ids", "attention_mask", "labels")]
        program = record(ByPosition(model), tuple(tensor.roll(1, 0) for tensor in given))
        return program(*given)

    return compute


def compiled(module: nn.Module, example: tuple[torch.Tensor, ...]) -> Callable:
    torch._dynamo.reset()
    return torch.compile(module, backend="aot_eager")


OPERATIONS = {
    "gradient penalty": gradient_penalty,
    "batched backward": batched_backward,
    "functional gradient": functional_gradient,
    "per-sample gradients": per_sample_gradients,
    "jvp": functional_jvp,
    "dual numbers": dual_numbers,
    "Hessian": functional_hessian,
    "jit.trace": recorded(torch.jit.trace),
    "export": recorded(lambda module, example: torch.export.export(module, example).module()),
    "strict export": recorded(lambda module, example: torch.export.export(module, example, strict=True).module()),
    "compile": recorded(compiled),
    "make_fx": recorded(lambda module, example: make_fx(module)(*example)),
    "make_fx of unknown sizes": recorded(
        lambda module, example: make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    ),
}


# What stock is asked for instead, where its mask functions read numbers that are not there.
REFERENCES = {
    "per-sample gradients": one_sample_after_the_other,
    "make_fx": loss_itself,
    "make_fx of unknown sizes": loss_itself,
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", ["masked_lm", "single_label", "token"])
def test_what_is_derived_from_the_model_is_stocks(case, operation, training):
    ours, stock = pair(case, attn_implementation="eager", **WIDE)
    inputs = batch(case)
    del inputs["token_type_ids"]
    actual = OPERATIONS[operation](ours.train(training), inputs)
    expected = REFERENCES.get(operation, OPERATIONS[operation])(stock.train(training), inputs)
    if isinstance(expected, dict):
        expected = {name: expected[name] for name in actual}
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["base", "masked_lm", "question_answering"])
def test_an_ensemble_is_computed_at_once(case):
    """As in PyTorch's tutorial: stacked weights, and a model without any."""
    models = [make(case, num_hidden_layers=1).requires_grad_(False) for _ in range(2)]
    for parameter in models[1].parameters():
        parameter.mul_(1.5)
    inputs = batch(case, labels=False)
    weights, buffers = stack_module_state(models)
    empty = make(case, num_hidden_layers=1).to("meta")

    def compute(weights, buffers):
        return functional_call(empty, (weights, buffers), (), inputs)[0]

    if case == "masked_lm":  # .to("meta") unties
        with pytest.raises(ValueError, match=r"decoder.weight is on the meta device, .*: call model.tie_weights"):
            vmap(compute)(weights, buffers)
        empty.tie_weights()
    expected = torch.stack([model(**inputs)[0] for model in models])
    torch.testing.assert_close(vmap(compute)(weights, buffers), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["base", "masked_lm"])
def test_weights_assigned_to_a_model_without_memory_give_its_outputs(case):
    """Its buffers stay on the meta device, where every number is whatever memory holds."""
    model = make(case)
    with torch.device("meta"):
        again = type(model)(model.config)
    again.load_state_dict(model.state_dict(), assign=True)
    again.eval().tie_weights()
    assert torch.equal(again(**batch())[0], model(**batch())[0])
    again.base_model.embeddings.position_ids = torch.full((1, 40), 10**15)  # as to_empty may leave it
    with pytest.raises(ValueError, match=r"position_ids\[0, 0\] is 1000000000000000; it must be 0 … 39"):
        again(**batch())


# Second derivatives of an unpadded model without dropout fail in PyTorch's attention for CPUs, as they do for stock.
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_model_with_dropout_unpadded_attention_and_onednn_can_be_transformed(operation):
    """Dropout's numbers differ, so the result is only asked to be there and finite."""
    model = make("masked_lm", vocab_size=5000, num_hidden_layers=1).train()
    model.set_attn_implementation(UNPADDED)
    assert train_with_onednn(model) or not has_onednn(torch.device("cpu"), torch.float32)
    inputs = batch("masked_lm")
    del inputs["token_type_ids"]
    if operation == "jit.trace":
        actual = torch.jit.trace(ByPosition(model), tuple(inputs.values()), check_trace=False)(*inputs.values())
    elif operation == "per-sample gradients":
        actual = per_sample_gradients(model, inputs, randomness="different")
    else:
        actual = OPERATIONS[operation](model, inputs)
    tensors = actual.values() if isinstance(actual, dict) else actual if isinstance(actual, tuple) else [actual]
    assert all(tensor.isfinite().all() for tensor in tensors)


def attention(mask: torch.Tensor, dropout: float) -> tuple[Callable, tuple[torch.Tensor, ...]]:
    layout = TokenLayout(mask.shape).unpadded(mask, mask.device)
    inputs = torch.randn(3, int(mask.sum()), 2, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    return lambda *tensors: varlen_attention(*tensors, layout, 0.3, dropout, False), inputs


def kernels() -> dict[str, tuple[Callable, tuple[torch.Tensor, ...]]]:
    """Every function of ours with a backward pass of its own, and inputs."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, -100, 4999, 0])
    linear = nn.Linear(6, 5)
    train_with_onednn(linear)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    return {
        "dropout": (HFBertDropout(0.5).train(), (torch.randn(5, 7, generator=random),)),
        "cross-entropy": (
            lambda logits: cross_entropy_sum(logits, labels),
            (torch.randn(4, 5000, generator=random),),
        ),
        "attention": attention(mask, 0.3),
        "onednn": (
            lambda values, *parameters: functional_call(
                linear, dict(zip(("weight", "bias"), parameters, strict=True)), (values,)
            ),
            (torch.randn(2, 3, 6, generator=random), linear.weight.detach(), linear.bias.detach()),
        ),
    }


@pytest.mark.parametrize("name", ["dropout", "cross-entropy", "attention", "onednn"])
def test_second_derivatives_and_batched_gradients_of_every_kernel(name):
    """Against differences of the first derivative, which other tests compare, and against one gradient at a time."""
    if name == "onednn" and not has_onednn(torch.device("cpu"), torch.float32):
        pytest.skip("no oneDNN in this PyTorch")
    function, inputs = kernels()[name]
    directions = [torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) for tensor in inputs]

    def outputs(shift: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tensors = [(x + shift * d).requires_grad_() for x, d in zip(inputs, directions, strict=True)]
        torch.manual_seed(5)
        return function(*tensors).square(), tensors

    def slope(shift: float, create_graph: bool = False) -> torch.Tensor:
        values, tensors = outputs(shift)
        first = torch.autograd.grad(values.sum(), tensors, create_graph=create_graph)
        total = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
        if not create_graph:
            return total
        second = torch.autograd.grad(total, tensors)
        return sum((g * d).sum() for g, d in zip(second, directions, strict=True))

    torch.testing.assert_close(
        slope(0.0, create_graph=True), (slope(1e-2) - slope(-1e-2)) / 2e-2, rtol=1e-2, atol=1e-2
    )
    values, tensors = outputs(0.0)
    seeds = torch.randn(3, *values.shape, generator=torch.Generator().manual_seed(3))
    together = torch.autograd.grad(values, tensors, seeds, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(values, tensors, seed, retain_graph=True) for seed in seeds]
    torch.testing.assert_close(list(together), [torch.stack(parts) for parts in zip(*apart, strict=True)])

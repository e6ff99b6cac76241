"""Schedule, decay groups, LAMB against its published algorithm, and the optimizer's file."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import get_linear_schedule_with_warmup

from hfbert_scratch.training.checkpoints import load_optimizer, optimizer_tensors
from hfbert_scratch.training.optimizers import LAMB, create_optimizer, linear_schedule, parameter_groups
from hfbert_scratch.utils.errors import CheckpointError, InputError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(4, 3)
        self.LayerNorm = nn.LayerNorm(3)

    def forward(self, inputs):
        return self.LayerNorm(self.dense(inputs)).pow(2).sum()


@pytest.mark.parametrize(("warmup", "total"), [(10, 100), (0, 7), (5, 5)])
def test_schedule_is_transformers_linear_schedule(warmup, total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total + 3):
        assert linear_schedule(step, warmup, total) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_biases_and_layer_norms_do_not_decay():
    model = Small()
    decayed, plain = parameter_groups(model, 0.01)
    assert decayed["weight_decay"] == 0.01
    assert plain["weight_decay"] == 0
    assert [id(p) for p in decayed["params"]] == [id(model.dense.weight)]
    assert {id(p) for p in plain["params"]} == {id(model.dense.bias), *map(id, model.LayerNorm.parameters())}


def test_lamb_follows_algorithm_2():
    model, reference = Small(), Small()
    optimizer = create_optimizer("lamb", model, learning_rate=0.02, weight_decay=0.1, betas=(0.9, 0.99))
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in reference.named_parameters()}
    for step in range(1, 6):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for module in (model, reference):
            module.zero_grad()
            module(inputs).backward()
        optimizer.step()
        with torch.no_grad():
            for name, weight in reference.named_parameters():
                first, second = moments[name]
                first.copy_(0.9 * first + 0.1 * weight.grad)
                second.copy_(0.99 * second + 0.01 * weight.grad**2)
                update = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-6)
                ratio = 1.0
                if name == "dense.weight":
                    update = update + 0.1 * weight
                    ratio = weight.norm() / update.norm()
                weight -= 0.02 * ratio * update
        for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)


def test_lamb_leaves_zero_weights_movable():
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = LAMB([weight], lr=0.1)
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert (weight < 0).all(), "‖weight‖ = 0 means a ratio of 1, not no step"


def test_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="adafactor"):
        create_optimizer("adafactor", Small(), learning_rate=1.0)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_optimizer_file_restores_the_state_exactly(tmp_path, name):
    def trained(steps, model, optimizer):
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).backward()
            optimizer.step()

    model = Small()
    optimizer = create_optimizer(name, model, learning_rate=0.01)
    trained(range(3), model, optimizer)
    save_file(optimizer_tensors(optimizer, model), tmp_path / "optimizer.safetensors")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    trained(range(3, 6), model, optimizer)

    again = Small()
    again.load_state_dict(weights)
    restored = create_optimizer(name, again, learning_rate=0.01)
    load_optimizer(restored, again, tmp_path / "optimizer.safetensors")
    trained(range(3, 6), again, restored)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_another_models_optimizer_file_is_refused(tmp_path):
    model = Small()
    optimizer = create_optimizer("adamw", model, learning_rate=0.01)
    model(torch.ones(2, 4)).backward()
    optimizer.step()
    save_file(optimizer_tensors(optimizer, model), tmp_path / "optimizer.safetensors")
    other = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match="does not belong to this model"):
        load_optimizer(create_optimizer("adamw", other, learning_rate=0.01), other, tmp_path / "optimizer.safetensors")

"""Optimizers and the learning-rate schedule of BERT: decay groups, AdamW, LAMB, linear warm-up and decay."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..utils.errors import InputError


OPTIMIZERS = ("adamw", "lamb", "bert_adam")


def linear_schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of the learning rate of an optimizer step.

    Rises from 0 over `warmup_steps`, then falls linearly to 0 at `total_steps` (paper, appendix A.2); equal to
    transformers' get_linear_schedule_with_warmup, but a pure function, so that there is nothing to save or to step.

    Args:
        step: optimizer step, counted from 0.
        warmup_steps: steps of the rise; 0: the first step has the factor 1.
        total_steps: steps of the run, warm-up included.

    Returns:
        The factor, from 0 to 1.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the parameters: matrices and embeddings decay, biases and LayerNorm do not (the original's rule).

    Args:
        model: parameters that need no gradient are left out. LayerNorms are told by their names.
        weight_decay: of the first group.

    Returns:
        The groups with and without decay, as an optimizer takes them.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = name.endswith("bias") or "LayerNorm" in name
            (plain if no_decay else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def create_optimizer(
    name: str,
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-6,
) -> torch.optim.Optimizer:
    """Create AdamW (the paper's, appendix A.2), LAMB or the original code's Adam, with decay groups.

    Args:
        name: one of OPTIMIZERS.
        model: the model to train, not yet sharded.
        learning_rate: the initial one; a schedule sets it before every step.
        weight_decay: of matrices and embeddings.
        betas: decay rates of the two moments.
        epsilon: added to the root of the second moment.

    Raises:
        InputError: for another name.
    """
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
    if name == "lamb":
        return LAMB(groups, lr=learning_rate, betas=betas, eps=epsilon)
    if name == "bert_adam":
        return BertAdam(groups, lr=learning_rate, betas=betas, eps=epsilon)
    raise InputError(f"unknown optimizer {name!r}; choose {' or '.join(OPTIMIZERS)}")


class BertAdam(torch.optim.Optimizer):
    """Adam as google-research/bert has it (`AdamWeightDecayOptimizer`): decoupled decay, no bias correction.

    Its first steps are up to 1/√(1 − β₂) · (1 − β₁), three times, as long as AdamW's, which makes fine-tuning on small
    data sets fail more often (Zhang et al. 2020, arXiv:2006.05987): for comparisons with the original. All tensors of
    a group are updated together and nothing is read back to the host.
    """

    bias_correction = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the loss of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                update = self._adam_update(weights, group)
                if group["weight_decay"]:
                    torch._foreach_add_(update, weights, alpha=group["weight_decay"])
                    self._rescale(update, weights)
                torch._foreach_add_(weights, update, alpha=-group["lr"])
        return loss

    def _adam_update(self, weights: list[torch.Tensor], group: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            state["step"] += 1
        gradients = [weight.grad for weight in weights if weight.grad is not None]  # each has one: see `step`
        first = [self.state[weight]["exp_avg"] for weight in weights]
        second = [self.state[weight]["exp_avg_sq"] for weight in weights]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominator = torch._foreach_sqrt(second)
        step = int(self.state[weights[0]]["step"])
        if self.bias_correction:
            torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        update = torch._foreach_div(first, denominator)
        if self.bias_correction:
            torch._foreach_div_(update, 1 - beta1**step)
        return update

    def _rescale(self, update: tuple[torch.Tensor, ...], weights: list[torch.Tensor]) -> None:
        """Change the updates of the tensors with weight decay in place; Adam leaves them as they are."""


class LAMB(BertAdam):
    """Layer-wise adaptive moments for large batches (You et al. 2020, arXiv:1904.00962, algorithm 2).

    Adam's update, bias-corrected, with decoupled decay, scaled for each tensor by ‖weight‖ / ‖update‖. As in the
    authors' code, tensors without weight decay (biases, LayerNorm) keep Adam's step.
    """

    bias_correction = True

    def _rescale(self, update: tuple[torch.Tensor, ...], weights: list[torch.Tensor]) -> None:
        norms = zip(torch._foreach_norm(weights), torch._foreach_norm(update), strict=True)
        for tensor, (weight_norm, update_norm) in zip(update, norms, strict=True):
            defined = (weight_norm > 0) & (update_norm > 0)
            tensor.mul_(torch.where(defined, weight_norm / update_norm, 1.0))

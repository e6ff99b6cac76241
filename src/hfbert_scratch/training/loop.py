"""The one training loop.

Counted in optimizer steps. What a step sees is a function of its number: the data (see `StepBatch`), the learning
rate, the dropout (seeded per step and micro-batch). So a run that is killed and started again continues bit for bit,
and how a global batch is shared by processes does not change what is learned. Batches are made ahead in one thread;
there are no loader processes that could die, hang or get out of order.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel

from ..model.attention import fastest_attention
from ..model.configuration_hfbert import HFBertConfig
from ..model.gpu import compile_layers, train_on_gpu
from ..model.onednn import train_with_onednn
from ..utils.errors import CheckpointError, InputError, one_line
from ..utils.hashing import hash64
from .batches import StepBatch, on_device, prefetch
from .checkpoints import load_optimizer
from .distributed import describe_processes
from .fsdp import autocast_forward, full_tensor, is_sharded, summon_full_params
from .hardware.cuda_graphs import RecordedPasses, check_cuda_graphs
from .meter import TrainingMetrics
from .optimizers import create_optimizer, linear_schedule
from .run import Run


def prepare(run: Run, model: PreTrainedModel) -> tuple[nn.Module, torch.optim.Optimizer, bool]:
    """Prepare a model for training: attention, compilation, optimizer, resume, and Accelerate's wrapping.

    Args:
        run: the run, whose arguments decide.
        model: the model on the CPU, with its initial weights.

    Returns:
        The prepared model and optimizer, and True if the run was resumed.

    Raises:
        InputError: if an option does not fit the model or the device.
        CheckpointError: if the checkpoint is damaged or belongs to another run.
    """
    arguments = run.arguments
    _configure(run, model)
    optimizer = create_optimizer(
        arguments.optimizer,
        model,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        epsilon=arguments.adam_epsilon,
    )
    checkpoint = run.resume(model)
    steps = sorted(set(gather_object([run.progress.step])))
    if len(steps) > 1:
        raise CheckpointError(
            f"the processes find different checkpoints in {run.checkpoints} (steps {', '.join(map(str, steps))}); "
            "output_dir must be one directory that all hosts share"
        )
    run.save_arguments()  # not before: a run that is refused leaves the directory as it was
    model.to(run.device)
    if run.onednn and not train_with_onednn(model):
        run.print("the run began with linear layers by oneDNN, which it cannot have here: losses differ by rounding")
    model, optimizer = run.accelerator.prepare(model, optimizer)
    if is_sharded(model):
        autocast_forward(run.accelerator, model)
    if checkpoint:
        unwrapped = run.accelerator.unwrap_model(model, keep_torch_compile=False)
        load_optimizer(optimizer.optimizer, unwrapped, checkpoint / "optimizer.safetensors")
    if run.cuda_graphs:  # recorded passes must find gradients that they add to
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    run.print(describe_processes(run.accelerator))
    for choice in run.choices:
        run.print(choice)
    return model, optimizer, checkpoint is not None


def _configure(run: Run, model: PreTrainedModel) -> None:
    """Set how the model computes: modules for GPUs, compilation, attention, gradient checkpointing."""
    is_ours = model.config.model_type == HFBertConfig.model_type
    if run.packing and not is_ours:
        raise InputError(f"packing needs a model of this package, not {type(model).__name__}; leave it out")
    if run.cuda_graphs:
        check_cuda_graphs(run.device, run.accelerator.num_processes)
    if run.device.type == "cuda" and run.dtype == torch.bfloat16 and is_ours:
        train_on_gpu(model)
    _compile(run, model)
    attention = run.arguments.attention
    if attention == "auto":
        dropout = getattr(model.config, "attention_probs_dropout_prob", 0.1)  # some models name it otherwise
        attention = run.choose_attention(
            lambda: fastest_attention(model, run.device, run.dtype, dropout, run.packing, training=True)
        )
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise InputError(f"attention {attention!r} does not work here: {one_line(error)}") from error
    if run.arguments.gradient_checkpointing:
        # Renamed in the course of transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def _compile(run: Run, model: nn.Module) -> None:
    if run.compile == "layers":
        compile_layers(model)
    elif run.compile:
        if run.accelerator.is_fsdp2:
            raise InputError("--compile true is not supported with FSDP; take --compile layers or false")
        model.compile()


def model_outputs(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
    """Run a model that divides its loss by the `totals` it is given.

    Args:
        model: takes the names in `totals` as arguments.
        inputs: its inputs and labels, on its device.
        totals: divisors of the summed losses over the whole step, such as `num_items_in_batch`.

    Returns:
        Its outputs; `loss` is the micro-batch's share of the step's mean.
    """
    return model(**inputs, **totals)


def train(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[StepBatch],
    *,
    evaluate: Callable[[], dict[str, float]],
    save_extra: Callable[[Path], None],
    flops_per_token: Callable[[float], float],
    revisions: Mapping[int, str] | None = None,
    forward: Callable[[nn.Module, dict[str, Any], dict[str, torch.Tensor]], Any] = model_outputs,
    draw: Callable[[], None] | None = None,
) -> bool:
    """Run optimizer steps until `max_steps`, a signal or `max_time`.

    Args:
        run, model, optimizer: as `prepare` returned them.
        batches: the steps' batches, beginning at `run.progress`.
        evaluate: returns metrics to log.
        save_extra: adds files, such as the tokenizer, to a checkpoint.
        flops_per_token: useful FLOPs per token for a mean sequence length, for the MFU.
        revisions: step → name of the model to keep after it (see `Run.save_revision`).
        forward: takes model, inputs and totals; its outputs' `loss` is the micro-batch's share of the mean over the
            global counts in totals.
        draw: draws the log's curves, on the main process, when an evaluation is done.

    Returns:
        True if the run made its last step.

    Raises:
        DivergenceError: if a gradient was not finite, before any of it reaches a checkpoint.
    """
    arguments, progress = run.arguments, run.progress
    meter = TrainingMetrics(run, flops_per_token)
    one_pass = _forward_and_backward(run, model, forward)
    run.stopping.catch_signals()
    run.start_bar()
    model.train()
    stop = False
    if run.is_stale:  # continued after its last evaluation, for example to write what is still missing
        batches = ()
    for batch in meter.time_waiting(prefetch(batches)):
        totals, stop = run.stopping.all_reduce(batch.counts)
        learning_rate = _set_learning_rate(run, optimizer)
        gradient_norm = _step(run, model, optimizer, batch, totals, one_pass, meter)
        progress.step += 1
        progress.cursor = batch.cursor
        meter.end_step(batch, gradient_norm)
        if note := run.spinning.look():
            run.print(note)

        finished = is_finished(run)
        if finished or progress.step % arguments.log_every == 0:
            meter.log(learning_rate)
        if finished or progress.step % arguments.eval_every == 0:
            with meter.paused():
                run.log(evaluate_between_steps(model, evaluate))
                finished = is_finished(run)
                if draw is not None and run.writes and not finished:
                    draw()
        if revisions and progress.step in revisions:
            with meter.paused():
                run.save_revision(model, save_extra, revisions[progress.step])
        if finished or stop or progress.step % arguments.save_every == 0:
            with meter.paused():
                run.save(model, optimizer, save_extra)
        if finished or stop:
            break
    run.bar.close()
    if stop and run.records:
        goes_on = "continues from there" if arguments.keep_checkpoints else "starts anew: keep_checkpoints is 0"
        run.print(f"stopped by {run.stopping.reason} after step {progress.step}; the same command {goes_on}")
    return is_finished(run)


def _step(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: StepBatch,
    totals: dict[str, torch.Tensor],
    one_pass: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any],
    meter: TrainingMetrics,
) -> torch.Tensor:
    """Run one optimizer step, seeded by its number; returns the norm of the gradient before it was clipped."""
    for number, inputs in enumerate(batch.micro_batches):
        last = number == len(batch.micro_batches) - 1
        torch.manual_seed(int(hash64(run.arguments.seed, run.progress.step, batch.start + number) >> 1))
        with nullcontext() if last else run.accelerator.no_sync(model):
            outputs = one_pass(inputs, totals)
        meter.add(outputs)
    norm = full_tensor(run.accelerator.clip_grad_norm_(model.parameters(), run.arguments.max_grad_norm))
    optimizer.step()
    optimizer.zero_grad(set_to_none=not run.cuda_graphs)
    return norm


def evaluate_between_steps(model: nn.Module, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Evaluate a model that is being trained, then set it back to training.

    Args:
        model: as `prepare` returned it; sharded parameters are gathered meanwhile.
        evaluate: returns metrics.

    Returns:
        The metrics.
    """
    # Compiled code is for training's shapes; an evaluation would compile again for its own.
    with summon_full_params(model), torch.compiler.set_stance("force_eager"):
        metrics = evaluate()
    model.train()
    return metrics


def _forward_and_backward(
    run: Run, model: nn.Module, forward: Callable[[nn.Module, dict[str, Any], dict[str, torch.Tensor]], Any]
) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]:
    """Return a function that runs both passes of a micro-batch on its inputs and totals, and returns the outputs."""

    def compute(inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
        outputs = forward(model, on_device(inputs, run.device), totals)
        # DDP averages over processes; the loss is already a share of the global mean.
        run.accelerator.backward(outputs.loss * run.accelerator.num_processes)
        return outputs

    return RecordedPasses(compute, run.device) if run.cuda_graphs else compute


def is_finished(run: Run) -> bool:
    """Return whether the run has made its last step."""
    return run.progress.step >= run.arguments.max_steps or run.stopping.time_used >= 1 or run.is_stale


def _set_learning_rate(run: Run, optimizer: torch.optim.Optimizer) -> float:
    """Set and return the learning rate of the step that comes next."""
    learning_rate = run.arguments.learning_rate * _learning_rate_factor(run)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    return learning_rate


def _learning_rate_factor(run: Run) -> float:
    step, warmup_steps = run.progress.step, run.arguments.warmup_steps or 0  # resolved: never None
    if run.arguments.schedule == "steps":
        return linear_schedule(step, warmup_steps, run.arguments.max_steps)
    # Falls with the time from the start on, which the warm-up's short share hardly shows.
    return min(step / max(1, warmup_steps), max(0.0, 1 - run.stopping.time_used))

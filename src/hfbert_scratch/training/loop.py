"""The one training loop.

Counted in optimizer steps. What a step sees is a function of its number: the data (see `StepBatch`), the learning
rate, the dropout (seeded per step and micro-batch). So a run that is killed and started again continues bit for bit,
and how a global batch is shared by processes does not change what is learned. Batches are made ahead in one thread;
there are no loader processes that could die, hang or get out of order.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from ..model.attention import fastest_attention
from ..model.configuration_hfbert import HFBertConfig
from ..model.gpu import compile_layers, train_on_gpu
from ..model.onednn import train_with_onednn
from ..utils.arguments import save_arguments
from ..utils.errors import CheckpointError, DivergenceError, InputError, one_line
from ..utils.files import write_json
from ..utils.hashing import hash64
from .checkpoints import load_optimizer
from .cuda_graphs import RecordedPasses
from .distributed import describe_processes
from .fsdp import autocast_forward, gathered, is_sharded, whole
from .optimizers import create_optimizer, linear_schedule
from .run import Run
from .spinning import Spinning
from .throughput import clock


Item = TypeVar("Item")


@dataclass
class StepBatch:
    """What one optimizer step of this process consumes.

    micro_batches: the model's inputs, host tensors and plain numbers. first: the number of the first of them in the
    global batch; it keys the dropout. counts: what this process's losses are summed over, under the names the model's
    forward takes (`num_items_in_batch`…); their global sums normalise the loss. num_tokens: real tokens,
    squared_lengths: Σs² over the sequences, both this process's. cursor: JSON that continues the data after this step.
    examples: columns that say which examples the global batch has, for the report on a gradient that is not finite.
    """

    micro_batches: list[dict[str, Any]]
    first: int
    counts: dict[str, int]
    num_tokens: int
    squared_lengths: int
    cursor: Any
    examples: dict[str, np.ndarray]


def own_micro_batches(run: Run, batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """The number of this process's first micro-batch in a global batch, and how many are its own.

    Raises InputError when the processes cannot share them evenly.
    """
    micro_batches, processes = batch_size // micro_batch_size, run.accelerator.num_processes
    share, rest = divmod(micro_batches, processes)
    if rest:
        raise InputError(
            f"{micro_batches} micro-batches (batch_size {batch_size}, micro_batch_size {micro_batch_size}) cannot be "
            f"shared by {processes} processes; change one of them"
            + (f": --micro_batch_size {batch_size // processes}, say" if batch_size % processes == 0 else "")
        )
    return run.accelerator.process_index * share, share


def prepare(run: Run, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, bool]:
    """Optimizer, resume, gradient checkpointing, compilation and Accelerate's wrapping, in the order they need.

    Returns the prepared model and optimizer, and whether the run was resumed.
    """
    arguments = run.arguments
    attention = arguments.attention
    is_ours = model.config.model_type == HFBertConfig.model_type
    if run.packing and not is_ours:
        raise InputError(f"packing needs a model of this package, not {type(model).__name__}; leave it out")
    _check_cuda_graphs(run)
    if run.device.type == "cuda" and run.dtype == torch.bfloat16 and is_ours:
        train_on_gpu(model)
    _compile(run, model)
    if attention == "auto":
        dropout = getattr(model.config, "attention_probs_dropout_prob", 0.1)  # some models name it otherwise
        attention = run.choose_attention(
            lambda: fastest_attention(model, run.device, run.dtype, dropout, run.packing, training=True)
        )
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise InputError(f"attention {attention!r} does not work here: {one_line(error)}") from error
    if arguments.gradient_checkpointing:
        enable = getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )  # renamed in 5.x
        enable({"use_reentrant": False})
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
    if run.is_main:  # not before: a run that is refused leaves the directory as it was
        save_arguments(arguments, run.directory / "arguments.yaml")
    model.to(run.device)
    if run.onednn and not train_with_onednn(model):
        run.say("the run began with linear layers by oneDNN, which it cannot have here: losses differ by rounding")
    model, optimizer = run.accelerator.prepare(model, optimizer)
    if is_sharded(model):
        autocast_forward(run.accelerator, model)
    if checkpoint:
        unwrapped = run.accelerator.unwrap_model(model, keep_torch_compile=False)
        load_optimizer(optimizer.optimizer, unwrapped, checkpoint / "optimizer.safetensors")
    if run.cuda_graphs:  # recorded passes must find gradients that they add to
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    run.say(describe_processes(run.accelerator))
    for choice in run.choices:
        run.say(choice)
    return model, optimizer, checkpoint is not None


def _check_cuda_graphs(run: Run) -> None:
    if run.cuda_graphs and (run.device.type != "cuda" or run.accelerator.num_processes > 1):
        raise InputError("cuda_graphs needs a CUDA device and one process; leave it out")


def _compile(run: Run, model: nn.Module) -> None:
    if run.compile == "layers":
        compile_layers(model)
    elif run.compile:
        if run.accelerator.is_fsdp2:
            raise InputError("--compile true is not supported with FSDP; take --compile layers or false")
        model.compile()


def model_outputs(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
    """The outputs of a model that divides its loss by the `totals` it is given."""
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
    forward: Callable[[nn.Module, dict[str, Any], dict[str, torch.Tensor]], Any] = model_outputs,
) -> bool:
    """Run optimizer steps until `max_steps`, a signal or `max_time`; returns whether it got to the end.

    `batches` must begin at `run.progress`. `evaluate` returns metrics to log; `save_extra` adds files (the tokenizer)
    to checkpoints; `flops_per_token(mean_length)` is the model's useful arithmetic, for the MFU. `forward(model,
    inputs, totals)` gives outputs whose `loss` is this micro-batch's share of the mean over `totals`, global counts.
    Raises DivergenceError when a gradient was not finite, before anything of it reaches a checkpoint.
    """
    arguments, progress, accelerator = run.arguments, run.progress, run.accelerator
    meter = _Meter(run, flops_per_token)
    one_pass = _forward_and_backward(run, model, forward)
    spinning = Spinning(run.device)
    run.stopping.catch_signals()
    model.train()
    stop = False
    for batch in meter.time_waiting(prefetch(batches)):
        totals, stop = run.stopping.share(batch.counts)
        factor = _learning_rate_factor(run)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * factor
        for number, inputs in enumerate(batch.micro_batches):
            last = number == len(batch.micro_batches) - 1
            torch.manual_seed(int(hash64(arguments.seed, progress.step, batch.first + number) >> 1))
            with nullcontext() if last else accelerator.no_sync(model):
                outputs = one_pass(inputs, totals)
            meter.add(outputs)
        gradient_norm = whole(accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=not run.cuda_graphs)
        progress.step += 1
        progress.cursor = batch.cursor
        meter.end_step(batch, gradient_norm)
        if note := spinning.look():
            run.say(note)

        finished = is_finished(run)
        if finished or progress.step % arguments.log_every == 0:
            meter.log(arguments.learning_rate * factor)
        if finished or progress.step % arguments.eval_every == 0:
            # Compiled code is for training's shapes; an evaluation would compile again for its own.
            with meter.paused(), gathered(model), torch.compiler.set_stance("force_eager"):
                run.log(evaluate())
            model.train()
        if finished or stop or progress.step % arguments.save_every == 0:
            with meter.paused():
                run.save(model, optimizer, save_extra)
        if finished or stop:
            break
    spinning.restore()
    if stop:
        run.say(f"stopped by {run.stopping.reason} after step {progress.step}; the same command continues from there")
    return is_finished(run)


def _forward_and_backward(
    run: Run, model: nn.Module, forward: Callable[[nn.Module, dict[str, Any], dict[str, torch.Tensor]], Any]
) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]:
    """Return what runs the two passes of a micro-batch, given its inputs and totals, and returns the outputs."""

    def compute(inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
        outputs = forward(model, on_device(inputs, run.device), totals)
        # DDP averages over processes; the loss is already a share of the global mean.
        run.accelerator.backward(outputs.loss * run.accelerator.num_processes)
        return outputs

    return RecordedPasses(compute, run.device) if run.cuda_graphs else compute


def is_finished(run: Run) -> bool:
    """Return whether the run has made its last step."""
    return run.progress.step >= run.arguments.max_steps or run.stopping.time_used >= 1


def _learning_rate_factor(run: Run) -> float:
    step, warmup_steps = run.progress.step, run.arguments.warmup_steps
    if run.arguments.schedule == "steps":
        return linear_schedule(step, warmup_steps, run.arguments.max_steps)
    # Falls with the time from the start on, which the warm-up's short share hardly shows.
    return min(step / max(1, warmup_steps), max(0.0, 1 - run.stopping.time_used))


def on_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A model's inputs with their tensors there. The length of a packed row is dynamic to a compiled model."""
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    if "cu_seq_lens_q" in inputs:
        for name in ("input_ids", "token_type_ids", "labels"):
            if name in moved and moved[name].dim() == 2:
                torch._dynamo.maybe_mark_dynamic(moved[name], 1)
    return moved


class _Meter:
    """Sums what a log line says on the device, and reads it only when a line or a checkpoint is due."""

    PARTS = ("loss", "masked_lm_loss", "next_sentence_loss")

    def __init__(self, run: Run, flops_per_token: Callable[[float], float]):
        self.run = run
        self.flops_per_token = flops_per_token
        _ = run.peak  # is timed before the steps, if it is not known yet
        # In float64 a sum of float32 losses is exact, so that it may be split at a checkpoint.
        self.losses = torch.zeros(len(self.PARTS), dtype=torch.float64, device=run.device)
        self.gradient_norms = torch.zeros((), dtype=torch.float64, device=run.device)
        self.first_bad_step = torch.full((), math.inf, device=run.device)
        self.unchecked: dict[int, dict[str, np.ndarray]] = {}
        self.tokens = self.squared_lengths = 0
        self.waited = 0.0
        self.parts_seen: list[str] = []
        self.started = time.perf_counter()

    def time_waiting(self, batches: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Pass batches through, adding up how long the loop waits for them."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, outputs: Any) -> None:
        """Count the losses of one micro-batch."""
        self.parts_seen = [name for name in self.PARTS if getattr(outputs, name, None) is not None]
        # The first of PARTS; one sum for all of them.
        losses = [getattr(outputs, name).detach() for name in self.parts_seen]
        self.losses[: len(losses)] += torch.stack(losses)

    def end_step(self, batch: StepBatch, gradient_norm: torch.Tensor) -> None:
        """Count one optimizer step, which is `run.progress.step` from now on."""
        self.gradient_norms += gradient_norm
        bad = torch.where(torch.isfinite(gradient_norm), math.inf, float(self.run.progress.step))
        self.first_bad_step = torch.minimum(self.first_bad_step, bad)
        self.unchecked[self.run.progress.step] = batch.examples
        self.tokens += batch.num_tokens
        self.squared_lengths += batch.squared_lengths
        if self.run.device.type == "cpu":
            self.check_finite()

    def check_finite(self) -> None:
        """Raise DivergenceError if a gradient so far was not finite; diverged.json says of which examples."""
        step = self.first_bad_step.item()
        if math.isfinite(step):
            examples = {name: column.tolist() for name, column in self.unchecked[int(step)].items()}
            report = self.run.directory / "diverged.json"
            if self.run.is_main:
                write_json(report, {"step": int(step), "examples": examples})
            raise DivergenceError(
                f"the gradient of step {int(step)} is not finite ({report} lists its examples); the checkpoints "
                f"before it in {self.run.checkpoints} are intact: lower the learning rate, lengthen the warm-up or "
                "use float32, and start again"
            )
        self.unchecked.clear()

    def collect(self) -> None:
        """Move the sums, over all processes, into the progress, where they travel with a checkpoint."""
        self.check_finite()
        accelerator, progress = self.run.accelerator, self.run.progress
        work = torch.tensor([self.tokens, self.squared_lengths], dtype=torch.float64, device=self.run.device)
        sums = torch.cat([self.losses, self.gradient_norms[None] / accelerator.num_processes, work])
        *losses, gradient_norm, tokens, squared_lengths = accelerator.reduce(sums, reduction="sum").tolist()
        seconds = time.perf_counter() - self.started
        added = dict(zip(self.PARTS, losses, strict=True)) | {
            "gradient_norm": gradient_norm,
            "tokens": tokens,
            "squared_lengths": squared_lengths,
            "seconds": seconds,
            "waited": self.waited,
        }
        for name, value in added.items():
            progress.window[name] = progress.window.get(name, 0.0) + value
        progress.tokens += int(tokens)
        progress.seconds += seconds
        self.losses.zero_()
        self.gradient_norms.zero_()
        self.tokens = self.squared_lengths = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluation and saving are not training time."""
        self.collect()
        yield
        self.started = time.perf_counter()

    def log(self, learning_rate: float) -> None:
        """Print and record the window since the last line, and begin a new one."""
        self.collect()
        run, progress = self.run, self.run.progress
        window, progress.window = progress.window, {}
        steps = progress.step - progress.window_start
        progress.window_start = progress.step
        rate = window["tokens"] / window["seconds"]
        useful = rate * self.flops_per_token(window["squared_lengths"] / max(window["tokens"], 1.0))
        run.raise_peak(useful / run.accelerator.num_processes)
        metrics = {name: window[name] / steps for name in (*self.parts_seen, "gradient_norm")} | {
            "learning_rate": learning_rate,
            "tokens_per_second": rate,
            "mfu": useful / (run.peak[0] * run.accelerator.num_processes),
            "waiting_share": window["waited"] / window["seconds"],
        }
        remaining = (run.arguments.max_steps - progress.step) * window["seconds"] / steps
        if run.arguments.schedule == "time":
            remaining = min(remaining, 60 * run.arguments.max_time - run.stopping.seconds())
        parts = " ".join(f"{name.removesuffix('_loss')} {metrics[name]:.3f}" for name in self.parts_seen)
        run.say(
            f"step {progress.step}/{run.arguments.max_steps} {parts} lr {learning_rate:.2e} "
            f"grad {metrics['gradient_norm']:.2f} {rate / 1e3:.1f}k tokens/s {useful / 1e12:.3f} TFLOP/s "
            f"(MFU {100 * metrics['mfu']:.0f} %) eta {clock(remaining)}"
        )
        if metrics["waiting_share"] > 0.1 and steps > 1:
            run.say(f"warning: {100 * metrics['waiting_share']:.0f} % of the time went to waiting for data")
        run.log(metrics)
        self.started = time.perf_counter()  # neither a peak that is timed again nor the trackers are training time


def prefetch(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """Yield `items`, made ahead in a thread (numpy and torch release the interpreter lock where it counts)."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(entry: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put((None, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()

"""The one training loop, and the Run around it: accelerator, log, trackers, checkpoints, resume, signals.

Counted in optimizer steps. What a step sees is a function of its number: the data (see `StepBatch`), the learning
rate, the dropout (seeded per step and micro-batch). So a run that is killed and started again continues bit for bit,
and how a global batch is shared by processes does not change what is learned. Batches are made ahead in one thread;
there are no loader processes that could die, hang or get out of order.
"""

import dataclasses
import fcntl
import json
import math
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from safetensors.torch import load_model, save_file
from torch import nn

from .arguments import argument, save_arguments
from .checkpoints import checkpoint_steps, load_optimizer, newest_checkpoint, optimizer_tensors, write_checkpoint
from .configuration_hfbert import HFBertConfig
from .environment import create_accelerator, fastest_attention, hardware, keep_freed_memory, versions
from .errors import CheckpointError, DivergenceError, InputError, OutputError, one_line
from .files import read_json, write_json, write_text, writing
from .masking import hash64
from .onednn import train_with_onednn
from .optimization import OPTIMIZERS, create_optimizer, linear_schedule
from .processes import TIMEOUT_SECONDS, Stopping, describe_processes
from .sharding import autocast_forward, gathered, is_sharded, whole, whole_state, without_weights
from .throughput import clock, peak_flops


Item = TypeVar("Item")

# Changing these between two starts of a run does not change what is learned, so a resume accepts it.
_FREE_ARGUMENTS = {"output_dir", "log_every", "eval_every", "save_every", "keep_checkpoints", "trackers"}
_FREE_ARGUMENTS |= {"num_proc", "cache_dir", "eval_batch_size", "max_time", "process_timeout"}


@dataclass(kw_only=True)
class TrainingArguments:
    """What every training run has; recipes add their own."""

    output_dir: str = argument(help="the run's directory; started again with the same command, a run continues")
    max_steps: int = argument(help="optimizer steps")
    batch_size: int = argument(256, help="sequences per optimizer step, over all processes")
    micro_batch_size: int = argument(32, help="sequences per forward pass; must divide batch_size")
    learning_rate: float = argument(1e-4, help="peak learning rate")
    warmup_steps: int | None = argument(
        None, help="steps of linear warm-up, then linear decay to 0; default: 1 %% of max_steps, the paper's share"
    )
    optimizer: str = argument("adamw", help="adamw, lamb, or bert_adam: the original's, without bias correction")
    weight_decay: float = argument(0.01, help="decoupled; not on biases and LayerNorm")
    adam_beta1: float = argument(0.9, help="decay of the first moment")
    adam_beta2: float = argument(0.999, help="decay of the second moment")
    adam_epsilon: float = argument(1e-6, help="added to the root of the second moment")
    max_grad_norm: float = argument(1.0, help="global norm the gradient is clipped to")
    precision: str = argument("auto", help="float32, bfloat16 (autocast), or auto: bfloat16 where the hardware has it")
    attention: str = argument("auto", help="eager, sdpa, flex_attention, flash_attention_2…, or auto")
    compile: bool = argument(False, help="torch.compile the model")
    packing: bool = argument(
        False,
        help="a micro-batch's sequences one behind the other in one row, without padding: for GPUs, in bfloat16, "
        "where attention is then PyTorch's flash kernel for sequences of any length",
    )
    gradient_checkpointing: bool = argument(False, help="recompute activations in the backward pass to save memory")
    seed: int = argument(0, help="of initialisation, data order, masks and dropout")
    log_every: int = argument(50, help="steps between log lines")
    eval_every: int = argument(1000, help="steps between evaluations")
    save_every: int = argument(1000, help="steps between checkpoints")
    keep_checkpoints: int = argument(
        2, help="how many of the newest to keep, and the best; 0: write none, a killed run starts anew"
    )
    max_time: float = argument(
        0.0, help="minutes since the launch after which the run stops, with a checkpoint, as by a signal; 0: none"
    )
    process_timeout: int = argument(TIMEOUT_SECONDS, help="seconds a process waits for the others before it gives up")
    trackers: list[str] = argument(["tensorboard"], help="accelerate's trackers: tensorboard, wandb, trackio…; none")

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "micro_batch_size", "log_every", "eval_every", "save_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("keep_checkpoints", self.keep_checkpoints >= 0, "0 or more")
        self._require("max_time", 0 <= self.max_time < math.inf, "0 or more")
        self._require("process_timeout", self.process_timeout >= 1, "at least 1")
        if self.warmup_steps is None:
            self.warmup_steps = self.max_steps // 100
        self._require("learning_rate", 0 < self.learning_rate < 10, "above 0")
        self._require("warmup_steps", 0 <= self.warmup_steps <= self.max_steps, f"0 to max_steps ({self.max_steps})")
        self._require("weight_decay", self.weight_decay >= 0, "0 or more")
        self._require("adam_beta1", 0 <= self.adam_beta1 < 1, "at least 0 and below 1")
        self._require("adam_beta2", 0 <= self.adam_beta2 < 1, "at least 0 and below 1")
        self._require("adam_epsilon", self.adam_epsilon > 0, "above 0")
        self._require("max_grad_norm", self.max_grad_norm > 0, "above 0")
        self._require("precision", self.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")
        self._require("optimizer", self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS))
        self._require("seed", 0 <= self.seed < 2**63, "0 to 2**63 - 1")
        check_divides(self.batch_size, self.micro_batch_size)

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}")


def check_divides(batch_size: int, micro_batch_size: int) -> None:
    """Raise InputError unless a global batch is a whole number of micro-batches."""
    if batch_size % micro_batch_size:
        raise InputError(f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size}")


def own_micro_batches(run: "Run", batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """The number of this process's first micro-batch in a global batch, and how many are its own.

    Raises InputError when the processes cannot share them evenly.
    """
    micro_batches, processes = batch_size // micro_batch_size, run.accelerator.num_processes
    share, rest = divmod(micro_batches, processes)
    if rest:
        raise InputError(
            f"{micro_batches} micro-batches (batch_size {batch_size}, micro_batch_size {micro_batch_size}) cannot be "
            f"shared by {processes} processes; change one of them"
        )
    return run.accelerator.process_index * share, share


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


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    cursor: Any = None
    tokens: int = 0
    seconds: float = 0.0
    # Sums since the last log line, so that the line after a resume is the line of the uninterrupted run.
    window: dict[str, float] = field(default_factory=dict)
    window_start: int = 0


class Run:
    """One training run in one directory; a context manager that holds the directory's lock.

    Making it sets up Accelerate and prints nothing. `settings` is what a resumed run must share with the one that
    wrote the checkpoints, beyond the arguments (data and tokenizer hashes).
    `best_by`, a metric and `min` or `max`, says which checkpoint is kept however old it gets. `last`: no run follows
    in these processes.

    Raises InputError when the launch is not what was asked for, OutputError when the directory is not writable or
    another run is using it.
    """

    def __init__(self, arguments: TrainingArguments, settings: dict[str, Any], *, last: bool = True):
        self.arguments = arguments
        self.last = last
        self.directory = Path(arguments.output_dir)
        keep_freed_memory()
        self.accelerator = create_accelerator(
            arguments.precision, arguments.trackers, self.directory, arguments.process_timeout
        )
        self.is_main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        self.precision = self.accelerator.mixed_precision
        self.settings = json.loads(json.dumps(self._fixed_arguments() | settings))
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.best_by: tuple[str, Callable[..., Any]] | None = None
        self.stopping = Stopping(self.accelerator, arguments.max_time)
        transformers.utils.logging.disable_progress_bar()  # a bar for each checkpoint would drown the log
        if self.is_main:
            self._lock = _lock_directory(self.directory)
        self.accelerator.wait_for_everyone()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        self.stopping.release_signals()
        if self.is_main:
            self._lock.close()
        if error[0] is None:  # after an error the other processes may not come to this point
            if self.last:
                self.accelerator.end_training()
            for tracker in [] if self.last else self.accelerator.trackers:
                tracker.finish()

    @cached_property
    def peak(self) -> tuple[float, str]:
        """FLOP/s of this device in the run's precision, and where the figure is from; see `peak_flops`."""
        return peak_flops(self.device, torch.bfloat16 if self.precision == "bf16" else torch.float32)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation that has a checkpoint, or gets one now; of equal ones the earliest."""
        if self.best_by is None:
            return None
        metric, best = self.best_by
        steps = {*checkpoint_steps(self.checkpoints), self.progress.step}
        entries = [entry for entry in self.history if metric in entry and entry["step"] in steps]
        return int(best(entries, key=lambda entry: entry[metric])["step"]) if entries else None

    def say(self, text: str) -> None:
        """Print, on the main process only."""
        if self.is_main:
            print(text, flush=True)

    # Resume and checkpoints

    def resume(self, model: nn.Module) -> Path | None:
        """Load the newest whole checkpoint, if there is one, into the model, before it is wrapped; returns its path.

        Raises CheckpointError when all are damaged or when it was written with other settings, listing them.
        """
        checkpoint = newest_checkpoint(self.checkpoints, lambda text: self.say(f"warning: {text}"))
        if checkpoint is None:
            if self.is_main:
                self._log_path.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
            return None
        state = read_json(checkpoint / "training_state.json", "checkpoint")
        _compare_settings(checkpoint, state["settings"], self.settings)
        load_model(model, checkpoint / "model.safetensors")
        self.progress = Progress(**state["progress"])
        self.history = [entry for entry in _read_log(self._log_path) if entry["step"] <= self.progress.step]
        if self.is_main:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
            # At once: a kill must not cost the log, and the other processes are reading it.
            write_text(self._log_path, lines)
        written_with = f"{state['processes']} process(es){', sharded' if state.get('sharded') else ''}"
        self.say(f"continuing from {checkpoint} (step {self.progress.step}, written by {written_with})")
        return checkpoint

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, save_extra: Callable[[Path], None]) -> None:
        """Write checkpoint step-N: a model directory, the optimizer and the progress. `save_extra` adds files.

        Raises DivergenceError, and writes nothing, if a weight is not finite.
        """
        keep = self.arguments.keep_checkpoints
        if keep:
            plain, weights = self._to_save(model)
            unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
            sharded = is_sharded(unwrapped)
            if self.is_main or sharded:
                moments = optimizer_tensors(getattr(optimizer, "optimizer", optimizer), unwrapped, self.is_main)
        if self.is_main and keep:
            self._require_finite(weights or plain.state_dict())
            state = {
                "settings": self.settings,
                "progress": dataclasses.asdict(self.progress),
                "processes": self.accelerator.num_processes,
                "sharded": sharded,
                "versions": versions(),
            }

            def write(directory: Path) -> None:
                plain.save_pretrained(directory, state_dict=weights)
                save_extra(directory)
                save_file(moments, directory / "optimizer.safetensors")
                (directory / "training_state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

            write_checkpoint(self.checkpoints, self.progress.step, write, keep, spare=self.best_step)
        self.accelerator.wait_for_everyone()

    def save_model(self, model: nn.Module, save_extra: Callable[[Path], None]) -> None:
        """Write model/ as a checkpoint has it, whatever the model is wrapped in. All processes must call this."""
        plain, weights = self._to_save(model)
        if self.is_main:
            directory = self.directory / "model"
            with writing(directory):
                plain.save_pretrained(directory, state_dict=weights)
                save_extra(directory)

    def _to_save(self, model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor] | None]:
        """The model to call save_pretrained of, and the state to give it; None for its own."""
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if is_sharded(unwrapped):
            return without_weights(unwrapped), whole_state(unwrapped, self.is_main)
        return unwrapped, None

    def _require_finite(self, weights: dict[str, torch.Tensor]) -> None:
        bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise DivergenceError(
                f"after step {self.progress.step} {bad[0]} is not finite; the checkpoints before it in "
                f"{self.checkpoints} are intact: lower the learning rate and start again"
            )

    # Log

    @property
    def _log_path(self) -> Path:
        return self.directory / "log.jsonl"

    def start_trackers(self) -> None:
        """Open the trackers the arguments name."""
        config = {key: str(value) for key, value in dataclasses.asdict(self.arguments).items()}
        self.accelerator.init_trackers("hfbert", config=config)

    def log(self, metrics: dict[str, float]) -> None:
        """Append one line of metrics at the current step to log.jsonl and send it to the trackers."""
        entry = {"step": self.progress.step} | metrics
        self.history.append(entry)
        self.accelerator.log(metrics, step=self.progress.step)
        if self.is_main:
            with writing(self._log_path), self._log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def write_record(self, **entries: Any) -> None:
        """Write record.json: the arguments, what they resolved to, versions, hardware and `entries`."""
        record = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": dataclasses.asdict(self.arguments),
            "settings": self.settings,
            "processes": self.accelerator.num_processes,
            "versions": versions(),
            "hardware": hardware(self.device),
            "steps": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 1),
        } | entries
        if self.is_main:
            write_json(self.directory / "record.json", record)

    def _fixed_arguments(self) -> dict[str, Any]:
        fixed = {k: v for k, v in dataclasses.asdict(self.arguments).items() if k not in _FREE_ARGUMENTS}
        return fixed | {"precision": {"no": "float32", "bf16": "bfloat16"}.get(self.precision, self.precision)}


def prepare(run: Run, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, bool]:
    """Optimizer, resume, gradient checkpointing, compilation and Accelerate's wrapping, in the order they need.

    Returns the prepared model and optimizer, and whether the run was resumed.
    """
    arguments = run.arguments
    if arguments.compile and run.accelerator.is_fsdp2:
        raise InputError("compile is not supported with FSDP; leave out one of them")
    attention = arguments.attention
    if arguments.packing and model.config.model_type != HFBertConfig.model_type:
        raise InputError(f"packing needs a model of this package, not {type(model).__name__}; leave it out")
    if arguments.compile:
        model.compile()
    if attention == "auto":
        dropout = getattr(model.config, "attention_probs_dropout_prob", 0.1)  # some models name it otherwise
        attention = fastest_attention(model, run.device, run.precision, dropout, arguments.packing)
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
    if run.precision == "no" and not arguments.compile:
        train_with_onednn(model)
    model, optimizer = run.accelerator.prepare(model, optimizer)
    if is_sharded(model):
        autocast_forward(run.accelerator, model)
    if checkpoint:
        unwrapped = run.accelerator.unwrap_model(model, keep_torch_compile=False)
        load_optimizer(optimizer.optimizer, unwrapped, checkpoint / "optimizer.safetensors")
    run.say(describe_processes(run.accelerator))
    return model, optimizer, checkpoint is not None


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
    run.stopping.catch_signals()
    model.train()
    stop = False
    for batch in meter.time_waiting(prefetch(batches)):
        factor = linear_schedule(progress.step, arguments.warmup_steps, arguments.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * factor
        totals, stop = run.stopping.share(batch.counts)
        for number, inputs in enumerate(batch.micro_batches):
            last = number == len(batch.micro_batches) - 1
            torch.manual_seed(int(hash64(arguments.seed, progress.step, batch.first + number) >> 1))
            with nullcontext() if last else accelerator.no_sync(model):
                inputs = on_device(inputs, run.device)
                outputs = forward(model, inputs, totals)
                # DDP averages over processes; the loss is already a share of the global mean.
                accelerator.backward(outputs.loss * accelerator.num_processes)
            meter.add(outputs)
        gradient_norm = whole(accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        progress.cursor = batch.cursor
        meter.end_step(batch, gradient_norm)

        finished = progress.step >= arguments.max_steps
        if finished or progress.step % arguments.log_every == 0:
            meter.log(arguments.learning_rate * factor)
        if finished or progress.step % arguments.eval_every == 0:
            with meter.paused(), gathered(model):
                run.log(evaluate())
            model.train()
        if finished or stop or progress.step % arguments.save_every == 0:
            with meter.paused():
                run.save(model, optimizer, save_extra)
        if finished or stop:
            break
    if stop:
        run.say(f"stopped by {run.stopping.reason} after step {progress.step}; the same command continues from there")
    return progress.step >= arguments.max_steps


def on_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A model's inputs with their tensors there."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


class _Meter:
    """Sums what a log line says on the device, and reads it only when a line or a checkpoint is due."""

    PARTS = ("loss", "masked_lm_loss", "next_sentence_loss")

    def __init__(self, run: Run, flops_per_token: Callable[[float], float]):
        self.run = run
        self.flops_per_token = flops_per_token
        self.peak, _ = run.peak
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
        for name in self.parts_seen:
            self.losses[self.PARTS.index(name)] += getattr(outputs, name).detach()

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
        metrics = {name: window[name] / steps for name in (*self.parts_seen, "gradient_norm")} | {
            "learning_rate": learning_rate,
            "tokens_per_second": rate,
            "mfu": useful / (self.peak * run.accelerator.num_processes),
            "waiting_share": window["waited"] / window["seconds"],
        }
        remaining = (run.arguments.max_steps - progress.step) * window["seconds"] / steps
        parts = " ".join(f"{name.removesuffix('_loss')} {metrics[name]:.3f}" for name in self.parts_seen)
        run.say(
            f"step {progress.step}/{run.arguments.max_steps} {parts} lr {learning_rate:.2e} "
            f"grad {metrics['gradient_norm']:.2f} {rate / 1e3:.1f}k tokens/s {useful / 1e12:.3f} TFLOP/s "
            f"(MFU {100 * metrics['mfu']:.0f} %) eta {clock(remaining)}"
        )
        if metrics["waiting_share"] > 0.1 and steps > 1:
            run.say(f"warning: {100 * metrics['waiting_share']:.0f} % of the time went to waiting for data")
        run.log(metrics)


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


def _lock_directory(directory: Path) -> Any:
    """Take the directory for this run; the lock goes with the process, however it ends."""
    with writing(f"output_dir {directory}", "choose another"):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise OutputError(f"another run is writing to {directory} ({lock.read().strip()}); stop it first") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    return lock


def _compare_settings(checkpoint: Path, written: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = [
        f"{key}: {written.get(key)!r} there, {asked.get(key)!r} now"
        for key in sorted(written.keys() | asked.keys())
        if written.get(key) != asked.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint} belongs to a run with other settings ({'; '.join(differing)}); "
            "use those, or another output_dir"
        )


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The log's whole lines; a kill may have cut the last one short."""
    entries = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return entries

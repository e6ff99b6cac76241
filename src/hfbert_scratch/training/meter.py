"""Training metrics: summed on the device, read when a log line, an evaluation or a checkpoint is due."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..utils.errors import DivergenceError
from ..utils.files import write_json
from .accelerator import sum_dtype
from .batches import StepBatch
from .hardware.throughput import clock
from .run import Run


class TrainingMetrics:
    """Accumulate metrics on the device; synchronise only when logging, evaluating or saving.

    Args:
        run: the run whose log and progress take the metrics.
        flops_per_token: useful FLOPs per token of a mean sequence length, for the MFU.
    """

    PARTS = ("loss", "masked_lm_loss", "next_sentence_loss")

    def __init__(self, run: Run, flops_per_token: Callable[[float], float]):
        self.run = run
        self.flops_per_token = flops_per_token
        _ = run.peak  # time it before the steps, if it is not known yet
        # In float64 a sum of float32 losses is exact, so that it may be split at a checkpoint.
        self.losses = torch.zeros(len(self.PARTS), dtype=sum_dtype(run.device), device=run.device)
        self.gradient_norms = torch.zeros((), dtype=sum_dtype(run.device), device=run.device)
        self.first_bad_step = torch.full((), math.inf, device=run.device)
        self.unchecked: dict[int, dict[str, np.ndarray]] = {}
        self.tokens = self.squared_lengths = 0
        self.waited = 0.0
        self.parts_seen: list[str] = []
        self.started = time.perf_counter()

    def time_waiting(self, batches: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Yield the batches, adding up the time the loop waits for them."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, outputs: Any) -> None:
        """Add the losses of one micro-batch."""
        self.parts_seen = [name for name in self.PARTS if getattr(outputs, name, None) is not None]
        # `parts_seen` is a prefix of PARTS: add all losses in one operation.
        losses = [getattr(outputs, name).detach() for name in self.parts_seen]
        self.losses[: len(losses)] += torch.stack(losses)

    def end_step(self, batch: StepBatch, gradient_norm: torch.Tensor) -> None:
        """Add one optimizer step, number `run.progress.step`."""
        self.gradient_norms += gradient_norm
        bad = torch.where(torch.isfinite(gradient_norm), math.inf, float(self.run.progress.step))
        self.first_bad_step = torch.minimum(self.first_bad_step, bad)
        self.unchecked[self.run.progress.step] = batch.examples
        self.tokens += batch.num_tokens
        self.squared_lengths += batch.squared_lengths
        self.run.update_bar()
        if self.run.device.type == "cpu":
            self.check_finite()

    def check_finite(self) -> None:
        """Raise DivergenceError if a gradient so far was not finite; diverged.json lists its examples."""
        step = self.first_bad_step.item()
        if math.isfinite(step):
            examples = {name: column.tolist() for name, column in self.unchecked[int(step)].items()}
            report = self.run.directory / "diverged.json"
            if self.run.writes:
                write_json(report, {"step": int(step), "examples": examples})
            raise DivergenceError(
                f"the gradient of step {int(step)} is not finite ({report} lists its examples); the checkpoints "
                f"before it in {self.run.checkpoints} are intact: lower the learning rate, lengthen the warm-up or "
                "use float32, and start again"
            )
        self.unchecked.clear()

    def collect(self) -> None:
        """Sum over all processes into `run.progress`, which checkpoints save."""
        self.check_finite()
        accelerator, progress = self.run.accelerator, self.run.progress
        work = torch.tensor([self.tokens, self.squared_lengths], dtype=self.losses.dtype, device=self.run.device)
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
        """Stop the clock: evaluation and saving are not training time."""
        self.collect()
        yield
        self.started = time.perf_counter()

    def log(self, learning_rate: float) -> None:
        """Print and record the metrics since the last line."""
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
        run.bar.show(loss=f"loss {metrics[self.parts_seen[0]]:.3f}")
        run.print(
            f"step {progress.step}/{run.arguments.max_steps} {parts} lr {learning_rate:.2e} "
            f"grad {metrics['gradient_norm']:.2f} {rate / 1e3:.1f}k tokens/s {useful / 1e12:.3f} TFLOP/s "
            f"(MFU {100 * metrics['mfu']:.0f} %) eta {clock(remaining)}"
        )
        if metrics["waiting_share"] > 0.1 and steps > 1:
            run.print(f"warning: {100 * metrics['waiting_share']:.0f} % of the time went to waiting for data")
        run.log(metrics)
        self.started = time.perf_counter()  # neither a peak that is timed again nor the trackers are training time

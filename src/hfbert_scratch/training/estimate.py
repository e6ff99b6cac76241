"""Estimate a run before it is started: time a few of its steps and an evaluation on this machine, write nothing.

    with Rehearsal(arguments, fingerprint) as run:
        model, optimizer, _ = prepare(run, model)
        estimate = time_steps(run, model, optimizer, [Stretch(0, arguments.max_steps, batches)], …)
    run.print(describe_estimate(estimate, arguments.price))

The steps are those of the run itself: its data, precision, attention, processes. They run through the same loop.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ..utils.arguments import argument
from ..utils.environment import peak_host_bytes
from ..utils.errors import InputError
from ..utils.quantities import count_text, size_text
from .arguments import NEVER, TrainingArguments
from .batches import StepBatch
from .distributed import StopController
from .hardware.throughput import clock
from .loop import evaluate_between_steps, train
from .run import Progress, Run


# Seconds of steps that are timed in each stretch, and the fewest steps.
TIMED_SECONDS, LEAST_STEPS = 15.0, 3
# Steps that are not timed: the first ones allocate; on a GPU they also compile, and record a graph for every shape.
WARMUP_STEPS = {"cpu": 2, "cuda": 20}
# Steps between two readings of the clock: on a GPU each reading waits for the device.
STEPS_PER_READING = {"cpu": 1, "cuda": 5}


@dataclass(kw_only=True)
class EstimateArguments:
    """Options of recipes that can estimate a run beforehand."""

    estimate: bool = argument(
        False,
        help="time a few steps and an evaluation on this machine, print hours, tokens/s, memory and disk, and write "
        "nothing",
        group="estimate",
        semantic=False,
    )
    price: float | None = argument(
        None,
        help="with --estimate: price of all machines together, an hour",
        at_least=0,
        group="estimate",
        semantic=False,
    )

    def check_price(self) -> None:
        """Raise InputError for a price without an estimate."""
        if self.price is not None and not self.estimate:
            raise InputError("--price is an hour's price for --estimate; give --estimate as well")


@dataclass(frozen=True)
class Stretch:
    """A part of a run whose steps cost about the same.

    Attributes:
        first_step: optimizer steps before it.
        steps: its optimizer steps.
        batches: its batches, from the first on.
        tokens: real tokens of all its steps; None: as in the steps that are timed.
    """

    first_step: int
    steps: int
    batches: Iterable[StepBatch]
    tokens: float | None = None


@dataclass(frozen=True)
class Estimate:
    """One run, or several one after another.

    Attributes:
        runs: how many.
        steps: optimizer steps.
        timed_steps: steps that were timed for it.
        tokens: real tokens, all processes together.
        start_seconds: before the first step, and what the first steps take beyond the later ones.
        training_seconds: of the steps.
        evaluation_seconds: of all evaluations.
        evaluations: how many.
        host_bytes: peak memory of all processes together.
        device_bytes: peak memory of the fullest GPU; 0 without one.
        checkpoint_bytes: one checkpoint.
        checkpoints: how many are kept at the end.
        most_checkpoints: how many there can be at a time: the best one, and one that is being written.
        model_bytes: all directories of finished models.
        cache_bytes: features that the run keeps on disk.
    """

    runs: int
    steps: int
    timed_steps: int
    tokens: float
    start_seconds: float
    training_seconds: float
    evaluation_seconds: float
    evaluations: float
    host_bytes: int
    device_bytes: int
    checkpoint_bytes: int
    checkpoints: int
    most_checkpoints: int
    model_bytes: int
    cache_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Time from start to end."""
        return self.start_seconds + self.training_seconds + self.evaluation_seconds

    @property
    def disk_bytes(self) -> int:
        """Space that is taken when the run is done."""
        return self.checkpoints * self.checkpoint_bytes + self.model_bytes + self.cache_bytes

    @property
    def most_disk_bytes(self) -> int:
        """The most space that is taken at a time."""
        return self.most_checkpoints * self.checkpoint_bytes + self.model_bytes + self.cache_bytes

    def scaled(self, steps: int) -> "Estimate":
        """Return the estimate of the same run with another number of steps, and as many evaluations."""
        share = steps / self.steps
        return dataclasses.replace(
            self, steps=steps, tokens=self.tokens * share, training_seconds=self.training_seconds * share
        )


class Rehearsal(Run):
    """A run that makes a few steps of a planned one to time them, and writes nothing.

    Args:
        planned: arguments of the run that is estimated; `self.planned`. Those of the rehearsal itself never evaluate,
            save or stop by time.
        fingerprint, end_training: as for `Run`.
    """

    records = False
    estimate: Estimate  # set by who times the steps, for a caller that made the run

    def __init__(self, planned: Any, fingerprint: dict[str, Any], *, end_training: bool = True):
        changes = {"eval_every": NEVER, "save_every": NEVER, "trackers": [], "max_time": 0.0, "schedule": "steps"}
        super().__init__(dataclasses.replace(planned, **changes), fingerprint, end_training=end_training)
        self.planned: TrainingArguments = planned
        self.arguments.log_every = STEPS_PER_READING["cpu" if self.device.type == "cpu" else "cuda"]
        self._is_timing = False
        self._readings: list[tuple[int, float, int]] = []  # steps, seconds, tokens

    def resume(self, model: nn.Module) -> Path | None:
        """Start from the model as it is, whatever output_dir holds."""
        return None

    def save(self, *arguments: Any) -> None:
        """Save nothing."""

    def print(self, text: str) -> None:
        """Print, but not the lines of the steps that are timed."""
        if not self._is_timing:
            super().print(text)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Print nothing meanwhile."""
        self._is_timing = True
        try:
            yield
        finally:
            self._is_timing = False

    def start_bar(self) -> None:
        """Show no bar."""

    def log(self, metrics: dict[str, float]) -> None:
        """Read the clock, and end the steps when enough of them were timed."""
        super().log(metrics)
        if "tokens_per_second" in metrics:
            self._readings.append((self.progress.step, self.progress.seconds, self.progress.tokens))
            steps, seconds, _ = self._timed()
            if len(self._readings) > self._warm + 1 and steps >= LEAST_STEPS and seconds >= TIMED_SECONDS:
                self.stopping.end("the end of the rehearsal")

    def time(self, first_step: int, train_on: Callable[[], Any]) -> tuple[tuple[int, float, int], float]:
        """Time steps.

        Args:
            first_step: optimizer steps before them.
            train_on: trains until `stopping` ends it.

        Returns:
            Steps, seconds and tokens without the first steps (with them where there were no others); and the seconds
            that the first steps took beyond as many later ones.
        """
        self.stopping.release_signals()
        self.stopping = StopController(self.accelerator)
        self.progress = Progress(step=first_step)
        self._readings = [(first_step, 0.0, 0)]
        with self.quiet():
            train_on()
        if self.stopping.signalled:
            raise KeyboardInterrupt
        steps, seconds, tokens = self._timed()
        first, last = self._readings[0], self._readings[-1]
        begun = last[1] - first[1] - seconds - (last[0] - first[0] - steps) * seconds / steps
        return (steps, seconds, tokens), max(0.0, begun)

    @property
    def _warm(self) -> int:
        """The reading after the warm-up."""
        return WARMUP_STEPS["cpu" if self.device.type == "cpu" else "cuda"] // self.arguments.log_every

    def _timed(self) -> tuple[int, float, int]:
        start = self._readings[self._warm if len(self._readings) > self._warm + 1 else 0]
        steps, seconds, tokens = (end - begin for end, begin in zip(self._readings[-1], start, strict=True))
        return int(steps), seconds, int(tokens)


def time_steps(
    run: Rehearsal,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stretches: Sequence[Stretch],
    *,
    evaluate: Callable[[], Any],
    evaluations: float,
    start_seconds: float,
    cache_bytes: int = 0,
    **options: Any,
) -> Estimate:
    """Time steps of every stretch, and an evaluation; all processes must call this.

    Args:
        run, model, optimizer: as `prepare` returned them.
        stretches: the parts of the run, in order.
        evaluate: evaluates, on all of the data or a part.
        evaluations: how many such evaluations the run has.
        start_seconds: what the run takes before its first step.
        cache_bytes: features that the run would keep on disk.
        options: as for `train`.
    """
    evaluation_seconds: list[float] = []
    timed_steps, training_seconds, tokens = 0, 0.0, 0.0

    def timed_evaluation() -> dict[str, float]:
        start = time.perf_counter()
        evaluate()
        evaluation_seconds.append(time.perf_counter() - start)
        return {}

    for stretch in stretches:
        (steps, seconds, read), first_seconds = run.time(
            stretch.first_step,
            lambda batches=stretch.batches: train(  # type: ignore[misc]
                run, model, optimizer, batches, evaluate=timed_evaluation, **options
            ),
        )
        stretch_tokens = read / steps * stretch.steps if stretch.tokens is None else stretch.tokens
        training_seconds += seconds / read * stretch_tokens
        tokens += stretch_tokens
        timed_steps += steps
        start_seconds += first_seconds
    if not evaluation_seconds:
        with run.quiet():
            evaluate_between_steps(model, timed_evaluation)
    estimate = Estimate(
        runs=1,
        steps=sum(stretch.steps for stretch in stretches),
        timed_steps=timed_steps,
        tokens=tokens,
        start_seconds=start_seconds,
        training_seconds=training_seconds,
        evaluation_seconds=evaluation_seconds[-1] * evaluations,
        evaluations=evaluations,
        cache_bytes=cache_bytes,
        **_memory_and_disk(run, model, optimizer, sum(stretch.steps for stretch in stretches)),
    )
    return _within_max_time(run, estimate) if run.planned.schedule == "time" else estimate


def _within_max_time(run: Rehearsal, estimate: Estimate) -> Estimate:
    """Cut a run at the time it has, which begins when it opens its directory and not with the launch."""
    python_start = run.stopping.seconds_since_launch() - run.stopping.seconds()
    budget = 60 * run.planned.max_time + python_start
    share = (budget - estimate.start_seconds) / (estimate.seconds - estimate.start_seconds)
    if share >= 1:
        return estimate
    share = max(share, 0.0)
    cut = estimate.scaled(max(1, int(share * estimate.steps)))
    evaluations = {name: share * getattr(estimate, name) for name in ("evaluations", "evaluation_seconds")}
    return dataclasses.replace(cut, **evaluations)


def _memory_and_disk(run: Rehearsal, model: nn.Module, optimizer: Any, steps: int) -> dict[str, int]:
    """Return an estimate's fields of memory and disk, for a run of so many steps."""
    weights, moments = _model_and_optimizer_bytes(run, model, optimizer)
    host, device = _peak_memory(run, moments)
    keep, saves = run.planned.keep_checkpoints, -(-steps // run.planned.save_every)
    return {
        "host_bytes": host,
        "device_bytes": device,
        "checkpoint_bytes": weights + moments,
        "checkpoints": min(keep, saves),
        "most_checkpoints": min(keep + 2, saves) if keep else 0,
        "model_bytes": weights,
    }


def _model_and_optimizer_bytes(run: Run, model: nn.Module, optimizer: Any) -> tuple[int, int]:
    """Return the size of the weights and of the optimizer's state, whole where they are sharded."""
    parameters = run.accelerator.unwrap_model(model, keep_torch_compile=False).parameters()
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    moments = [torch.as_tensor(value) for state in states for value in state.values()]
    return _bytes(parameters), _bytes(moments)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_memory(run: Run, moments: int) -> tuple[int, int]:
    """Return the peak memory of all processes' hosts together, and of the fullest GPU."""
    host = peak_host_bytes()
    device = 0
    if run.device.type == "cuda":
        device = torch.cuda.max_memory_reserved(run.device)
        host += moments if run.is_main else 0  # a checkpoint is written from a copy on the host
    peaks = gather_object([(host, device)])
    return sum(peak[0] for peak in peaks), max(peak[1] for peak in peaks)


def total(estimates: Sequence[Estimate], parallel: int = 1) -> Estimate:
    """Add the estimates of several runs.

    Args:
        estimates: the runs'.
        parallel: how many of them run at a time.

    Returns:
        Their sum, and the memory of the largest, `parallel` times.
    """

    def sum_of(name: str) -> Any:
        return sum(getattr(estimate, name) for estimate in estimates)

    def largest(name: str) -> int:
        return max(getattr(estimate, name) for estimate in estimates)

    extra = max(estimate.most_checkpoints - estimate.checkpoints for estimate in estimates)
    seconds = {name: sum_of(name) / parallel for name in ("start_seconds", "training_seconds", "evaluation_seconds")}
    added = ("runs", "steps", "timed_steps", "tokens", "evaluations", "checkpoints", "model_bytes", "cache_bytes")
    return Estimate(
        **{name: sum_of(name) for name in added},
        **seconds,
        host_bytes=parallel * largest("host_bytes"),
        device_bytes=largest("device_bytes"),
        checkpoint_bytes=largest("checkpoint_bytes"),
        most_checkpoints=sum_of("checkpoints") + parallel * extra,
    )


def describe_estimate(estimate: Estimate, price: float | None = None, title: str = "") -> str:
    """Describe an estimate in lines for people, and in a last one as JSON.

    Args:
        estimate: the estimate.
        price: of an hour.
        title: more about the runs.
    """
    return "\n".join([*_lines(estimate, price, title), json.dumps(as_json(estimate, price))])


def _lines(e: Estimate, price: float | None, title: str) -> Iterator[str]:
    runs = f"{e.runs:,} runs, " if e.runs > 1 else ""
    yield f"estimate: {e.seconds / 3600:.2f} hours ({clock(e.seconds)}) for {runs}{e.steps:,} steps{title}"
    step, rate = e.training_seconds / e.steps, e.tokens / e.training_seconds
    yield (
        f"  steps       {clock(e.training_seconds):>9}  {step:.3f} s each, {rate / 1e3:.1f}k tokens/s, "
        f"{count_text(e.tokens)} tokens in all"
    )
    yield f"  evaluation  {clock(e.evaluation_seconds):>9}"
    yield f"  start       {clock(e.start_seconds):>9}  to the first step, and its compilation"
    yield f"  memory      {size_text(e.host_bytes)} of the host" + (
        f", {size_text(e.device_bytes)} of the GPU" if e.device_bytes else ""
    )
    parts = [
        f"{e.checkpoints} × {size_text(e.checkpoint_bytes)} of checkpoints" if e.checkpoints else "",
        f"model {size_text(e.model_bytes)}" if e.model_bytes else "",
        f"features {size_text(e.cache_bytes)}" if e.cache_bytes else "",
    ]
    yield f"  disk        {size_text(e.disk_bytes)}: {', '.join(filter(None, parts)) or 'logs and results'}"
    if e.most_disk_bytes > e.disk_bytes:
        yield f"              at most {size_text(e.most_disk_bytes)}, with the best checkpoint and a new one beside"
    if price is not None:
        yield f"  money       {price * e.seconds / 3600:,.2f}, at {price:g} an hour"
    yield f"timed over {e.timed_steps} steps on this machine; the writing of checkpoints is not counted"


def as_json(estimate: Estimate, price: float | None = None) -> dict[str, Any]:
    """Return an estimate as JSON: its fields and the figures derived from them."""
    fields = dataclasses.asdict(estimate) | {
        "seconds": estimate.seconds,
        "hours": estimate.seconds / 3600,
        "tokens_per_second": estimate.tokens / estimate.training_seconds,
        "disk_bytes": estimate.disk_bytes,
        "most_disk_bytes": estimate.most_disk_bytes,
        "price": price,
        "money": None if price is None else price * estimate.seconds / 3600,
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}

"""A training run in its directory: arguments, accelerator, lock, log, trackers, checkpoints, resume."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from safetensors.torch import load_model, save_file
from torch import nn

from ..model.gpu import can_compile
from ..model.layout_hfbert import has_varlen_kernel
from ..model.onednn import has_onednn, onednn_is_faster, onednn_speed
from ..utils.arguments import non_semantic_arguments, save_arguments
from ..utils.directories import atomic_directory, own_directory
from ..utils.environment import disable_malloc_trim, hardware, hub_commits, versions
from ..utils.errors import CheckpointError, DivergenceError, InputError
from ..utils.files import differences, read_json, write_json, write_text, writing
from ..utils.progress import TrainingBar, fold
from .accelerator import compute_dtype, create_accelerator, precision_name
from .arguments import AUTO, COMPILE, SWITCH, TrainingArguments
from .checkpoints import checkpoint_steps, newest_checkpoint, optimizer_tensors, write_checkpoint
from .distributed import StopController, first_process_says
from .fsdp import full_state_dict, is_sharded, meta_copy
from .hardware.memory import is_out_of_memory, out_of_memory
from .hardware.spinning import Spinning
from .hardware.throughput import peak_flops


@dataclass
class Progress:
    """The position of a run, saved with every checkpoint."""

    step: int = 0
    cursor: Any = None
    tokens: int = 0
    seconds: float = 0.0
    # Of all launches, evaluations and checkpoints included, for a schedule by time.
    elapsed: float = 0.0
    # Sums since the last log line, so that the line after a resume is the line of the uninterrupted run.
    window: dict[str, float] = field(default_factory=dict)
    window_start: int = 0


class Run:
    """One training run in one directory; a context manager that holds the directory's lock.

    The constructor sets up Accelerate and prints nothing. Set `best_by`, a metric and `min` or `max`, to keep the best
    checkpoint however old it gets.

    Args:
        arguments: the options.
        fingerprint: facts beyond the options that a resumed run must share with the checkpoints (hashes of data and
            tokenizer); with the options and choices they are `self.settings`.
        end_training: no other run follows in these processes.

    Raises:
        InputError: if the launch does not fit the options.
        OutputError: if the directory is not writable, or another run uses it.
    """

    # Whether anything is written to the directory. A run that only times its steps leaves it as it is.
    records = True

    def __init__(self, arguments: TrainingArguments, fingerprint: dict[str, Any], *, end_training: bool = True):
        if self.records and getattr(arguments, "estimate", False):
            raise InputError("this run cannot be estimated; leave --estimate out")
        self.arguments = arguments
        self._end_training = end_training
        self.directory = Path(arguments.output_dir)
        disable_malloc_trim()
        recorded = self.recorded = self._recorded_settings()
        # One line for each choice that was made for this machine, for the log.
        self.choices: list[str] = []
        precision = arguments.precision
        if precision == "auto":
            precision = recorded.get("precision", "auto")  # a run that goes on keeps what it began with
        self.accelerator = create_accelerator(precision, arguments.trackers, self.directory, arguments.process_timeout)
        self.is_main = self.accelerator.is_main_process
        self.writes = self.is_main and self.records
        self.bar = TrainingBar(enabled=self.writes)
        self.device = self.accelerator.device
        self.dtype = compute_dtype(self.accelerator)
        self.precision = precision_name(self.dtype)
        if arguments.precision == "auto":
            reason = "as the run began" if "precision" in recorded else "the faster on this device"
            self.choices.append(f"precision {self.precision}: {reason}")
        if arguments.micro_batch_size == AUTO:  # a run that goes on keeps what was found
            for name in {"micro_batch_size", "long_micro_batch_size"} & recorded.keys():
                setattr(arguments, name, recorded[name])
        self._choose_ways(recorded)
        self._choose_onednn(recorded)
        self.settings = json.loads(json.dumps(self._fixed_arguments() | fingerprint))
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.best_by: tuple[str, Callable[..., Any]] | None = None
        self.patience = 0
        self.stopping = StopController(self.accelerator, arguments.max_time, is_budget=arguments.schedule == "time")
        self.spinning = Spinning(self.device)
        transformers.utils.logging.disable_progress_bar()  # a bar for each checkpoint would drown the log
        self._lock = ExitStack()
        if self.writes:
            self._lock.enter_context(own_directory(self.directory))
        self.accelerator.wait_for_everyone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        self.stopping.release_signals()
        self.spinning.restore()
        self._lock.close()
        if is_out_of_memory(error[1]):
            size = self.arguments.micro_batch_size
            raise out_of_memory(self.device, self.progress.step, size, error[1]) from error[1]
        if error[0] is None:  # after an error the other processes may not come to this point
            if self._end_training:
                self.accelerator.end_training()
            for tracker in [] if self._end_training else self.accelerator.trackers:
                tracker.finish()

    @cached_property
    def peak(self) -> tuple[float, str]:
        """Return this device's peak FLOP/s in the run's precision, and the figure's source; see `peak_flops`."""
        return peak_flops(self.device, self.dtype)

    def raise_peak(self, reached: float) -> None:
        """Time the peak again if the steps made more FLOP/s than it: `reached` is this device's share of them.

        Other work ran beside the first timing, if it gave less than the steps reached. A datasheet's peak stays.
        """
        peak, source = self.peak
        if reached <= peak or source.startswith("datasheet"):
            return
        again, source = peak_flops(self.device, self.dtype)
        self.peak = max(again, reached), source if again >= reached else "what the steps reached"
        self.print(
            f"the peak of {peak / 1e12:.3f} TFLOP/s was timed beside other work, for the steps made more; "
            f"it is {self.peak[0] / 1e12:.3f} TFLOP/s from now on ({self.peak[1]})"
        )

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def best_step(self) -> int | None:
        """Return the step of the best evaluation with a checkpoint, the earliest of equal ones."""
        if self.best_by is None:
            return None
        metric, best = self.best_by
        steps = {*checkpoint_steps(self.checkpoints), self.progress.step}
        entries = [entry for entry in self.history if metric in entry and entry["step"] in steps]
        return int(best(entries, key=lambda entry: entry[metric])["step"]) if entries else None

    def is_best_so_far(self, metrics: dict[str, float]) -> bool:
        """Tell whether an evaluation beats all evaluations before by `best_by`.

        Args:
            metrics: not logged yet, with the metric of `best_by`.

        Returns:
            True if it does. False for an equal one, and without `best_by`.
        """
        if self.best_by is None:
            return False
        metric, best = self.best_by
        earlier = [entry[metric] for entry in self.history if metric in entry]
        return metrics[metric] not in earlier and best([*earlier, metrics[metric]]) == metrics[metric]

    @property
    def is_stale(self) -> bool:
        """Return whether the last `patience` evaluations were no better than the best one before them."""
        if not self.patience or self.best_by is None:
            return False
        metric, best = self.best_by
        values = [entry[metric] for entry in self.history if metric in entry]
        return len(values) - values.index(best(values)) > self.patience if values else False

    def print(self, text: str) -> None:
        """Print, on the main process only; on a terminal above the progress bar and no wider than its lines."""
        if self.is_main:
            self.bar.print(fold(text))

    def start_bar(self) -> None:
        """Show the progress bar: by steps, or by time where the schedule goes by time."""
        by_time = self.arguments.schedule == "time"
        self.bar.start(60 * self.arguments.max_time if by_time else self.arguments.max_steps, *self._position())

    def update_bar(self) -> None:
        """Move the bar to the current step."""
        self.bar.update(*self._position())

    def _position(self) -> tuple[float, str]:
        step, by_time = self.progress.step, self.arguments.schedule == "time"
        return self.stopping.seconds() if by_time else step, f"{step}/{self.arguments.max_steps}"

    # Resume and checkpoints

    def resume(self, model: nn.Module) -> Path | None:
        """Load the newest whole checkpoint into the model, if there is one.

        Args:
            model: not yet wrapped.

        Returns:
            The checkpoint. None: the run begins.

        Raises:
            CheckpointError: if all are damaged, or if it was written with other settings, listing them.
        """
        checkpoint = newest_checkpoint(self.checkpoints, lambda text: self.print(f"warning: {text}"))
        if checkpoint is None:
            if self.writes:
                self._log_path.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
            return None
        state = read_json(checkpoint / "training_state.json", "checkpoint")
        # Options added after the checkpoint was written count as their defaults, which reproduce the old behaviour.
        defaults = {field.name: field.default for field in dataclasses.fields(self.arguments)}
        defaults |= {"packing": False, "compile": False, "onednn": self.settings["onednn"]}
        defaults["max_time"] = self.arguments.max_time  # was not compared in runs by time
        since = {name: defaults[name] for name in self.settings.keys() & defaults.keys() - state["settings"].keys()}
        _compare_settings(checkpoint, since | state["settings"], self.settings)
        load_model(model, checkpoint / "model.safetensors")
        self.progress = Progress(**state["progress"])
        self.stopping.resume(self.progress.elapsed)
        self.history = [entry for entry in _read_log(self._log_path) if entry["step"] <= self.progress.step]
        if self.writes:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
            # At once: a kill must not cost the log, and the other processes are reading it.
            write_text(self._log_path, lines)
        written_with = f"{state['processes']} process(es){', sharded' if state.get('sharded') else ''}"
        self.print(f"continuing from {checkpoint} (step {self.progress.step}, written by {written_with})")
        return checkpoint

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, save_extra: Callable[[Path], None]) -> None:
        """Write checkpoint step-N: a model directory, the optimizer and the progress. All processes must call this.

        With keep_checkpoints 0 nothing is written.

        Args:
            model: as `prepare` returned it, wrapped or not.
            optimizer: as `prepare` returned it.
            save_extra: adds files, such as the tokenizer, to the directory that it gets.

        Raises:
            DivergenceError: if a weight is not finite; nothing is written.
            OutputError: if the checkpoint cannot be written; earlier ones are intact.
        """
        max_to_keep = self.arguments.keep_checkpoints
        self.progress.elapsed = self.stopping.seconds()
        if max_to_keep:
            plain, weights = self._to_save(model)
            unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
            sharded = is_sharded(unwrapped)
            if self.is_main or sharded:
                moments = optimizer_tensors(getattr(optimizer, "optimizer", optimizer), unwrapped, self.is_main)
        if self.writes and max_to_keep:
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

            write_checkpoint(self.checkpoints, self.progress.step, write, max_to_keep, self.best_step)
        self.accelerator.wait_for_everyone()

    @property
    def revisions(self) -> Path:
        """Return the directory of models that are kept under names, for revisions of a repository."""
        return self.directory / "revisions"

    def save_revision(self, model: nn.Module, save_extra: Callable[[Path], None], name: str) -> None:
        """Write revisions/NAME as a checkpoint has its model, unless it is there. All processes must call this.

        Args:
            model: as `prepare` returned it, wrapped or not.
            save_extra: adds files, such as the tokenizer, to the directory that it gets.
            name: of the revision, and of its directory.

        Raises:
            DivergenceError: if a weight is not finite; nothing is written.
            OutputError: if the directory cannot be written.
        """
        plain, weights = self._to_save(model)
        target = self.revisions / name
        if self.writes and not target.exists():
            self._require_finite(weights or plain.state_dict())
            with atomic_directory(target) as directory:
                plain.save_pretrained(directory, state_dict=weights)
                save_extra(directory)

    def save_model(self, model: nn.Module, save_extra: Callable[[Path], None]) -> None:
        """Write model/ as a checkpoint has it, whatever the model is wrapped in. All processes must call this.

        Args:
            model: as `prepare` returned it, wrapped or not.
            save_extra: adds files, such as the tokenizer, to the directory that it gets.

        Raises:
            OutputError: if the directory cannot be written.
        """
        plain, weights = self._to_save(model)
        if self.writes:
            directory = self.directory / "model"
            with writing(directory):
                plain.save_pretrained(directory, state_dict=weights)
                save_extra(directory)

    def _to_save(self, model: nn.Module) -> tuple[transformers.PreTrainedModel, dict[str, torch.Tensor] | None]:
        """Return the model to save and its full state, or None for the model's own state."""
        unwrapped: Any = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if is_sharded(unwrapped):
            return meta_copy(unwrapped), full_state_dict(unwrapped, self.is_main)
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

    def save_arguments(self) -> None:
        """Write arguments.yaml, which `--config` reads back."""
        if self.writes:
            save_arguments(self.arguments, self.directory / "arguments.yaml")

    def start_trackers(self) -> None:
        """Open the trackers the arguments name."""
        config = {key: str(value) for key, value in dataclasses.asdict(self.arguments).items()}
        # A run that is continued goes on under its name in the project.
        trackio = {"name": str(self.directory), "resume": "allow", "embed": False}
        self.accelerator.init_trackers("hfbert", config=config, init_kwargs={"trackio": trackio})

    def log(self, metrics: dict[str, float]) -> None:
        """Append one line of metrics at the current step to log.jsonl and send it to the trackers."""
        entry = {"step": self.progress.step} | metrics
        self.history.append(entry)
        self.accelerator.log(metrics, step=self.progress.step)
        if self.writes:
            with writing(self._log_path), self._log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def write_record(self, **entries: Any) -> None:
        """Write record.json: arguments, resolved settings, versions, hardware and `entries`."""
        record = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": dataclasses.asdict(self.arguments),
            "settings": self.settings,
            "processes": self.accelerator.num_processes,
            "versions": versions(),
            "from_hub": hub_commits(),
            "hardware": hardware(self.device),
            "steps": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 1),
        } | entries
        if self.writes:
            write_json(self.directory / "record.json", record)

    def _recorded_settings(self) -> dict[str, Any]:
        """Return the settings of the newest checkpoint; `resume` checks that it is whole."""
        step = max(checkpoint_steps(self.checkpoints), default=0)
        state = self.checkpoints / f"step-{step}" / "training_state.json"
        try:
            return json.loads(state.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def _choose_ways(self, recorded: dict[str, Any]) -> None:
        """Resolve `packing`, `compile` and `cuda_graphs`; a resumed run keeps its packing and compile."""
        packing, graphs = SWITCH[self.arguments.packing], SWITCH[self.arguments.cuda_graphs]
        way = COMPILE[self.arguments.compile]
        has_kernel = self.dtype == torch.bfloat16 and has_varlen_kernel(self.device, torch.bfloat16, head_size=64)
        if packing is None:
            packing = recorded.get("packing", False) if recorded else has_kernel
        if way is None:
            best = "layers" if has_kernel and can_compile() else False
            way = recorded.get("compile", False) if recorded else best
        if graphs is None:
            alone = self.accelerator.num_processes == 1 and not self.arguments.gradient_checkpointing
            graphs = has_kernel and packing and alone
        self.packing: bool = packing
        self.compile: bool | str = way
        self.cuda_graphs: bool = graphs

    def _choose_onednn(self, recorded: dict[str, Any]) -> None:
        """Resolve `onednn`: the option, else the value of the resumed run, else the faster one here."""
        possible = self.dtype == torch.float32 and not self.compile and has_onednn(self.device, torch.float32)
        asked = SWITCH[self.arguments.onednn]
        if asked and not possible:
            raise InputError(
                "onednn true needs float32 on a CPU, without compile, and a PyTorch with oneDNN; leave it out"
            )
        # Where it is not possible it stays recorded.
        self.onednn = recorded.get("onednn", False) if asked is None else asked
        if asked is not None or not possible:
            return
        reason = "as the run began"
        if "onednn" not in recorded:
            self.onednn, speed = first_process_says(lambda: (onednn_is_faster(), onednn_speed()))
            reason = f"oneDNN was timed to be {speed:.2f} times as fast as PyTorch's choice"
        self.choices.append(f"linear layers by {'oneDNN' if self.onednn else 'PyTorch'}: {reason}")

    def choose_attention(self, ask: Callable[[], str]) -> str:
        """Resolve attention "auto", and record the choice.

        On a CPU eager and sdpa are chosen by timing and differ in bits, so that a run that goes on keeps its own.

        Args:
            ask: returns the fastest implementation; the answer of the first process counts.

        Returns:
            A name for `set_attn_implementation`.
        """
        chosen, reason = first_process_says(ask), "the fastest for this model here"
        before = self.recorded.get("chosen_attention")
        timed = ("eager", "sdpa")
        if self.device.type == "cpu" and chosen in timed and before in timed:
            chosen, reason = before, "as the run began"
        self.settings["chosen_attention"] = chosen
        self.choices.append(f"attention {chosen}: {reason}")
        return chosen

    def choose_micro_batch_size(self, size: int, name: str = "micro_batch_size") -> None:
        """Record the micro-batch that `auto` came to; a run that goes on keeps it."""
        setattr(self.arguments, name, size)
        self.settings[name] = size
        self.save_arguments()
        self.print(f"{name} {size}: the largest that fits into memory")

    def _fixed_arguments(self) -> dict[str, Any]:
        free = set(non_semantic_arguments(type(self.arguments)))
        if self.arguments.schedule == "time":
            free.discard("max_time")  # the learning rate falls with it
        fixed = {name: value for name, value in dataclasses.asdict(self.arguments).items() if name not in free}
        ways = {"packing": self.packing, "compile": self.compile, "cuda_graphs": self.cuda_graphs}
        ways["onednn"] = self.onednn
        return fixed | {"precision": self.precision} | ways


def _compare_settings(checkpoint: Path, written: dict[str, Any], asked: dict[str, Any]) -> None:
    # Recording changes no number, so a run may go on where it is not possible. `choose_attention` keeps attention.
    compared = (
        {name: value for name, value in settings.items() if name not in ("cuda_graphs", "chosen_attention")}
        for settings in (written, asked)
    )
    if differing := differences(*compared):
        is_longer = written.get("max_steps") != asked.get("max_steps")
        hint = "; to train on, start a new run with --model" if is_longer else ""
        raise CheckpointError(
            f"{checkpoint} belongs to a run with other settings ({differing}); use those, or another output_dir{hint}"
        )


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of the log; a kill may have truncated the last one."""
    entries = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return entries

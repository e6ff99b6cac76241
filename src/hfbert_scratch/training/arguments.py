"""Options that every training run has, with their bounds."""

import math
from dataclasses import dataclass

from ..utils.arguments import argument, check_arguments
from ..utils.environment import process_count
from ..utils.errors import InputError
from .distributed import TIMEOUT_SECONDS
from .optimizers import OPTIMIZERS


# Spellings of switches on the command line, and their values in records and code; None is chosen by the run.
SWITCH: dict[str, bool | None] = {"auto": None, "true": True, "false": False}
COMPILE: dict[str, bool | str | None] = {"auto": None, "layers": "layers", "true": True, "false": False}


# Steps between evaluations or checkpoints of a run that makes none before its end.
NEVER = 10**9
# The value of micro_batch_size auto, until the size is found.
AUTO = -1


def number_or_auto(text: str) -> int:
    """Parse a number, or auto."""
    return AUTO if text == "auto" else int(text)


number_or_auto.__name__ = "int"  # argparse names it in its message


@dataclass(kw_only=True)
class TrainingArguments:
    """Options of every training run; recipes add their own."""

    output_dir: str = argument(
        help="the run's directory; started again with the same command, a run continues", semantic=False
    )
    max_steps: int = argument(help="optimizer steps", at_least=1)
    batch_size: int = argument(256, help="sequences per optimizer step, over all processes", at_least=1)
    micro_batch_size: int = argument(
        32,
        help="sequences per forward pass, which must divide batch_size; or auto: the most that fit into memory",
        parse=number_or_auto,
    )
    learning_rate: float = argument(1e-4, help="peak learning rate", above=0, below=10, group="optimizer")
    warmup_steps: int | None = argument(
        None,
        help="steps of linear warm-up, then linear decay to 0; default: 1 %% of max_steps, the paper's share",
        group="optimizer",
        at_least=0,
    )
    optimizer: str = argument(
        "adamw",
        help="bert_adam is the original's AdamW, without bias correction",
        choices=OPTIMIZERS,
        group="optimizer",
    )
    weight_decay: float = argument(0.01, help="decoupled; not on biases and LayerNorm", at_least=0, group="optimizer")
    adam_beta1: float = argument(0.9, help="decay of the first moment", at_least=0, below=1, group="optimizer")
    adam_beta2: float = argument(0.999, help="decay of the second moment", at_least=0, below=1, group="optimizer")
    adam_epsilon: float = argument(1e-6, help="added to the root of the second moment", above=0, group="optimizer")
    max_grad_norm: float = argument(1.0, help="global norm the gradient is clipped to", above=0, group="optimizer")
    precision: str = argument(
        "auto",
        help="bfloat16 is autocast; auto: the faster, timed on CPUs",
        choices=("auto", "float32", "bfloat16"),
        group="speed and memory",
    )
    attention: str = argument(
        "auto", help="eager, sdpa, flex_attention, flash_attention_2…, or auto", group="speed and memory"
    )
    compile: str = argument(
        "auto",
        help="torch.compile: layers (each layer on its own: seconds), true (the whole model: a minute), false, or "
        "auto: layers on a GPU in bfloat16, else false",
        group="speed and memory",
        choices=tuple(COMPILE),
    )
    cuda_graphs: str = argument(
        "auto",
        help="true: launch all kernels of a pass at once, as a CUDA graph recorded for every shape of batch; false; "
        "or auto: with packing, on one GPU",
        group="speed and memory",
        choices=tuple(SWITCH),
    )
    onednn: str = argument(
        "auto",
        help="linear layers in float32 on CPUs: true, by oneDNN; false, by PyTorch's choice; auto: the faster, timed",
        group="speed and memory",
        choices=tuple(SWITCH),
    )
    packing: str = argument(
        "auto",
        help="true: concatenate a micro-batch's sequences into one row without padding, for variable-length attention "
        "kernels; false; or auto: true on GPUs in bfloat16 (Ampere or later), else false",
        group="speed and memory",
        choices=tuple(SWITCH),
    )
    gradient_checkpointing: bool = argument(
        False, help="recompute activations in the backward pass to save memory", group="speed and memory"
    )
    seed: int = argument(0, help="of initialisation, data order, masks and dropout", at_least=0, below=2**63)
    log_every: int = argument(
        50, help="steps between log lines", at_least=1, group="log, checkpoints, end", semantic=False
    )
    eval_every: int = argument(
        1000, help="steps between evaluations", at_least=1, group="log, checkpoints, end", semantic=False
    )
    save_every: int = argument(
        1000, help="steps between checkpoints", at_least=1, group="log, checkpoints, end", semantic=False
    )
    keep_checkpoints: int = argument(
        2,
        help="how many of the newest to keep, and the best; 0: write none, a killed run starts anew",
        group="log, checkpoints, end",
        at_least=0,
        semantic=False,
    )
    max_time: float = argument(
        0.0,
        help="minutes since the launch after which the run stops, with a checkpoint, as by a signal; 0: none",
        group="log, checkpoints, end",
        at_least=0,
        below=math.inf,
        semantic=False,
    )
    schedule: str = argument(
        "steps",
        help="when the learning rate reaches 0 and the run is done: steps, at max_steps; or time, after max_time "
        "minutes of all launches together (from when each opens output_dir), or at max_steps if they come first",
        group="optimizer",
        choices=("steps", "time"),
    )
    process_timeout: int = argument(
        TIMEOUT_SECONDS,
        help="seconds a process waits for the others before it gives up",
        group="log, checkpoints, end",
        at_least=1,
        semantic=False,
    )
    trackers: list[str] = argument(
        ["tensorboard"],
        help="accelerate's trackers: tensorboard and trackio work offline; wandb…; none",
        group="log, checkpoints, end",
        semantic=False,
    )

    def __post_init__(self) -> None:
        self._spell_switches()
        check_arguments(self)
        self._require("micro_batch_size", self.micro_batch_size == AUTO or self.micro_batch_size >= 1, "at least 1")
        if self.schedule == "time" and not self.max_time:
            raise InputError("schedule time needs max_time, the minutes the run has")
        if self.schedule == "time" and self.warmup_steps is None:
            raise InputError("schedule time needs warmup_steps; their default is a share of steps that are not known")
        if self.warmup_steps is None:
            self.warmup_steps = self.max_steps // 100
        self._require("warmup_steps", self.warmup_steps <= self.max_steps, f"0 to max_steps ({self.max_steps})")
        check_divides(self.batch_size, self.micro_batch_size)

    def _spell_switches(self) -> None:
        if self.micro_batch_size == "auto":  # from Python
            self.micro_batch_size = AUTO
        for name in ("packing", "compile", "cuda_graphs", "onednn"):
            setattr(self, name, str(getattr(self, name)).lower())  # from Python and YAML, true is True

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}")


def check_divides(batch_size: int, micro_batch_size: int) -> None:
    """Raise InputError unless a global batch is a whole number of micro-batches."""
    if micro_batch_size != AUTO and batch_size % micro_batch_size:
        raise InputError(f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size}")


def largest_micro_batch(batch_size: int, at_most: int) -> int:
    """Return the largest micro-batch that all processes can share, or 1 where there is none.

    Args:
        batch_size: examples of a step, over all processes.
        at_most: examples of a micro-batch.
    """
    processes = process_count()
    return next((size for size in range(at_most, 0, -1) if batch_size % (size * processes) == 0), 1)

"""The processes of one launch: how they find each other, how long they wait for each other, and when they stop.

Accelerate and torchrun do the work. Here is what they leave open: a store that a restarted launch can use again, an
interface for gloo that the other hosts can reach, a time limit on waiting, and one decision to stop for all.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import distributed

from ..utils.environment import is_first_process, process_count
from ..utils.errors import InputError


Answer = TypeVar("Answer")

# What torch gives NCCL; its 30 minutes for gloo keep the other hosts waiting for one that is gone.
TIMEOUT_SECONDS = 600


def leave_the_launchers_group() -> None:
    """Make this process independent, on its own GPU: for recipes whose processes share only a directory."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.split(",")[int(local)] if devices else local
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def join_processes(cpu: bool, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Connect the processes of a launch, before Accelerate does; nothing to do for a single one.

    A process that waits longer than `timeout_seconds` for another one ends with an error.
    Raises InputError when they do not meet.
    """
    if process_count() == 1 or distributed.is_initialized():
        return
    timeout = timedelta(seconds=timeout_seconds)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        if cpu and "GLOO_SOCKET_IFNAME" not in os.environ:
            # By default gloo listens where the host's name resolves to, which is often 127.0.0.1.
            interface = _interface_towards(os.environ["MASTER_ADDR"])
            if interface:
                os.environ["GLOO_SOCKET_IFNAME"] = interface
        store, rank, world_size = next(distributed.rendezvous("env://", timeout=timeout))
        # After an elastic restart the launcher's store still holds the addresses of the processes that are gone.
        store = distributed.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        distributed.init_process_group(
            "gloo" if cpu else "nccl", store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except (KeyError, ValueError, OSError, distributed.DistError) as error:
        raise InputError(
            f"the {process_count()} processes of this launch do not meet at {address} ({error}); start them "
            "with accelerate launch or torchrun, the same address and port on every host"
        ) from error


def _interface_towards(address: str) -> str | None:
    """The network interface whose address this host uses towards `address`; None if it has no name."""
    family, kind, protocol, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # looks up the route; a datagram socket sends nothing
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == own for each in addresses):
            return name
    return None


def describe_processes(accelerator: Accelerator) -> str:
    """One line for each process: rank, host, device, process id. All processes must call this."""
    own = f"process {accelerator.process_index} of {accelerator.num_processes}: "
    own += f"{socket.gethostname()}, {accelerator.device}, process id {os.getpid()}"
    return "\n".join(gather_object([own]))


class StopController:
    """Decide for all processes together if the run ends early: a signal, the time limit, or a launcher that is gone.

    Args:
        accelerator: connects the processes.
        max_minutes: minutes since the start of the launch, restarts included; 0 for no limit.
        is_budget: the minutes are not a limit but the length of the whole run, all launches together, from the moment
            each opens its directory. `time_used` is the share of it that has passed.
    """

    def __init__(self, accelerator: Accelerator, max_minutes: float = 0, is_budget: bool = False):
        self.accelerator = accelerator
        self.reason = "a signal or the time limit of another process"
        self.signalled = False
        self._ended = ""
        self._handlers: dict[int, Any] = {}
        self._votes: tuple[torch.Tensor, torch.cuda.Event] | None = None
        # Only a launcher's end means that nobody waits for this process: a shell may go and leave it running.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        began = psutil.Process(self._launcher or os.getpid()).create_time()
        self._began = time.monotonic()
        self._launched = self._began + began - time.time()
        self._deadline = self._launched + 60 * max_minutes if max_minutes and not is_budget else None
        self._budget = 60 * max_minutes if is_budget else None
        self._seconds_before = self.time_used = 0.0
        self._looks: int = 0
        self._looked = self._longest = 0.0

    def resume(self, seconds: float) -> None:
        """Count the seconds of earlier launches."""
        self._seconds_before = seconds
        self.time_used = seconds / self._budget if self._budget else 0.0

    def catch_signals(self) -> None:
        """SIGTERM, SIGINT, SIGUSR1 end the run after the current step, with a checkpoint; a second SIGINT at once."""

        def stop(number: int, frame: Any) -> None:
            if self.signalled and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signalled = True

        names = ("SIGTERM", "SIGINT", "SIGUSR1")  # Windows lacks the last
        for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
            self._handlers[number] = signal.signal(number, stop)

    def end(self, reason: str) -> None:
        """End the run after a step that is still to come, on all processes."""
        self._ended = reason

    def release_signals(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def all_reduce(self, counts: dict[str, int]) -> tuple[dict[str, torch.Tensor], bool]:
        """Return the global sums of `counts`, and True if some process wants to stop, in one all-reduce."""
        own = self._wants_to_stop()
        used = 0.0 if self._budget is None else (self.seconds() + self._longest) / self._budget
        numbers = [*counts.values(), used / self.accelerator.num_processes, int(own)]
        on_cpu = self.accelerator.device.type == "cpu"
        votes = torch.tensor(numbers, dtype=torch.float64 if on_cpu else torch.float32)
        votes = votes.to(self.accelerator.device, non_blocking=True)
        if self.accelerator.num_processes == 1:
            self.time_used = used
            return dict(zip(counts, votes, strict=False)), own
        votes = self.accelerator.reduce(votes, reduction="sum")
        self.time_used, stop = self._agree(votes[-2:])
        return dict(zip(counts, votes, strict=False)), bool(stop > 0)

    def seconds(self) -> float:
        """Return the seconds since this launch opened the run, and of earlier launches."""
        return self._seconds_before + time.monotonic() - self._began

    def seconds_since_launch(self) -> float:
        """Return the seconds since the launch, the start of Python included."""
        return time.monotonic() - self._launched

    def _wants_to_stop(self) -> bool:
        now = time.monotonic()
        self._looks += 1
        if self._looks > 2:
            # From one look to the next: a step, perhaps with an evaluation and a checkpoint. The first step does not
            # count: it compiles, which no later one has to.
            self._longest = max(self._longest, now - self._looked)
        self._looked = now
        if self.signalled:
            self.reason = "a signal"
        elif self._ended:
            self.reason = self._ended
        elif self._deadline is not None and now + self._longest > self._deadline:
            self.reason = "max_time"
        elif self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "the end of its launcher"
        else:
            return False
        return True

    def _agree(self, votes: torch.Tensor) -> list[float]:
        """On a GPU every process reads the votes one step late, so that none waits for its device."""
        if votes.device.type != "cuda":  # other devices lack the events for that, and are waited for
            return votes.tolist()
        host = torch.empty(votes.shape, dtype=votes.dtype, pin_memory=True)
        host.copy_(votes, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        previous, self._votes = self._votes, (host, event)
        if previous is None:
            return [self.time_used, 0.0]  # of earlier launches, equal on all processes
        previous[1].synchronize()
        return previous[0].tolist()


def first_process_says(ask: Callable[[], Answer]) -> Answer:
    """Return the first process's answer to `ask` on all processes; all must call this."""
    answers = [ask() if is_first_process() else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(answers)
    return answers[0]  # type: ignore[return-value]

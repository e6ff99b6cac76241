"""Record forward and backward passes as CUDA graphs, so that a slow host does not hold up a fast GPU."""

from collections.abc import Callable
from typing import Any

import torch

from ...utils.errors import InputError


# Recordings that are kept; passes of further shapes run as they are.
_MOST_RECORDINGS = 32


def check_cuda_graphs(device: torch.device, num_processes: int) -> None:
    """Check that passes can be recorded.

    Raises:
        InputError: without a CUDA device, or with several processes.
    """
    if device.type != "cuda" or num_processes > 1:
        raise InputError("cuda_graphs needs a CUDA device and one process; leave it out")


class RecordedPasses:
    """Run passes over micro-batches; record the second pass of each shape and replay it afterwards.

    A replay is one launch in place of a thousand. It draws its random numbers from the generator's state at that time,
    as the pass itself would. All recordings share the memory of one pass, so outputs hold until the next pass. Passes
    must find gradients that they add to: those a recording made would lie in that memory.

    Args:
        compute: takes a micro-batch's inputs and totals (tensors on the device, and plain numbers), runs forward and
            backward and returns the outputs, of fixed shapes, without ever reading from the device.
        device: the GPU.
    """

    def __init__(self, compute: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], device: torch.device):
        self._compute = compute
        self._device = device
        # Libraries keep their work space by stream; a recording must not find one for the first time.
        self._stream = torch.cuda.Stream(device)
        self._seen: set[tuple] = set()
        self._recordings: dict[tuple, tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], Any]] = {}
        self._pool: Any = None

    def __call__(self, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
        """Run one pass; inputs may be host tensors, pinned for asynchronous copies."""
        given = inputs | totals
        shapes = ((name, getattr(value, "shape", value)) for name, value in given.items())
        key = tuple(sorted(shapes, key=lambda pair: pair[0]))
        if key not in self._recordings and (key not in self._seen or len(self._recordings) >= _MOST_RECORDINGS):
            # As it is, once: compiled code and kernels are made, and libraries opened.
            self._seen.add(key)
            return self._apart(lambda: self._compute(self._placed(inputs), self._placed(totals)))
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs, totals)
        graph, static, outputs = self._recordings[key]
        for name, tensor in static.items():
            tensor.copy_(given[name], non_blocking=True)
        graph.replay()
        return outputs

    def _record(self, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
        inputs, totals = self._placed(inputs), self._placed(totals)
        static = {name: value for name, value in (inputs | totals).items() if isinstance(value, torch.Tensor)}
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # Other threads go on: one makes batches in pinned memory.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = self._compute(inputs, totals)
        self._pool = graph.pool()
        return graph, static, outputs

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Copy the tensors to buffers that stay at their addresses."""
        return {
            name: value.to(self._device, non_blocking=True, copy=True) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }

    def _apart(self, run: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

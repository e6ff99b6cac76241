"""What this card's kernels reach: copies, matrix products of BERT's shapes, attention over packed and padded rows.

    python benchmarks/gpu_micro.py --output runs/gpu/micro.json --seconds 30

The measured rates are the ceilings that benchmarks/gpu_matrix.py's figures are to be read against. What does not fit
into the time is said to be left out, what fails says why. --tiny rehearses it on a CPU.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfbert_scratch.model.gpu import random_seeds
from hfbert_scratch.model.triton_attention import MAX_SEQLEN, packed_attention
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# (input, output) sizes of the linear layers of base and large; query, key and value as one.
LAYERS = ((768, 768), (768, 2304), (768, 3072), (3072, 768), (1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024))
VOCABULARIES = (30522, 30528)
# (rows, length, heads): base at 128 and 512, large at 512.
ATTENTIONS = ((256, 128, 12), (64, 512, 12), (64, 512, 16))


@dataclass(kw_only=True)
class MicroArguments:
    """The command line."""

    output: str = argument(help="JSON file")
    seconds: float = argument(30.0, help="after which nothing more is begun")
    tiny: bool = argument(False, help="small shapes: a rehearsal on a CPU")


def milliseconds(function: Callable[[], Any], repeats: int = 10) -> float:
    """Median of five rounds of `repeats` calls, by the device's own clock."""
    for _ in range(3):
        function()
    if DEVICE.type == "cpu":
        began = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - began)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    rounds = []
    for _ in range(5):
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        rounds.append(begin.elapsed_time(end) / repeats)
    return sorted(rounds)[2]


def normal(*shape: int) -> torch.Tensor:
    """Random bfloat16 numbers on the device."""
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def copy(count: int) -> dict[str, float]:
    """GB/s of a copy on the device, bytes read and written."""
    source = normal(count)
    target = torch.empty_like(source)
    return {"gb_per_second": 4 * count / milliseconds(lambda: target.copy_(source), 5) / 1e6}


def linear(tokens: int, size: int, outputs: int) -> dict[str, float]:
    """TFLOP/s of a linear layer's three products."""
    states, weight, gradient, bias = (
        normal(tokens, size),
        normal(outputs, size),
        normal(tokens, outputs),
        normal(outputs),
    )
    work = 2 * tokens * size * outputs / 1e9
    return {
        "forward_tflops": work / milliseconds(lambda: F.linear(states, weight, bias)),
        "input_gradient_tflops": work / milliseconds(lambda: gradient @ weight),
        "weight_gradient_tflops": work / milliseconds(lambda: gradient.t() @ states),
    }


def attention(way: str, rows: int, length: int, heads: int, dropout: float) -> dict[str, float]:
    """Milliseconds and TFLOP/s of attention with heads of 64; the backward counts 2.5 times the forward's FLOPs."""
    tokens = [normal(rows * length, heads, 64).requires_grad_() for _ in range(3)]
    grids = [each.detach().view(rows, length, heads, 64).transpose(1, 2).requires_grad_() for each in tokens]
    ends = torch.arange(0, rows * length + 1, length, device=DEVICE, dtype=torch.int32)
    if way == "ours packed":
        inputs = [torch.stack([each.detach() for each in tokens], dim=1).requires_grad_()]
        seeds = random_seeds(DEVICE)

        def run() -> torch.Tensor:
            return packed_attention(*inputs, ends, seeds, length, dropout, 0.125)[0]
    elif way == "flash packed":
        inputs, options = tokens, (ends, ends, length, length, dropout, False, False)

        def run() -> torch.Tensor:
            return torch.ops.aten._flash_attention_forward(*tokens, *options, scale=0.125)[0]
    else:
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        backend = backends.get(way.split()[0], SDPBackend.EFFICIENT_ATTENTION)
        mask = torch.ones(rows, 1, length, length, device=DEVICE, dtype=torch.bool) if "mask" in way else None
        inputs = grids
        query, key, value = grids

        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    query, key, value, attn_mask=mask, dropout_p=dropout, scale=0.125
                )

    gradient = torch.randn_like(run())
    forward = milliseconds(run)
    both = milliseconds(lambda: torch.autograd.grad(run(), inputs, gradient))
    work = 4 * rows * heads * length * length * 64 / 1e9
    return {
        "forward_ms": forward,
        "backward_ms": both - forward,
        "forward_tflops": work / forward,
        "backward_tflops": 2.5 * work / (both - forward),
    }


def measurements(tiny: bool) -> dict[str, Callable[[], dict[str, float]]]:
    """Everything that is measured, by name, in the order of its worth."""
    tokens = 64 if tiny else 31744  # a packed micro-batch of 256 sequences of at most 128
    attentions = ((2, 16, 2),) if tiny else ATTENTIONS
    made: dict[str, Callable[[], dict[str, float]]] = {"copy": lambda: copy(1 << 16 if tiny else 1 << 30)}
    if not tiny:
        made["product of 8192³"] = lambda: linear(8192, 8192, 8192)
    for way in ("ours packed", "flash packed", "cudnn", "flash", "efficient with mask"):
        for rows, length, heads in attentions:
            if way == "ours packed" and length > MAX_SEQLEN:
                continue
            for dropout in (0.1, 0.0):
                name = f"attention, {way}, {rows}x{length}, {heads} heads, dropout {dropout}"
                made[name] = partial(attention, way, rows, length, heads, dropout)
    for size, outputs in ((64, 64),) if tiny else LAYERS:
        made[f"linear {tokens}x{size}→{outputs}"] = partial(linear, tokens, size, outputs)
    for classes in VOCABULARIES:
        made[f"vocabulary of {classes}"] = partial(linear, 16 if tiny else 4864, 768, classes)
    return made


@command_line
def main() -> None:
    """Measure, print, record."""
    arguments = parse_arguments(MicroArguments, description=__doc__)
    began = time.perf_counter()
    results: dict[str, Any] = {"device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"}
    for name, measure in measurements(arguments.tiny).items():
        if time.perf_counter() - began > arguments.seconds:
            results[name] = "left out: no time was left"
        else:
            try:
                results[name] = {key: round(value, 3) for key, value in measure().items()}
            except Exception as error:  # noqa: BLE001 - a kernel this device lacks; the others may be there
                results[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"{name}: {results[name]}", flush=True)
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""Whole pretraining steps on one GPU: ours in every way, stock BertForPreTraining and ModernBERT beside it.

    python benchmarks/gpu_matrix.py --output runs/gpu/matrix.jsonl --seconds 220

One process, the cases in the order of their worth, one JSON line for each as it is done: real tokens/s, milliseconds,
MFU (of the datasheet's peak), peak memory, seconds of the first step, graphs, graph breaks. A case that does not fit
into the time left is said to be left out. Stock is what a user would write: sdpa, autocast, fused AdamW, padded
batches; so is ModernBERT, with layers of the same number of parameters and its MLM head on predicted positions alone.
All sides see the same batch, a tenth of its rows short, and drop out 0.1. --tiny rehearses it all on a CPU.
"""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pretraining_step import BenchmarkArguments, build, make_batch, our_inputs
from torch import nn
from torch._dynamo.utils import counters
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel

from hfbert_scratch.model.configuration_hfbert import SIZES
from hfbert_scratch.training.hardware.cuda_graphs import RecordedPasses
from hfbert_scratch.training.hardware.throughput import model_flops_per_token, peak_flops
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Steps between two synchronisations: the device's queue stays full, as in training.
_STEPS = 5


@dataclass(frozen=True)
class Case:
    """One row of the matrix. way: words of packed, padded, layers, compile, graphs. expected: seconds it may take."""

    size: str
    rows: int
    length: int
    side: str
    way: str
    expected: float

    def __str__(self) -> str:
        return f"{self.size} {self.rows}x{self.length} {self.side} {self.way}"


CASES = [
    Case("base", 256, 128, "ours", "packed layers graphs", 25),
    Case("base", 64, 512, "ours", "packed layers graphs", 15),
    Case("large", 64, 512, "ours", "packed layers graphs", 25),
    Case("large", 256, 128, "ours", "packed layers graphs", 15),
    Case("base", 256, 128, "stock", "padded", 8),
    Case("mini", 2048, 128, "ours", "packed layers graphs", 10),
    Case("small", 1024, 128, "ours", "packed layers graphs", 10),
    Case("base", 256, 128, "ours", "packed layers", 8),
    Case("large", 64, 512, "stock", "padded", 10),
    Case("base", 64, 512, "stock", "padded", 8),
    Case("large", 256, 128, "stock", "padded", 10),
    Case("mini", 512, 128, "stock", "padded", 5),
    Case("small", 512, 128, "stock", "padded", 5),
    Case("base", 256, 128, "ours", "packed", 8),
    Case("base", 256, 128, "ours", "packed graphs", 8),
    Case("base", 256, 128, "stock", "padded compile", 60),
    Case("base", 256, 128, "modernbert", "padded compile", 60),
    Case("base", 256, 128, "ours", "packed compile graphs", 60),
    Case("base", 256, 128, "ours", "padded layers", 20),
    Case("large", 64, 512, "stock", "padded compile", 90),
]
TINY_CASES = [
    Case("tiny", 8, 32, side, way, 1)
    for side, way in (
        ("ours", "packed layers"),
        ("ours", "packed"),
        ("ours", "padded"),
        ("stock", "padded"),
        ("modernbert", "padded"),
    )
]


@dataclass(kw_only=True)
class MatrixArguments:
    """The command line."""

    output: str = argument(help="file of JSON lines, written anew")
    seconds: float = argument(220.0, help="for all cases together")
    measured_seconds: float = argument(2.5, help="of steps timed for a case")
    only: str = argument("", help="cases whose names hold this text")
    profile: str = argument("", help="file for the kernels of each compiled case of ours; none by default")
    tiny: bool = argument(False, help="a handful of tiny cases: a rehearsal on a CPU")


def modernbert(size: str) -> PreTrainedModel:
    """ModernBERT with as many layers, heads and, within its gated layers, parameters as BERT of that size."""
    layers, hidden = SIZES[size]
    config = ModernBertConfig(
        vocab_size=30522,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=8 * hidden // 3,  # three matrices of 8/3·h·h in place of BERT's two of 4·h·h
        pad_token_id=0,
        sparse_prediction=True,
        mlp_dropout=0.1,
        embedding_dropout=0.1,
        attention_dropout=0.1,
    )
    return ModernBertForMaskedLM._from_config(config, attn_implementation="sdpa").to(DEVICE)


def make_step(case: Case) -> tuple[Callable[[], torch.Tensor], PreTrainedModel, dict[str, int]]:
    """Return one optimizer step of the case, its model, and what the batch holds."""
    compile_as = "layers" if "layers" in case.way else "true" if "compile" in case.way else "false"
    graphs = "graphs" in case.way
    arguments = BenchmarkArguments(
        size=case.size,
        batch_size=case.rows,
        sequence_length=case.length,
        packing="packed" in case.way,
        compile=compile_as,
        backend="aot_eager" if case.size == "tiny" else "inductor",  # a rehearsal needs no kernels
    )
    batch, lengths = make_batch(arguments, DEVICE)
    predicted = int((batch["labels"] != -100).sum())
    held = {"tokens": int(lengths.sum()), "squared": int((lengths**2).sum()), "predicted": predicted}
    if case.side == "ours":
        model, optimizer = build(arguments, "ours", DEVICE)
        inputs: dict[str, Any] = our_inputs(arguments, batch)
    else:
        if case.side == "modernbert":
            model = modernbert(case.size)
            batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        else:
            model, _ = build(arguments, "stock", DEVICE)
        inputs = batch
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        if compile_as == "true":
            model.compile()
    model.train()

    def one_pass(inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        return loss.detach()

    if graphs:  # as training does
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        one_pass = RecordedPasses(one_pass, DEVICE)

    def step() -> torch.Tensor:
        loss = one_pass(inputs, {})
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not graphs)
        return loss

    return step, model, held


def measure(case: Case, seconds: float, profile: str) -> dict[str, Any]:
    """Time the case's steps, back to back, for that many seconds."""
    torch._dynamo.reset()
    counters.clear()
    step, model, held = make_step(case)
    began = time.perf_counter()
    loss = step()
    synchronize()
    first = time.perf_counter() - began
    for _ in range(3):
        loss = step()
    synchronize()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        for _ in range(_STEPS):
            loss = step()
        count += _STEPS
        synchronize()
    step_seconds = (time.perf_counter() - began) / count
    began = time.perf_counter()
    step()
    host = time.perf_counter() - began  # to hand a step out, the device not waited for
    synchronize()
    tokens = held["tokens"]
    config = model.config
    flops = tokens * model_flops_per_token(config, held["squared"] / tokens, held["predicted"] / tokens)
    peak, _ = peak_flops(DEVICE, torch.bfloat16)
    result = {
        "tokens_per_second": round(tokens / step_seconds),
        "milliseconds": round(1e3 * step_seconds, 3),
        "host_milliseconds": round(1e3 * host, 3),
        "first_step_seconds": round(first, 1),
        "loss": round(float(loss), 4),
        "attention": config._attn_implementation,
        "graphs": counters["stats"].get("unique_graphs", 0),
        "graph_breaks": sum(counters["graph_break"].values()),
        "cudagraph_skips": counters["inductor"].get("cudagraph_skips", 0),
    }
    if case.side != "modernbert":  # whose arithmetic is another
        result["mfu"] = round(flops / step_seconds / peak, 4)
    if DEVICE.type == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if profile and case.side == "ours" and "layers" in case.way:
            write_profile(Path(profile), str(case), step)
    return result


def write_profile(path: Path, name: str, step: Callable[[], Any]) -> None:
    """Append the kernels of one step, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        synchronize()
    table = profiled.key_averages().table(sort_by="cuda_time_total", row_limit=60, max_name_column_width=100)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{name}\n{table}\n")


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@command_line
def main() -> None:
    """Measure one case after the other."""
    arguments = parse_arguments(MatrixArguments, description=__doc__)
    began = time.perf_counter()
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    cases = TINY_CASES if arguments.tiny else CASES
    with open(arguments.output, "w", encoding="utf-8") as file:
        for case in cases:
            if arguments.only not in str(case):
                continue
            left = arguments.seconds - (time.perf_counter() - began)
            if left < case.expected:
                result: dict[str, Any] = {"left_out": f"{left:.0f} s were left"}
            else:
                try:
                    result = measure(case, arguments.measured_seconds, arguments.profile)
                except Exception as error:  # noqa: BLE001 - the next case may work
                    result = {"error": "".join(traceback.format_exception(error))[-1500:]}
            result = {"case": str(case)} | result | {"device": device, "at": round(time.perf_counter() - began, 1)}
            print(json.dumps(result), flush=True)
            print(json.dumps(result), file=file, flush=True)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

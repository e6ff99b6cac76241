"""What BERT costs on paper: FLOPs, hours, money and network bytes, and a large corpus on many hosts; no measuring.

    python benchmarks/scaling.py           # prints the tables of docs/scaling.md
    python benchmarks/scaling.py --write   # puts them there

Every figure is a formula of the constants below. Those under MEASURED are rates of our own on one device; those under
ASSUMED are other people's published figures, prices and datasheets. benchmarks/gpu_run.py measures single steps on a
GPU; whole pretrainings and several GPUs are on paper alone.
"""

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hfbert_scratch.corpus.stages.index import shard_size
from hfbert_scratch.corpus.statistics import DESCRIBED_SHARDS
from hfbert_scratch.model.configuration_hfbert import HFBertConfig
from hfbert_scratch.text.readers import PART_BYTES
from hfbert_scratch.training.hardware.throughput import DATASHEET_PEAKS, model_flops_per_token


DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
GPU_RESULTS = Path(__file__).parent / "results_gpu.json"
BEGIN, END = "<!-- figures: python benchmarks/scaling.py --write -->\n", "<!-- end of figures -->\n"


@dataclass(frozen=True)
class Measured:
    """Our own single-device rates."""

    # benchmarks/corpus_stages.py --megabytes 100 on a still Intel Xeon of two threads, MB of text a second of one
    # process, the slower of .txt and .jsonl, 2026-11-27.
    index: float = 68.0
    write: float = 11.0
    # Of the text that is described: 103 MB of Wikipedia and novels took 0.89 s of one core at length 128; two lengths.
    complete: float = 58.0
    plan: float = 6.0e6  # documents a second, the same benchmark with --documents 10000000
    # Corpus of 41 MB of Wikipedia and novels, bert-base-uncased's vocabulary.
    tokens_per_byte: float = 0.228
    disk_bytes_per_token: float = 2.16
    # benchmarks/pretraining_step.py --size base --batch_size 16 --precision bfloat16: real tokens/s of two cores,
    # 2026-11-26 (benchmarks/results.json).
    cpu_base_tokens_per_second: float = 630.0


@dataclass(frozen=True)
class Assumed:
    """What is not ours."""

    peak: float = DATASHEET_PEAKS["H100"]  # FLOP/s, dense bf16, NVIDIA's datasheet
    tuned: float = 0.41  # MFU of a 12×768 model on an H100: nanochat, dev/LOG.md
    untuned: float = 0.19  # MFU of the stock loop, base on an A100: mosaicml/examples README
    gpu_hour: float = 2.5  # dollars for one H100; on-demand prices vary from 2 to 10
    document_bytes: float = 3000.0  # of English Wikipedia: about 20 GB in 7 million articles
    core_hour: float = 0.05  # dollars for one CPU core
    nvlink: float = 450e9  # bytes/s of one GPU in one direction, NVIDIA's datasheet
    network: float = 50e9  # bytes/s of one GPU across nodes: a 400 Gbit/s adapter each
    node: int = 8  # GPUs
    # Padding of rows padded to 128 and 512: original semantics on real English, as in the corpus manifest.
    padding: tuple[float, float] = (0.098, 0.32)


MEASURED, ASSUMED = Measured(), Assumed()
PREDICTED = 0.15


@dataclass(frozen=True)
class Schedule:
    """Steps and sequences a step at length 128, then at 512."""

    name: str
    steps: tuple[int, int]
    sequences: tuple[int, int]

    def tokens(self) -> tuple[float, float]:
        """Real tokens of each phase."""
        return tuple(  # type: ignore[return-value]
            steps * sequences * length * (1 - padding)
            for steps, sequences, length, padding in zip(
                self.steps, self.sequences, LENGTHS, ASSUMED.padding, strict=True
            )
        )


LENGTHS = (128, 512)
SCHEDULES = (
    Schedule("paper", (900_000, 100_000), (256, 256)),  # Devlin et al. 2018, appendix A.2
    Schedule("LAMB", (7_038, 1_563), (65_536, 32_768)),  # You et al. 2019, table 1 and section 4
)


def parameters(config: HFBertConfig) -> int:
    """Trainable numbers of HFBertForPreTraining; the decoder is the word embedding."""
    h, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    embeddings = (v + config.max_position_embeddings + config.type_vocab_size) * h + 2 * h
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    pooler, heads = h * h + h, (h * h + h) + 2 * h + v + (2 * h + 2)
    return embeddings + config.num_hidden_layers * layer + pooler + heads


def flops_per_token(config: HFBertConfig, length: int) -> float:
    """Useful FLOPs of one real token in rows of `length`."""
    return model_flops_per_token(config, length, PREDICTED)


def flops(config: HFBertConfig, schedule: Schedule) -> float:
    """Useful FLOPs of a whole pretraining."""
    return sum(
        tokens * flops_per_token(config, length) for tokens, length in zip(schedule.tokens(), LENGTHS, strict=True)
    )


def ddp_bytes(count: int, gpus: int) -> float:
    """Bytes a GPU sends a step: ring all-reduce of float32 gradients, 2·(N−1)/N of them."""
    return 2 * (gpus - 1) / gpus * 4 * count


def fsdp_bytes(count: int, gpus: int) -> float:
    """Bytes a GPU sends a step: bf16 weights gathered for forward and backward, float32 gradients scattered."""
    return (gpus - 1) / gpus * (2 * 2 + 4) * count


def hours(config: HFBertConfig, schedule: Schedule, gpus: int, utilization: float) -> tuple[float, float]:
    """Hours of a whole pretraining with DDP: communication hidden behind the arithmetic, or none of it hidden."""
    bandwidth = ASSUMED.nvlink if gpus <= ASSUMED.node else ASSUMED.network
    communication = ddp_bytes(parameters(config), gpus) / bandwidth
    hidden = exposed = 0.0
    for steps, tokens, length in zip(schedule.steps, schedule.tokens(), LENGTHS, strict=True):
        arithmetic = tokens / steps / gpus * flops_per_token(config, length) / (utilization * ASSUMED.peak)
        hidden += steps * max(arithmetic, communication) / 3600
        exposed += steps * (arithmetic + communication) / 3600
    return hidden, exposed


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def size_table(configs: dict[str, HFBertConfig]) -> str:
    """Parameters, FLOPs and bytes of the models."""
    rows = []
    for name, config in configs.items():
        count = parameters(config)
        per_token = [f"{flops_per_token(config, length) / 1e9:.3f}" for length in LENGTHS]
        rows.append([name, f"{count / 1e6:.1f} M", *per_token, f"{4 * count / 1e9:.2f}", f"{16 * count / 1e9:.2f}"])
    return table(
        "model | parameters | GFLOP/token at 128 | at 512 | checkpoint, GB | weights + gradients + AdamW, GB", rows
    )


def training_table(configs: dict[str, HFBertConfig]) -> str:
    """Whole pretrainings on 1, 8 and 64 GPUs."""
    rows = []
    for name, config in configs.items():
        for schedule in SCHEDULES:
            for gpus in (1, 8, 64):
                hidden, exposed = hours(config, schedule, gpus, ASSUMED.tuned)
                slow, _ = hours(config, schedule, gpus, ASSUMED.untuned)
                rows.append(
                    [
                        f"{name}, {schedule.name}",
                        f"{sum(schedule.tokens()) / 1e9:.1f} G",
                        f"{flops(config, schedule):.2e}",
                        str(gpus),
                        f"{hidden:,.1f}" if gpus == 1 else f"{hidden:,.1f} … {exposed:,.1f}",
                        f"{hidden * gpus * ASSUMED.gpu_hour:,.0f}",
                        f"{slow:,.1f}",
                    ]
                )
    return table("model, schedule | real tokens | FLOPs | GPUs | hours at 41 % MFU | $ | hours at 19 % MFU", rows)


def network_table(configs: dict[str, HFBertConfig]) -> str:
    """Bytes a GPU sends in a step, and how long they take."""
    rows = []
    for name, config in configs.items():
        count = parameters(config)
        for gpus in (8, 64):
            bandwidth = ASSUMED.nvlink if gpus <= ASSUMED.node else ASSUMED.network
            ddp, fsdp = ddp_bytes(count, gpus), fsdp_bytes(count, gpus)
            # Tokens whose arithmetic takes as long as DDP's bytes.
            balance = ddp / bandwidth * ASSUMED.tuned * ASSUMED.peak / flops_per_token(config, 128)
            rows.append(
                [
                    name,
                    str(gpus),
                    *(f"{value / 1e9:.2f}" for value in (ddp, fsdp)),
                    *(f"{1e3 * value / bandwidth:.1f}" for value in (ddp, fsdp)),
                    f"{balance:,.0f}",
                    f"{16 * count / gpus / 1e9:.3f}",
                ]
            )
    return table(
        "model | GPUs | DDP, GB a step | FSDP2, GB a step | DDP, ms | FSDP2, ms | tokens a GPU that take DDP's time | "
        "FSDP2's share of weights, gradients, AdamW, GB",
        rows,
    )


def corpus_seconds(megabytes: float, processes: int) -> dict[str, float]:
    """Return the seconds of each stage of building a corpus."""
    m = MEASURED
    shard = shard_size(int(megabytes * 1e6)) / 1e6
    return {
        # A process takes whole units and whole shards: the last round may leave some without any.
        "index": rounds(megabytes, PART_BYTES / 1e6, processes) / m.index,
        "plan": megabytes * 1e6 / ASSUMED.document_bytes / m.plan,
        "write": rounds(megabytes, shard, processes) / m.write,
        "complete": min(megabytes, DESCRIBED_SHARDS * shard) / m.complete,
    }


def rounds(megabytes: float, size: float, processes: int) -> float:
    """Return the megabytes of the process that gets most, of pieces of `size` megabytes."""
    return math.ceil(megabytes / size / processes) * min(size, megabytes)


def corpus_table(cores: int = 16) -> str:
    """Corpora of 100 GB and 1 TB of text on hosts with `cores` processes each."""
    rows = []
    for gigabytes in (100, 1000):
        for hosts in (1, 4, 16, 64):
            stages = corpus_seconds(gigabytes * 1e3, hosts * cores)
            seconds = sum(stages.values())
            rows.append(
                [
                    str(gigabytes),
                    str(hosts),
                    *(f"{stage:,.0f}" for stage in stages.values()),
                    f"{seconds / 60:.0f}",
                    f"{seconds / 3600 * hosts * cores * ASSUMED.core_hour:.2f}",
                ]
            )
    tokens = 100e9 * MEASURED.tokens_per_byte
    head = (
        f"100 GB of text are {tokens / 1e9:.1f} G tokens and {tokens * MEASURED.disk_bytes_per_token / 1e9:.0f} GB on "
        "disk. Index and write are done by all processes, plan and complete by one.\n\n"
    )
    columns = f"GB | hosts of {cores} cores | index, s | plan, s | write, s | complete, s | together, min | $"
    return head + table(columns, rows)


def budget_table() -> str:
    """Return milliseconds of a step's kernels by part, on an H200 and on an H100.

    Measured with PyTorch's profiler (benchmarks/results_gpu.json). "before": compiled layers with PyTorch's dropout,
    GELU and attention, on the H200. A step is its kernels and the gaps between them.
    """
    cards = json.loads(GPU_RESULTS.read_text(encoding="utf-8"))
    h200, h100 = cards["NVIDIA H200"], cards["NVIDIA H100 80GB HBM3"]
    columns: list[tuple[str, dict]] = []
    for case in ("base 256x128", "base 64x512", "large 256x128", "large 64x512"):
        keys = [f"{case} ours packed {way}" for way in ("layers graphs", "layers")]
        columns.append((f"{case.replace('x', '×')} before", h200["before"][keys[1]]))
        columns += [
            (name, next(card[key] for key in keys if key in card)) for name, card in (("H200", h200), ("H100", h100))
        ]
    parts = list(columns[0][1]["kernel_milliseconds"])
    rows = [[part, *(f"{result['kernel_milliseconds'][part]:.1f}" for _, result in columns)] for part in parts]
    sums = [math.fsum(result["kernel_milliseconds"].values()) for _, result in columns]
    rows.append(["all kernels", *(f"{value:.1f}" for value in sums)])
    rows.append(["launches", *(str(result["launches"]) for _, result in columns)])
    rows.append(["the step", *(f"{result['milliseconds']:.1f}" for _, result in columns)])
    rows.append(["thousand real tokens/s", *(f"{result['tokens_per_second'] / 1e3:.0f}" for _, result in columns)])
    return table(" | ".join(["ms", *(name for name, _ in columns)]), rows)


def figures() -> str:
    """All tables."""
    configs = {name.upper(): HFBertConfig.from_size(name) for name in ("base", "large")}
    cpu = sum(SCHEDULES[0].tokens()) / MEASURED.cpu_base_tokens_per_second / 86400 / 365
    return "\n".join(
        [
            f"### Size\n\n{size_table(configs)}",
            f"### Pretraining\n\n{training_table(configs)}",
            f"On the two CPU cores of the benchmarks ({MEASURED.cpu_base_tokens_per_second:.0f} real tokens/s, "
            f"measured) the paper's schedule for BASE would take {cpu:.1f} years.\n",
            f"### A step on one GPU, by part\n\n{budget_table()}",
            f"### Network\n\n{network_table(configs)}",
            f"### Corpus\n\n{corpus_table()}",
        ]
    )


def main() -> None:
    """Print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/scaling.md, too")
    if parser.parse_args().write:
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
        DOCUMENT.write_text(before + BEGIN + "\n" + figures() + "\n" + END + rest.split(END)[1], encoding="utf-8")
    print(figures())


if __name__ == "__main__":
    main()

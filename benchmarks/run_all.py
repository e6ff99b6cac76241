"""All benchmarks one after another: fills results.json and draws results.png; `make bench`.

    python benchmarks/run_all.py [--table]

Nothing else should run beside it: with two cores, anything that does is measured too.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib


matplotlib.use("Agg")  # no display needed

from harness import RESULTS  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402


BENCHMARKS = (
    ("pretraining_step.py", "--size", "mini", "--batch_size", "32", "--precision", "bfloat16"),
    ("pretraining_step.py", "--size", "mini", "--batch_size", "32", "--precision", "float32"),
    ("pretraining_step.py", "--size", "mini", "--batch_size", "32", "--precision", "bfloat16", "--real_share", "0.3"),
    ("pretraining_step.py", "--size", "mini", "--batch_size", "32", "--precision", "float32", "--real_share", "0.3"),
    ("pretraining_step.py", "--size", "base", "--batch_size", "16", "--precision", "bfloat16", "--pairs", "3"),
    ("pretraining_step.py", "--size", "base", "--batch_size", "16", "--precision", "float32", "--pairs", "3"),
    ("finetuning_epoch.py", "--rows", "320"),
    ("finetuning_epoch.py", "--rows", "640", "--task", "sst2", "--mean_tokens", "13"),
    ("data_loading.py", "--sequence_length", "128"),
    ("data_loading.py", "--sequence_length", "512", "--batch_size", "64"),
    ("corpus_building.py",),
    ("task_preparation.py", "--task", "mnli", "--pairs", "2"),
    ("task_preparation.py", "--task", "squad", "--pairs", "2"),
    ("inference.py", "--size", "minilm", "--texts", "300", "--precision", "float32", "--pairs", "3"),
    ("inference.py", "--size", "minilm", "--texts", "300", "--precision", "bfloat16", "--pairs", "3"),
    ("sentence_scoring.py", "--size", "mini", "--sentences", "60", "--pairs", "3"),
    ("busy_machine.py", "--pairs", "2"),
)


def main() -> None:
    """Run, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print docs/benchmarks.md's table from results.json")
    if not parser.parse_args().table:
        for script, *options in BENCHMARKS:
            subprocess.run([sys.executable, str(Path(__file__).parent / script), *options], check=True)
        draw()
    print(table())


def table() -> str:
    """Return the table of docs/benchmarks.md, from results.json."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| what | ratio: times as fast (lowest … highest of the pairs) | memory | tokens/s | on | date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        ratio = f"**{result['ratio']:.2f}** ({result['ratio_lowest']:.2f} … {result['ratio_highest']:.2f})"
        rate = f"{result['tokens_per_second']:,.0f}" if "tokens_per_second" in result else ""
        processor = result["hardware"].rsplit(",", 1)[0]  # without the memory
        memory = f"{result['memory_ratio']:.2f}" if "memory_ratio" in result else ""
        lines.append(f"| {name} | {ratio} | {memory} | {rate} | {processor} | {result['date']} |")
    return "\n".join(lines)


def draw() -> None:
    """A bar per result: how many times as fast as what a user would pick instead."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(results) + 1.5), layout="constrained")
    ratios = [result["ratio"] for result in results.values()]
    spread = [
        [result["ratio"] - result["ratio_lowest"] for result in results.values()],
        [result["ratio_highest"] - result["ratio"] for result in results.values()],
    ]
    axis.barh(list(results), ratios, xerr=spread, capsize=3)
    axis.axvline(1, color="grey", linestyle="--")
    axis.set(xlabel="times as fast (whiskers: all pairs)", xscale="log")
    axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.margins(y=0.01)
    axis.invert_yaxis()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

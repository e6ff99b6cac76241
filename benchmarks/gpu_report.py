"""Bring what benchmarks/gpu_run.py left into benchmarks/results_gpu.json and the GPU table of docs/benchmarks.md.

    python benchmarks/gpu_report.py runs/gpu     # a folder with results.json and profile.txt
    python benchmarks/gpu_report.py              # only writes the table again

Figures stand by card; a case that was measured again replaces its older figures, each with its date and versions.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from pretraining_step import H200_GOALS

from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import read_json, write_json, write_text


RESULTS = Path(__file__).parent / "results_gpu.json"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- GPU table: python benchmarks/gpu_report.py -->\n", "<!-- end of GPU table -->\n"
# Parts of a step by what a kernel's name holds, the first that fits. Names are the compiler's, cut to 100 characters.
PARTS = (
    ("matrix products", r"nvjet|gemm|splitKreduce"),
    ("attention", r"flash|^_forward_kernel|^_backward_kernel|cat_transpose"),
    ("loss over the vocabulary", r"softmax|nll_loss"),
    ("bias gradients and other sums", r"_sum|reduce_kernel"),
    ("GELU", r"gelu|abs_add_exp"),
    ("LayerNorm, dropout, residual", r"layer_n|dropout|bitwise"),
    ("optimizer and clipping", r"multi_tensor"),
)
OTHER = "casts, copies, rest"


def kernels_by_part(profile: Path) -> dict[str, dict[str, Any]]:
    """Return milliseconds by part, and the number of launches, of each case in a profile written by gpu_matrix.py."""
    found: dict[str, dict[str, Any]] = {}
    if not profile.is_file():
        return found
    for block in re.split(r"\n(?=\w+ \d+x\d+ )", profile.read_text(encoding="utf-8")):
        parts, launches = dict.fromkeys([name for name, _ in PARTS], 0.0), 0
        for line in block.splitlines()[1:]:
            cells = re.split(r"\s{2,}", line.strip())
            if len(cells) > 4 and cells[-1].isdigit():
                name = next((part for part, pattern in PARTS if re.search(pattern, cells[0])), None)
                launches += int(cells[-1])
                if name:
                    parts[name] += _milliseconds(cells[-3])
        total = re.search(r"Self CUDA time total: (\S+)", block)
        if total:
            parts[OTHER] = _milliseconds(total.group(1)) - sum(parts.values())
            rounded = {name: round(value, 2) for name, value in parts.items()}
            found[block.splitlines()[0].strip()] = {"kernel_milliseconds": rounded, "launches": launches}
    return found


def _milliseconds(text: str) -> float:
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def add(folder: Path) -> None:
    """Merge one folder's figures into results_gpu.json. Raises InputError without a results.json."""
    found = read_json(folder / "results.json", "results of gpu_run.py")
    if not isinstance(found, dict) or "parts" not in found:
        raise InputError(f"{folder / 'results.json'} is not what benchmarks/gpu_run.py writes")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    card = known.setdefault(found["hardware"], {})
    about = {name: found[name] for name in ("date", "versions")}
    profiles = kernels_by_part(folder / "profile.txt")
    for line in found.get("matrix", []):
        if "tokens_per_second" in line:
            hidden = ("case", "at", "device", *(("peak_gib",) if "graphs" in line["case"] else ()))
            measured = {name: value for name, value in line.items() if name not in hidden}
            card[line["case"]] = measured | profiles.get(line["case"], {}) | about
    for section in ("micro", "inference", "pretraining"):
        if section in found:
            card[section] = found[section] | about
    write_json(RESULTS, known)


def table() -> str:
    """Return the table in Markdown: a line for each card and shape, stock beside our fastest configuration."""
    rows = []
    for card, known in sorted(read_json(RESULTS, "GPU figures").items()):
        cases = {tuple(case.split(maxsplit=3)): value for case, value in known.items() if "tokens_per_second" in value}
        for size, shape, side, way in cases:
            if side != "ours" or way != fastest_way(cases, size, shape):
                continue
            ours, rate = cases[size, shape, side, way], cases[size, shape, side, way]["tokens_per_second"]
            stock = cases.get((size, shape, "stock", "padded"), {}).get("tokens_per_second")
            goal = H200_GOALS.get((size, int(shape.split("x")[1]))) if "H200" in card else None
            rows.append(
                f"| {card.removeprefix('NVIDIA ')} | {size} {shape.replace('x', '×')} | {way.replace(' ', ', ')} "
                f"| {rate:,} | {100 * ours['mfu']:.1f} % | {f'{stock:,}' if stock else ''} "
                f"| {f'{rate / stock:.2f}' if stock else ''} | {f'{100 * rate / goal:.0f} %' if goal else ''} "
                f"| {ours['date']} |"
            )
    head = "| card | step | configuration | real tokens/s | MFU | stock's tokens/s | ratio | of the goal | date |"
    return "\n".join([head, "| --- " * 9 + "|", *rows]) + "\n"


def fastest_way(cases: dict[tuple[str, ...], dict[str, Any]], size: str, shape: str) -> str:
    """Return the way of ours that makes the most tokens a second at a size and shape."""
    rates = {case[3]: value["tokens_per_second"] for case, value in cases.items() if case[:3] == (size, shape, "ours")}
    return max(rates, key=rates.__getitem__)


@command_line
def main() -> None:
    """Merge, then write the table into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="of make gpu, to be merged")
    for folder in parser.parse_args().folders:
        add(folder)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    write_text(PAGE, before + BEGIN + table() + END + rest.split(END)[1])
    print(table())


if __name__ == "__main__":
    main()

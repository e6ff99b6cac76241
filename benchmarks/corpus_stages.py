"""Rates of the stages of corpus building, and whole builds against those of another checkout, in turns.

    git worktree add /tmp/before COMMIT
    python benchmarks/corpus_stages.py --before /tmp/before [--megabytes 200] [--pairs 3]

Every build is a process of its own, timed from its start to its end: Python and the libraries, which are some seconds
of both sides, the workers, and the description of the corpus. The peak of memory is that of the largest process. The
plan is also measured alone, on made indexes. The figures that docs/scaling.md counts with are copied to
benchmarks/scaling.py by hand.
"""

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from generated_text import TextGenerator

from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.dataset import BUILD, write_batch
from hfbert_scratch.corpus.stages import index
from hfbert_scratch.text.sources import Part, TextSource
from hfbert_scratch.text.tokenizer import save_tokenizer, train_wordpiece
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware
from hfbert_scratch.utils.errors import command_line


ROOT = Path(__file__).parent.parent


@dataclass(kw_only=True)
class StageArguments:
    """The command line."""

    before: str = argument("", help="another checkout to compare with; default: none")
    megabytes: int = argument(200, help="text to generate")
    num_proc: list[int] = argument([1, 2], help="numbers of processes")
    pairs: int = argument(3, help="builds of each side")
    documents: int = argument(20_000_000, help="documents of the plan; 0: no such measurement")


class Commands:
    """Build commands of a checkout."""

    def __init__(self, checkout: Path, directory: Path) -> None:
        self.checkout, self.directory = checkout, directory
        self.environment = os.environ | {"PYTHONPATH": str(checkout / "src")}

    def build(self, text: Path, num_proc: int) -> float:
        """Build a corpus anew; return the seconds of the whole process."""
        shutil.rmtree(self.directory / "corpus", ignore_errors=True)
        start = time.monotonic()
        self._run(text, num_proc)
        return time.monotonic() - start

    def stages(self, text: Path, num_proc: int) -> dict[str, float]:
        """Build a corpus anew, stage by stage; return MB/s of index and write, and of completing the corpus."""
        shutil.rmtree(self.directory / "corpus", ignore_errors=True)
        rates = {}
        for stage in ("index", "plan", "write"):
            printed = self._run(text, num_proc, "--stage", stage)
            rate = re.findall(rf"corpus, {stage}: .* MB, (\S+) MB/s", printed)
            if rate:
                rates[stage] = float(rate[-1])
        manifest = json.loads((self.directory / "corpus" / "manifest.json").read_text(encoding="utf-8"))
        completing = manifest["seconds"] - manifest["megabytes"] / rates["write"]
        return rates | {"complete": manifest["megabytes"] / max(completing, 1e-3)}

    def _run(self, text: Path, num_proc: int, *options: str) -> str:
        script = str(self.checkout / "recipes" / "build_corpus.py")
        paths = {"text": text, "tokenizer": self.directory / "tokenizer", "output_dir": self.directory / "corpus"}
        words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        command = [sys.executable, script, *words, "--num_proc", str(num_proc), *options]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout


def write_texts(directory: Path, size: int) -> list[Path]:
    """The same documents as plain text and as JSON lines; and a tokenizer of their beginning."""
    documents = list(TextGenerator().documents(size))
    plain, rows = directory / "text.txt", directory / "text.jsonl"
    with open(plain, "w", encoding="utf-8") as text, open(rows, "w", encoding="utf-8") as lines:
        for document in documents:
            text.write("\n".join(document) + "\n\n")
            lines.write(json.dumps({"text": "\n".join(document)}, ensure_ascii=False) + "\n")
    beginning = [" ".join(document) for document in documents[:3000]]
    save_tokenizer(train_wordpiece(beginning, vocab_size=30_522), directory / "tokenizer")
    return [plain, rows]


def measure_builds(arguments: StageArguments, directory: Path) -> None:
    """Whole builds of both sides in turns, then the stages of ours."""
    ours = Commands(ROOT, directory)
    theirs = Commands(Path(arguments.before), directory) if arguments.before else None
    for text in write_texts(directory, arguments.megabytes * 1_000_000):
        megabytes = text.stat().st_size / 1e6
        for num_proc in arguments.num_proc:
            times: list[tuple[float, float]] = []
            for _ in range(arguments.pairs):
                before = theirs.build(text, num_proc) if theirs else float("nan")
                times.append((before, ours.build(text, num_proc)))
            before, now = (statistics.median(column) for column in zip(*times, strict=True))
            ratios = sorted(old / new for old, new in times)
            ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
            print(f"{text.suffix}, {num_proc} process(es): {megabytes / before:.1f} MB/s before, ", end="")
            print(f"{megabytes / now:.1f} now; ratio {ratio}", flush=True)
            rates = ours.stages(text, num_proc)
            print("    MB/s:", ", ".join(f"{stage} {rate:.1f}" for stage, rate in rates.items()), flush=True)


def measure_plan(documents: int, directory: Path) -> None:
    """The plan of made documents, a tenth of them duplicates, in units of half a million."""
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 1 << 64, documents, dtype=np.uint64)
    copies = rng.integers(0, documents, documents // 10)
    digests[rng.integers(0, documents, documents // 10)] = digests[copies]
    output = directory / "plan"
    (output / BUILD).mkdir(parents=True)
    units = []
    for number, part in enumerate(np.array_split(digests, max(1, documents // 500_000))):
        columns = {"digest": pa.array(part), "length": pa.array(np.full(len(part), 2_000, dtype=np.uint32))}
        batch = pa.record_batch(columns).replace_schema_metadata({b"record": b"{}"})
        write_batch(index.index_path(output, number), batch)
        units.append(index.Unit(TextSource("made.txt", "text"), Part(number, documents)))
    start = time.monotonic()
    index.make_plan(output, units, BuildArguments(["made.txt"], "none"))
    seconds = time.monotonic() - start
    print(f"plan: {documents:,} documents in {seconds:.2f} s, {documents / seconds / 1e6:.1f} M/s", flush=True)


@command_line
def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(StageArguments, description=__doc__)
    print(hardware(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        if arguments.documents:
            measure_plan(arguments.documents, Path(name))
        measure_builds(arguments, Path(name))
        print(f"largest process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()

"""Run the tutorials, so that they stay true.

    python docs/run_tutorials.py [docs/tutorials/pretrain.md …]

Every ```bash and ```python block of a page runs in order, in one new directory per page. The first block that fails
ends the run with exit code 1. Blocks in other languages (```sh, ```text) are for the reader alone; tests/test_docs.py
checks that the `hfbert` commands in them parse.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


DOCS = Path(__file__).resolve().parent
# The pages without a block to run cost nothing.
PAGES = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "how_to.md"]
_BLOCK = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language ("" without one), its text, and the line where it starts."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """Find the fenced blocks of a Markdown page that start in the first column."""
    return [Block(match[1], match[2], page.count("\n", 0, match.start()) + 1) for match in _BLOCK.finditer(page)]


def run_page(path: Path) -> bool:
    """Run the blocks of one page in a new directory; returns whether all of them ended with 0."""
    blocks = [block for block in blocks_of(path.read_text(encoding="utf-8")) if block.language in ("bash", "python")]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tutorial-") as directory:
        for block in blocks:
            before = time.monotonic()
            print(f"\n== {path.name}:{block.line}\n{block.text.rstrip()}\n--", flush=True)
            code = subprocess.run(_command(block), cwd=directory, env=_environment(directory), check=False).returncode
            print(f"-- {path.name}:{block.line} {time.monotonic() - before:.0f} s", flush=True)
            if code:
                print(f"error: {path}:{block.line} ended with exit code {code}", file=sys.stderr)
                return False
    if blocks:
        print(f"== {path.name}: {len(blocks)} blocks, {time.monotonic() - start:.0f} s", flush=True)
    return True


def _command(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    return ["bash", "-euo", "pipefail", "-c", block.text]


def _environment(directory: str) -> dict[str, str]:
    """This process's environment with this interpreter's programs first, no network and caches of its own."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": f"{directory}/.cache",
        "HF_HUB_OFFLINE": "1",
    }


def main() -> int:
    """Run the pages of the command line, by default all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES, help="default: all tutorials and how_to.md")
    return 0 if all(run_page(path) for path in parser.parse_args().pages) else 1


if __name__ == "__main__":
    sys.exit(main())

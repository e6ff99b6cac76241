"""Run the notebooks from the first cell to the last, each in an empty directory.

    python notebooks/execute.py            # run all of them; an error ends with its cell
    python notebooks/execute.py --write    # and keep the new outputs in the notebooks
    python notebooks/execute.py notebooks/1_open_and_use.ipynb   # this one alone

Needs `pip install hfbert-scratch[notebooks]`.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))
# Of one cell; a whole notebook takes about two minutes.
_SECONDS = 1800
# A line with a shell command, after its indentation.
_COMMAND = re.compile(r"^( *)!.*$", re.MULTILINE)
# Progress bars, and the command line that hfbert says it runs.
_PASSING = re.compile(r"\d%\|| \?it/s|^\+ ")


def execute(path: Path) -> Any:
    """Run a notebook in a temporary directory and return it with its outputs, without this machine's paths.

    Raises nbclient.exceptions.CellExecutionError for a cell or a command that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    # `!hfbert` is the command of this interpreter's environment. Warnings about this machine are nobody's business.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as directory:
        sources = [cell.source for cell in notebook.cells]
        for cell in notebook.cells:
            if cell.cell_type == "code":  # a command's exit code alone does not end a notebook
                cell.source = _COMMAND.sub(r"\g<0>\n\1assert _exit_code == 0, _exit_code", cell.source)
        try:
            NotebookClient(
                notebook, timeout=_SECONDS, coalesce_streams=True, resources={"metadata": {"path": directory}}
            ).execute()
        except CellExecutionError:
            print(*(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])))
            raise
        for cell, source in zip(notebook.cells, sources, strict=True):
            cell.source = source
        _clean(notebook, directory)
    return notebook


def _clean(notebook: Any, directory: str) -> None:
    """Take out what differs on every machine: progress bars, paths, execution times."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "text" in output:
                output["text"] = _clean_text(output["text"], directory)
        cell.outputs = [output for output in cell.outputs if output.get("text", "\n").strip() or "data" in output]


def _clean_text(text: str, directory: str) -> str:
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    text = "\n".join(line for line in lines if not _PASSING.search(line))
    for place in (directory, str(Path(__file__).parents[1]), sys.prefix):
        text = text.replace(f"{place}/", "")
    return re.sub(r"\n{3,}", "\n\n", text)


def main() -> None:
    """Run all notebooks."""
    named = [Path(word) for word in sys.argv[1:] if word != "--write"]
    for path in named or NOTEBOOKS:
        start = time.monotonic()
        notebook = execute(path)
        if "--write" in sys.argv[1:]:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

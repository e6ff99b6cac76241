"""The folder of a Hugging Face Space that shows a model: the page of app/, what it needs, and the Space's header."""

import shutil
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCardData

from ..utils.directories import atomic_directory
from ..utils.files import write_text
from .card import CardArguments, heading, origin
from .finished_run import FinishedRun


# The version that the browser tests run (tests/clients/test_browser.py), within the extra `app`.
GRADIO_VERSION = "6.31.0"
PYTHON_VERSION = "3.11"
_APP = '''"""The page of `hfbert app`, as a Hugging Face Space."""

from hfbert_scratch.app.checkpoint import open_checkpoint
from hfbert_scratch.app.page import build_page, serve


serve(build_page(open_checkpoint({model!r}), title={title!r}))
'''
# A Space's free machines have no GPU, and PyTorch for a CPU is a tenth of the size.
_REQUIREMENTS = """--extra-index-url https://download.pytorch.org/whl/cpu
hfbert-scratch[app]=={version}
"""
_README = """---
{header}
---

# {title}

{summary}

On your own machine: `pip install "hfbert-scratch[app]"`, then `hfbert app --model {model}`.
"""


def build_space(run: FinishedRun, arguments: CardArguments, target: str | Path) -> list[Path]:
    """Write the folder of a Space: app.py, requirements.txt, and README.md with the Space's header.

    With a `repo_id` the Space opens the model from the Hub by that name; without one the folder holds a copy of it.

    Args:
        run: the run's records.
        arguments: a person's statements.
        target: the folder to write, new or empty.

    Returns:
        The folder's files. After an error no folder is left behind.

    Raises:
        InputError: if the folder is not empty.
        OutputError: if the folder cannot be written.
    """
    target = Path(target)
    model, title = arguments.repo_id or "model", heading(run, arguments)
    header = SpaceCardData(
        title=title,
        colorFrom="blue",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=PYTHON_VERSION,
        app_file="app.py",
        license=arguments.license,
        models=None if arguments.repo_id is None else [arguments.repo_id],
        tags=["bert", "hfbert-scratch"],
    )
    words = {"title": title, "summary": arguments.summary or f"A BERT {origin(run)}.", "model": model}
    with atomic_directory(target) as directory:
        write_text(directory / "README.md", _README.format(header=header.to_yaml(), **words))
        write_text(directory / "app.py", _APP.format(title=title, model=model))
        write_text(directory / "requirements.txt", _REQUIREMENTS.format(version=version("hfbert-scratch")))
        if arguments.repo_id is None:
            shutil.copytree(run.model, directory / "model")
    return sorted(path for path in target.rglob("*") if path.is_file())

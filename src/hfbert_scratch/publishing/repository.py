"""The repository folder for the Hub: the model's files, the card, plots and results, checked and pushed."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..utils.directories import atomic_directory
from ..utils.errors import InputError, OutputError, one_line
from ..utils.files import write_text
from ..utils.isolation import run_without_package
from .card import CardArguments, build_card, card_data, eval_results
from .finished_run import FinishedRun


RESULTS_FILE = Path(".eval_results") / "hfbert.yaml"

# Opens the folder by remote code, looks for missing weights, and computes one batch.
_OPEN = """
import json, sys
import torch, transformers
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
directory, auto_class = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model, report = getattr(transformers, auto_class).from_pretrained(
    directory, trust_remote_code=True, output_loading_info=True
)
inputs = tokenizer("one sentence", "and another", return_tensors="pt")
if auto_class == "AutoModelForMultipleChoice":
    inputs = {name: tensor[None] for name, tensor in inputs.items()}
with torch.no_grad():
    outputs = model.eval()(**inputs)
problems = [f"{kind}: {sorted(names)[:3]}" for kind, names in report.items() if names]
if not all(tensor.isfinite().all() for tensor in outputs.values() if tensor.is_floating_point()):
    problems.append("its outputs are not finite")
print(json.dumps(problems))
"""


def build_repository(run: FinishedRun, arguments: CardArguments) -> list[Path]:
    """Write the repository folder with model, card, plots and results, and check it.

    Args:
        run: the run's records.
        arguments: a person's statements; `output_dir` is the folder, new or empty.

    Returns:
        The folder's files. After an error no folder is left behind.

    Raises:
        InputError: if the folder is not empty, or if the model does not open without this package.
        OutputError: if the folder cannot be written.
        RuntimeError: if the card reads back with other metadata.
    """
    target = Path(arguments.output_dir)
    with atomic_directory(target) as directory:
        for source in sorted(path for path in run.model.iterdir() if path.is_file()):
            shutil.copyfile(source, directory / source.name)
        for plot in run.plots:
            shutil.copyfile(run.directory / plot, directory / plot)
        write_text(directory / "README.md", str(build_card(run, arguments)))
        entries = eval_results(run)
        if entries:
            (directory / RESULTS_FILE).parent.mkdir()
            write_text(directory / RESULTS_FILE, yaml.safe_dump(entries, sort_keys=False))
        check_card(directory / "README.md", card_data(run, arguments))
        check_loads(directory, run.auto_class)
    return sorted(path for path in target.rglob("*") if path.is_file())


def check_card(path: Path, expected: ModelCardData) -> None:
    """Read the card back with the Hub's client, and compare its metadata.

    Args:
        path: the card's file.
        expected: the metadata that were written.

    Raises:
        RuntimeError: if the metadata or the model-index differ.
    """
    loaded = ModelCard.load(path).data
    if loaded.to_dict() != yaml.safe_load(expected.to_yaml()):
        raise RuntimeError(f"{path}: the metadata are not those that were written")
    written = [dataclasses.replace(result, verified=None) for result in expected.eval_results or []]
    if [dataclasses.replace(result, verified=None) for result in loaded.eval_results or []] != written:
        raise RuntimeError(f"{path}: the model-index does not hold the results that were written")


def check_loads(directory: Path, auto_class: str) -> None:
    """Open the folder in a new process without this package or the network, and compute one batch.

    Args:
        directory: the repository folder, with the model's code and a tokenizer.
        auto_class: name of the Auto class to open it with.

    Raises:
        InputError: with the reason, if the folder cannot be opened, weights are missing or unused, or an output is not
            finite.
    """
    process = run_without_package(_OPEN, str(directory.resolve()), auto_class)
    if process.returncode:
        reason = next((line for line in reversed(process.stderr.splitlines()) if line.strip()), "no reason given")
        raise InputError(f"the model does not open by itself with trust_remote_code: {reason}")
    problems = json.loads(process.stdout.splitlines()[-1])
    if problems:
        raise InputError(f"the model opens, but {'; '.join(problems)}")


def push(directory: Path, repo_id: str, private: bool = False, space: bool = False) -> str:
    """Upload the folder to the Hub, creating the repository if it does not exist.

    Args:
        directory: the repository folder.
        repo_id: OWNER/NAME on the Hub.
        private: create the repository as a private one.
        space: the folder is that of a Gradio Space, not of a model.

    Returns:
        The commit's address.

    Raises:
        OutputError: if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    kind: dict[str, Any] = {"repo_type": "space"} if space else {}
    program: dict[str, Any] = {"space_sdk": "gradio"} if space else {}
    words = "The page of hfbert-scratch" if space else "Model, card and results by hfbert-scratch"
    with _hub_errors(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True, **kind, **program)
        commit = api.upload_folder(folder_path=directory, repo_id=repo_id, commit_message=words, **kind)
    return commit.commit_url


def push_revisions(run: FinishedRun, repo_id: str) -> list[str]:
    """Upload the run's named models, each as a branch of an existing repository, which `revision=NAME` opens.

    Args:
        run: the run's records.
        repo_id: OWNER/NAME on the Hub.

    Returns:
        The names.

    Raises:
        InputError: if the run kept none.
        OutputError: if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    directories = revisions_of(run)
    for directory in directories:
        with _hub_errors(f"{repo_id}, revision {directory.name}"):
            api.create_branch(repo_id, branch=directory.name, exist_ok=True)
            api.upload_folder(
                folder_path=directory,
                repo_id=repo_id,
                revision=directory.name,
                commit_message=f"{directory.name} by hfbert-scratch",
            )
    return [directory.name for directory in directories]


def revisions_of(run: FinishedRun) -> list[Path]:
    """Return the directories of the run's named models, in the order of its steps.

    Args:
        run: the run's records.

    Raises:
        InputError: if the run kept none, or if one of them is gone.
    """
    names = run.record.get("revisions") or {}
    found = [run.directory / "revisions" / name for name in sorted(names, key=lambda name: names[name])]
    missing = [path for path in found if not path.is_dir()]
    if missing or not found:
        what = f"lacks {missing[0]}" if missing else "kept no models by words; hfbert pretrain --checkpoint_words does"
        raise InputError(f"--revisions: the run {run.directory} {what}")
    return found


@contextmanager
def _hub_errors(target: str) -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError:
        raise OutputError(f"cannot push to {target}: log in first, with `hf auth login`") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise OutputError(f"cannot push to {target}: {one_line(error)}") from None

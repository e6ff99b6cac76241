# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Build a repository for the Hub from a finished run, check it, and push it on request.

    hfbert publish --run runs/base --license apache-2.0 \\
        --output_dir runs/base-repository
    hfbert publish --run runs/mrpc --license apache-2.0 \\
        --output_dir runs/mrpc-repository \\
        --repo_id me/bert-mrpc --power_watts 300 --push

Writes the model's files, README.md (the model card), .eval_results/ if the task is a data set of the Hub, and the
run's plots. Then reads the card back and opens the folder in a process without this package. --space DIR also writes
the folder of a Hugging Face Space with the page of `hfbert app`: it opens the model by --repo_id, and without one
from its own copy. Without --push it only lists the files; with it the Space gets the model's OWNER/NAME.

Supports: runs of hfbert pretrain and of hfbert finetune.
Does not support: sweeps (publish the run of a trial), runs that leave no model.
"""

import dataclasses
from pathlib import Path

from hfbert_scratch.publishing.card import CardArguments, build_card, eval_results
from hfbert_scratch.publishing.finished_run import open_run
from hfbert_scratch.publishing.repository import build_repository, push, push_revisions, revisions_of
from hfbert_scratch.publishing.space import build_space
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import InputError, command_line


@dataclasses.dataclass(kw_only=True)
class PublishArguments(CardArguments):
    """The command line."""

    push: bool = argument(False, help="upload to --repo_id")
    revisions: bool = argument(
        False, help="also upload the models that --checkpoint_words kept, each as the branch of its name"
    )
    card: str | None = argument(None, help="also write the card alone, without pictures, to this file")
    private: bool = argument(False, help="with --push: create the repository as a private one")
    space: str | None = argument(None, help="also write the folder of a Space that shows the model, new or empty")


@command_line
def main() -> None:
    """Open the run, build, check, list, push."""
    arguments = parse_arguments(PublishArguments, description=__doc__)
    if arguments.push and arguments.repo_id is None:
        raise InputError("--push needs --repo_id OWNER/NAME")
    run = open_run(arguments.run, arguments.finetunings)
    if arguments.revisions:
        revisions_of(run)
    files = build_repository(run, arguments)
    print("the card reads back, and the model opens without this package")
    if not eval_results(run):
        print("note: no .eval_results: the results are not on a data set of the Hub")
    if not arguments.language:
        print("note: the card does not say the language of the texts; --language de, say, does")
    target = Path(arguments.output_dir)
    show_files(target, files)
    if arguments.card is not None:
        build_card(run, arguments, pictures=False).save(arguments.card)
    if arguments.space is not None:
        print(f"the Space in {arguments.space}:")
        show_files(Path(arguments.space), build_space(run, arguments, arguments.space))
    if arguments.repo_id is None or not arguments.push:
        print(f"{target}: {len(files)} files; nothing was uploaded (--push does)")
        return
    print(push(target, arguments.repo_id, arguments.private))
    if arguments.revisions:
        print(f"revisions: {', '.join(push_revisions(run, arguments.repo_id))}")
    if arguments.space is not None:
        print(push(Path(arguments.space), arguments.repo_id, arguments.private, space=True))


def show_files(directory: Path, files: list[Path]) -> None:
    """Print the size and the name of each file."""
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(directory)}")


if __name__ == "__main__":
    main()

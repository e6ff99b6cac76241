"""Build a repository for the Hub from a finished run, check it, and push it on request.

    hfbert publish --run runs/base --output_dir runs/base-repository --license apache-2.0
    hfbert publish --run runs/mrpc --output_dir runs/mrpc-repository --license apache-2.0 \\
        --repo_id me/bert-mrpc --power_watts 300 --push

Writes the model's files, README.md (the model card), .eval_results/ if the task is a data set of the Hub, and the
run's plots. Then reads the card back and opens the folder in a process without this package. Without --push it only
lists the files.

Supports: runs of hfbert pretrain and of hfbert finetune.
Does not support: sweeps (publish the run of a trial), runs that leave no model.
"""

import dataclasses
from pathlib import Path

from hfbert_scratch.publishing.card import CardArguments, build_card, eval_results
from hfbert_scratch.publishing.finished_run import open_run
from hfbert_scratch.publishing.repository import build_repository, push, push_revisions, revisions_of
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


@command_line
def main() -> None:
    """Open the run, build, check, list, push."""
    arguments = parse_arguments(PublishArguments, description=__doc__)
    if arguments.push and arguments.repo_id is None:
        raise InputError("--push needs --repo_id OWNER/NAME")
    run = open_run(arguments.run)
    if arguments.revisions:
        revisions_of(run)
    files = build_repository(run, arguments)
    print("the card reads back, and the model opens without this package")
    if not eval_results(run):
        print("note: no .eval_results: the results are not on a data set of the Hub")
    if not arguments.language:
        print("note: the card does not say the language of the texts; --language de, say, does")
    target = Path(arguments.output_dir)
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(target)}")
    if arguments.card is not None:
        build_card(run, arguments, pictures=False).save(arguments.card)
    if arguments.push:
        print(push(target, arguments.repo_id, arguments.private))
        if arguments.revisions:
            print(f"revisions: {', '.join(push_revisions(run, arguments.repo_id))}")
    else:
        print(f"{target}: {len(files)} files; nothing was uploaded (--push does)")


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Build a pretraining corpus from your own text.

    hfbert corpus --text data/*.txt --tokenizer runs/tokenizer --num_proc 8 \\
        --output_dir runs/corpus

Reads the same sources as `hfbert tokenizer` and leaves a directory that `datasets.load_from_disk` opens, with
manifest.json beside the splits: its content, and the results of a model that only knows token frequencies.
The same command continues an interrupted build. On several hosts with a shared file system, run it on each, with
--num_tasks and --task, or under a launcher that sets WORLD_SIZE and RANK. A cluster runs the three stages one after
the other, the first and the last as arrays of tasks: recipes/slurm_corpus.sh. Whoever does what, the corpus is the
same, byte for byte.

Supports: text of any size in bounded memory, several processes and hosts with the same result, removal of exact
duplicates, a validation split by document, corpora without next-sentence pairs (--no_nsp), your own function that
splits text into sentences (--sentence_splitter).
Does not support: near-duplicate removal, language or quality filters.
"""

import dataclasses
import os

from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.build import STAGES, build_corpus
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.stages.executors import EXECUTORS, run_on
from hfbert_scratch.corpus.statistics import corpus_lines
from hfbert_scratch.text.sentences import load_splitter
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import command_line


def _from_environment(default: int, *names: str) -> int:
    """Return the first of the variables that is set, of a launcher or a job array."""
    return int(next((os.environ[name] for name in names if name in os.environ), default))


@dataclasses.dataclass(kw_only=True)
class CorpusArguments(BuildArguments):
    """The command line."""

    output_dir: str = argument(help="directory for the corpus: new, or that of an interrupted build")
    num_proc: int = argument(1, help="processes of this command")
    stage: str | None = argument(
        None, help="do a part of this stage only, as the tasks of a cluster do; default: all of them", choices=STAGES
    )
    num_tasks: int = argument(
        _from_environment(1, "WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT"),
        help="number of `hfbert corpus` commands, on any hosts, that share this build",
    )
    task: int = argument(_from_environment(0, "RANK", "SLURM_ARRAY_TASK_ID"), help="this command's number, from 0")
    executor: str | None = argument(
        None, help="let datatrove run num_tasks tasks: on this machine, by Slurm or by Ray", choices=EXECUTORS
    )
    executor_options: list[str] = argument([], help="arguments of datatrove's executor, as partition=cpu time=4:00:00")
    sentence_splitter: str | None = argument(
        None, help="MODULE:FUNCTION of yours, text → list of sentences, found from this directory; default: built in"
    )
    num_hosts: int | None = argument(None, help="former name of --num_tasks")
    host_index: int | None = argument(None, help="former name of --task")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_hosts is not None:
            self.num_tasks = self.num_hosts
        if self.host_index is not None:
            self.task = self.host_index


@command_line
def main() -> None:
    """Build, check, report."""
    arguments = parse_arguments(CorpusArguments, description=__doc__)
    corpus = run(arguments)
    if corpus is None:
        return
    for warning in corpus.manifest["warnings"]:
        print(f"warning: {warning}")
    for line in corpus_lines(corpus.manifest):
        print(line)
    print(f"corpus: {arguments.output_dir}")


def run(arguments: CorpusArguments) -> Corpus | None:
    """Build here, or by an executor; None if the corpus is not complete."""
    # Workers and tasks need no more than what decides the content.
    content = BuildArguments(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(BuildArguments)}
    )
    if arguments.executor is not None:
        return run_on(
            arguments.executor,
            content,
            arguments.output_dir,
            num_tasks=arguments.num_tasks,
            num_proc=arguments.num_proc,
            sentence_splitter=arguments.sentence_splitter,
            options=arguments.executor_options,
        )
    return build_corpus(
        content,
        load_tokenizer(arguments.tokenizer),
        arguments.output_dir,
        num_proc=arguments.num_proc,
        num_tasks=arguments.num_tasks,
        task=arguments.task,
        stage=arguments.stage,
        segmenter=load_splitter(arguments.sentence_splitter),
    )


if __name__ == "__main__":
    main()

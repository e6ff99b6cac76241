"""Run the stages of a corpus build as tasks of datatrove's executors: on this machine, on Slurm, on Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...text.sentences import load_splitter
from ...text.tokenizer import load_tokenizer
from ...utils.errors import InputError, OutputError, one_line
from ..arguments import BuildArguments
from ..build import STAGES, build_corpus
from ..dataset import MANIFEST, Corpus


EXECUTORS = ("local", "slurm", "ray")


class StageStep:
    """A pipeline of datatrove's: one task of one stage.

    Args:
        arguments: the text and the options of the build.
        output_dir: of the corpus.
        stage: "index", "plan" or "write".
        num_proc: processes of a task.
        sentence_splitter: MODULE:FUNCTION, imported by every task; None: the one built in.
    """

    def __init__(
        self, arguments: BuildArguments, output_dir: str, stage: str, num_proc: int, sentence_splitter: str | None
    ) -> None:
        self.arguments, self.output_dir, self.stage, self.num_proc = arguments, output_dir, stage, num_proc
        self.sentence_splitter = sentence_splitter

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Do the part of task `rank` of `world_size`."""
        tokenizer = load_tokenizer(self.arguments.tokenizer)
        build_corpus(
            self.arguments,
            tokenizer,
            self.output_dir,
            num_proc=self.num_proc,
            num_tasks=world_size,
            task=rank,
            stage=self.stage,
            segmenter=load_splitter(self.sentence_splitter),
        )
        return data


def run_on(
    executor: str,
    arguments: BuildArguments,
    output_dir: str,
    *,
    num_tasks: int,
    num_proc: int = 1,
    sentence_splitter: str | None = None,
    options: Sequence[str] = (),
) -> Corpus | None:
    """Build a corpus by an executor of datatrove's.

    Args:
        executor: "local", "slurm" or "ray".
        arguments: the text and the options of the build.
        output_dir: directory that all tasks see. The executor's logs go to `output_dir`.logs.
        num_tasks: tasks of the stages index and write.
        num_proc: processes of a task.
        sentence_splitter: MODULE:FUNCTION of the user's; None: the one built in.
        options: further arguments of the executor's class, as NAME=VALUE.

    Returns:
        The corpus. None on Slurm, whose jobs have only been submitted.

    Raises:
        InputError: if datatrove is not installed, an option is unknown to it, or a task fails.
        OutputError: if not all tasks came to their end.
    """
    if executor not in EXECUTORS:
        raise InputError(f"--executor must be one of {', '.join(EXECUTORS)}, not {executor!r}")
    if (Path(output_dir) / MANIFEST).is_file():  # finished: open it, or say that it is another
        return build_corpus(arguments, load_tokenizer(arguments.tokenizer), output_dir)
    make = _executor_class(executor)
    previous: Any = None
    for stage in STAGES:
        tasks = 1 if stage == "plan" else num_tasks
        settings: dict[str, Any] = {
            "pipeline": [StageStep(arguments, output_dir, stage, num_proc, sentence_splitter)],
            "tasks": tasks,
            "logging_dir": str(Path(f"{output_dir}.logs") / stage),
            "skip_completed": False,  # a build knows by itself what it has done
        }
        if executor != "local":
            settings["cpus_per_task"] = num_proc if tasks > 1 else 1
        if executor == "slurm":
            settings |= {"job_name": f"corpus-{stage}", "depends": previous}
        try:
            previous = make(**settings | _parsed(options))
        except TypeError as error:
            raise InputError(f"--executor_options: {one_line(error)}") from None
        if executor != "slurm":
            previous.run()
    if executor == "slurm":
        previous.run()  # submits the stages before, too
        return None
    if not (Path(output_dir) / MANIFEST).is_file():
        raise OutputError(f"not all tasks came to their end; {output_dir}.logs says why, the same command goes on")
    return Corpus.open(output_dir)


def _executor_class(executor: str) -> Any:
    try:
        if executor == "local":
            from datatrove.executor.local import LocalPipelineExecutor

            return LocalPipelineExecutor
        if executor == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor

            return SlurmPipelineExecutor
        import ray
        from datatrove.executor.ray import RayPipelineExecutor
    except ImportError as error:
        raise InputError(
            f"--executor {executor} needs datatrove{' and ray' if executor == 'ray' else ''} ({one_line(error)}): pip "
            "install 'hfbert-scratch[distributed]'"
        ) from None
    if not ray.is_initialized():
        ray.init()  # the cluster of RAY_ADDRESS, or one of this machine
    return RayPipelineExecutor


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not name or not equals:
            raise InputError(f"--executor_options {option}: write NAME=VALUE")
        try:
            parsed[name] = int(value)
        except ValueError:
            parsed[name] = value
    return parsed

"""The `hfbert` command: one table of recipes, and how many processes each starts on this machine.

    hfbert pretrain --config base --corpus runs/corpus --tokenizer runs/tokenizer --output_dir runs/base

runs the same file as `accelerate launch recipes/pretrain.py …`. A command that can use several processes starts one
on a CPU or a single GPU, and one per GPU where several are visible; `--launch` chooses by name.

This module stands beside the package, not in it: importing `hfbert_scratch` imports torch and transformers, which
registers the model with the Auto classes and takes seconds, and `hfbert --help` needs neither.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


# The environment variables by which a recipe learns that this command started it.
COMMAND, EXIT_CODES = "HFBERT_COMMAND", "HFBERT_EXIT_CODES"
# The exit code of a run that was stopped and goes on when it is started again: EX_TEMPFAIL of sysexits.h.
STOPPED = 75
# A launch configuration of one process. It needs no launcher, which would keep signals to itself.
_ONE_PROCESS = re.compile(r"""^distributed_type:\s*["']?NO\b""", re.MULTILINE)
# Options of the launch, taken from the command line of every command that can use several processes.
LAUNCH_OPTIONS = {
    "launch": "single, multi_gpu, fsdp2, multi_node, cpu_processes, or a file of `accelerate config`; default: one "
    "process, or one per GPU where several are visible",
    "num_processes": "processes on all hosts together; default: the visible GPUs",
    "num_machines": "hosts; default: the launch's",
    "machine_rank": "number of this host, from 0",
    "main_process_ip": "address of host 0",
    "main_process_port": "port on host 0; default on one host: a free one",
    "max_restarts": "times the processes are started again after one of them died",
}


@dataclass(frozen=True)
class Command:
    """One row of the table: the recipe that a command runs."""

    name: str
    recipe: str
    summary: str
    group: str
    parallel: bool = False  # whether it can use several processes


COMMANDS = {
    row.name: row
    for row in (
        Command("tokenizer", "train_tokenizer", "train a WordPiece tokenizer on your text", "data"),
        Command("corpus", "build_corpus", "tokenize text into a pretraining corpus", "data"),
        Command("inspect", "inspect_data", "look at documents, instances, a tokenizer", "data"),
        Command("pretraining-data", "create_pretraining_data", "write fixed instances for other trainers", "data"),
        Command("pretrain", "pretrain", "pretrain a BERT, from scratch or a checkpoint", "training", True),
        Command("finetune", "finetune", "fine-tune on GLUE, SQuAD, SWAG, NER or your data", "training", True),
        Command("sweep", "sweep", "search learning rate, batch size, epochs, seeds", "training", True),
        Command("ablations", "ablations", "run the paper's tables 5 to 8 and compare", "training", True),
        Command("compare", "compare", "compare encoders on the same tasks and seeds", "training", True),
        Command("evaluate", "evaluate_model", "score, predict, or answer a question", "using", True),
        Command("score", "score", "score sentences or minimal pairs, as BLiMP's", "using"),
        Command("features", "extract_features", "write feature vectors of texts", "using"),
        Command("ner-features", "feature_based_ner", "NER by a BiLSTM on frozen features", "using", True),
        Command("app", "app", "try a checkpoint in the browser", "using"),
        Command("convert", "convert", "convert to or from stock bert or TensorFlow", "sharing"),
        Command("export", "export", "write ONNX, a web page, OpenVINO, GGUF, …", "sharing"),
        Command("publish", "publish", "make a model card and a Hub repository", "sharing"),
        Command("demo", "demo", "run the whole chain in minutes", "local"),
        Command("env", "describe_environment", "print what a bug report needs", "local"),
    )
}


class UsageError(Exception):
    """The command line of `hfbert` itself cannot be used."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A command of one process replaces this process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(overview(), flush=True)
            return 0
        if argv[0] == "--version":
            from importlib.metadata import version

            print(version("hfbert-scratch"))
            return 0
        command = find_command(argv[0])
        return run(command, argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `hfbert --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def overview() -> str:
    """The text of `hfbert --help`: one screen of 80 columns and 24 lines."""
    lines = ["BERT from raw text to a published checkpoint. Usage: hfbert COMMAND [OPTION ...]", ""]
    previous = ""
    for row in COMMANDS.values():
        lines.append(f"  {row.group if row.group != previous else '':<10}{row.name:<18}{row.summary}".rstrip())
        previous = row.group
    lines += ["", "hfbert COMMAND --help shows a command's options; hfbert --version the version."]
    return "\n".join(lines)


def find_command(name: str) -> Command:
    """The table's row; UsageError with the nearest name for one that is not there."""
    if name in COMMANDS:
        return COMMANDS[name]
    by_recipe = {row.recipe: row.name for row in COMMANDS.values()}
    spelled = name.removesuffix(".py").rsplit("/", 1)[-1]
    if name.startswith("-"):
        raise UsageError(f"unknown option {name!r}{suggestion(name, ['--help', '--version'])}")
    if spelled in by_recipe:
        raise UsageError(f"unknown command {name!r}; did you mean {by_recipe[spelled]!r}?")
    raise UsageError(f"unknown command {name!r}{suggestion(name.replace('_', '-'), [*COMMANDS])}")


def suggestion(word: str, known: list[str], otherwise: str = "hfbert --help") -> str:
    """The end of a sentence about an unknown word: the nearest known one, or where they are listed.

    Args:
        word: the unknown word.
        known: the words to choose from.
        otherwise: the command that lists them.
    """
    close = nearest(word, known)
    return f"; did you mean {close!r}?" if close else f"; see {otherwise} for the known ones"


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that `word` is a slip of, that begins with it, or that has all its parts; None for none."""
    import difflib

    parts = set(re.split("[-_]", word))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    close = close or [name for name in known if len(word) > 3 and name.startswith(word)]
    close = close or [name for name in known if len(word) > 3 and parts <= set(re.split("[-_]", name))]
    return close[0] if close else None


def recipes_directory() -> Path:
    """Return the directory of the recipes: inside the installed package, or at the top of a clone."""
    here = Path(__file__).resolve().parent
    for directory in (here / "hfbert_scratch" / "recipes", here.parent / "recipes"):
        if (directory / "pretrain.py").is_file():
            return directory
    raise UsageError(f"the recipes are not installed beside {here / 'hfbert_scratch'}; reinstall hfbert-scratch")


def run(command: Command, argv: list[str]) -> int:
    """Start the recipe of `command` as its options and this machine ask for."""
    recipe = recipes_directory() / f"{command.recipe}.py"
    os.environ[COMMAND] = command.name
    if not command.parallel:
        replace_process(recipe, argv)
    options, argv = split_launch_options(argv)
    launch = [] if {"-h", "--help"} & set(argv) else plan_launch(options, recipe.parent / "accelerate")
    words = [sys.executable, *(["-m", "accelerate.commands.launch", *launch] if launch else []), str(recipe), *argv]
    if not {"-h", "--help"} & set(argv):
        print(f"+ {shlex.join(words)}", file=sys.stderr, flush=True)
    if not launch:
        replace_process(recipe, argv)
    return run_launcher([*launch, str(recipe), *argv])


def replace_process(recipe: Path, argv: list[str]) -> NoReturn:
    """Replace this process by the recipe, which keeps its process id and so its signals and exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, str(recipe), *argv]
    if os.name == "nt":  # where exec ends this process at once, before the other one is done
        sys.exit(subprocess.call(command))
    os.execv(sys.executable, command)


def split_launch_options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of the launch by name, and the words that are the recipe's."""
    options: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        spelled, equals, value = word.partition("=")
        name = spelled.removeprefix("--").replace("-", "_")
        if not spelled.startswith("--") or name not in LAUNCH_OPTIONS:
            rest.append(word)
            continue
        found = value if equals else next(words, None)
        if not found:
            raise UsageError(f"{spelled} needs a value: {LAUNCH_OPTIONS[name]}")
        options[name] = found
    return options, rest


def plan_launch(options: dict[str, str], configs: Path) -> list[str]:
    """The options of `accelerate launch`; empty for one process without a launcher.

    Raises UsageError for a launch that is not there or cannot be on this machine.
    """
    options = dict(options)
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" in os.environ:  # a launcher has started this command
        if options:
            raise UsageError(f"--{next(iter(options))}: this process was started by a launcher, which decides that")
        return []
    name = options.pop("launch", None)
    if name is None:
        name = _default_launch(options)
    path = configs / f"{name}.yaml"
    known = ["single", *sorted(file.stem for file in configs.glob("*.yaml"))]
    if name not in known:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"--launch {name}: no such file, and none of {', '.join(known)}{suggestion(name, known)}")
    if name == "single" or _ONE_PROCESS.search(path.read_text(encoding="utf-8")):
        if options:
            word = next(iter(options))
            raise UsageError(f"--{word} {options[word]} does not go with one process; name --launch as well")
        if name == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return []
    if name in ("multi_gpu", "fsdp2", "multi_node") and "num_processes" not in options:
        options["num_processes"] = _one_per_gpu(name, options)
    if name in known and name != "multi_node":
        options.setdefault("main_process_port", "0")
    return ["--config_file", str(path), *(word for key, value in options.items() for word in (f"--{key}", value))]


def _default_launch(options: dict[str, str]) -> str:
    if {"num_machines", "machine_rank", "main_process_ip"} & set(options):
        return "multi_node"
    if options.get("num_processes", "1") != "1":
        return "multi_gpu" if visible_gpus() else "cpu_processes"
    if options.pop("num_processes", None) or options:
        return "single"
    return "multi_gpu" if visible_gpus() > 1 else "single"


def _one_per_gpu(name: str, options: dict[str, str]) -> str:
    gpus = visible_gpus()
    if not gpus:
        raise UsageError(f"--launch {name} starts one process per GPU, and none is visible; give --num_processes")
    machines = options.setdefault("num_machines", "2") if name == "multi_node" else "1"
    if not machines.isdecimal():
        raise UsageError(f"--num_machines {machines} is not a number")
    return str(gpus * int(machines))


def visible_gpus() -> int:
    """Count the GPUs that torch would see. Imports torch only where the system has a device for one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "any") in ("", "-1", "NoDevFiles"):
        return 0
    devices = Path("/dev")
    if not any(devices.glob("nvidia[0-9]*")) and not any((devices / name).exists() for name in ("dxg", "kfd")):
        return 0
    import torch

    return torch.cuda.device_count()


def run_launcher(arguments: list[str]) -> int:
    """Launch several processes and pass the launcher's signals on; return the recipe's exit code.

    A launcher ends with 1 whatever its processes ended with. Each of them notes its own exit code, so that 75
    (stopped, with a checkpoint) and the codes of errors pass through.
    """
    # A launcher's own list, and the signal by which batch systems announce the end of a job.
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="hfbert-") as codes:
        os.environ[EXIT_CODES] = codes
        try:
            launch_command(launch_command_parser().parse_args(arguments))
        except SignalException as error:
            return noted_exit_code(Path(codes), 128 + int(error.sigval))
        except ChildFailedError as error:
            code = noted_exit_code(Path(codes), 1)
            if code == 1:  # a process died; for other codes the processes have said why themselves
                print(error, file=sys.stderr)
            return code
        except SystemExit as error:
            return noted_exit_code(Path(codes), error.code if isinstance(error.code, int) else 1)
    return 0


def noted_exit_code(codes: Path, otherwise: int) -> int:
    """Read the exit codes of the processes: 75 if all stopped, else the first error.

    A process writes an empty file when it starts; one that was killed leaves it so. `otherwise` is for these.
    """
    noted = [path.read_text() for path in sorted(codes.iterdir())]
    errors = [int(code) for code in noted if code not in ("", "0", str(STOPPED))]
    if errors:
        return errors[0]
    return STOPPED if noted and set(noted) == {str(STOPPED)} else otherwise


if __name__ == "__main__":
    sys.exit(main())

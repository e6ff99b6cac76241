"""Command lines from dataclasses: `--config file.yaml` gives defaults, the command line wins, typos are errors.

An option is declared once, with its help, bounds, choices and group beside it:

    steps: int = argument(100, help="optimizer steps", at_least=1, group="schedule")
"""

import copy
import dataclasses
import math
import os
import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

import yaml
from transformers import HfArgumentParser

from hfbert_cli import COMMAND, COMMANDS, LAUNCH_OPTIONS, nearest, suggestion

from .errors import InputError, one_line
from .files import write_text


Arguments = TypeVar("Arguments")

# Lines of a description that do not go on the paragraph before.
_NEW_LINE = re.compile(r"(Supports|Does not support|Exit codes|Tasks|--\w+):")
# Names that other training programs have for options, and ours; the first that a command has counts.
OTHER_NAMES = {
    "lr": ("learning_rate",),
    "bs": ("batch_size",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "per_device_eval_batch_size": ("eval_batch_size", "batch_size"),
    "epoch": ("epochs", "max_steps"),
    "epochs": ("epochs", "max_steps"),
    "num_train_epochs": ("epochs", "max_steps"),
    "warmup_ratio": ("warmup_steps",),
    "logging_steps": ("log_every",),
    "eval_steps": ("eval_every",),
    "save_steps": ("save_every",),
    "save_total_limit": ("keep_checkpoints",),
    "report_to": ("trackers",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "mlm_probability": ("masked_lm_prob",),
    "layers": ("num_hidden_layers", "layers"),
    "heads": ("num_attention_heads",),
    "model_name_or_path": ("model",),
    "tokenizer_name": ("tokenizer",),
    "task_name": ("task",),
    "dataset_name": ("dataset", "text"),
    "train_file": ("train_file", "text", "corpus"),
    "data": ("data_dir", "text", "corpus"),
    "out": ("output_dir",),
    "workers": ("num_proc",),
    "num_workers": ("num_proc",),
    "preprocessing_num_workers": ("num_proc",),
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds and choices of an option; for a list they hold for each item."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return self != Limits()

    def hold(self, value: Any) -> bool:
        """Return whether `value` is within the bounds, or among the choices. NaN is in no bounds."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (not self.choices or value in self.choices)
        )

    def __str__(self) -> str:
        if self.choices:
            *others, last = map(str, self.choices)
            if len(others) > 2:
                return f"one of {', '.join([*others, last])}"
            return f"{', '.join(others)} or {last}" if others else last
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}"
        if (self.at_least, self.above, self.below) == (0, None, None):
            return "0 or more"
        parts = [
            f"at least {self.at_least}" if self.at_least is not None else "",
            f"above {self.above}" if self.above is not None else "",
            f"at most {self.at_most}" if self.at_most is not None else "",
            ("finite" if self.below == math.inf else f"below {self.below}") if self.below is not None else "",
        ]
        return " and ".join(filter(None, parts))


def argument(
    default: Any = dataclasses.MISSING,
    *,
    help: str = "",
    refused: str = "",
    group: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] = (),
    parse: Callable[[str], Any] | None = None,
    semantic: bool = True,
    **options: Any,
) -> Any:
    """Declare an option: a dataclass field with its help text; without a default it is required.

    Args:
        default: The value of an option that is not given. A list is copied.
        help: One line for `--help`, which adds bounds, choices and the default. A percent sign is doubled.
        refused: Why a command does not take this option of a base class. It is not shown; a command line that has it,
            or a configuration file with another value than the default, is refused with this reason.
        group: Its heading in `--help`; by default the name of the class that declares it first.
        at_least, above, at_most, below: Bounds, checked by `check_arguments`; None always passes.
        choices: The values there are.
        parse: Turns the word of the command line into the value, in place of the type.
        semantic: Whether it changes what a run learns; a resumed run may have another value of one that does not.
        options: Further options of `dataclasses.field`.

    A subclass that declares the option again inherits bounds, group and parser, unless it gives others, and that it
    is not semantic.
    """
    options["metadata"] = {
        "help": help,
        "refused": refused,
        "group": group,
        "limits": Limits(at_least, above, at_most, below, tuple(choices)),
        "parse": parse,
        "is_free": not semantic,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), **options)
    return dataclasses.field(default=default, **options)


def check_arguments(arguments: Any) -> None:
    """Raise InputError for the first value of the dataclass instance `arguments` that is out of its bounds."""
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        limits = _declared(type(arguments), field.name, "limits")
        if value is None or not limits:
            continue
        if not all(map(limits.hold, value if isinstance(value, list | tuple) else [value])):
            raise InputError(f"{field.name} is {value}; it must be {limits}")


def non_semantic_arguments(cls: Any) -> set[str]:
    """Return the names of the options of a dataclass that do not change what a run learns."""
    return {field.name for field in dataclasses.fields(cls) if _declared(cls, field.name, "is_free")}


def parse_arguments(
    cls: type[Arguments], argv: list[str] | None = None, *, configs: Path | None = None, description: str | None = None
) -> Arguments:
    """Parse a command line into the dataclass `cls`.

    `--config NAME_OR_FILE` reads a YAML mapping whose entries act as if they stood in front of the command line, so
    they pass the same type checks and are overridden by it. A bare name is looked up in `configs`.

    Args:
        cls: A dataclass whose fields are made by `argument`.
        argv: The words; by default the process's.
        configs: Directory of the shipped configurations.
        description: The text above the options in `--help`.

    Raises:
        InputError: for an unknown key or option, a value of the wrong type or out of its bounds, a missing required
            argument, or a configuration file that is not there or is not a mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(os.environ.pop(COMMAND, ""))
    parser = _Parser(
        cast(Any, cls),  # HfArgumentParser's DataClassType is a NewType
        prog=None if command is None else f"hfbert {command.name}",
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        add_help=False,
    )
    own = parser.add_argument_group("other options")
    shipped = ", ".join(_shipped(configs)) if configs else ""
    own.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        help="YAML file with defaults for the options above" + (f", or one of: {shipped}" if shipped else ""),
    )
    own.add_argument("--debug", action="store_true", help="show where an error comes from")
    own.add_argument("-h", "--help", action="help", help="show this text")
    if command is not None and command.parallel:
        launch = parser.add_argument_group("processes")
        for name, text in LAUNCH_OPTIONS.items():
            launch.add_argument(f"--{name}", metavar=name.split("_")[-1].upper(), help=text)
    config, argv = _split_config(argv)
    defaults, empty = ([], []) if config is None else _yaml_as_argv(cls, _find_config(config, configs))
    parser.set_defaults(**{name: [] for name in empty})
    refused = _refused(cls)
    parser.refuse_words(argv, refused)
    argv = _join_repeated(argv, {f"--{name}" for name, hint in get_type_hints(cls).items() if "list[" in str(hint)})
    parsed, unknown = parser.parse_known_args(defaults + argv)
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}{_suggestion(unknown[0], _field_names(cls), '--')}")
    for name, reason in refused.items():
        if getattr(parsed, name) != parser.get_default(name):
            raise _refusal(name, reason)
    arguments = cls(**{name: getattr(parsed, name) for name in _field_names(cls)})
    check_arguments(arguments)
    return arguments


def save_arguments(arguments: Any, path: Path) -> None:
    """Write the resolved arguments as YAML that `--config` reads back."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


class _Parser(HfArgumentParser):
    """transformers' parser with groups, bounds and defaults in its help, and errors in one sentence."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # without the spelling with hyphens
        raise InputError(f"{message} (see --help)")

    def refuse_words(self, argv: list[str], refused: dict[str, str]) -> None:
        """Raise InputError for a word that looks like an option and is none here, before anything else is found wrong.

        Args:
            argv: The words.
            refused: Options of base classes that this command does not take → the reason.
        """
        for word in argv:
            spelled = word.partition("=")[0]
            if not re.match(r"--[A-Za-z]", spelled):
                continue
            action = self._option_string_actions.get(spelled)
            if action is None:
                taken = [action for action in self._actions if action.option_strings and action.dest not in refused]
                shown = [action.option_strings[0].lstrip("-") for action in taken]
                raise InputError(f"unknown argument {spelled!r}{_suggestion(spelled, shown, '--')}")
            if action.dest in refused:
                raise _refusal(action.dest, refused[action.dest])

    def format_usage(self) -> str:
        return self._short_usage() + "\n"

    def format_help(self) -> str:
        self.usage = self._short_usage().removeprefix("usage: ").replace("%", "%%")
        return super().format_help()

    def _short_usage(self) -> str:
        needed = [f"{action.option_strings[0]} {action.metavar}" for action in self._actions if action.required]
        lines = [f"usage: {self.prog}"]
        indent = " " * len(lines[0])
        for word in (*needed, "[OPTION ...]"):
            if len(f"{lines[-1]} {word}") > shutil.get_terminal_size().columns - 2:
                lines.append(indent)
            lines[-1] += f" {word}"
        return "\n".join(lines)

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints = get_type_hints(dtype)
        groups: dict[str, Any] = {}  # parsers to the base class, which only adds to them
        for title, field in _by_group(dtype):
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            group = groups[title]
            declared, field = field, copy.copy(field)
            field.type, field.metadata = hints[field.name], MappingProxyType({"help": _help(dtype, declared)})
            before = len(group._group_actions)
            self._parse_dataclass_field(group, field)
            option, *negations = group._group_actions[before:]
            option.type = _declared(dtype, field.name, "parse") or option.type
            option.metavar, listed = _metavar(hints[field.name], _declared(dtype, field.name, "limits"), option)
            option.help = SUPPRESS if _declared(dtype, field.name, "refused") else f"{listed}{option.help}"
            for action in negations:  # --no_NAME of a switch: accepted, and --NAME false says the same
                action.help = SUPPRESS


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Paragraphs in the terminal's width, commands as they are written, option names with underscores."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **{"max_help_position": 30} | options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [""]
        for line in text.strip().splitlines():
            if line and paragraphs[-1] and not (line + paragraphs[-1]).startswith(" ") and not _NEW_LINE.match(line):
                paragraphs[-1] += f" {line}"
            else:
                paragraphs.append(line)
        filled = (
            line if line.startswith(" ") else textwrap.fill(line, min(width, 118), break_on_hyphens=False)
            for line in paragraphs[1:]
        )
        return "\n".join(filled)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"


def _declared(cls: type, name: str, key: str) -> Any:
    """Return the metadata `key` of an option, as declared by the class nearest to `cls`."""
    fields = (vars(owner).get("__dataclass_fields__", {}).get(name) for owner in cls.__mro__)
    return next((value for field in fields if field is not None and (value := field.metadata.get(key))), None)


def _by_group(cls: Any) -> Iterator[tuple[str, dataclasses.Field]]:
    """Return options by heading, first of `cls` itself, then of its bases."""
    owners: list[Any] = [owner for owner in cls.__mro__ if dataclasses.is_dataclass(owner)]
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for owner in owners:
        bases = owners[owners.index(owner) + 1 :]
        inherited = {field.name for base in bases if issubclass(owner, base) for field in dataclasses.fields(base)}
        own = [field for field in dataclasses.fields(owner) if field.name not in inherited and field.name in fields]
        title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", owner.__name__.removesuffix("Arguments")).lower()
        for field in own:
            yield _declared(cls, field.name, "group") or title, fields.pop(field.name)


def _help(cls: type, field: dataclasses.Field) -> str:
    """The option's help with bounds or choices, and its default where the text does not say it."""
    text, limits = field.metadata["help"], _declared(cls, field.name, "limits")
    notes = [] if not limits or limits.choices else [str(limits)]
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        notes.insert(0, "required")
    elif default not in (None, "", []) and "default:" not in text:
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        notes.append(f"default: {shown.lower() if isinstance(default, bool) else shown}".replace("%", "%%"))
    return f"{text} ({'; '.join(notes)})" if notes else text


def _metavar(hint: Any, limits: Limits | None, option: Action) -> tuple[str, str]:
    """The word for an option's value, and choices that are too long for it, to stand in front of the help."""
    choices = [*map(str, option.choices or (limits.choices if limits else ()))]
    word = option.dest.split("_")[-1].upper()
    if choices:
        text = "{" + ",".join(choices) + "}"
        return (text, "") if len(text) <= 50 else (word, f"{', '.join(choices)}: ")
    words = re.findall(r"int|float|bool|str", str(hint))
    return {"int": "N", "float": "X", "bool": "true|false"}.get(words[0], word), ""


def _refused(cls: type) -> dict[str, str]:
    """The options that a command does not take → the reason."""
    return {name: reason for name in _field_names(cls) if (reason := _declared(cls, name, "refused"))}


def _refusal(name: str, reason: str) -> InputError:
    return InputError(f"--{name} is not an option of this command: {reason}")


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _suggestion(word: str, known: list[str], dashes: str = "") -> str:
    name = word.lstrip("-").replace("-", "_")
    ours = next((other for other in OTHER_NAMES.get(name, ()) if other in known), None) or nearest(name, known)
    return f"; did you mean '{dashes}{ours}'?" if ours else suggestion(name, [], "--help")


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    config, rest, position = None, [], 0
    while position < len(argv):
        word = argv[position]
        if word == "--config":
            if position + 1 == len(argv):
                raise InputError("--config needs a file name")
            config, position = argv[position + 1], position + 2
        elif word.startswith("--config="):
            config, position = word.removeprefix("--config="), position + 1
        else:
            rest.append(word)
            position += 1
    return config, rest


def _join_repeated(argv: list[str], lists: set[str]) -> list[str]:
    """Join the words of a list that is given several times: --text a --text b is --text a b."""
    joined: list[str] = []
    words: dict[str, list[str]] = {}
    held = joined  # where the next word belongs
    for word in argv:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        if name in lists:
            held = words.setdefault(name, [])
            if equals:
                held.append(value)
                held = joined
        elif word.startswith("--"):
            joined.append(word)
            held = joined
        else:
            held.append(word)
    return joined + [word for name, values in words.items() for word in (name, *values)]


def _shipped(configs: Path) -> list[str]:
    return sorted(file.stem for file in configs.glob("*.yaml"))


def _find_config(name: str, configs: Path | None) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if configs is not None and path.name == name:
        shipped = configs / f"{path.stem}.yaml"
        if shipped.is_file():
            return shipped
        names = ", ".join(_shipped(configs))
        raise InputError(f"--config {name}: no such file, and not one of the shipped configurations: {names}")
    raise InputError(f"--config {name}: no such file")


def _yaml_as_argv(cls: type, path: Path) -> tuple[list[str], list[str]]:
    """The entries as words of a command line, and the names of the lists without items, which have no words."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not readable YAML: {one_line(error)}") from None
    if entries is None:
        return [], []
    if not isinstance(entries, dict):
        raise InputError(f"{path} must hold a mapping of argument names to values, not a {type(entries).__name__}")
    known = _field_names(cls)
    argv: list[str] = []
    empty: list[str] = []
    for key, value in entries.items():
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}{_suggestion(str(key), known)}")
        if value is None:
            continue
        if isinstance(value, dict):
            raise InputError(f"{path}: {key} must be a value or a list, not a mapping")
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in values):
            raise InputError(f"{path}: {key} must be a list of single values, without lists or mappings in it")
        words = [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
        if isinstance(value, list):
            empty += [] if words else [key]
            argv += [f"--{key}", *words] if words else []
        else:
            argv.append(f"--{key}={words[0]}")
    return argv, empty

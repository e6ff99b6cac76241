"""Command lines from dataclasses: `--config file.yaml` gives defaults, the command line wins, typos are errors."""

import dataclasses
import difflib
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from .errors import InputError, one_line
from .files import write_text


Arguments = TypeVar("Arguments")


def argument(default: Any = dataclasses.MISSING, *, help: str, **options: Any) -> Any:
    """A dataclass field with its help text; without a default the argument is required."""
    options["metadata"] = {"help": help}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), **options)
    return dataclasses.field(default=default, **options)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults behind each option, and the description line by line as it is written."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def parse_arguments(
    cls: type[Arguments], argv: list[str] | None = None, *, configs: Path | None = None, description: str | None = None
) -> Arguments:
    """Parse `argv` (default: the process's) into the dataclass `cls`.

    `--config NAME_OR_FILE` reads a YAML mapping whose entries act as if they stood in front of the command line, so
    they pass the same type checks and are overridden by it. A bare name is looked up in `configs`.

    Raises InputError for an unknown key or option, a value of the wrong type, a missing required argument, or a
    configuration file that is not there or is not a mapping.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(cls, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    parser.add_argument(
        "--config", help="YAML file with defaults for the arguments below, or the name of a shipped one"
    )
    config, argv = _split_config(argv)
    defaults = [] if config is None else _yaml_as_argv(cls, _find_config(config, configs))
    parsed, unknown = parser.parse_known_args(defaults + argv)
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}{_suggestion(unknown[0].lstrip('-'), _field_names(cls))}")
    values = {key: value for key, value in vars(parsed).items() if key in _field_names(cls)}
    return cls(**values)


def save_arguments(arguments: Any, path: Path) -> None:
    """Write the resolved arguments as YAML that `--config` reads back."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def _field_names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; see --help for the known ones"


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


def _find_config(name: str, configs: Path | None) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if configs is not None and path.name == name:
        shipped = configs / f"{path.stem}.yaml"
        if shipped.is_file():
            return shipped
        names = ", ".join(sorted(file.stem for file in configs.glob("*.yaml")))
        raise InputError(f"--config {name}: no such file, and not one of the shipped configurations: {names}")
    raise InputError(f"--config {name}: no such file")


def _yaml_as_argv(cls: type, path: Path) -> list[str]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not readable YAML: {one_line(error)}") from None
    if entries is None:
        return []
    if not isinstance(entries, dict):
        raise InputError(f"{path} must hold a mapping of argument names to values, not a {type(entries).__name__}")
    known = _field_names(cls)
    argv: list[str] = []
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
        argv += [f"--{key}", *(str(item) for item in values)] if values else []
    return argv

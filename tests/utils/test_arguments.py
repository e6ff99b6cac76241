"""Command lines from dataclasses: bounds and choices, groups and defaults in the help, suggestions, YAML defaults."""

import dataclasses
import re
from dataclasses import dataclass, field

import pytest

from hfbert_scratch.utils.arguments import (
    Limits,
    argument,
    check_arguments,
    non_semantic_arguments,
    parse_arguments,
    save_arguments,
)
from hfbert_scratch.utils.errors import InputError


@dataclass(kw_only=True)
class BaseArguments:
    steps: int = argument(help="optimizer steps", at_least=1)
    rate: float = argument(0.1, help="learning rate", above=0, group="schedule")
    share: float = argument(0.5, help="half is 50 %%", at_least=0, below=1)
    every: int = argument(50, help="steps between log lines", semantic=False)
    mode: str = argument("auto", help="what to do", choices=("auto", "fast", "exact"))


@dataclass(kw_only=True)
class ChildArguments(BaseArguments):
    rate: float | None = argument(None, help="learning rate; default: the task's")
    layers: list[int] = argument([-1], help="numbers of layers", at_least=-12)
    every: int = argument(20, help="steps between log lines")
    names: list[str] = argument(["a", "b"], help="some names")
    quick: bool = argument(True, help="a switch", semantic=False)


def shown(capsys, cls=ChildArguments) -> str:
    with pytest.raises(SystemExit):
        parse_arguments(cls, ["--help"], description="Does it.")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--rate", "0"], "rate is 0.0; it must be above 0"),
        (["--rate", "nan"], "rate is nan; it must be above 0"),
        (["--share", "1"], "share is 1.0; it must be at least 0 and below 1"),
        (["--mode", "slow"], "mode is slow; it must be auto, fast or exact"),
        (["--layers", "-1", "-13"], "layers is [-1, -13]; it must be at least -12"),
        (["--stepps", "3"], "unknown argument '--stepps'; did you mean '--steps'?"),
        (["--debugg"], "unknown argument '--debugg'; did you mean '--debug'?"),
        (["--lr", "3"], "unknown argument '--lr'; see --help for the known ones"),
        (["--name", "a"], "unknown argument '--name'; did you mean '--names'?"),
        (["--gpus=1"], "unknown argument '--gpus'; see --help for the known ones"),
        (["--xyzzy=1"], "unknown argument '--xyzzy'; see --help for the known ones"),
        (["more"], "unknown argument 'more'"),
    ],
)
def test_a_value_out_of_bounds_and_an_unknown_option_are_named(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_arguments(ChildArguments, ["--steps", "5", *words])


def test_none_and_values_within_the_bounds_pass():
    arguments = parse_arguments(ChildArguments, ["--steps", "1", "--share", "0", "--layers", "-12", "--no_quick"])
    assert (arguments.rate, arguments.layers, arguments.names, arguments.quick) == (None, [-12], ["a", "b"], False)
    check_arguments(arguments)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(at_least=0), "0 or more"),
        (Limits(above=0, below=float("inf")), "above 0 and finite"),
        (Limits(at_least=1, at_most=9), "between 1 and 9"),
        (Limits(choices=("a", "b", "c", "d")), "one of a, b, c, d"),
        (Limits(choices=("a",)), "a"),
    ],
)
def test_limits_are_said_in_words(limits, text):
    assert str(limits) == text


def test_an_option_that_is_not_semantic_stays_so_where_it_is_declared_again():
    assert non_semantic_arguments(BaseArguments) == {"every"}
    assert non_semantic_arguments(ChildArguments) == {"every", "quick"}


def test_help_has_groups_bounds_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(capsys)
    lines = {line.split()[0]: line for line in text.splitlines() if line.lstrip().startswith("--")}
    assert text.startswith("usage: ") and "--steps N [OPTION ...]" in text.splitlines()[0]
    assert lines["--steps"].endswith("optimizer steps (required; at least 1)")
    assert lines["--share"].endswith("half is 50 % (at least 0 and below 1; default: 0.5)")
    assert "{auto,fast,exact}" in lines["--mode"] and lines["--mode"].endswith("(default: auto)")
    assert lines["--rate"].endswith("learning rate; default: the task's (above 0)"), "bounds are inherited"
    assert lines["--names"].endswith("(default: a b)") and lines["--quick"].endswith("(default: true)")
    assert not re.search(r"--no[_-]quick|None", text)
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["child:", "base:", "schedule:", "other options:"], "its own options first"


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    @dataclass
    class Wide:
        tasks: list[str] = argument(help="what to do", choices=tuple(f"the_choice_{number}" for number in range(8)))
        kind: str = argument(help="of which kind", choices=("a", "b"))

    monkeypatch.setenv("COLUMNS", "60")
    paragraph = " ".join(["word"] * 20)
    description = f"Does it.\n\n    command --is --kept\n\n{paragraph}\nmore.\nSupports: a.\nDoes not support: b."
    with pytest.raises(SystemExit):
        parse_arguments(Wide, ["--help"], description=description)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 60
    assert "\n\n    command --is --kept\n\nword " in text
    assert "word more.\nSupports: a.\nDoes not support: b.\n" in text
    words = " ".join(text.split())
    assert "--tasks TASKS [TASKS ...] the_choice_0, the_choice_1," in words
    assert "the_choice_7: what to do (required)" in words


def test_the_spelling_with_hyphens_is_accepted_and_not_shown(capsys):
    @dataclass
    class Spelled:
        max_length: int = argument(3, help="longest")

    assert parse_arguments(Spelled, ["--max-length", "4"]).max_length == 4
    assert "--max-length" not in shown(capsys, Spelled)
    with pytest.raises(InputError, match="unknown argument '--max-lenght'; did you mean '--max_length'"):
        parse_arguments(Spelled, ["--max-lenght", "4"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr", "learning_rate"),
        ("per-device-train-batch-size", "micro_batch_size"),
        ("num_train_epochs", "max_steps"),
        ("eval_steps", "eval_every"),
        ("model_name_or_path", "model"),
        ("workers", "num_proc"),
        ("seq_length", "max_seq_length"),
        ("batch", "micro_batch_size"),
        ("optim", "optimizer"),
        ("sise", "size"),
    ],
)
def test_other_programs_names_and_parts_of_names_lead_to_ours(word, meant):
    names = "learning_rate micro_batch_size max_steps eval_every model num_proc max_seq_length optimizer size corpus"
    options = dataclasses.make_dataclass("Options", [(name, str, argument("", help="")) for name in names.split()])
    with pytest.raises(InputError, match=f"unknown argument '--{word}'; did you mean '--{meant}'"):
        parse_arguments(options, [f"--{word}", "1"])


def test_the_shipped_configurations_are_named(capsys, tmp_path):
    for name in ("base", "tiny"):
        (tmp_path / f"{name}.yaml").write_text("steps: 3")
    with pytest.raises(SystemExit):
        parse_arguments(BaseArguments, ["--help"], configs=tmp_path)
    assert "or one of: base, tiny" in " ".join(capsys.readouterr().out.split())
    assert parse_arguments(BaseArguments, ["--config", "tiny"], configs=tmp_path).steps == 3


def test_a_field_that_is_not_given_is_no_option(capsys):
    @dataclass(kw_only=True)
    class FixedArguments(BaseArguments):
        mode: str = field(default="exact", init=False)

    assert parse_arguments(FixedArguments, ["--steps", "1"]).mode == "exact"
    assert "--mode" not in shown(capsys, FixedArguments)
    with pytest.raises(InputError, match="unknown argument '--mode'"):
        parse_arguments(FixedArguments, ["--steps", "1", "--mode", "fast"])


def test_started_by_the_command_the_help_names_it_and_its_launch(capsys, monkeypatch):
    monkeypatch.setenv("HFBERT_COMMAND", "pretrain")
    text = shown(capsys)
    assert text.startswith("usage: hfbert pretrain --steps N") and "--launch" in text
    assert "--launch" not in shown(capsys), "a recipe that is started by itself is given to a launcher"


def test_yaml_defaults_pass_the_same_checks_and_come_back_from_a_saved_file(tmp_path):
    def parse(text: str, *words: str) -> ChildArguments:
        (tmp_path / "my.yaml").write_text(text)
        return parse_arguments(ChildArguments, ["--config", str(tmp_path / "my.yaml"), *words])

    assert parse("steps: 7\nquick: false\nlayers: [-2, -1]\nmode: fast", "--steps", "8").steps == 8
    for text, message in (
        ("steps: 0", "steps is 0; it must be at least 1"),
        ("steps: many", "invalid int value: 'many'"),
        ("steps: 1\nmode: slow", "it must be auto, fast or exact"),
        ("step: 1", "unknown key 'step'; did you mean 'steps'"),
    ):
        with pytest.raises(InputError, match=message):
            parse(text)
    written = parse("steps: 7\nrate: 2e-5\nnames: []")
    assert written.names == []
    save_arguments(written, tmp_path / "saved.yaml")
    assert parse_arguments(ChildArguments, ["--config", str(tmp_path / "saved.yaml")]) == written
    assert parse("steps: 7\nmode: auto\nnames: []", "--names", "c").names == ["c"]


@dataclass(kw_only=True)
class NarrowArguments(BaseArguments):
    share: float = argument(0.5, refused="every step has a half")
    quick: bool = argument(True, refused="all are quick")


def test_an_option_that_a_command_does_not_take_is_hidden_and_refused(capsys, tmp_path):
    assert not re.search("share|quick", shown(capsys, NarrowArguments))
    for words in (["--share", "0.5"], ["--share=0.2"]):
        with pytest.raises(InputError, match="^--share is not an option of this command: every step has a half$"):
            parse_arguments(NarrowArguments, ["--steps", "5", *words])
    with pytest.raises(InputError, match="^--quick is not an option of this command"):
        parse_arguments(NarrowArguments, ["--steps", "5", "--no_quick"])
    with pytest.raises(InputError, match="unknown argument '--shar'; see --help"):
        parse_arguments(NarrowArguments, ["--steps", "5", "--shar", "1"])
    file = tmp_path / "of_another_command.yaml"
    file.write_text("steps: 5\nshare: 0.5\n")
    assert parse_arguments(NarrowArguments, ["--config", str(file)]).share == 0.5, "the default changes nothing"
    file.write_text("steps: 5\nshare: 0.25\n")
    with pytest.raises(InputError, match="--share is not an option of this command"):
        parse_arguments(NarrowArguments, ["--config", str(file)])

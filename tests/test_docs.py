"""The documents keep their promises: commands parse, exit codes are listed, scripts name what they need."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from training_helpers import RECIPES, ROOT

from hfbert_cli import COMMANDS, split_launch_options
from hfbert_scratch.utils.errors import STOPPED, HFBertError


sys.path.insert(0, str(ROOT / "docs"))
import run_tutorials  # noqa: E402


PAGES = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md")),
    *(RECIPES / name for name in ("README.md", "jobs/hf_jobs.sh")),
    *(path for folder in ("docs", "skills", ".github") for path in sorted((ROOT / folder).rglob("*.md"))),
    *(RECIPES / f"{command.recipe}.py" for command in COMMANDS.values()),
]
MARKDOWN = sorted({path for path in PAGES if path.suffix == ".md"} | set(ROOT.glob("*.md")))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where a shell's command ends.
OPERATORS = {"|", "||", "&&", "&", ";", ">", "2>"}
# Stand for anything: such a command is one of many, and only the options it names are checked.
PLACEHOLDERS = {"…", "..."}


def texts(path: Path) -> Iterator[tuple[str, bool]]:
    """Code in a page or in the docstring of a program, as blocks and inline; and whether commands in it are whole."""
    page = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        for block in run_tutorials.blocks_of(page):
            if block.language in ("", "bash", "sh"):
                yield block.text, True
        for code in re.findall(r"(?<!`)`(hfbert [^`]+)`(?!`)", page):
            yield code, False
    elif path.suffix == ".py":
        docstring = page.split('"""')[1].replace("\\\\\n", "\\\n")
        yield "".join(line for line in docstring.splitlines(keepends=True) if line.startswith("    ")), True
        for code in re.findall(r"`(hfbert [^`]+)`", docstring):
            yield code, False
    else:
        yield "".join(line.lstrip("# ") + "\n" for line in page.splitlines() if line.startswith("#  ")), True


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The names and words of our commands in a shell's text, in quoted text too."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\S*hf_jobs\.sh hf://\S+", "hfbert", text)  # runs the command that follows
    for line in text.splitlines():
        if "hfbert" not in line and "recipes/" not in line:
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose with an apostrophe
            words = line.split()
        for position, word in enumerate(words):
            recipe = re.fullmatch(r"(?:\S*/)?recipes/(\w+)\.py", word)
            rest = words[position + 1 :]
            if " " in word and "hfbert " in word:
                yield from commands(word)
            elif word == "hfbert" and rest and re.fullmatch(r"[a-z-]+", rest[0]) and not rest[0].startswith("-"):
                yield rest[0], _until_operator(rest[1:])
            elif recipe and (not words[0].startswith("sed")):
                name = next((row.name for row in COMMANDS.values() if row.recipe == recipe[1]), recipe[1])
                yield name, _until_operator(rest)


def _until_operator(words: list[str]) -> list[str]:
    end = next((number for number, word in enumerate(words) if word in OPERATORS), len(words))
    return [re.sub(r"\$\{?\w+\}?", "9", word).strip("[];") for word in words[:end]]


class Parsed(Exception):
    """The command line has been read; nothing else is to happen."""


def check(name: str, words: list[str], whole: bool, monkeypatch) -> None:
    """Parse a command as its recipe does, or look up the options of one that is not whole."""
    assert name in COMMANDS, f"no command {name}"
    command = COMMANDS[name]
    if command.parallel:
        _, words = split_launch_options(words)
    words = [word for word in words if word not in ("--help", "--debug")]
    config = words[words.index("--config") + 1] if "--config" in words[:-1] else None
    shipped = config is None or (RECIPES / "configs" / f"{Path(config).stem}.yaml").is_file()
    whole = whole and shipped and bool(words) and not PLACEHOLDERS & set(words)
    module = importlib.import_module(command.recipe)
    if not hasattr(module, "parse_arguments"):
        assert not words, f"{name} takes no options"
        return
    real = module.parse_arguments

    def parse(cls, **options):
        known = {f"--{field.name}" for field in fields(cls)} | {"--config"}
        unknown = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} - known
        assert not unknown, f"{name}: no option {unknown}"
        if whole:
            real(cls, **({"argv": words} | options))
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(module, "parse_arguments", parse)
        patch.setattr("sys.argv", [command.recipe, *words])
        module.main.__wrapped__()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_the_documents_parses(path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    for text, whole in texts(path):
        for name, words in commands(text):
            try:
                check(name, words, whole, monkeypatch)
            except (ValueError, SystemExit) as error:
                pytest.fail(f"hfbert {name} {shlex.join(words)}: {error}")


def test_commands_are_found_wherever_they_stand():
    text = 'x=1 hfbert demo --text a | tee log\nhf jobs run bash -c "pip install x && hfbert env"\n'
    text += "accelerate launch recipes/pretrain.py --size \\\n    tiny  # small\n"
    text += "bash hf_jobs.sh hf://b evaluate --model $m"
    assert list(commands(text)) == [
        ("demo", ["--text", "a"]),
        ("env", []),
        ("pretrain", ["--size", "tiny"]),
        ("evaluate", ["--model", "9"]),
    ]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_in_the_documents_leads_somewhere(path):
    """In a clone and on GitHub; `make docs` checks the site's."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), target


def test_every_exit_code_is_explained():
    codes = {error.exit_code for error in HFBertError.__subclasses__()} | {0, HFBertError.exit_code, STOPPED, 130}
    for name in ("docs/troubleshooting.md", "skills/hfbert-scratch/references/errors.md"):
        listed = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / name).read_text(), re.MULTILINE)}
        assert codes - listed <= ({130} if "skills" in name else set())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_a_recipe_run_as_a_script_needs_this_version_of_the_package(command):
    source = (RECIPES / f"{command.recipe}.py").read_text(encoding="utf-8")
    # The regular expression of PEP 723.
    block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", source)
    assert block, "no script metadata"
    extra = f"[{command.name}]" if command.name in PROJECT["optional-dependencies"] else ""
    metadata = tomllib.loads("".join(line[2:] + "\n" for line in block["content"].splitlines()))
    assert metadata == {
        "requires-python": PROJECT["requires-python"],
        "dependencies": [f"{PROJECT['name']}{extra}=={PROJECT['version']}"],
    }


def test_a_tutorial_stops_at_the_first_block_that_fails(tmp_path, capfd):
    page = tmp_path / "page.md"
    blocks = ["bash\necho one > file", "python\nprint(open('file').read())", "sh\nexit 9", "bash\nfalse\necho no"]
    page.write_text("".join(f"text\n\n```{block}\n```\n" for block in [*blocks, "bash\necho never"]))
    assert not run_tutorials.run_page(page)
    printed = capfd.readouterr()
    assert "\none\n" in printed.out and "never" not in printed.out
    assert "page.md:18 ended with exit code 1" in printed.err


def test_a_skill_says_when_to_use_it():
    text = (ROOT / "skills/hfbert-scratch/SKILL.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["name"] == "hfbert-scratch" and 100 < len(front["description"]) <= 1024
    for target in re.findall(r"\]\((references/[^)]+)\)", text):
        assert (ROOT / "skills/hfbert-scratch" / target).is_file()


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A directory for hf_jobs.sh, with programs that note how they were called; `hfbert` ends with $CODE."""
    (tmp_path / "bin").mkdir()
    for name, body in {"hf": 'echo "$@" >> calls', "hfbert": 'echo "run $@" >> calls; exit "$CODE"'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def test_a_job_copies_its_run_back_runs_the_command_and_copies_it_out(job, monkeypatch):
    script = ["bash", str(RECIPES / "jobs" / "hf_jobs.sh")]
    for code in (0, 75):
        monkeypatch.setenv("CODE", str(code))
        words = ["hf://buckets/me/b/base", "pretrain", "--output_dir", "runs/base", "--seed", "1"]
        assert subprocess.run([*script, *words], cwd=job).returncode == code
        assert (job / "calls").read_text().splitlines() == [
            "sync hf://buckets/me/b/base runs/base --quiet",
            "run pretrain --output_dir runs/base --seed 1",
            "sync runs/base hf://buckets/me/b/base --delete --quiet",
        ]
        (job / "calls").unlink()
    assert subprocess.run([*script, "hf://buckets/me/b", "pretrain"], cwd=job, capture_output=True).returncode == 2


def test_the_skypilot_task_runs_the_chain():
    task = yaml.safe_load((RECIPES / "jobs" / "skypilot.yaml").read_text(encoding="utf-8"))
    names = [name for name, _ in commands(task["run"])]
    assert names == ["tokenizer", "corpus", "pretrain"] and task["file_mounts"]["/bucket"]["name"] == "${BUCKET}"

"""The rules of the house: imports go one way, travelling files import each other alone, the picture is the code's."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TRAVELLING


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "hfbert_scratch"
# From the lowest; a folder or top module may import those of lower layers. Those of one layer do not know each other.
LAYERS = (
    ("utils",),
    ("model", "text", "metrics"),
    ("corpus", "tasks", "training", "lstm"),
    ("pretraining", "evaluation", "features", "scoring"),
    ("finetuning", "conversion", "publishing", "app"),
    ("ablations",),
    ("cli", "__init__"),
)
LAYER = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}

sys.path.insert(0, str(ROOT / "docs"))
import draw_architecture  # noqa: E402


def test_imports_go_one_way():
    wrong = [
        f"{own} imports {other}"
        for own, other in draw_architecture.imports_between_folders()
        if LAYER[own] <= LAYER[other]
    ]
    assert not wrong


def test_the_picture_is_the_code_s():
    script = ROOT / "docs" / "draw_architecture.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_travelling_files_import_only_each_other():
    for name in TRAVELLING:
        tree = ast.parse((PACKAGE / "model" / name).read_text(encoding="utf-8"))
        relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        assert {node.level for node in relative} <= {1}
        assert {f"{node.module}.py" for node in relative} <= TRAVELLING - {name}


def test_nobody_outside_asks_which_task_it_is():
    asks = re.compile(r"isinstance\(\s*(?:self\.)?(?:\w+\.)?task\b")
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        if path.parent.name != "tasks":
            assert not asks.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("folder", sorted(LAYER))
def test_a_folder_says_what_it_holds(folder):
    if (PACKAGE / folder).is_dir():
        assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")))

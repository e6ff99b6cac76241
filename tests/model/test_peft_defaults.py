"""PEFT finds default target modules for our model type; importing us imports no PEFT and installs no import hook."""

import pytest
from helpers import fresh_process


# What a user writes, in either order.
PROGRAMS = {
    "peft first": "import peft\nimport hfbert_scratch\n",
    "hfbert_scratch first": """
hooks = list(sys.meta_path)
import hfbert_scratch
assert "peft" not in sys.modules
assert sys.meta_path == hooks
import peft
assert "hfbert" not in peft.TRANSFORMERS_MODELS_TO_X_MAPPING
hfbert_scratch.register_peft()
""",
}
CHECK = """
from peft.utils import constants
assert constants.TRANSFORMERS_MODELS_TO_X_MAPPING["hfbert"] == ["query", "value"]
assert peft.TRANSFORMERS_MODELS_TO_X_MAPPING is constants.TRANSFORMERS_MODELS_TO_X_MAPPING
assert "hfbert" not in constants.TRANSFORMERS_MODELS_TO_Y_MAPPING and "hfbert" not in constants.OTHER
hfbert_scratch.register_peft()  # once more changes nothing
assert constants.TRANSFORMERS_MODELS_TO_X_MAPPING["hfbert"] == ["query", "value"]
"""


@pytest.mark.parametrize("order", PROGRAMS)
def test_the_tables_are_completed(order, tmp_path):
    # A stand-in with PEFT's layout: the real one is a client (tests/clients/test_peft.py).
    package = tmp_path / "peft" / "utils"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("from .utils.constants import TRANSFORMERS_MODELS_TO_X_MAPPING\n")
    (package / "__init__.py").write_text("")
    tables = "TRANSFORMERS_MODELS_TO_X_MAPPING = {'bert': ['query', 'value']}\n"
    tables += "TRANSFORMERS_MODELS_TO_Y_MAPPING = {'gpt2': ['c_attn']}\nOTHER = {'bert': 1}\n"
    (package / "constants.py").write_text(tables)
    program = "import sys\nsys.path.insert(0, '.')\nimport transformers\n" + PROGRAMS[order] + CHECK
    fresh_process(program, tmp_path, without_package=False)


def test_without_peft_the_import_works_and_registering_says_what_is_missing(tmp_path):
    program = """
import sys
sys.modules["peft"] = None
import hfbert_scratch
try:
    hfbert_scratch.register_peft()
except ImportError as error:
    assert "peft" in str(error)
else:
    raise AssertionError("no ImportError")
"""
    fresh_process(program, tmp_path, without_package=False)

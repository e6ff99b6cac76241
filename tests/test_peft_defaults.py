"""PEFT finds default target modules for our model type, and importing us does not import PEFT."""

import pytest
from helpers import fresh_process


@pytest.mark.parametrize("first", ["hfbert_scratch", "peft"])
def test_the_tables_are_completed_whichever_is_imported_first(first, tmp_path):
    # A stand-in with PEFT's layout: the real one is a client (tests/clients/test_peft.py).
    package = tmp_path / "peft" / "utils"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("from .utils.constants import TRANSFORMERS_MODELS_TO_X_MAPPING\n")
    (package / "__init__.py").write_text("")
    tables = "TRANSFORMERS_MODELS_TO_X_MAPPING = {'bert': ['query', 'value']}\n"
    tables += "TRANSFORMERS_MODELS_TO_Y_MAPPING = {'gpt2': ['c_attn']}\nOTHER = {'bert': 1}\n"
    (package / "constants.py").write_text(tables)
    code = f"""
import sys
sys.path.insert(0, ".")
import {first}
assert ("peft" in sys.modules) == {first == "peft"}
import hfbert_scratch
from peft.utils import constants
import peft
assert constants.TRANSFORMERS_MODELS_TO_X_MAPPING["hfbert"] == ["query", "value"]
assert peft.TRANSFORMERS_MODELS_TO_X_MAPPING is constants.TRANSFORMERS_MODELS_TO_X_MAPPING
assert "hfbert" not in constants.TRANSFORMERS_MODELS_TO_Y_MAPPING and "hfbert" not in constants.OTHER
"""
    fresh_process(code, tmp_path, without_package=False)

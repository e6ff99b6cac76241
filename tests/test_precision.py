"""Which precision a run takes where none is said: the faster one, the same for a run that goes on."""

import json

import pytest
import torch
from training_helpers import arguments, make_inputs, pretrain_here

from hfbert_scratch.utils import environment
from hfbert_scratch.utils.environment import fastest_precision


CPU = torch.device("cpu")


@pytest.fixture
def peaks(monkeypatch):
    """Rates of the two precisions, to be set; what was found before is forgotten."""
    rates = {torch.float32: 300.0, torch.bfloat16: 170.0}
    monkeypatch.setattr(environment, "peak_flops", lambda device, dtype: (rates[dtype], "said by the test"))
    monkeypatch.setattr(environment, "has_bfloat16", lambda device: True)
    fastest_precision.cache_clear()
    yield rates
    fastest_precision.cache_clear()


def test_the_faster_one_is_taken(peaks, monkeypatch):
    assert fastest_precision(CPU) == "float32"
    peaks[torch.bfloat16] = 420.0
    assert fastest_precision(CPU) == "float32", "timed once a process"
    fastest_precision.cache_clear()
    assert fastest_precision(CPU) == "bfloat16"
    fastest_precision.cache_clear()
    monkeypatch.setattr(environment, "has_bfloat16", lambda device: False)
    assert fastest_precision(CPU) == "float32"


def test_a_run_that_goes_on_keeps_its_precision(peaks, tmp_path, monkeypatch):
    inputs = make_inputs(tmp_path)
    common = {"precision": "auto", "max_steps": 6}
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", **common, max_time=1e-9)) == 75
    peaks[torch.bfloat16] = 420.0
    fastest_precision.cache_clear()
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", **common)) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["settings"]["precision"] == "float32"
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "other", **common)) == 0
    assert json.loads((tmp_path / "other" / "record.json").read_text())["settings"]["precision"] == "bfloat16"

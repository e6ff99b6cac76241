"""What a run chooses where nothing is said: the faster one, the same for a run that goes on; and its peak."""

import json
from types import SimpleNamespace

import pytest
import torch
from training_helpers import arguments, make_inputs, pretrain_here
from transformers import BertConfig, BertForMaskedLM

from hfbert_scratch.model import attention
from hfbert_scratch.model.layout_hfbert import UNPADDED
from hfbert_scratch.training import accelerator
from hfbert_scratch.training import run as run_module
from hfbert_scratch.training.accelerator import fastest_precision


CPU = torch.device("cpu")


@pytest.fixture
def peaks(monkeypatch):
    """Rates of the two precisions, to be set; what was found before is forgotten."""
    rates = {torch.float32: 300.0, torch.bfloat16: 170.0}
    monkeypatch.setattr(accelerator, "peak_flops", lambda device, dtype: (rates[dtype], "said by the test"))
    monkeypatch.setattr(accelerator, "has_bfloat16", lambda device: True)
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
    monkeypatch.setattr(accelerator, "has_bfloat16", lambda device: False)
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


def test_a_peak_that_was_timed_beside_other_work_is_timed_again(tmp_path, monkeypatch, capsys):
    inputs = make_inputs(tmp_path)
    timed = iter([1.0, 1e6])  # FLOP/s; the steps make more than either
    monkeypatch.setattr(run_module, "peak_flops", lambda device, dtype: (next(timed, 1e18), "said by the test"))
    assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", max_steps=4)) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    shares = [entry["mfu"] for entry in log if "mfu" in entry]
    assert len(shares) == 4 and shares[0] == 1 and all(0 < share <= 1 for share in shares)
    assert "what the steps reached" in capsys.readouterr().out


def test_a_peak_from_a_datasheet_stays(monkeypatch):
    run = SimpleNamespace(peak=(1.0, "datasheet of T4"))
    monkeypatch.setattr(run_module, "peak_flops", lambda *_: pytest.fail("timed"))
    run_module.Run.raise_peak(run, 2.0)
    assert run.peak == (1.0, "datasheet of T4")


def test_training_a_stock_model_takes_the_attention_that_is_timed_faster(monkeypatch):
    model = BertForMaskedLM(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    monkeypatch.setattr(attention, "fastest_padded_attention", lambda dtype, dropout: f"{dtype} {dropout}")
    assert attention.fastest_attention(model, CPU, torch.bfloat16, 0.1, training=True) == "torch.bfloat16 0.1"
    assert attention.fastest_attention(model, CPU, torch.bfloat16, 0.0) == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_timing_attention_moves_no_random_numbers(dtype):
    attention.fastest_padded_attention.cache_clear()
    before = torch.get_rng_state()
    assert attention.fastest_padded_attention(dtype, 0.1) in ("eager", "sdpa")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_goes_on_keeps_the_attention_that_was_timed():
    run = SimpleNamespace(recorded={"chosen_attention": "eager"}, device=CPU, settings={}, choices=[])
    assert run_module.Run.choose_attention(run, lambda: "sdpa") == "eager"
    assert run_module.Run.choose_attention(run, lambda: UNPADDED) == UNPADDED, "not a matter of timing"
    assert run.choices[0] == "attention eager: as the run began"

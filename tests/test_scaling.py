"""docs/scaling.md says what its script prints, and the script's formulas are the model's."""

from pathlib import Path

import pytest

from hfbert_scratch import HFBertConfig, HFBertForPreTraining


ROOT = Path(__file__).parent.parent


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    return scaling


def test_the_document_holds_what_the_script_prints(scaling):
    document = scaling.DOCUMENT.read_text(encoding="utf-8")
    _, rest = document.split(scaling.BEGIN)
    held, _ = rest.split(scaling.END)
    assert held.strip() == scaling.figures().strip(), "run python benchmarks/scaling.py --write"


def test_parameters_are_those_of_the_model(scaling):
    for config in (
        HFBertConfig.from_size("tiny"),
        HFBertConfig(hidden_size=96, num_attention_heads=4, vocab_size=500),
    ):
        model = HFBertForPreTraining(config)
        assert scaling.parameters(config) == sum(weight.numel() for weight in model.parameters())


def test_communication_that_takes_longer_than_arithmetic_decides(scaling):
    config, schedule = HFBertConfig.from_size("base"), scaling.SCHEDULES[0]
    alone, _ = scaling.hours(config, schedule, 1, 0.4)
    assert alone == pytest.approx(scaling.flops(config, schedule) / (0.4 * scaling.ASSUMED.peak) / 3600)
    hidden, exposed = scaling.hours(config, schedule, 64, 0.4)
    network = scaling.ddp_bytes(scaling.parameters(config), 64) / scaling.ASSUMED.network * sum(schedule.steps) / 3600
    assert hidden >= network and exposed == pytest.approx(alone / 64 + network)

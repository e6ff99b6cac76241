"""The live view: a bar on a terminal that wraps no line, curves that keep up, trackers that are there or named."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from finetuning_helpers import call, make_data, make_model, options
from training_helpers import arguments, pretrain_here

from hfbert_scratch.training import accelerator
from hfbert_scratch.utils import plots
from hfbert_scratch.utils.progress import TrainingBar, fold


@contextmanager
def terminal(monkeypatch) -> Iterator[Callable[[], str]]:
    """A terminal of 80 columns as both outputs; calling it returns what was written since."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(master, False)
    with os.fdopen(slave, "w", encoding="utf-8", buffering=1) as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        patch.setattr(sys, "stdout", file)
        patch.setenv("COLUMNS", "80")

        def written() -> str:
            file.flush()
            chunks = []
            while True:
                try:
                    chunks.append(os.read(master, 1 << 16))
                except BlockingIOError:
                    return b"".join(chunks).decode()

        yield written
    os.close(master)


def lines(text: str) -> list[str]:
    """What stood in a line of the terminal at any time, without the codes that move the cursor."""
    return [part for part in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)) if part.strip()]


def test_the_bar_and_the_lines_above_it_wrap_nowhere(monkeypatch):
    with terminal(monkeypatch) as written:
        bar = TrainingBar()
        bar.start(1_000_000, 123_400, "123400/1000000")
        bar.show(score="accuracy 12.3 % (unigram 6.1 %)", loss="loss 5.735")
        bar.update(123_456, "123456/1000000")
        bar.print(fold("step 123450/1000000 " + "masked_lm 5.735 " * 8))
        bar.close()
        shown = lines(written())
    assert max(map(len, shown)) <= 80
    *_, drawn = (line for line in shown if "eta" in line)
    assert drawn.startswith(" 12%|") and "123456/1000000 loss 5.735 accuracy 12.3 % (unigram 6.1 %) eta" in drawn
    printed = [line for line in shown if "masked_lm" in line]
    assert len(printed) == 2 and printed[1].startswith("    5.735")


def test_without_a_terminal_there_is_no_bar_and_no_line_is_broken(capsys):
    bar = TrainingBar()
    bar.start(10, 0, "0/10")
    bar.update(5, "5/10")
    line = "step 5/10 " + "x " * 100
    bar.print(fold(line))
    bar.close()
    assert capsys.readouterr() == (line + "\n", "")


def test_a_run_shows_the_bar_on_a_terminal(inputs, tmp_path, monkeypatch):
    with terminal(monkeypatch) as written:
        assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", log_every=10)) == 0
        shown = lines(written())
    assert max(map(len, shown)) <= 80
    text = "\n".join(shown)
    assert re.search(r"%\|.*\| 0/20 accuracy \? \(unigram \d+\.\d %\) eta", text)
    assert re.search(r"^step 10/20 loss .*masked_lm", text, re.MULTILINE)


def test_fine_tuning_shows_its_metric_beside_the_most_frequent_answer(tmp_path, monkeypatch):
    data, model = make_data(tmp_path / "data", "mrpc"), make_model(tmp_path / "model")
    with terminal(monkeypatch) as written:
        assert call(monkeypatch, "finetune", options("mrpc", data, model, tmp_path / "run", max_steps=8)) == 0
        text = "\n".join(lines(written()))
    assert re.search(r"0/8 f1 \? \(most frequent 0\.\d{4}\) eta", text)


def test_curves_are_drawn_at_evaluations_whole_or_not_at_all(inputs, tmp_path, monkeypatch):
    """At every one where that costs nothing, as here."""
    monkeypatch.setattr(plots.LiveCurves, "SHARE", 0)
    directory = tmp_path / "run"
    steps = []
    draw = plots.LiveCurves.__call__

    def watched(self):
        draw(self)
        assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
        steps.append((directory / "log.jsonl").read_text().count("eval_masked_lm_loss"))

    monkeypatch.setattr(plots.LiveCurves, "__call__", watched)
    assert pretrain_here(monkeypatch, arguments(inputs, directory, max_steps=12, eval_every=4)) == 0
    assert steps == [1, 2], "the last one is drawn when the run is done"
    assert not list(directory.glob(".*")), "no temporary file, no lock"


def test_the_training_curve_is_drawn_without_next_sentence_prediction_too(tmp_path):
    """Such a log has one loss, which is the masked LM's."""
    baseline = {"loss": 5.0, "accuracy": 0.1}
    for name, keys in (("pairs", ("masked_lm_loss", "loss")), ("alone", ("loss",)), ("none", ())):
        values = {"masked_lm_loss": 6.0, "loss": 6.7 if "masked_lm_loss" in keys else 6.0}
        log = [{"step": step} | {key: values[key] - step for key in keys} for step in range(3)]
        plots.draw_curves(log, baseline, tmp_path / f"{name}.png")
    pictures = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("pairs", "alone", "none")}
    assert pictures["alone"] == pictures["pairs"] != pictures["none"]


def test_drawing_takes_a_twentieth_of_the_time(monkeypatch):
    now = [0.0]
    drawn = []
    monkeypatch.setattr(plots, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def draw():
        drawn.append(now[0])
        now[0] += 2.0

    curves = plots.LiveCurves(draw)
    for second in range(0, 130, 10):
        now[0] = float(second)
        curves()
    assert drawn == [20.0, 70.0, 120.0]


def test_a_tracker_that_is_not_there_is_named(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "get_available_trackers", lambda: ["tensorboard"])
    for name, message in (
        ("trackio", 'the tracker trackio is not installed: pip install "hfbert-scratch[trackers]"'),
        ("tensorbord", "trackers is tensorbord; it must be all, "),
    ):
        assert pretrain_here(monkeypatch, arguments(inputs, tmp_path / "run", trackers=name)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_nothing(inputs, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    for directory in (tmp_path / "new", mine):
        assert pretrain_here(monkeypatch, arguments(inputs, directory, attention="nosuch")) == 2
        assert "nosuch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [mine] and not list(mine.iterdir())

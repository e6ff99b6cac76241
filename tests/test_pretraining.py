"""Pretraining through its recipe: it learns, leaves everything, resumes bit for bit, and layouts do not matter."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from importlib import metadata
from types import SimpleNamespace

import flash_on_cpu  # noqa: F401 - registers kernels
import psutil
import pytest
import torch
from accelerate import Accelerator
from helpers import disk
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from training_helpers import arguments, finish, launcher, pretrain_here, read_losses, start
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hfbert_scratch import HFBertForPreTraining, HFBertModel
from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.model import gpu, layout_hfbert
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.training import distributed as processes
from hfbert_scratch.training import loop as training
from hfbert_scratch.training.checkpoints import MANIFEST, write_checkpoint
from hfbert_scratch.training.distributed import StopController


# PyTorch 2.13 draws other first weights from a seed than 2.11: its trunc_normal_ was rewritten.
GOLDEN_LOSSES = {
    "2.11": [6.681635, 6.705454, 6.672519, 6.645446, 6.632485],
    "2.13": [6.686876, 6.704669, 6.703266, 6.686434, 6.663675],
}


@pytest.fixture
def run(monkeypatch, inputs):
    """Run the recipe in this process; returns its exit code."""
    return lambda output, **changes: pretrain_here(monkeypatch, arguments(inputs, output, **changes))


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def assert_same_run(left, right):
    assert read_losses(left) == read_losses(right)
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns_and_leaves_everything(run, tmp_path, capsys):
    assert run(tmp_path, max_steps=60, log_every=20, eval_every=30, save_every=30, trackers="tensorboard") == 0
    printed = capsys.readouterr().out
    assert "what token counts alone reach" in printed
    assert "step 60/60" in printed and "tokens/s" in printed and "MFU" in printed and "eta 0:00" in printed
    losses = [entry["masked_lm_loss"] for entry in read_losses(tmp_path) if "masked_lm_loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "done" and record["steps"] == 60
    assert record["results"]["eval_masked_lm_loss"] == read_losses(tmp_path)[-1]["eval_masked_lm_loss"]
    assert 0 < record["baseline"]["accuracy"] < 0.5
    assert record["derived"]["parameters"] > 0 and record["versions"]["torch"] == metadata.version("torch")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-30", "step-60"]
    for directory in (tmp_path / "model", tmp_path / "checkpoints" / "step-60"):
        model = AutoModelForMaskedLM.from_pretrained(directory)
        tokens = AutoTokenizer.from_pretrained(directory)("ba be", return_tensors="pt")
        assert model(**tokens).logits.shape[-1] == model.config.vocab_size


def test_a_single_held_out_prediction_is_enough_for_a_record(run, tmp_path):
    """The most frequent token is not among so few targets: token counts are never right."""
    assert run(tmp_path, max_steps=2, eval_every=2, eval_rows=1, max_predictions_per_seq=1) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["baseline"]["accuracy"] == 0 and record["results"]["plateau_left_at_step"] is None


def test_the_totals_count_the_phase_of_long_sequences(run, tmp_path):
    """Half of the steps at twice the length: three halves of the tokens, each with the FLOPs of its length."""
    common = {"max_steps": 8, "eval_every": 8, "short_seq_prob": 0.0}
    assert run(tmp_path / "two", **common, long_max_seq_length=64, long_share=0.5) == 0
    assert run(tmp_path / "short", **common) == 0
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("two", "short")]
    two, short = (record["derived"] for record in records)
    assert two["total_tokens"] == pytest.approx(records[0]["tokens"], rel=0.05)
    assert two["total_tokens"] == pytest.approx(8 * two["tokens_per_step"], abs=8)
    assert two["epochs"] == pytest.approx(1.5 * short["epochs"], abs=0.02)
    assert two["total_flops"] == pytest.approx(two["total_tokens"] * two["model_flops_per_token"], rel=1e-3)
    # Of three tokens two are in sequences of 64: 12·layers·hidden for each of 32 positions more.
    more = 2 / 3 * 12 * 1 * 32 * 32
    assert two["model_flops_per_token"] == pytest.approx(short["model_flops_per_token"] + more, rel=5e-3)


def test_the_batch_of_an_evaluation_is_an_option_and_changes_no_score(run, tmp_path, monkeypatch):
    sizes, forward = [], HFBertModel.forward

    def watched(model, *args, **kwargs):
        if not model.training:
            sizes.append(len(kwargs["input_ids"]))
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(HFBertModel, "forward", watched)
    common = {"max_steps": 1, "eval_every": 1, "attention": "eager"}
    assert run(tmp_path, **common) == 0
    first = json.loads((tmp_path / "record.json").read_text())["results"]
    assert sizes == [32]
    sizes.clear()
    assert run(tmp_path / "other", **common, eval_batch_size=8) == 0
    assert sizes == [8] * 4
    other = json.loads((tmp_path / "other" / "record.json").read_text())["results"]
    assert other["eval_masked_lm_loss"] == pytest.approx(first["eval_masked_lm_loss"], rel=1e-5)


def test_golden_losses(run, tmp_path):
    """A change here changes what every user's run learns: explain it in the commit that changes these numbers."""
    assert run(tmp_path, max_steps=5, eval_every=5) == 0
    losses = [entry["loss"] for entry in read_losses(tmp_path) if "loss" in entry]
    version = ".".join(torch.__version__.split(".")[:2])
    assert losses == pytest.approx(GOLDEN_LOSSES[version], rel=1e-4)


def test_how_a_batch_is_cut_does_not_change_the_update(run, tmp_path):
    """1×16, 2×8 and 8×2 micro-batches with different numbers of masks: one global loss."""
    for micro_batch_size in (16, 8, 2):
        output = tmp_path / str(micro_batch_size)
        assert run(output, max_steps=3, dropout=0.0, micro_batch_size=micro_batch_size) == 0
    reference = read_losses(tmp_path / "16")
    for micro_batch_size in (8, 2):
        for ours, theirs in zip(read_losses(tmp_path / str(micro_batch_size)), reference, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        for name, weight in weights(tmp_path / str(micro_batch_size)).items():
            torch.testing.assert_close(weight, weights(tmp_path / "16")[name], rtol=1e-4, atol=1e-6, msg=name)


def test_kill_9_at_random_moments_then_the_same_losses_and_weights(inputs, tmp_path):
    """Killed after a random step beyond a fresh checkpoint, in each of two phases; in front of any border too."""
    rng = random.Random(os.environ.get("HFBERT_TEST_SEED", "1"))
    changes = {"max_steps": 60, "log_every": 7, "save_every": 4, "eval_every": 30}
    changes |= {"long_max_seq_length": 64, "long_share": 0.5}
    process = start(arguments(inputs, tmp_path / "whole", **changes))
    assert finish(process)[0] == 0
    command = arguments(inputs, tmp_path / "killed", **changes)
    for goal in (rng.randrange(4, 28), rng.randrange(32, 52)):
        process = start(command)
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed" / "checkpoints").glob(f"step-{goal // 4 * 4}")):
            assert process.poll() is None and time.monotonic() < deadline, finish(process)
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.kill()
        finish(process)
    code, printed = finish(start(command))
    assert code == 0 and "continuing from" in printed
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_sigterm_saves_and_loses_no_step(inputs, tmp_path):
    changes = {"max_steps": 400, "save_every": 1000, "eval_every": 1000, "keep_checkpoints": 1}
    process = start(arguments(inputs, tmp_path, **changes))
    while "step 20/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, printed = finish(process)
    assert code == 75 and "stopped by a signal after step" in printed
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "stopped"
    step = int(printed.split("stopped by a signal after step ")[1].split(";")[0])
    assert 20 <= step < 400
    assert (tmp_path / "checkpoints" / f"step-{step}").is_dir()


def test_max_time_saves_and_the_same_command_continues(run, tmp_path, capsys):
    """A process whose time is up when it begins still does one step, so that every start gets further."""
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "limited", max_time=0.001) == 75
    assert "stopped by max_time after step 1;" in capsys.readouterr().out
    assert json.loads((tmp_path / "limited" / "record.json").read_text())["status"] == "stopped"
    assert run(tmp_path / "limited") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "limited")


def test_a_stopped_run_without_checkpoints_says_that_it_starts_anew(run, tmp_path, capsys):
    assert run(tmp_path, max_time=0.001, keep_checkpoints=0) == 75
    assert "after step 1; the same command starts anew: keep_checkpoints is 0\n" in capsys.readouterr().out


def test_max_time_leaves_room_for_the_longest_step(monkeypatch):
    began = psutil.Process().create_time()
    now = [100.0]
    clock = SimpleNamespace(time=lambda: began + now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(processes, "time", clock)
    stopping = processes.StopController(Accelerator(cpu=True), max_minutes=5)
    for seconds in (100, 110, 170, 180, 230, 239):  # the third step evaluates and saves: a minute
        now[0] = seconds
        assert not stopping.all_reduce({"items": 3})[1], seconds
    now[0] = 245
    totals, stop = stopping.all_reduce({"items": 3})
    assert stop and stopping.reason == "max_time" and totals["items"] == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_two_processes_see_the_same_batches_and_resume_as_one(inputs, run, tmp_path):
    """The same global batches and dropout whatever the number of processes; stopped with 2, continued with 1."""
    code, printed = finish(start(arguments(inputs, tmp_path / "two"), *launcher(2)))
    assert code == 0, printed
    assert "2 process(es)" in printed
    assert run(tmp_path / "one") == 0
    for ours, theirs in zip(read_losses(tmp_path / "two"), read_losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)

    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-20")
    assert run(tmp_path / "two") == 0
    for ours, theirs in zip(read_losses(tmp_path / "two"), read_losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_gives_the_same_end(run, tmp_path, capsys):
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "damaged") == 0
    torn = tmp_path / "damaged" / "checkpoints" / "step-20" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    assert run(tmp_path / "damaged") == 0
    printed = capsys.readouterr().out
    assert "optimizer.safetensors" in printed and "continuing from" in printed and "step 15" in printed
    assert_same_run(tmp_path / "whole", tmp_path / "damaged")


def test_other_settings_are_refused_and_listed(run, tmp_path, capsys):
    assert run(tmp_path) == 0
    before = (tmp_path / "record.json").read_bytes()
    settings = (tmp_path / "arguments.yaml").read_bytes()
    assert run(tmp_path, learning_rate=1e-3, seed=5) == 6
    error = capsys.readouterr().err
    assert "learning_rate: 0.002 there, 0.001 now" in error and "seed: 0 there, 5 now" in error
    assert run(tmp_path, max_steps=13) == 6
    assert "to train on, start a new run with --model" in capsys.readouterr().err
    assert (tmp_path / "record.json").read_bytes() == before
    assert (tmp_path / "arguments.yaml").read_bytes() == settings
    assert run(tmp_path, log_every=7, keep_checkpoints=1) == 0, "what does not change the result may change"


def test_a_run_belongs_to_the_content_of_its_corpus_wherever_that_lies(run, inputs, tmp_path, capsys):
    from corpus_helpers import build, documents

    from hfbert_scratch.text.tokenizer import load_tokenizer

    assert run(tmp_path / "run") == 0
    shutil.copytree(inputs["corpus"], tmp_path / "moved")
    assert run(tmp_path / "run", corpus=tmp_path / "moved") == 0
    build(tmp_path, documents(200, seed=7), load_tokenizer(inputs["tokenizer"]), name="other", max_seq_length=64)
    shutil.rmtree(tmp_path / "moved")
    (tmp_path / "other").rename(tmp_path / "moved")
    assert run(tmp_path / "run", corpus=tmp_path / "moved") == 6
    assert "corpus: " in capsys.readouterr().err


def assert_finite(output):
    files = list((output / "checkpoints").glob("step-*/*.safetensors"))
    assert files
    assert all(value.isfinite().all() for path in files for value in load_file(path).values())


def test_a_gradient_that_is_not_finite_stops_the_run_and_reaches_no_checkpoint(
    run, inputs, tmp_path, monkeypatch, capsys
):
    forward = HFBertForPreTraining.forward
    calls = []

    def poisoned(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 2 * 12:  # two micro-batches a step: step 12
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(HFBertForPreTraining, "forward", poisoned)
    assert run(tmp_path) == 5
    assert "step 12 is not finite" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-5"]
    assert_finite(tmp_path)

    report = json.loads((tmp_path / "diverged.json").read_text())
    assert report["step"] == 12
    tokenizer = load_tokenizer(inputs["tokenizer"])
    pairs = PretrainingDataArguments(seed=0).sampler(Corpus.open(inputs["corpus"], tokenizer).split("train"), 32)
    instances, _ = next(itertools.islice(pairs.batches(16), 11, None))
    assert report["examples"] == {"epoch": instances.epoch.tolist(), "index": instances.index.tolist()}


def test_a_weight_that_is_not_finite_reaches_no_checkpoint(run, tmp_path, monkeypatch, capsys):
    """A finite gradient whose update was not: the next step would tell, but a checkpoint may come before it."""
    step, calls = torch.optim.AdamW.step, []

    def broken(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 10:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[7] = float("inf")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    assert run(tmp_path, eval_every=20) == 5
    assert "after step 10 bert.embeddings" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert_finite(tmp_path)


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_run_goes_on_later(run, tmp_path, monkeypatch, capsys):
    from hfbert_scratch.training import run as module

    assert run(tmp_path / "whole") == 0
    save_file = module.save_file

    def full(tensors, path):
        if "step-15" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(module, "save_file", full)
    assert run(tmp_path / "full") == 7
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(module, "save_file", save_file)
    assert run(tmp_path / "full") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_the_best_checkpoint_is_kept_also_after_a_resume(run, tmp_path, monkeypatch):
    from hfbert_scratch.pretraining import PretrainingEvaluation

    held_out = {5: 3.0, 8: 1.0, 10: 2.0}  # step 8 is not saved
    evaluate = PretrainingEvaluation.__call__
    stop = 14

    def scripted(self, model, batches=None):
        if self.run.progress.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, model) | {"eval_masked_lm_loss": held_out.get(self.run.progress.step, 4.0)}

    monkeypatch.setattr(PretrainingEvaluation, "__call__", scripted)
    settings = {"keep_checkpoints": 1, "save_every": 5, "eval_every": 1}
    assert run(tmp_path, **settings) == 75
    stop = None
    assert run(tmp_path, **settings | {"save_every": 4}) == 0  # would have saved step 8
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-20"]
    assert json.loads((tmp_path / "record.json").read_text())["results"]["best_step"] == 10


def test_a_disk_of_any_size_that_is_too_small_ends_in_one_sentence(run, tmp_path, capsys):
    """Whatever is being written when it is full; with more room the same command comes to the same end."""
    assert run(tmp_path / "whole", trackers="tensorboard") == 0
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*")) // 1024
    codes = set()
    for share in (0.003, 0.05, 0.3, 0.7, 0.9, 3.0):
        kibibytes = max(4, int(share * needed))
        with disk(tmp_path / f"disk-{kibibytes}", kibibytes) as small:
            capsys.readouterr()
            code = run(small / "run", trackers="tensorboard")
            codes.add(code)
            errors = capsys.readouterr().err
            assert code in (0, 7), errors
            assert code == 0 or len(re.findall("^error: .*No space left on device", errors, re.MULTILINE)) == 1, errors
            if code:
                subprocess.run(["mount", "-o", f"remount,size={3 * needed}k", small], check=True)
                assert run(small / "run", trackers="tensorboard") == 0, capsys.readouterr().err
            assert_same_run(tmp_path / "whole", small / "run")
    assert codes == {0, 7}


@pytest.mark.parametrize(
    "ablation", [{"no_nsp": "true"}, {"left_to_right": "true"}], ids=lambda value: next(iter(value))
)
def test_the_papers_ablations_train(run, tmp_path, ablation):
    assert run(tmp_path, max_steps=6, **ablation) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert "eval_next_sentence_accuracy" not in record["results"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert model.config.left_to_right == ("left_to_right" in ablation)


def test_ablations_start_from_the_same_weights(run, tmp_path):
    for name, options in (("pairs", {}), ("no_nsp", {"no_nsp": "true"}), ("left", {"left_to_right": "true"})):
        # A learning rate of 0 in the only step: the weights stay what they were.
        assert run(tmp_path / name, max_steps=1, warmup_steps=1, **options) == 0
    pairs = weights(tmp_path / "pairs")
    for name in ("no_nsp", "left"):
        own = weights(tmp_path / name)
        assert pairs.keys() - own.keys() == {key for key in pairs if "pooler" in key or "seq_relationship" in key}
        assert all(torch.equal(pairs[key], tensor) for key, tensor in own.items())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_next_sentence_loss_counts_by_its_weight_on_the_same_pairs(run, tmp_path, weight):
    assert run(tmp_path / "first", max_steps=1, warmup_steps=1) == 0  # a learning rate of 0: the initial weights
    assert run(tmp_path / "weighted", max_steps=4, next_sentence_weight=weight) == 0
    first, weighted = read_losses(tmp_path / "first")[0], read_losses(tmp_path / "weighted")
    assert [weighted[0][part] for part in ("masked_lm_loss", "next_sentence_loss")] == [
        first[part] for part in ("masked_lm_loss", "next_sentence_loss")
    ]
    for entry in weighted:
        if "loss" in entry:
            total = entry["masked_lm_loss"] + weight * entry["next_sentence_loss"]
            assert entry["loss"] == pytest.approx(total, rel=1e-5)
    record = json.loads((tmp_path / "weighted" / "record.json").read_text())
    assert record["arguments"]["next_sentence_weight"] == weight
    assert 0 <= record["results"]["eval_next_sentence_accuracy"] <= 1
    configs = [(tmp_path / name / "model" / "config.json").read_text() for name in ("first", "weighted")]
    assert configs[0] == configs[1]
    name = "cls.seq_relationship.weight"
    assert torch.equal(weights(tmp_path / "first")[name], weights(tmp_path / "weighted")[name]) == (weight == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"next_sentence_weight": -1}, "next_sentence_weight is -1.0; it must be at least 0 and finite"),
        ({"next_sentence_weight": "nan"}, "next_sentence_weight is nan"),
        ({"next_sentence_weight": 0, "no_nsp": "true"}, "has no meaning without next-sentence prediction"),
    ],
)
def test_a_weight_that_means_nothing_is_refused(run, tmp_path, capsys, options, message):
    assert run(tmp_path / "run", **options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lamb"},
        {"precision": "bfloat16"},
        {"gradient_checkpointing": "true"},
        {"whole_word": "true", "attention": "sdpa"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_options_train(run, tmp_path, options):
    assert run(tmp_path, max_steps=6, eval_every=6, **options) == 0
    losses = [entry["loss"] for entry in read_losses(tmp_path) if "loss" in entry]
    assert all(loss == loss for loss in losses) and losses[-1] < losses[0]


def test_a_run_from_before_an_argument_existed_goes_on_with_its_default(run, tmp_path, capsys):
    assert run(tmp_path / "run", max_steps=10, max_time=1e-9) == 75
    checkpoint = tmp_path / "run" / "checkpoints" / "step-1"

    def before_packing(directory):
        shutil.copytree(checkpoint, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        state = json.loads((directory / "training_state.json").read_text())
        del state["settings"]["packing"]
        (directory / "training_state.json").write_text(json.dumps(state))

    write_checkpoint(checkpoint.parent, 1, before_packing, max_to_keep=1)
    capsys.readouterr()
    assert run(tmp_path / "run", max_steps=10, packing="true") == 6
    assert "packing: False there, True now" in capsys.readouterr().err
    assert run(tmp_path / "run", max_steps=10) == 0


def test_recorded_passes_find_gradients_that_they_add_to(run, tmp_path, monkeypatch, capsys):
    """All but the recording, which CPUs have not: the gradients' memory stays, and the losses are the same."""
    assert run(tmp_path / "refused", cuda_graphs="true") == 2
    assert "cuda_graphs needs a CUDA device and one process" in capsys.readouterr().err
    places, forward = [], HFBertForPreTraining.forward

    def watched(model, *args, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters()]
        places.append([None if gradient is None else gradient.data_ptr() for gradient in gradients])
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(HFBertForPreTraining, "forward", watched)
    assert run(tmp_path / "plain", max_steps=5) == 0
    monkeypatch.setattr(training, "RecordedPasses", lambda compute, device: compute)
    monkeypatch.setattr(training, "check_cuda_graphs", lambda *_: None)
    places.clear()
    assert run(tmp_path / "graphs", max_steps=5, cuda_graphs="true") == 0
    assert places == [places[0]] * 10 and None not in places[0]
    assert_same_run(tmp_path / "plain", tmp_path / "graphs")


def test_what_auto_came_to_is_kept_when_a_run_goes_on(run, tmp_path, capsys):
    """A run that was begun packed, as on a GPU, goes on so wherever it goes on."""
    assert run(tmp_path / "run", max_steps=10, packing="true", max_time=1e-9) == 75
    assert run(tmp_path / "run", max_steps=10) == 0
    settings = json.loads((tmp_path / "run" / "record.json").read_text())["settings"]
    assert (settings["packing"], settings["compile"], settings["cuda_graphs"]) == (True, False, False)
    assert run(tmp_path / "other", max_steps=10) == 0
    assert json.loads((tmp_path / "other" / "record.json").read_text())["settings"]["packing"] is False
    assert run(tmp_path / "refused", compile="some") == 2
    assert "compile is some; it must be one of auto, layers, true, false" in capsys.readouterr().err


def test_a_run_that_recorded_its_passes_goes_on_where_none_can_be(run, tmp_path, monkeypatch):
    """Recording changes no number: several GPUs, or a CPU, may continue what one GPU began."""
    with monkeypatch.context() as gpu_like:
        gpu_like.setattr(training, "RecordedPasses", lambda compute, device: compute)
        gpu_like.setattr(training, "check_cuda_graphs", lambda *_: None)
        assert run(tmp_path / "run", max_steps=6, cuda_graphs="true", max_time=1e-9) == 75
    assert run(tmp_path / "run", max_steps=6) == 0
    assert run(tmp_path / "whole", max_steps=6) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_schedule_by_time_ends_the_decay_with_the_time(run, tmp_path, monkeypatch, capsys):
    """With a clock that moves a second whenever it is read, and 30 seconds: the rate falls to 0, the run is done."""
    ticks = itertools.count()
    monkeypatch.setattr(processes.time, "monotonic", lambda: float(next(ticks)))
    by_time = {"max_steps": 1000, "schedule": "time", "eval_every": 1000, "save_every": 2, "warmup_steps": 3}
    assert run(tmp_path / "run", **by_time, max_time=0.5) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    rates = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in rates if "learning_rate" in line]
    assert record["status"] == "done" and (tmp_path / "run" / "model").is_dir()
    assert "total_tokens" not in record["derived"]  # max_steps says nothing about them
    assert 5 <= len(rates) <= 30 and rates[-1] < 0.15 * max(rates) and rates[4:] == sorted(rates[4:], reverse=True)
    assert run(tmp_path / "refused", schedule="time") == 2
    # The learning rate falls with max_time, so a run keeps it.
    assert run(tmp_path / "run", **by_time, max_time=5) == 6
    assert "max_time: 0.5 there, 5.0 now" in capsys.readouterr().err
    # A second run of a process has a time of its own.
    assert run(tmp_path / "second", **by_time, max_time=0.5) == 0
    assert len(read_losses(tmp_path / "second")) == pytest.approx(len(rates), abs=2)


@pytest.mark.parametrize("compile, expected", [("layers", 4), pytest.param("true", 1, marks=pytest.mark.slow)])
def test_a_prepared_model_compiles_once_for_all_lengths_of_rows(run, tmp_path, monkeypatch, compile, expected):
    """As on a GPU: packed, in bfloat16, through Accelerate's wrapping, with the modules and the operator of GPUs."""
    torch._dynamo.reset()
    counters.clear()
    shapes, moved = set(), training.on_device

    def watched(inputs, device):
        shapes.add(inputs["input_ids"].shape)
        return moved(inputs, device)

    def compiled(model, **options):
        gpu.train_on_gpu(model)
        gpu.compile_layers(model, backend="aot_eager")

    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="aot_eager"))
    monkeypatch.setattr(training, "compile_layers", compiled)
    monkeypatch.setattr(layout_hfbert, "has_varlen_kernel", lambda device, dtype, size: dtype == torch.bfloat16)
    monkeypatch.setattr(training, "on_device", watched)
    changes = {"precision": "bfloat16", "packing": "true", "compile": compile, "max_steps": 3, "hidden_size": 64}
    changes |= {"short_seq_prob": 0.9, "micro_batch_size": 2, "num_hidden_layers": 2}  # rows of many lengths
    assert run(tmp_path / "run", **changes) == 0
    assert len(shapes) >= 3 and counters["stats"]["unique_graphs"] == expected and not counters["graph_break"]
    torch._dynamo.reset()


def test_time_of_earlier_launches_counts(monkeypatch):
    stopping = StopController(Accelerator(cpu=True), max_minutes=1, is_budget=True)
    began = time.monotonic() - stopping.seconds()
    monkeypatch.setattr(processes.time, "monotonic", lambda: began + 12.0)
    stopping.resume(18.0)
    assert stopping.time_used == 0.3  # before the processes have agreed on more
    stopping.all_reduce({"num_items_in_batch": 1})
    assert stopping.time_used == pytest.approx(0.5)


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(run, tmp_path):
    assert run(tmp_path / "plain", max_steps=4, dropout=0.0) == 0
    assert run(tmp_path / "compiled", max_steps=4, dropout=0.0, compile="true") == 0
    for ours, theirs in zip(read_losses(tmp_path / "compiled"), read_losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "sdpa"},
        {"left_to_right": "true"},
        pytest.param({"compile": "true"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_packed_rows_are_the_same_run(run, tmp_path, changes):
    """In two phases; compiled, the rows' lengths are rounded up, with sequences of padding at the end."""
    common = {"max_steps": 6, "dropout": 0.0, "long_max_seq_length": 64, "long_share": 0.5}
    assert run(tmp_path / "padded", **common, **{k: v for k, v in changes.items() if k == "left_to_right"}) == 0
    assert run(tmp_path / "packed", **common, **changes, packing="true") == 0
    for ours, theirs in zip(read_losses(tmp_path / "packed"), read_losses(tmp_path / "padded"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_gradient_checkpointing_changes_nothing(run, tmp_path):
    assert run(tmp_path / "plain", max_steps=3) == 0
    assert run(tmp_path / "checkpointed", max_steps=3, gradient_checkpointing="true") == 0
    for ours, theirs in zip(read_losses(tmp_path / "checkpointed"), read_losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5), "dropout is drawn the same in the recomputation"


def test_a_second_run_starts_from_the_first_ones_model(run, tmp_path):
    """Phase 2 as a run of its own."""
    assert run(tmp_path / "first", max_steps=10) == 0
    options = {"model": tmp_path / "first" / "model", "max_seq_length": 64, "max_steps": 4}
    assert run(tmp_path / "second", **options) == 0
    first = [entry["loss"] for entry in read_losses(tmp_path / "first") if "loss" in entry]
    second = [entry["loss"] for entry in read_losses(tmp_path / "second") if "loss" in entry]
    assert second[0] < first[0]


def test_an_output_that_cannot_be_written_or_is_in_use(run, inputs, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path / "file" / "run") == 7
    assert str(tmp_path / "file") in capsys.readouterr().err
    process = start(arguments(inputs, tmp_path / "used", max_steps=100_000))
    while "step 1/" not in process.stdout.readline():
        assert process.poll() is None
    assert run(tmp_path / "used", max_steps=100_000) == 7
    assert f"another run is writing to {tmp_path / 'used'} (process {process.pid}" in capsys.readouterr().err
    process.kill()
    finish(process)

"""Fine-tuning through its recipes: every kind of task learns, resumes bit for bit, and layouts do not matter."""

import json
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version

import numpy as np
import pytest
import torch
import transformers
from finetuning_helpers import BAD, GOOD, WORDS, call, command, make_data, make_model, options, read, rows
from safetensors.torch import load_file, save_file
from task_helpers import write_jsonl
from training_helpers import RECIPES, environment, read_losses

from hfbert_scratch.evaluation import Examples, TaskData, answer, call_model, load_for_task, run_model, task_loss
from hfbert_scratch.finetuning import FinetuningArguments, FinetuningBatches, fine_tune
from hfbert_scratch.tasks import DataArguments, FeatureSettings, get_task
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.training.accelerator import create_accelerator
from hfbert_scratch.training.optimizers import create_optimizer
from hfbert_scratch.utils.arguments import parse_arguments
from hfbert_scratch.utils.errors import InputError


KINDS = ("cola", "mrpc", "stsb", "swag", "conll2003", "squad", "squad_v2")
LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no", "--num_machines", "1")
LAUNCHER += ("--dynamo_backend", "no", "--main_process_port", "0", "--num_processes")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Task → its directory."""
    root = tmp_path_factory.mktemp("data")
    return {kind: make_data(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def trained(model, data, tmp_path_factory):
    """Kind → the output of a run, made when it is first asked for."""
    root = tmp_path_factory.mktemp("trained")

    def run(kind: str):
        output = root / kind
        if not output.exists():
            with pytest.MonkeyPatch.context() as monkeypatch:
                assert call(monkeypatch, "finetune", options(kind, data[kind], model, output)) == 0
        return output

    return run


@pytest.fixture
def finetune(monkeypatch, model, data):
    """Run the recipe in this process; returns its exit code."""
    return lambda kind, output, **changes: call(
        monkeypatch, "finetune", options(kind, data[kind], model, output, **changes)
    )


def start(name, line, *launcher):
    return subprocess.Popen(
        [sys.executable, *launcher, str(RECIPES / f"{name}.py"), *line],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed


# --------------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_learns_and_leaves_everything(kind, trained):
    output = trained(kind)
    losses = [entry["loss"] for entry in read_losses(output) if "loss" in entry]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    results = read(output / "results.json")
    task = get_task(kind)
    assert results["main_metric"]["name"] == task.main_metric
    assert results["main_metric"]["value"] == results["scores"]["validation"][task.main_metric]
    assert results["majority_baseline"]["validation"].keys() <= results["scores"]["validation"].keys()
    assert results["hyperparameters"]["learning_rate"] == 3e-3 and results["versions"]["torch"] == version("torch")
    assert results["seconds"]["all"] >= results["seconds"]["training"] > 0 and results["hardware"]
    assert results["examples"] == {"train": 64, "validation": 19, "test": 5}
    assert read(output / "record.json")["status"] == "done"
    assert read(output / "record.json")["data"] == results["data"]
    assert {split: entry["examples"] for split, entry in results["data"]["splits"].items()} == results["examples"]
    assert results["data"]["splits"]["train"].keys() & {"classes", "labels"} and results["data"]["example"]
    assert "classes" not in results["data"]["splits"]["test"]
    written = {path.name for path in (output / "predictions").iterdir()}
    assert {path.split(".")[0] for path in written} >= {"predictions_validation", "predictions_test"}
    pictures = {"curves.png"}
    pictures |= {"confusion.png"} if kind in ("cola", "mrpc") else {"threshold.png"} if kind == "squad_v2" else set()
    assert {path.name for path in output.glob("*.png")} == pictures
    opened = getattr(transformers, task.head).from_pretrained(output / "model")
    assert len(transformers.AutoTokenizer.from_pretrained(output / "model")) == opened.config.vocab_size


@pytest.mark.parametrize("kind", ["cola", "mrpc", "conll2003", "swag"])
def test_what_can_be_learnt_is_learnt(kind, trained):
    results = read(trained(kind) / "results.json")
    assert results["main_metric"]["value"] > 0.8 and not results["degenerate"]


def test_the_usual_pipelines_open_the_model(trained):
    classify = transformers.pipeline("text-classification", model=str(trained("cola") / "model"))
    assert classify(f"{GOOD} {WORDS[9]}")[0]["label"] == "acceptable"
    assert classify(f"{BAD} {WORDS[9]}")[0]["label"] == "unacceptable"
    tag = transformers.pipeline("token-classification", model=str(trained("conll2003") / "model"))
    assert [entity["entity"] for entity in tag(f"{GOOD} {WORDS[9]}")] == ["B-PER"]


def test_answer_finds_a_span_in_a_text_longer_than_a_window(trained):
    directory = trained("squad") / "model"
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(directory)
    tokenizer = load_tokenizer(directory)
    context = " ".join(WORDS[10:50] * 5)
    answered = answer(model, tokenizer, WORDS[3], context, max_seq_length=64, doc_stride=16, max_query_length=8)
    assert answered["answer"] and answered["answer"] in context
    assert 0 < answered["probability"] <= 1 and answered["n_best"][0]["text"] == answered["answer"]
    never = answer(model, tokenizer, WORDS[3], context, null_threshold=-1e9, max_seq_length=64, max_query_length=8)
    assert never["answer"] == ""
    assert answer(model, tokenizer, "?", "", max_seq_length=64, max_query_length=8)["answer"] == ""
    with pytest.raises(InputError, match="max_seq_length 64 leaves no room for context"):
        answer(model, tokenizer, WORDS[3], context, max_seq_length=64, max_query_length=62)


def test_evaluate_repeats_the_runs_scores_and_predictions(trained, data, tmp_path, monkeypatch, capsys):
    for kind in ("mrpc", "squad_v2"):
        line = {"model": trained(kind) / "model", "data_dir": data[kind], "output_dir": tmp_path / kind}
        line |= {"precision": "float32", "cache_dir": data[kind] / "cache"}
        assert call(monkeypatch, "evaluate_model", command(line)) == 0
        here, there = read(tmp_path / kind / "results.json"), read(trained(kind) / "results.json")
        name, baseline = there["main_metric"]["name"], there["majority_baseline"]["validation"]
        value = f"{there['main_metric']['value']:.4f}"
        assert f"{name} {value} ({baseline[name]:.4f})" in capsys.readouterr().out, "the most frequent answer beside"
        expected = {name: value for name, value in there["scores"]["validation"].items() if name != "loss"}
        assert here["scores"]["validation"] == pytest.approx(expected, rel=1e-4)
        for path in (trained(kind) / "predictions").glob("predictions_*"):
            assert (tmp_path / kind / "predictions" / path.name).read_bytes() == path.read_bytes(), path.name
    line = {"model": trained("squad") / "model", "question": WORDS[3], "context": f"{WORDS[8]} {GOOD} {WORDS[9]}"}
    capsys.readouterr()
    assert call(monkeypatch, "evaluate_model", command(line)) == 0
    assert json.loads(capsys.readouterr().out)["answer"]


def test_every_class_is_reported(trained):
    report = read(trained("mrpc") / "results.json")["report"]["validation"]
    assert report["classes"].keys() == {"equivalent", "not_equivalent"}
    assert sum(entry["support"] for entry in report["classes"].values()) == 19
    results = read(trained("conll2003") / "results.json")
    report, scores = results["report"]["validation"], results["scores"]["validation"]
    assert report["classes"]["PER"]["f1"] == pytest.approx(scores["f1"])  # the only type there is
    assert report["strict"]["f1"] == pytest.approx(scores["f1"])  # of single words: nothing to be strict about
    assert read(trained("stsb") / "results.json")["report"] == {"validation": {}}


def test_a_model_without_class_names_is_evaluated_as_told(trained, data, tmp_path, monkeypatch, capsys):
    """The classes swapped and their names lost: assumed is the task's order, said is that another fits better."""
    directory = tmp_path / "model"
    shutil.copytree(trained("mrpc") / "model", directory)
    weights = load_file(directory / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = read(directory / "config.json")
    config |= {"id2label": {str(i): f"LABEL_{i}" for i in (0, 1)}, "label2id": {f"LABEL_{i}": i for i in (0, 1)}}
    (directory / "config.json").write_text(json.dumps(config))
    line = {"model": directory, "task": "mrpc", "data_dir": data["mrpc"], "output_dir": tmp_path / "out"}
    line |= {"precision": "float32", "cache_dir": data["mrpc"] / "cache"}
    there = read(trained("mrpc") / "results.json")["scores"]["validation"]["accuracy"]
    assert call(monkeypatch, "evaluate_model", command(line)) == 0
    assert "LABEL_0 is not_equivalent" in (printed := capsys.readouterr().out)
    assert f"in the order equivalent not_equivalent it is {there:.3f}" in printed
    assert read(tmp_path / "out" / "results.json")["scores"]["validation"]["accuracy"] == pytest.approx(1 - there)
    named = line | {"model_classes": ["equivalent", "not_equivalent"]}
    assert call(monkeypatch, "evaluate_model", command(named)) == 0
    results = read(tmp_path / "out" / "results.json")
    assert results["scores"]["validation"]["accuracy"] == pytest.approx(there)
    assert results["data"]["splits"].keys() == {"validation", "test"} and "equivalent" in str(results["report"])
    assert "LABEL" not in capsys.readouterr().out
    assert call(monkeypatch, "evaluate_model", command(line | {"model_classes": ["equivalent"]})) == 2
    assert "the model has 2 classes; name each of them once" in capsys.readouterr().err


def test_the_best_step_is_kept_and_is_the_model(finetune, tmp_path):
    """With a learning rate that ruins the model late, the best evaluation is not the last."""
    assert finetune("cola", tmp_path, max_steps=60, eval_every=6, learning_rate=2e-2, warmup_steps=50) == 0
    results = read(tmp_path / "results.json")
    entries = [entry for entry in map(json.loads, (tmp_path / "log.jsonl").open()) if "eval_loss" in entry]
    best = max(entries, key=lambda entry: entry["eval_matthews_correlation"])
    assert results["best_step"] == best["step"]
    assert results["scores"]["validation"]["matthews_correlation"] == best["eval_matthews_correlation"]
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-60", f"step-{best['step']}"}
    weights = load_file(tmp_path / "checkpoints" / f"step-{best['step']}" / "model.safetensors")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], weights[name]) for name in saved)


def test_all_of_glue_ends_in_both_averages_and_a_submission(model, tmp_path, monkeypatch, capsys):
    names = {"cola": "CoLA", "sst2": "glue_sst2", "stsb": "STS-B", "mnli": "MNLI", "ax": "ax"}
    for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"):
        make_data(tmp_path / "data" / names.get(task, task), task, train=16, validation=5, test=3)
    line = options("all-glue", tmp_path / "data", model, tmp_path / "run", max_steps=2, keep_checkpoints=0)
    assert call(monkeypatch, "finetune", line) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["paper_average"] is not None and results["leaderboard_score"] is not None
    assert results["scores"].keys() >= {"mnli", "mnli_mismatched", "wnli"}
    with zipfile.ZipFile(tmp_path / "run" / "submission.zip") as archive:
        assert len(archive.namelist()) == 11
        assert (
            archive.read("AX.tsv").startswith(b"index\tprediction\n0\t") and archive.read("WNLI.tsv").count(b"\n") == 4
        )
    assert (tmp_path / "run" / "mnli" / "predictions" / "predictions_test_mismatched.tsv").is_file()
    assert "leaderboard_score: " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- exactness of the training


def test_kill_9_then_the_same_losses_predictions_and_weights(model, data, tmp_path, monkeypatch):
    def line(output):
        changes = {"max_steps": 60, "save_every": 3, "eval_every": 15, "log_every": 7}
        return options("mrpc", data["mrpc"], model, output, **changes)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process, so that sums are added in one order
    assert call(monkeypatch, "finetune", line(tmp_path / "whole")) == 0
    torch.set_num_threads(threads)
    process = start("finetune", line(tmp_path / "killed"))
    while not list((tmp_path / "killed" / "checkpoints").glob("step-2?")):
        assert process.poll() is None, finish(process)
        time.sleep(0.002)
    process.kill()
    finish(process)
    code, printed = finish(start("finetune", line(tmp_path / "killed")))
    assert code == 0 and "continuing from" in printed, printed
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    names = [path.name for path in (tmp_path / "whole" / "predictions").iterdir()]
    for name in names:
        left, right = (tmp_path / run / "predictions" / name for run in ("killed", "whole"))
        assert left.read_bytes() == right.read_bytes()


THREE_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from test_finetuning import three_processes
three_processes({line!r}, {model!r}, {data!r}, {target!r})
"""


def three_processes(line, model, data, target):
    """What each process of a launch does: a run, and outputs for numbers of features that do not divide evenly."""
    fine_tune(parse_arguments(FinetuningArguments, line), end_training=False)
    outputs_of_sizes(model, data, target)


def outputs_of_sizes(model, data, target):
    """Write the outputs for the first n features, n = 1 … 19, as the processes of this launch gather them."""
    torch.set_num_threads(1)
    accelerator = create_accelerator("float32")
    task = get_task("conll2003")
    tokenizer = load_tokenizer(model)
    network, _ = load_for_task(task, model, None)
    outputs_by_row = {}
    raw = task.load(DataArguments(data_dir=data))["validation"]
    for size in (1, 2, 3, 4, 7, 19):
        settings = FeatureSettings(64, cache_dir=f"{target}-cache-{accelerator.process_index}")
        features = task.features(raw.select(range(size)), tokenizer, settings)
        outputs, loss = run_model(accelerator, network, Examples(task, features, 0), batch_size=2)
        outputs_by_row |= {f"{size}-{row}": logits for row, logits in enumerate(outputs["logits"])}
        outputs_by_row[f"{size}-loss"] = loss
    if accelerator.is_main_process:
        np.savez(target, **outputs_by_row)
    accelerator.end_training()


def test_three_processes_train_and_predict_as_one(finetune, trained, model, data, tmp_path):
    """Training to rounding; the gathered outputs of one model to the last bit, in order and complete."""
    changes = {"max_steps": 10, "eval_every": 5, "batch_size": 12, "micro_batch_size": 4}
    paths = {"model": str(trained("conll2003") / "model"), "data": str(data["conll2003"])}
    line = options("mrpc", data["mrpc"], model, tmp_path / "three", **changes)
    code = tmp_path / "code.py"
    tests = str(RECIPES.parent / "tests")
    code.write_text(THREE_PROCESSES.format(tests=tests, line=line, target=str(tmp_path / "3"), **paths))
    done = subprocess.run(
        [sys.executable, *LAUNCHER, "3", str(code)], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "3 process(es)" in done.stdout, done.stdout + done.stderr

    assert finetune("mrpc", tmp_path / "one", **changes) == 0
    for ours, theirs in zip(read_losses(tmp_path / "three"), read_losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    scores = [read(tmp_path / name / "results.json")["scores"]["validation"] for name in ("three", "one")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)

    threads = torch.get_num_threads()
    outputs_of_sizes(**paths, target=str(tmp_path / "1"))
    torch.set_num_threads(threads)
    one, three = (np.load(tmp_path / f"{processes}.npz") for processes in (1, 3))
    assert one.files == three.files and len(one.files) == 36 + 6
    for name in one.files:
        assert np.array_equal(one[name], three[name]), name


@pytest.mark.parametrize("kind", ["cola", "stsb", "swag", "conll2003", "squad"])
def test_how_a_batch_is_cut_does_not_change_the_update(kind, finetune, tmp_path, monkeypatch, model):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, tensor: tensor)
    for size in (16, 4):
        changes = {"max_steps": 3, "micro_batch_size": size, "attention": "sdpa", "keep_checkpoints": 0}
        plain = make_model(tmp_path / f"model{size}", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
        assert finetune(kind, tmp_path / str(size), model=plain, **changes) == 0
    for ours, theirs in zip(read_losses(tmp_path / "4"), read_losses(tmp_path / "16"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("kind", ["cola", "stsb", "conll2003"])
def test_packed_rows_are_the_same_run(kind, finetune, tmp_path):
    plain = make_model(tmp_path / "model", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    for packing in ("false", "true"):
        assert finetune(kind, tmp_path / packing, model=plain, max_steps=3, packing=packing, keep_checkpoints=0) == 0
    for ours, theirs in zip(read_losses(tmp_path / "true"), read_losses(tmp_path / "false"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("kind", ["swag", "squad"])
def test_packing_is_refused_where_answers_compare_rows_or_positions(kind, finetune, tmp_path, capsys):
    assert finetune(kind, tmp_path, max_steps=1, packing="true") == 2
    assert "packing does not fit" in capsys.readouterr().err


def test_a_stock_checkpoint_learns_the_same(finetune, tmp_path, capsys):
    """The same weights under transformers' own BERT: the same losses."""
    plain = make_model(tmp_path / "ours", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    config = read(plain / "config.json")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: config[name] for name in (*names, "max_position_embeddings")}
    stock = transformers.BertModel(
        transformers.BertConfig(**sizes, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    )
    stock.load_state_dict({k.removeprefix("bert."): v for k, v in load_file(plain / "model.safetensors").items()})
    stock.save_pretrained(tmp_path / "stock")
    load_tokenizer(plain).save_pretrained(tmp_path / "stock")
    # The heads are drawn differently; so both start from one with a head of zeros.
    for name in ("ours", "stock"):
        task = get_task("cola")
        raw = task.load(DataArguments(data_dir=str(make_data(tmp_path / "data", "cola"))))["train"]
        network, new = load_for_task(task, str(tmp_path / name), raw)
        assert new and all("classifier" in key for key in new)
        torch.nn.init.zeros_(network.classifier.weight)
        network.save_pretrained(tmp_path / name)
        assert finetune("cola", tmp_path / f"run-{name}", model=tmp_path / name, max_steps=6, attention="eager") == 0
    assert finetune("cola", tmp_path / "packed", model=tmp_path / "stock", max_steps=6, packing="true") == 2
    assert "packing needs a model of this package, not BertFor" in capsys.readouterr().err
    for ours, theirs in zip(read_losses(tmp_path / "run-ours"), read_losses(tmp_path / "run-stock"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert type(transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run-stock/model")) is (
        transformers.BertForSequenceClassification
    )


@pytest.mark.parametrize("kind", KINDS)
def test_our_loss_is_the_models_own(kind, trained, data):
    """What the heads would compute from the same labels, for one batch without accumulation."""
    task, directory = get_task(kind), str(trained(kind) / "model")
    network, _ = load_for_task(task, directory, None)
    settings = FeatureSettings(64, max_query_length=8, cache_dir=str(data[kind] / "cache"))
    loaded = TaskData(task, DataArguments(data_dir=str(data[kind])), load_tokenizer(directory), settings)
    examples = loaded.examples("train", training=True)
    batch = examples.batch(np.arange(8))
    network.eval()
    with torch.no_grad():
        targets = {name: batch[name] for name in examples.targets}
        total = torch.tensor(float(examples.count_targets(np.arange(8))))
        ours = task_loss(task, call_model(network, batch, examples.targets), targets, total)
        theirs = network(**batch).loss
    torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------------------------------------------------- batches


class _Run:
    """The least that batches ask of a run."""

    class accelerator:
        num_processes, process_index = 1, 0

    packing = False

    def __init__(self, step=0):
        self.progress = type("Progress", (), {"step": step})()


def batches(model, data, tmp_path, step=0, **changes):
    """A run's batches of MRPC's 64 examples."""
    task = get_task("mrpc")
    settings = FeatureSettings(64, cache_dir=str(data / "cache"))
    examples = TaskData(task, DataArguments(data_dir=str(data)), load_tokenizer(model), settings).examples(
        "train", True
    )
    given = {"task": "mrpc", "model": "m", "output_dir": "o", "batch_size": 10, "micro_batch_size": 5} | changes
    arguments = FinetuningArguments(**given).resolved(task, len(examples))
    return FinetuningBatches(_Run(step), examples, arguments), examples


@pytest.mark.parametrize("grouped", [True, False])
def test_every_example_is_seen_once_an_epoch(model, data, tmp_path, grouped):
    options = {"epochs": 10, "batch_size": 32, "micro_batch_size": 8}
    step_batches, examples = batches(model, data["mrpc"], tmp_path, group_by_length=grouped, **options)
    assert step_batches.arguments.max_steps == 20
    rows = step_batches.block(0)
    counts = np.bincount(rows.ravel(), minlength=64)
    assert (counts == 10).all()
    if grouped:
        spread = np.ptp(examples.lengths[rows], axis=1).mean()
        loose, _ = batches(model, data["mrpc"], tmp_path, group_by_length=False, **options)
        assert spread < 0.3 * np.ptp(examples.lengths[loose.block(0)], axis=1).mean()
    else:
        assert (np.sort(rows[:2].ravel()) == np.arange(64)).all(), "the first two batches are the first epoch"


def test_batches_depend_on_the_step_alone(model, data, tmp_path):
    options = {"max_steps": 110, "eval_every": 1}
    whole, _ = batches(model, data["mrpc"], tmp_path, **options)
    later, _ = batches(model, data["mrpc"], tmp_path, step=57, **options)
    expected = list(whole)
    remaining = list(later)
    assert len(expected) == 110 and len(remaining) == 53
    for ours, theirs in zip(remaining, expected[57:], strict=True):
        for left, right in zip(ours.micro_batches, theirs.micro_batches, strict=True):
            assert all(torch.equal(left[name], right[name]) for name in left)
    other, _ = batches(model, data["mrpc"], tmp_path, seed=1, **options)
    assert not np.array_equal(whole.block(0), other.block(0))


def test_fewer_examples_than_a_batch_still_make_steps(model, data, tmp_path):
    step_batches, _ = batches(model, data["mrpc"], tmp_path, batch_size=200, micro_batch_size=100, epochs=1)
    assert step_batches.arguments.max_steps == 1 and len(next(iter(step_batches)).micro_batches[0]["labels"]) == 100


@pytest.mark.parametrize(
    ("processes", "batch_size", "size"), [(1, 96, 32), (2, 96, 24), (3, 96, 32), (8, 96, 12), (4, 32, 8), (2, 70, 7)]
)
def test_by_default_a_micro_batch_divides_the_share_of_every_process(processes, batch_size, size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    given = FinetuningArguments(task="mrpc", model="m", output_dir="o", batch_size=batch_size)
    assert given.resolved(get_task("mrpc"), 1000).micro_batch_size == size


def test_numbers_that_cannot_be_are_refused_not_replaced_by_the_default():
    for name, least in (("micro_batch_size", 1), ("max_seq_length", 8)):
        given = FinetuningArguments(task="mrpc", model="m", output_dir="o", **{name: 0})
        with pytest.raises(InputError, match=f"{name} is 0; it must be at least {least}"):
            given.resolved(get_task("mrpc"), 1000)


def test_the_originals_adam_is_without_bias_correction():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    module = torch.nn.Module()
    module.weight = weight
    optimizer = create_optimizer("bert_adam", module, learning_rate=0.1, weight_decay=0.01, epsilon=1e-6)
    expected, first, second = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for gradient in (torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.3])):
        weight.grad = gradient
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        expected = expected - 0.1 * (first / (second.sqrt() + 1e-6) + 0.01 * expected)
        torch.testing.assert_close(weight.detach(), expected)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_data_and_models_are_named(finetune, trained, data, tmp_path, monkeypatch, capsys):
    examples = rows("mrpc", 8, 0)
    write_jsonl(tmp_path / "bad.jsonl", [*examples, {**examples[0], "label": 7}])
    assert finetune("mrpc", tmp_path / "run", train_file=tmp_path / "bad.jsonl") == 2
    assert "row 8: unknown label 7" in capsys.readouterr().err
    (tmp_path / "only").mkdir()
    write_jsonl(tmp_path / "only" / "train.jsonl", examples)
    assert finetune("mrpc", tmp_path / "run", data_dir=tmp_path / "only") == 2
    assert "mrpc needs a validation split" in capsys.readouterr().err
    line = {"task": "mrpc", "model": trained("cola") / "model", "data_dir": data["mrpc"], "output_dir": tmp_path / "e"}
    assert call(monkeypatch, "evaluate_model", command(line)) == 2, "CoLA's classes are not MRPC's"
    assert "unacceptable, acceptable are not those of mrpc" in capsys.readouterr().err
    assert (
        call(monkeypatch, "evaluate_model", command(line | {"task": "swag", "model": trained("mrpc") / "model"})) == 2
    )
    capsys.readouterr()
    line = {"model": trained("mrpc") / "model", "question": "who", "context": "me"}
    assert call(monkeypatch, "evaluate_model", command(line)) == 2
    assert "not mrpc" in capsys.readouterr().err


def test_a_model_of_another_task_gets_a_new_head(finetune, trained, tmp_path):
    """As when RTE starts from MNLI's model (paper's successors): the encoder stays, the classes are the task's."""
    start_from = trained("conll2003") / "model"
    assert finetune("cola", tmp_path / "run", model=start_from, max_steps=2, keep_checkpoints=0) == 0
    config = read(tmp_path / "run" / "model" / "config.json")
    assert config["id2label"] == {"0": "unacceptable", "1": "acceptable"}


def test_bfloat16_trains_and_predicts(finetune, tmp_path):
    assert finetune("cola", tmp_path, precision="bfloat16", max_steps=10, keep_checkpoints=0) == 0
    assert read(tmp_path / "results.json")["precision"] == "bfloat16"


def test_your_own_data_with_your_own_columns(model, tmp_path, monkeypatch):
    """Trained on names of classes, then scored with the model's classes, though the new data show only one."""
    reviews = [{"review": row["sentence"], "stars": "good" if row["label"] else "bad"} for row in rows("sst2", 60, 0)]
    files = {"train_file": write_jsonl(tmp_path / "train.jsonl", reviews[:48])}
    files["validation_file"] = write_jsonl(tmp_path / "validation.jsonl", reviews[48:])
    own = files | {"columns": ["text=review", "label=stars"], "data_dir": None, "cache_dir": tmp_path / "cache"}
    line = options("custom-classification", tmp_path, model, tmp_path / "run", max_steps=30, **own)
    assert call(monkeypatch, "finetune", line) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["scores"]["validation"]["accuracy"] > 0.8
    assert read(tmp_path / "run" / "model" / "config.json")["id2label"] == {"0": "bad", "1": "good"}
    only_good = [row for row in reviews if row["stars"] == "good"]
    shown = {
        "model": tmp_path / "run" / "model",
        "validation_file": write_jsonl(tmp_path / "good.jsonl", only_good),
        "columns": ["text=review", "label=stars"],
        "output_dir": tmp_path / "scored",
        "cache_dir": tmp_path / "cache",
    }
    # As a script, in whose directory there is a file with the name of a library.
    code, printed = finish(start("evaluate_model", command(shown)))
    assert code == 0, printed
    assert "macro f1 " in printed and "in brackets the most frequent answer" in printed
    scores = read(tmp_path / "scored" / "results.json")["scores"]["validation"]
    assert scores["accuracy"] > 0.8 and "f1" in scores, "files keep the key"


@pytest.mark.parametrize("name", ["finetune", "evaluate_model", "sweep"])
def test_every_recipe_explains_itself(name, monkeypatch, capsys):
    assert call(monkeypatch, name, ["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("--") > 10 and "Supports: " in printed

"""Rare classes and several labels: weights, thresholds, the metric that decides, and the end of a stale run."""

import json

import numpy as np
import pytest
import transformers
from finetuning_helpers import BAD, GOOD, WORDS, call, command, make_data, make_model, options, read
from task_helpers import settings, write_jsonl
from training_helpers import read_losses

from hfbert_scratch.evaluation import TaskData
from hfbert_scratch.finetuning import FinetuningArguments, fine_tune
from hfbert_scratch.finetuning.class_weights import class_weights
from hfbert_scratch.metrics.multilabel import best_thresholds
from hfbert_scratch.publishing.finished_run import open_run
from hfbert_scratch.tasks import DataArguments, get_task
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.arguments import parse_arguments
from hfbert_scratch.utils.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("cola"), "cola")


@pytest.fixture
def finetune(model, data, monkeypatch):
    def run(output, kind="cola", directory=data, **changes):
        return call(monkeypatch, "finetune", options(kind, directory, changes.pop("model", model), output, **changes))

    return run


def topics(directory, form="lists", splits=(("train", 96), ("validation", 40), ("test", 6))):
    """Texts whose words GOOD and BAD decide two labels; `form`: lists, or a column for every label."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    for split, count in splits:
        rows = []
        for has_good, has_bad in rng.integers(0, 2, size=(count, 2)).tolist():
            words = [GOOD] * has_good + [BAD] * has_bad + [WORDS[rng.integers(2, 60)]]
            labels = {"label": ["good"] * has_good + ["bad"] * has_bad}
            labels = {"good": has_good, "bad": bool(has_bad)} if form == "columns" else labels
            rows.append({"text": " ".join(words)} | (labels if split != "test" else {}))
        write_jsonl(directory / f"{split}.jsonl", rows)
    return directory


# ---- several labels


def test_several_labels_are_learnt_tuned_reported_and_evaluated_again(finetune, model, tmp_path, monkeypatch):
    own = topics(tmp_path / "data")
    output = tmp_path / "run"
    by = "average_precision"  # the order of rows is learnt before they are on the right sides of a half
    assert finetune(output, "custom-multilabel", own, max_steps=80, learning_rate=1e-2, metric_for_best=by) == 0
    results = read(output / "results.json")
    scores, tuned = results["scores"]["validation"], results["thresholds"]
    assert scores["f1_micro"] > 0.8 > results["majority_baseline"]["validation"]["f1_micro"]
    assert scores["average_precision"] > 0.95 and tuned["f1_macro"] > 0.95
    assert tuned["value"].keys() == {"bad", "good"} and tuned["f1_macro"] >= scores["f1_macro"]
    assert results["report"]["validation"]["classes"]["good"]["f1"] > 0.9
    assert open_run(output).plots == ["curves.png", "precision_recall.png"]
    lines = (output / "predictions" / "predictions_test.jsonl").read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[0]).keys() == {"index", "labels", "probabilities"}
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(output / "model")
    assert opened.config.problem_type == "multi_label_classification"
    classify = transformers.pipeline(
        "text-classification", model=opened, tokenizer=load_tokenizer(output / "model"), top_k=None
    )
    assert min(entry["score"] for entry in classify(f"{GOOD} {BAD}")[0]) > 0.5, "each label by itself"

    line = {"model": output / "model", "data_dir": own, "output_dir": tmp_path / "again"}
    line |= {"precision": "float32", "cache_dir": own / "cache"}
    assert call(monkeypatch, "evaluate_model", command(line)) == 0
    again = (tmp_path / "again" / "predictions" / "predictions_test.jsonl").read_text().splitlines()
    assert [json.loads(line)["labels"] for line in again] == [json.loads(line)["labels"] for line in lines]


def test_a_column_for_every_label_is_the_same_data_as_lists(tmp_path):
    task = get_task("custom-multilabel")
    lists = task.load(DataArguments(data_dir=str(topics(tmp_path / "lists"))))
    columns = topics(tmp_path / "columns", "columns")
    raw = task.load(DataArguments(data_dir=str(columns), class_names=["bad", "good"]))
    assert raw["train"]._fingerprint == lists["train"]._fingerprint
    assert not task.is_labelled(raw["test"]) and task.class_names(raw["test"]) == ["bad", "good"]
    assert task.load(DataArguments(data_dir=str(columns)), ["bad", "good"])["train"][:] == raw["train"][:], "a model's"


def test_the_loss_is_the_models_own(tmp_path, model):
    task, tokenizer = get_task("custom-multilabel"), load_tokenizer(model)
    data = TaskData(task, DataArguments(data_dir=str(topics(tmp_path / "data"))), tokenizer, settings(tmp_path))
    examples = data.examples("train", training=True)
    batch = examples.batch(np.arange(8))
    own = transformers.AutoModelForSequenceClassification.from_pretrained(
        model, **task.config_overrides(data.raw["train"])
    ).eval()
    outputs = own(**batch)
    ours = task.loss_sum(outputs, batch).item() / examples.count_targets(np.arange(8))
    assert ours == pytest.approx(outputs.loss.item())


def test_packed_rows_with_as_many_labels_as_tokens_are_the_same_run(finetune, tmp_path):
    own = tmp_path / "data"
    own.mkdir()
    rows = [{"text": " ".join(WORDS[row : row + 8]), "label": [*"abcdefgh"][row % 8 :]} for row in range(16)]
    for split in ("train", "validation"):
        write_jsonl(own / f"{split}.jsonl", rows)
    plain = make_model(tmp_path / "model", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    for packing in ("false", "true"):
        changes = {"model": plain, "max_steps": 2, "max_seq_length": 8, "packing": packing, "keep_checkpoints": 0}
        assert finetune(tmp_path / packing, "custom-multilabel", own, **changes) == 0
    for ours, theirs in zip(read_losses(tmp_path / "true"), read_losses(tmp_path / "false"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_threshold_separates_best_and_stays_where_nothing_can_be_tuned():
    gold = np.array([[True, False], [True, False], [False, False], [False, False]])
    probabilities = np.array([[0.2, 0.9], [0.12, 0.1], [0.1, 0.1], [0.01, 0.1]])
    assert best_thresholds(gold, probabilities, 0.5) == pytest.approx([0.11, 0.5])


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], None, "not a list of labels; write lists"),
        ([{"text": "a", "label": ["x"]}, {"text": "b", "label": None}], None, "row 1 has no label list"),
        ([{"text": "a", "label": [1, 0, 1]}, {"text": "b", "label": [1]}], None, "name one twice; a list holds"),
        ([{"text": "a", "label": []}], None, "no row of column 'label' has a label"),
        ([{"text": "a"}], None, "neither a column 'label' with lists"),
        ([{"text": "a", "x": 1}], ["x", "y"], "columns for x, but none for y"),
        ([{"text": "a", "x": 2, "y": 0}], ["x", "y"], "unknown label 2; it must be 0, 1"),
        ([{"text": "a", "x": None, "y": 0}, {"text": "a", "x": 1, "y": 0}], ["x", "y"], "row 0: column 'x' is empty"),
        ([{"text": "a", "label": ["x"]}, {"text": "a", "label": ["z"]}], ["x", "y"], "unknown label 'z'"),
        ([{"text": "a", "label": ["x"]}], ["x", "text"], "'text' is a column of custom-multilabel; rename it"),
    ],
)
def test_bad_label_sets_are_named(rows, names, message, tmp_path):
    source = DataArguments(train_file=str(write_jsonl(tmp_path / "train.jsonl", rows)), class_names=names)
    with pytest.raises(InputError, match=message):
        get_task("custom-multilabel").load(source)


# ---- weights of classes


def weights_of(kind, rows, option, tmp_path, model):
    source = DataArguments(train_file=str(write_jsonl(tmp_path / "train.jsonl", rows)))
    data = TaskData(get_task(kind), source, load_tokenizer(model), settings(tmp_path))
    return class_weights(data, option)


def test_auto_weighs_every_class_alike(tmp_path, model):
    rows = [{"text": "a", "label": name} for name in ("x", "x", "x", "y")]
    assert weights_of("custom-classification", rows, "auto", tmp_path, model) == {"x": 4 / 6, "y": 2.0}
    rows = [{"text": "a", "label": labels} for labels in (["x"], ["x", "y"], ["x"], [])]
    weights = weights_of("custom-multilabel", rows, "auto", tmp_path, model)
    assert weights == {"x": pytest.approx(1 / 3), "y": 3.0}, "rows without over rows with"
    tagged = [{"tokens": ["a", "b", "c"], "ner_tags": ["O", "O", "B-PER"]}]
    weights = weights_of("custom-ner", tagged, "auto", tmp_path, model)
    assert weights["O"] == 3 / 4 and weights["B-PER"] == 3 / 2


def test_weights_change_what_is_learnt_and_are_recorded(finetune, tmp_path):
    """With the first class's loss times a million the model answers nothing else; its counterpart did not."""
    file = tmp_path / "weights.yaml"
    file.write_text("unacceptable: 1000000\nacceptable: 1.0e-6\n")
    assert finetune(tmp_path / "run", class_weights=file, max_steps=20) == 0
    results = read(tmp_path / "run" / "results.json")
    assert results["class_weights"] == {"unacceptable": 1e6, "acceptable": 1e-6}
    assert results["report"]["validation"]["classes"]["acceptable"]["recall"] == 0
    file.write_text("unacceptable: 2\nacceptable: 1\n")
    assert finetune(tmp_path / "run", class_weights=file, max_steps=20) == 6, "the file's content is the run's"


def test_how_a_batch_is_cut_does_not_change_a_weighted_loss(finetune, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    own = {"model": make_model(tmp_path / "model", **still), "class_weights": "auto", "max_steps": 3}
    losses = []
    for size in (2, 16):
        output = tmp_path / f"run-{size}"
        assert finetune(output, micro_batch_size=size, keep_checkpoints=0, onednn="false", **own) == 0
        losses.append([entry["loss"] for entry in read_losses(output) if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", "must hold a mapping of classes to numbers"),
        ("acceptable: [\n", "is not readable YAML or JSON"),
        ("acceptable: 1\nunaceptable: 2\n", "no class 'unaceptable'; did you mean 'unacceptable'"),
        ("acceptable: 1\n", "lacks unacceptable; 1 leaves a class as it is"),
        ("acceptable: 1\nunacceptable: 0\n", "the weight of 'unacceptable' is 0; it must be above 0"),
        ("acceptable: true\nunacceptable: 1\n", "the weight of 'acceptable' is True"),
        (None, "no such file; write auto"),
    ],
)
def test_bad_weights_are_named(content, message, finetune, tmp_path, capsys):
    file = tmp_path / "weights.yaml"
    if content is not None:
        file.write_text(content)
    assert finetune(tmp_path / "run", class_weights=file) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_tasks_without_classes_refuse_weights(finetune, tmp_path, capsys):
    for kind in ("stsb", "squad", "swag"):
        assert finetune(tmp_path / "run", kind, make_data(tmp_path / kind, kind), class_weights="auto") == 2
        assert f"{kind} has no classes whose losses could be weighted" in capsys.readouterr().err


# ---- the best step, and the end


def test_any_reported_metric_decides_about_the_best_step(finetune, tmp_path, capsys):
    own = {"max_steps": 12, "eval_every": 2}
    assert finetune(tmp_path / "run", metric_for_best="loss", **own) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    results = read(tmp_path / "run" / "results.json")
    assert results["best_step"] == min(losses, key=losses.get) and results["best_by"] == "loss"
    assert results["main_metric"]["name"] == "matthews_correlation"
    assert finetune(tmp_path / "other", metric_for_best="f1") == 2
    assert "--metric_for_best f1: cola reports matthews_correlation, loss" in capsys.readouterr().err


class Stopped(Exception):
    pass


def test_a_stale_run_ends_and_a_killed_one_ends_at_the_same_step(model, data, tmp_path, monkeypatch):
    """A learning rate of almost nothing: the first evaluation stays the best."""

    def arguments(output):
        own = {"learning_rate": 1e-12, "max_steps": 40, "eval_every": 2, "early_stopping": 3, "onednn": "false"}
        return parse_arguments(FinetuningArguments, options("cola", data, model, output, attention="eager", **own))

    results = fine_tune(arguments(tmp_path / "whole"), end_training=False)
    assert results["steps"] == 8 and results["best_step"] == 2, "three evaluations without a better one"

    from hfbert_scratch.training import loop  # where the kill happens

    save = loop.Run.save

    def save_and_die(self, *rest):
        save(self, *rest)
        if self.progress.step == 6:
            raise Stopped

    monkeypatch.setattr(loop.Run, "save", save_and_die)
    with pytest.raises(Stopped):
        fine_tune(arguments(tmp_path / "killed"), end_training=False)
    monkeypatch.setattr(loop.Run, "save", save)
    for _ in range(2):  # the second time there is nothing left to train
        again = fine_tune(arguments(tmp_path / "killed"), end_training=False)
        assert (again["steps"], again["best_step"]) == (8, 2)
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "whole")


def test_a_sweep_refuses_options_that_choose_a_step(model, data, tmp_path, monkeypatch, capsys):
    line = options("cola", data, model, tmp_path / "sweep", early_stopping=2)
    assert call(monkeypatch, "sweep", line) == 2
    assert "every trial is scored at its last step" in capsys.readouterr().err

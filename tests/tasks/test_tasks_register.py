"""A task shape from outside the package: one class and one row, and every recipe knows it."""

import sys
import types
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pytest
import torch.nn.functional as F
import transformers
from finetuning_helpers import BAD, GOOD, WORDS, call, command, make_model, options, read
from task_helpers import settings, write_jsonl
from training_helpers import read_losses

from hfbert_scratch.tasks import TASKS, Task, get_task, register_task
from hfbert_scratch.tasks.encoding import (
    INPUT_FEATURES,
    cached_map,
    make_dataset,
    num_truncated,
    token_ids,
    with_special_tokens,
)
from hfbert_scratch.tasks.files.tables import check_strings
from hfbert_scratch.tasks.labels import label_maps
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.utils.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MultiLabelTask(Task):
    """A text → any number of topics, each decided by itself: another loss, target and answer than all of the package.

    Args:
        topics: the topics, in the order of the model's outputs.
    """

    head: ClassVar[str] = "AutoModelForSequenceClassification"
    label_column: ClassVar[str] = "topics"
    optional_columns: ClassVar[frozenset[str]] = frozenset({"topics"})

    topics: tuple[str, ...]

    def validate(self, tables, model_classes, user_classes=()):
        raw = {}
        for split, table in tables.items():
            columns = {"text": check_strings(table.column("text"), f"split {split}")}
            features = {"text": datasets.Value("string")}
            if "topics" in table.column_names:
                columns["topics"], features["topics"] = table.column("topics"), datasets.List(datasets.Value("string"))
            raw[split] = make_dataset(columns, datasets.Features(features))
        return raw

    def check_training(self, raw):
        if not any(raw["topics"][:]):
            raise InputError(f"{self.name}: no row has a topic")

    def describe_targets(self, raw):
        if not self.is_labelled(raw):
            return {}
        return {"classes": dict(Counter(topic for topics in raw["topics"][:] for topic in topics))}

    def config_overrides(self, raw):
        return label_maps(self.topics) | {"problem_type": "multi_label_classification"}

    def features(self, raw, tokenizer, settings, training=False):
        if training:
            self.require_labels(raw)
        labelled = self.is_labelled(raw)
        types = INPUT_FEATURES | ({"labels": datasets.List(datasets.Value("float32"))} if labelled else {})
        topics = self.topics if labelled else ()
        return cached_map(raw, encode_texts, datasets.Features(types), tokenizer, settings, topics=topics)

    def loss_sum(self, outputs, targets):
        losses = F.binary_cross_entropy_with_logits(outputs["logits"].float(), targets["labels"], reduction="none")
        return losses.mean(dim=1).sum()

    def predict(self, raw, features, outputs, id2label=None):
        probabilities = 1 / (1 + np.exp(-np.asarray(outputs["logits"], dtype=np.float64)))
        return {"probabilities": probabilities, "threshold": 0.5}

    def majority_predictions(self, known, raw):
        counts = np.array([sum(topic in row for row in known["topics"][:]) for topic in self.topics])
        return {"probabilities": np.tile(counts / len(known), (len(raw), 1)), "threshold": 0.5}

    def score(self, raw, predictions):
        self.require_labels(raw)
        predicted = predictions["probabilities"] > predictions["threshold"]
        gold = np.array([[topic in row for topic in self.topics] for row in raw["topics"][:]])
        return {"f1": float(2 * (predicted & gold).sum() / max(1, predicted.sum() + gold.sum()))}

    def tune(self, raw, predictions):
        f1, threshold = max(
            (self.score(raw, predictions | {"threshold": step / 10})["f1"], step / 10) for step in range(1, 10)
        )
        return {"threshold": {"value": threshold, "f1": f1}}

    def apply_tuned(self, predictions, tuned):
        return predictions | {"threshold": tuned.get("threshold") or 0.5}

    def save_plots(self, directory, raw, predictions):
        (directory / "topics.txt").write_text("a plot\n")

    def write_predictions(self, directory, raw, predictions, split):
        Path(directory).mkdir(parents=True, exist_ok=True)
        predicted = predictions["probabilities"] > predictions["threshold"]
        rows = [[topic for topic, there in zip(self.topics, row, strict=True) if there] for row in predicted]
        return [write_jsonl(Path(directory) / f"predictions_{split}.jsonl", rows)]


def encode_texts(batch, indices, *, tokenizer, settings, topics):
    texts, length = token_ids(tokenizer, batch["text"]), settings.max_seq_length
    inputs = [with_special_tokens(tokenizer, ids, None, length) for ids in texts]
    columns = {"input_ids": [ids for ids, _ in inputs], "token_type_ids": [types for _, types in inputs]}
    columns |= {"example": indices, "num_truncated": [num_truncated(ids, None, length) for ids in texts]}
    return columns | ({"labels": [[t in row for t in topics] for row in batch["topics"]]} if topics else {})


@pytest.fixture
def topics():
    """The registered task; the table is as before afterwards."""
    before = dict(TASKS)
    columns = {"text": ("text",), "topics": ("topics", "tags")}
    yield register_task(
        MultiLabelTask(name="topics", hub=None, columns=columns, main_metric="f1", topics=("good", "bad"))
    )
    TASKS.clear()
    TASKS.update(before)


def make_topics(directory: Path) -> Path:
    """Texts of one to three words; the words GOOD and BAD, neither or both of them, decide the topics."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("validation", 24), ("test", 6)):
        rows = []
        for has_good, has_bad in rng.integers(0, 2, size=(count, 2)).tolist():
            words = [GOOD] * has_good + [BAD] * has_bad + [WORDS[rng.integers(2, 60)]]
            row = {"text": " ".join(words), "tags": ["good"] * has_good + ["bad"] * has_bad}
            rows.append({"text": row["text"]} if split == "test" else row)
        write_jsonl(directory / f"{split}.jsonl", rows)
    return directory


def test_a_task_shape_from_outside_is_fine_tuned_and_evaluated_by_the_recipes(topics, tmp_path, monkeypatch):
    data, model = make_topics(tmp_path / "data"), make_model(tmp_path / "model")
    line = options("topics", data, model, tmp_path / "run", max_steps=60, learning_rate=1e-2)
    assert call(monkeypatch, "finetune", line) == 0
    losses = [entry["loss"] for entry in read_losses(tmp_path / "run") if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    results = read(tmp_path / "run" / "results.json")
    f1 = results["scores"]["validation"]["f1"]
    assert results["main_metric"] == {"name": "f1", "split": "validation", "value": f1}
    assert f1 > 0.9 > results["majority_baseline"]["validation"]["f1"] and not results["degenerate"]
    assert results["data"]["splits"]["train"]["classes"].keys() == {"good", "bad"}
    assert (tmp_path / "run" / "topics.txt").is_file() and (tmp_path / "run" / "curves.png").is_file()
    assert read(tmp_path / "run" / "model" / "task.json")["threshold"] == results["threshold"]["value"]
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert opened.config.id2label == {0: "good", 1: "bad"}
    assert opened.config.problem_type == "multi_label_classification"

    line = {"model": tmp_path / "run" / "model", "data_dir": data, "output_dir": tmp_path / "again"}
    line |= {"precision": "float32", "cache_dir": data / "cache"}
    assert call(monkeypatch, "evaluate_model", command(line)) == 0
    assert read(tmp_path / "again" / "results.json")["scores"]["validation"] == {"f1": pytest.approx(f1)}
    for split in ("validation", "test"):
        name = f"predictions/predictions_{split}.jsonl"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert len((tmp_path / "run" / "predictions" / "predictions_test.jsonl").read_text().splitlines()) == 6


def test_a_new_row_of_a_known_shape_needs_no_class(topics, tmp_path):
    task = register_task(replace(topics, name="other-topics", topics=("a", "b", "c")))
    assert get_task("other-topics") is task and list(TASKS)[-2:] == ["topics", "other-topics"]
    assert task.config_overrides(None)["num_labels"] == 3


def test_a_name_is_registered_once(topics):
    assert register_task(topics) is topics, "the same task again"
    other = replace(topics, topics=("x", "y"))
    with pytest.raises(InputError, match="there is a task 'topics' already"):
        register_task(other)
    assert get_task("topics") is topics and register_task(other, replace=True) is get_task("topics")
    with pytest.raises(InputError, match="did you mean 'topics'"):
        get_task("topic")


def test_a_task_that_is_not_finished_cannot_be_made():
    class Half(Task):
        head = "AutoModel"

    with pytest.raises(TypeError, match="abstract"):
        Half(name="half", hub=None, columns={}, main_metric="f1")


def test_features_of_a_function_without_a_source_file_are_cached_by_its_code(tmp_path, monkeypatch):
    """As of a function that was typed into a session."""
    monkeypatch.setitem(sys.modules, "typed_in", types.ModuleType("typed_in"))
    tokenizer = load_tokenizer(make_model(tmp_path / "model"))
    raw = datasets.Dataset.from_dict({"text": ["a", "bcd"]})
    kinds = datasets.Features({"length": datasets.Value("int32")})

    def lengths(factor):
        scope = {"__name__": "typed_in"}
        code = f"return {{'length': [{factor} * len(text) for text in batch['text']]}}"
        exec(f"def lengths(batch, indices, *, tokenizer, settings):\n    {code}\n", scope)
        return cached_map(raw, scope["lengths"], kinds, tokenizer, settings(tmp_path))["length"][:]

    assert lengths(1) == [1, 3] and lengths(2) == [2, 6]

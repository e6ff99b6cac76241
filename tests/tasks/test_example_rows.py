"""The numbers of single examples give the same score as the task's metric."""

import random

import datasets
import numpy as np
import pytest
from finetuning_helpers import make_data

from hfbert_scratch.metrics.bootstrap import ExampleScores
from hfbert_scratch.tasks import Answers, DataArguments, get_task
from hfbert_scratch.utils.errors import InputError


def guesses(task, raw: datasets.Dataset, rng: random.Random):
    """Predictions of which some are right."""
    if task.answers_questions:
        texts = [row["answers"]["text"][0] if rng.random() < 0.5 else row["context"][:9] for row in raw]
        return Answers(texts, np.zeros(len(raw)), [], False)
    if task.tags_words:
        names = task.class_names(raw)
        return [[names[tag] if rng.random() < 0.7 else rng.choice(names) for tag in tags] for tags in raw["ner_tags"]]
    names = task.class_names(raw)
    if names:
        return [names[label] if rng.random() < 0.6 else rng.choice(names) for label in raw["label"]]
    labels = raw["label"][:]
    return [label if rng.random() < 0.6 else type(label)(rng.randrange(4)) for label in labels]


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("sst2", "accuracy"),
        ("mnli", "accuracy"),
        ("mrpc", "f1"),
        ("mrpc", "accuracy"),
        ("cola", "matthews_correlation"),
        ("stsb", "spearmanr"),
        ("stsb", "pearson"),
        ("swag", "accuracy"),
        ("squad", "f1"),
        ("squad", "exact_match"),
        ("conll2003", "f1"),
    ],
)
def test_examples_add_up_to_the_score(tmp_path, name, metric):
    task = get_task(name)
    raw = task.load(DataArguments(data_dir=str(make_data(tmp_path / name, name, validation=60))))["validation"]
    predictions = guesses(task, raw, random.Random(0))
    rows, function = task.example_rows(raw, predictions, metric)
    assert len(rows) == len(raw)
    share = ExampleScores(rows[None], function).per_seed()[0]
    score = task.score(raw, predictions)[metric]
    assert 100 * share == pytest.approx(task.score_scale * score) and 0 < share < 1
    with pytest.raises(InputError, match=f"give recall of {name}"):
        task.example_rows(raw, predictions, "recall")

"""Does pretraining pay? A checkpoint fine-tuned on the paper's tasks, beside three yardsticks on the same data.

    python benchmarks/reference_evaluation.py --model runs/reference/model --data_dir data --output_dir runs/tasks

Fine-tunes the checkpoint, and the same architecture from random weights, with the same settings: tasks × seeds, one
rate and length of training for all. The other yardsticks: the most frequent answer; and, with scikit-learn, logistic
regression on counts of words and pairs of words (ridge regression for STS-B; on the word, its neighbours, its shape
and its ending for NER; nothing for questions about a text, whose most frequent answer is no answer). All are scored on
validation; a model by its best evaluation there, as `recipes/finetune.py` keeps it. data_dir/<task> holds the data.
Writes results.json, results.md and results.png. Killed at any moment, the same command goes on.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse import hstack
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from transformers import AutoConfig, AutoModelForPreTraining, AutoTokenizer

from hfbert_scratch.evaluation import TaskData, majority_baseline, without_warnings
from hfbert_scratch.finetuning import FinetuningArguments, fine_tune, open_task
from hfbert_scratch.training.accelerator import best_device
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware, versions
from hfbert_scratch.utils.errors import STOPPED, command_line
from hfbert_scratch.utils.files import read_json, write_json, write_text
from hfbert_scratch.utils.quantities import mean_and_deviation


# Columns of the table; the last two are fine-tuned.
COLUMNS = {
    "majority": "most frequent answer",
    "words": "words, linear",
    "random": "random weights",
    "model": "pretrained",
}


@dataclasses.dataclass(kw_only=True)
class EvaluationArguments(FinetuningArguments):
    """The command line."""

    task: str = argument("", help="unused: --tasks names them")
    tasks: list[str] = argument(["cola", "rte", "mrpc", "stsb", "conll2003", "sst2", "qnli"], help="to fine-tune on")
    seeds: list[int] = argument([0, 1, 2], help="of every task and both checkpoints")
    learning_rate: float = argument(1e-4, help="peak learning rate, the same for all")
    batch_size: int = argument(32, help="examples per optimizer step")
    epochs: float = argument(3.0, help="passes over the training data")
    max_train_samples: int = argument(4000, help="at most, evenly spaced")
    max_eval_samples: int = argument(1000, help="at most, evenly spaced")
    max_seq_length: int = argument(128, help="tokens in a sequence")
    keep_checkpoints: int = argument(1, help="a run that was killed continues")
    trackers: list[str] = argument([], help="none are needed")


@command_line
def main() -> None:
    """Run what is not there yet, compare, write."""
    arguments = parse_arguments(EvaluationArguments, description=__doc__)
    directory = Path(arguments.output_dir)
    random = directory / "random"
    if not (random / "config.json").is_file():
        save_random_weights(arguments.model, random)
    models = {"model": arguments.model, "random": str(random)}
    table: dict[str, dict[str, Any]] = {}
    for task in arguments.tasks:
        own = dataclasses.replace(
            arguments, task=task, data_dir=str(Path(str(arguments.data_dir)) / task), output_dir=str(directory / task)
        )
        data = open_task(own)
        table[task] = yardsticks(data)
        print(f"{task}: {json.dumps(table[task])}", flush=True)
        for kind, model in models.items():
            for seed in arguments.seeds:
                run = dataclasses.replace(
                    own, model=model, seed=seed, output_dir=str(directory / f"{task}-{kind}-{seed}")
                )
                table[task].setdefault(kind, []).append(score_of(run, data))
        write_results(directory, arguments, table)


def save_random_weights(model: str, directory: Path) -> None:
    """Save the architecture of a checkpoint with new weights, and its tokenizer."""
    torch.manual_seed(0)
    AutoModelForPreTraining.from_config(AutoConfig.from_pretrained(model)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)


def score_of(arguments: FinetuningArguments, data: TaskData) -> float:
    """Fine-tune unless the run is done. Returns the task's main metric on validation."""
    path = Path(arguments.output_dir) / "results.json"
    if not path.is_file():
        resolved = arguments.resolved(data.task, len(data.raw["train"]))
        results = fine_tune(resolved, data, save_model=False)
        if results is None:
            sys.exit(STOPPED)
        write_json(path, {name: value for name, value in results.items() if name != "predictions"})
    return float(read_json(path, "scores")["scores"]["validation"][data.task.main_metric])


def yardsticks(data: TaskData) -> dict[str, Any]:
    """Score the most frequent answer and a linear model of words."""
    task, train, validation = data.task, data.raw["train"], data.raw["validation"]
    scores = {
        "metric": task.main_metric,
        "scale": task.score_scale,
        "majority": majority_baseline(task, train, validation)[task.main_metric],
    }
    if not task.answers_questions:
        predict = tag_words if task.tags_words else classify_texts
        words = without_warnings(task.score, validation, predict(task, train, validation))
        scores["words"] = words[task.main_metric]
    return scores


def classify_texts(task: Any, train: Any, validation: Any) -> list[Any]:
    """Predict from counts of words and pairs of words, of each text of a pair on its own."""
    columns = []
    for name in task.texts:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        columns.append((vectorizer.fit_transform(train[name][:]), vectorizer.transform(validation[name][:])))
    seen, unseen = (hstack(sides).tocsr() for sides in zip(*columns, strict=True))
    if task.is_regression:
        return Ridge().fit(seen, train["label"][:]).predict(unseen).tolist()
    names = task.class_names(train)
    fitted = LogisticRegression(max_iter=1000).fit(seen, train["label"][:])
    return [names[label] for label in fitted.predict(unseen)]


def tag_words(task: Any, train: Any, validation: Any) -> list[list[str]]:
    """Predict every word's tag from the word, its neighbours, its shape and its endings."""
    hasher, names = FeatureHasher(input_type="string"), task.class_names(train)
    seen = hasher.transform(features for words in train["tokens"][:] for features in word_features(words))
    tags = [tag for row in train["ner_tags"][:] for tag in row]
    fitted = SGDClassifier(loss="log_loss", alpha=1e-6, random_state=0).fit(seen, tags)
    return [
        [names[tag] for tag in fitted.predict(hasher.transform(word_features(words)))] if words else []
        for words in validation["tokens"][:]
    ]


def word_features(words: list[str]) -> Iterator[list[str]]:
    """Describe every word of a sentence by strings, one for each feature it has."""
    padded = ["", *words, ""]
    for before, word, after in zip(padded, padded[1:], padded[2:], strict=False):
        shape = {
            "capital": word[:1].isupper(),
            "capitals": word.isupper(),
            "digits": word.isdigit(),
            "first": not before,
        }
        yield [
            f"word {word.lower()}",
            f"before {before.lower()}",
            f"after {after.lower()}",
            f"ending {word[-3:].lower()}",
            *(name for name, is_so in shape.items() if is_so),
        ]


def write_results(directory: Path, arguments: EvaluationArguments, table: dict[str, dict[str, Any]]) -> None:
    """Write results.json, results.md and results.png."""
    settings = ("model", "learning_rate", "batch_size", "epochs", "max_train_samples", "max_eval_samples", "seeds")
    write_json(
        directory / "results.json",
        {
            "hardware": hardware(best_device()),
            "versions": versions(),
            "settings": {name: getattr(arguments, name) for name in settings},
            "tasks": table,
        },
    )
    lines = [
        f"| task | metric | {' | '.join(COLUMNS.values())} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task, row in table.items():
        cells = [f"{row['scale'] * row[name]:.1f}" if name in row else "–" for name in ("majority", "words")]
        cells += [mean_and_deviation([row["scale"] * score for score in row[kind]]) for kind in ("random", "model")]
        lines.append(f"| {task} | {row['metric']} | {' | '.join(cells)} |")
    write_text(directory / "results.md", "\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
    draw(directory / "results.png", table)


def draw(path: Path, table: dict[str, dict[str, Any]]) -> None:
    """Draw the four scores of every task, with a dot for every seed."""
    figure, axis = plt.subplots(figsize=(1.4 * len(table) + 2, 4.2), layout="constrained")
    for place, (name, label) in enumerate(COLUMNS.items()):
        rows = {number + 0.2 * (place - 1.5): row for number, row in enumerate(table.values()) if name in row}
        scores = {left: np.atleast_1d(row[name]) * row["scale"] for left, row in rows.items()}
        axis.bar(list(scores), [seeds.mean() for seeds in scores.values()], 0.19, color=f"C{place}", label=label)
        for left, seeds in scores.items():
            if len(seeds) > 1:
                axis.plot([left] * len(seeds), seeds, ".", color="black", markersize=4)
    axis.set_xticks(range(len(table)), [f"{task}\n{row['metric']}" for task, row in table.items()])
    axis.set(ylabel="score on validation", title="The same data, fine-tuned with and without pretraining")
    axis.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""Files of tiny tasks that can be learnt in seconds, and a tiny model to learn them."""

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from corpus_helpers import documents, small_tokenizer, words
from task_helpers import write_jsonl
from training_helpers import RECIPES, forget_accelerator

from hfbert_scratch import HFBertConfig, HFBertModel
from hfbert_scratch.text.tokenizer import save_tokenizer


WORDS = words(400)[:60]
GOOD, BAD = WORDS[0], WORDS[1]


def make_model(directory: Path, tokenizer: Any = None, **config: Any) -> Path:
    """Write an encoder without a head, and its tokenizer."""
    tokenizer = tokenizer or small_tokenizer(documents(100))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    settings = (
        sizes | {"max_position_embeddings": 128, "initializer_range": 0.2, "vocab_size": len(tokenizer)} | config
    )
    HFBertModel(HFBertConfig(**settings)).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def _text(rng: random.Random, key: str, most: int = 12) -> str:
    """Draw random words after `key`, which [CLS] finds by its position."""
    return " ".join([key, *rng.choices(WORDS[2:], k=rng.randint(1, most))])


def rows(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Make labelled rows of a task; the words GOOD and BAD decide the labels."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        right = rng.random() < 0.6
        key = GOOD if right else BAD
        if task in ("cola", "sst2"):
            row: dict[str, Any] = {"sentence": _text(rng, key), "label": int(right)}
        elif task in ("mnli", "ax"):
            row = {"premise": _text(rng, key), "hypothesis": _text(rng, key), "label": 2 * right}
        elif task == "qqp":
            row = {"question1": _text(rng, key), "question2": _text(rng, key), "label": int(right)}
        elif task == "qnli":
            row = {"question": _text(rng, key), "sentence": _text(rng, key), "label": int(right)}
        elif task in ("mrpc", "rte", "wnli"):
            row = {"sentence1": _text(rng, key), "sentence2": _text(rng, key), "label": int(right)}
        elif task == "stsb":
            row = {"sentence1": _text(rng, key), "sentence2": _text(rng, key), "label": 4.5 if right else 0.5}
        elif task == "swag":
            endings = {f"ending{place}": _text(rng, BAD, 4) for place in range(4)}
            label = rng.randrange(4)
            endings[f"ending{label}"] = _text(rng, GOOD, 4)
            row = {"sent1": _text(rng, WORDS[5], 4), "sent2": WORDS[6], **endings, "label": label}
        elif task == "conll2003":
            tokens = rng.choices(WORDS[2:], k=rng.randint(1, 10))
            tokens[0] = key
            row = {"tokens": tokens, "ner_tags": ["B-PER" if right else "O"] + ["O"] * (len(tokens) - 1)}
        else:
            others = rng.choices(WORDS[2:], k=rng.randint(5, 60))
            place = rng.randrange(len(others))
            context = " ".join([*others[:place], GOOD, *others[place:]])
            start = len(" ".join(others[:place])) + (place > 0)
            answers = {"text": [GOOD], "answer_start": [start]}
            if task == "squad_v2" and not right:
                context, answers = " ".join(others), {"text": [], "answer_start": []}
            row = {"id": str(number), "question": WORDS[3], "context": context, "answers": answers}
        examples.append(row)
    return examples


def without_labels(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove the labels of rows, as in a test set."""
    return [
        {key: value for key, value in row.items() if key not in ("label", "ner_tags", "answers")} for row in examples
    ]


def make_data(directory: Path, task: str, train: int = 64, validation: int = 19, test: int = 5) -> Path:
    """Write train.jsonl, validation.jsonl and an unlabelled test.jsonl of a task; for MNLI the mismatched ones too."""
    directory.mkdir(parents=True, exist_ok=True)
    if task != "ax":
        write_jsonl(directory / "train.jsonl", rows(task, train, 0))
        write_jsonl(directory / "validation.jsonl", rows(task, validation, 1))
    write_jsonl(directory / "test.jsonl", without_labels(rows(task, test, 2)))
    if task == "mnli":
        write_jsonl(directory / "validation_mismatched.jsonl", rows(task, validation, 3))
        write_jsonl(directory / "test_mismatched.jsonl", without_labels(rows(task, test, 4)))
    return directory


def options(kind: str, data: Path, start_from: Path, output: Path, **changes: Any) -> list[str]:
    """Build the command line of a run that takes a second."""
    settings = {
        "task": kind,
        "data_dir": data,
        "model": start_from,
        "output_dir": output,
        "max_seq_length": 64,
        "batch_size": 16,
        "micro_batch_size": 8,
        "max_steps": 40,
        "learning_rate": 3e-3,
        "precision": "float32",
        "onednn": "false",  # runs whose bits are compared must not depend on a timing
        "log_every": 1,
        "trackers": "none",
        "cache_dir": data / "cache",
        "max_query_length": 8,
    } | changes
    return command(settings)


def command(settings: dict[str, Any]) -> list[str]:
    """Build a command line; lists become several words, None leaves an option out."""
    line = []
    for name, value in settings.items():
        if value is not None:
            line += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return line


def recipe(name: str) -> Any:
    """Import recipes/<name>.py by its path: recipes are not in a package."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def call(monkeypatch: Any, name: str, line: list[str]) -> int:
    """Run a recipe's main in this process; return its exit code."""
    forget_accelerator()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *line])
    try:
        recipe(name).main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

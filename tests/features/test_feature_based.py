"""Feature-based NER: the vectors on disk, the tagger over them, training, and the recipe."""

import importlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_helpers import small_tokenizer, words
from helpers import make
from task_helpers import write_jsonl
from training_helpers import RECIPES, forget_accelerator

from hfbert_scratch.features import word_vectors
from hfbert_scratch.features.encoder import encode
from hfbert_scratch.features.tagger import (
    COMBINATIONS,
    FeatureTagger,
    FeatureTaggerConfig,
    TaggingData,
    combination_layers,
    predict_tags,
    tagger_inputs,
    tagging_data,
    train_tagger,
)
from hfbert_scratch.features.word_vectors import WordVectors, cached_word_vectors
from hfbert_scratch.tasks import DataArguments, FeatureSettings, get_task
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.training.arguments import TrainingArguments
from hfbert_scratch.utils.errors import InputError, OutputError


LAYERS = 4
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
# Normalized away: a word without a piece.
NOTHING = "\u200b"


@pytest.fixture(autouse=True)
def fresh_process():
    """Begin as a new process would."""
    forget_accelerator()


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = 40
    return tokenizer


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return make("base", vocab_size=len(tokenizer), num_hidden_layers=LAYERS)


def sentences(count: int, seed: int) -> list[dict]:
    """Names, of one or two words, are known by these: one piece each, persons in -i and places in -u."""
    rng = random.Random(seed)
    people, places = ([consonant + vowel for consonant in "bdkt"] for vowel in "iu")
    # Most of several pieces, of which the first is never a name's.
    others = [word for word in words(80) if len(word) > 4 and word[1] not in "iu"][:12]
    rows = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(rng.randint(1, 4)):
            kind, choices = rng.choice([("PER", people), ("LOC", places), ("O", others)])
            length = 1 if kind == "O" else rng.randint(1, 2)
            tokens += rng.choices(choices, k=length)
            tags += ["O"] if kind == "O" else [f"B-{kind}", f"I-{kind}"][:length]
            tokens.append(others[-1])  # entities do not touch
            tags.append("O")
        rows.append({"tokens": tokens, "ner_tags": tags})
    rows[0] = {"tokens": [NOTHING, *2 * others, people[0]], "ner_tags": ["O"] * 25 + ["B-PER"]}  # does not fit
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("ner")
    return {
        split: write_jsonl(directory / f"{split}.jsonl", sentences(count, seed))
        for seed, (split, count) in enumerate({"train": 200, "validation": 25, "test": 20}.items())
    }


@pytest.fixture(scope="module")
def raw(files):
    return get_task("custom-ner").load(DataArguments(**{f"{split}_file": str(path) for split, path in files.items()}))


@pytest.fixture(scope="module")
def data(raw, encoder, tokenizer, tmp_path_factory) -> TaggingData:
    cache = tmp_path_factory.mktemp("cache")
    return tagging_data(get_task("custom-ner"), raw, encoder, tokenizer, FeatureSettings(40), cache)


def config(layers=(LAYERS,), weighted=False, **changes) -> FeatureTaggerConfig:
    fields = {"feature_size": 32, "layers": list(layers), "weighted": weighted, "lstm_size": 24, "dropout": 0.1}
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: number for number, tag in enumerate(TAGS)}}
    return FeatureTaggerConfig(**(fields | labels | changes))


def arguments(output: Path, **changes) -> TrainingArguments:
    settings = {"max_steps": 100, "batch_size": 16, "micro_batch_size": 8, "learning_rate": 2e-2, "weight_decay": 0.0}
    settings |= {"precision": "float32", "attention": "eager", "trackers": ["none"], "warmup_steps": 5}
    settings |= {"log_every": 1, "eval_every": 40, "save_every": 40, "keep_checkpoints": 1}
    return TrainingArguments(output_dir=str(output), **(settings | changes))


# --------------------------------------------------------------------------------------------------------- the cache


def test_cached_vectors_are_those_of_the_words_first_pieces(data, raw, encoder, tokenizer):
    vectors = data.vectors["train"]
    layers = range(LAYERS + 1)
    assert len(vectors.layers) == LAYERS + 1 and vectors.layers[0].dtype == np.float16
    texts = [" ".join(row) for row in raw["train"]["tokens"][:]]
    for sentence, (tokens, features) in enumerate(
        zip(raw["train"]["tokens"][:], encode(encoder, tokenizer, texts, layers=layers), strict=True)
    ):
        start = vectors.offsets[sentence]
        place = 1
        for word, token in enumerate(tokens):
            pieces = len(tokenizer.tokenize(token))
            known = pieces > 0 and place < 39
            assert vectors.known[start + word] == known
            got = np.stack([layer[start + word] for layer in vectors.layers])
            if known:
                assert np.abs(got - features.vectors[:, place]).max() <= 5e-3
            else:
                assert not got.any()
            place += pieces
    assert not vectors.known[0] and (~vectors.known).sum() > 1, "a word without a piece, and some cut off"


def test_the_encoder_runs_once_for_the_same_weights_and_data(raw, encoder, tokenizer, tmp_path):
    task, settings = get_task("custom-ner"), FeatureSettings(40, cache_dir=str(tmp_path / "tokens"))
    features = task.features(raw["validation"], tokenizer, settings)
    calls, said = [], []
    hook = encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    first = cached_word_vectors(encoder, features, tmp_path, say=said.append)
    once = len(calls)
    again = cached_word_vectors(encoder, features, tmp_path, say=said.append)
    hook.remove()
    assert once and len(calls) == once and len(said) == 1 and "once" in said[0]
    assert isinstance(again.layers[0], np.memmap)
    assert all((a == b).all() for a, b in zip(first.layers, again.layers, strict=True))
    other = make("base", vocab_size=len(tokenizer), num_hidden_layers=LAYERS)
    with torch.no_grad():
        other.encoder.layer[0].output.dense.bias.add_(1.0)
    cached_word_vectors(other, features, tmp_path, say=said.append)
    cached_word_vectors(encoder, features, tmp_path, dtype=torch.bfloat16, say=said.append)
    assert len(said) == 3


def test_a_cache_that_was_cut_off_is_made_again(monkeypatch, raw, encoder, tokenizer, tmp_path):
    settings = FeatureSettings(40, cache_dir=str(tmp_path / "tokens"))
    features = get_task("custom-ner").features(raw["validation"], tokenizer, settings)
    whole = word_vectors.encode_inputs

    def full_disk(*args, **options):
        yield from list(whole(*args, **options))[:3]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(word_vectors, "encode_inputs", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        cached_word_vectors(encoder, features, tmp_path / "cache")
    monkeypatch.setattr(word_vectors, "encode_inputs", whole)
    vectors = cached_word_vectors(encoder, features, tmp_path / "cache")
    assert vectors.layers[-1][-1].any() and len(vectors.layers[0]) == len(vectors.known)


def test_values_beyond_float16_are_refused(raw, tokenizer, tmp_path):
    model = make("base", vocab_size=len(tokenizer), num_hidden_layers=LAYERS)
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.weight.fill_(1e6)
    with pytest.raises(InputError, match="layer 2 of this model has values beyond float16"):
        tagging_data(get_task("custom-ner"), raw, model, tokenizer, FeatureSettings(40), tmp_path)
    with pytest.raises(InputError, match="max_seq_length is 41; this model takes at most 40"):
        tagging_data(get_task("custom-ner"), raw, model, tokenizer, FeatureSettings(41), tmp_path)


def test_combinations_are_the_papers_and_elmos():
    assert {name: combination_layers(name, 12) for name in COMBINATIONS} == {
        "embeddings": [0],
        "second_to_last": [11],
        "last": [12],
        "weighted_last_four": [9, 10, 11, 12],
        "concat_last_four": [9, 10, 11, 12],
        "weighted_all": list(range(1, 13)),
        "elmo": list(range(13)),
    }
    with pytest.raises(InputError, match="concat_last_four needs 4 layers, this model has 3"):
        combination_layers("concat_last_four", 3)
    with pytest.raises(InputError, match="unknown combination 'best'"):
        combination_layers("best", 12)


# -------------------------------------------------------------------------------------------------------- the tagger


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sentence_is_tagged_the_same_in_any_company(data, weighted, tmp_path):
    torch.manual_seed(0)
    tagger = FeatureTagger(config((1, 4), weighted)).eval()
    vectors = data.vectors["train"]
    some = np.argsort(vectors.lengths)[[0, -1, 30]]
    together = tagger(**tagger_inputs(vectors, some, [1, 4])).logits
    for row, sentence in enumerate(some):
        alone = tagger(**tagger_inputs(vectors, np.array([sentence]), [1, 4])).logits[0]
        assert (together[row, : len(alone)] - alone).abs().max() <= 1e-5
    tagger.save_pretrained(tmp_path)
    again = FeatureTagger.from_pretrained(tmp_path)
    assert (again(**tagger_inputs(vectors, some, [1, 4])).logits - together).abs().max() <= 1e-6


def test_the_sum_of_layers_is_weighted_by_a_softmax_and_a_concatenation_holds_all(data):
    vectors = data.vectors["train"]
    taken = vectors.take(np.array([3, 5]), [0, 4])
    assert taken.shape == (2, max(vectors.lengths[[3, 5]]), 2, 32)
    weighted, joined = FeatureTagger(config((0, 4), True)), FeatureTagger(config((0, 4)))
    assert weighted.lstm.input_size == 32 and joined.lstm.input_size == 64 and joined.layer_weights is None
    assert weighted.layer_weights.tolist() == [0.5, 0.5]
    with torch.no_grad():
        weighted.layer_scores.copy_(torch.tensor([30.0, 0.0]))  # all the weight on the first
    first = FeatureTagger(config((0,), True))
    first.load_state_dict(weighted.state_dict() | {"layer_scores": torch.zeros(1)})
    both = weighted.eval()(taken, torch.tensor(vectors.lengths[[3, 5]])).logits
    alone = first.eval()(taken[:, :, :1], torch.tensor(vectors.lengths[[3, 5]])).logits
    assert (both - alone).abs().max() <= 1e-6


# ---------------------------------------------------------------------------------------------------------- training


def losses(output: Path) -> list[float]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_the_tagger_learns_and_leaves_its_results(data, tmp_path):
    results = train_tagger(arguments(tmp_path / "run"), config(), data)
    assert results["scores"]["validation"]["f1"] > 0.9 and results["scores"]["test"]["f1"] > 0.9
    assert losses(tmp_path / "run")[-1] < 0.2 * losses(tmp_path / "run")[0]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    tagger = FeatureTagger.from_pretrained(tmp_path / "run" / "model")
    predictions = predict_tags(tagger, data, "test")
    assert data.task.score(data.raw["test"], predictions) == results["scores"]["test"]
    assert predictions[0][0] == "O", "a word without a piece"
    assert [len(row) for row in predictions] == [len(row) for row in data.raw["test"]["tokens"][:]]
    lines = (tmp_path / "run" / "predictions" / "predictions_test.txt").read_text(encoding="utf-8").split("\n")
    assert lines[0].split(" ")[0] == NOTHING and len(lines[0].split(" ")) == 3
    assert not (tmp_path / "run" / "checkpoints").exists()
    written = (tmp_path / "run" / "log.jsonl").read_bytes()
    forget_accelerator()
    assert train_tagger(arguments(tmp_path / "run"), config(), data) == results
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == written, "nothing was trained again"
    with pytest.raises(InputError, match="made with other settings"):
        train_tagger(arguments(tmp_path / "run", learning_rate=1e-3), config(), data)


def test_a_weighted_sum_finds_the_layer_that_knows(data, tmp_path):
    rng = np.random.default_rng(0)
    noise_vectors = {}
    for split, vectors in data.vectors.items():
        noise = [rng.normal(size=vectors.layers[0].shape).astype(np.float16) for _ in vectors.layers]
        noise[2] = vectors.layers[0]
        noise_vectors[split] = WordVectors(noise, vectors.offsets, vectors.known)
    noisy = TaggingData(data.task, data.raw, noise_vectors, "noise")
    results = train_tagger(arguments(tmp_path, learning_rate=3e-2), config((1, 2, 3, 4), True), noisy)
    weights = results["layer_weights"]
    assert weights.keys() == {"1", "2", "3", "4"} and abs(sum(weights.values()) - 1) < 1e-6
    assert weights["2"] > 0.5 > 0.2 > max(weights["1"], weights["3"], weights["4"])


def test_a_stopped_run_continues_as_if_it_had_not_been(monkeypatch, data, tmp_path):
    whole = train_tagger(arguments(tmp_path / "whole", max_steps=30, eval_every=20, save_every=20), config(), data)
    forget_accelerator()
    score = type(data.task).score

    def stop(self, raw, predictions):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(self, raw, predictions)

    monkeypatch.setattr(type(data.task), "score", stop)
    changed = arguments(tmp_path / "cut", max_steps=30, eval_every=20, save_every=20)
    assert train_tagger(changed, config(), data) is None
    assert json.loads((tmp_path / "cut" / "record.json").read_text())["steps"] == 21
    monkeypatch.setattr(type(data.task), "score", score)
    forget_accelerator()
    continued = train_tagger(changed, config(), data)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert continued["scores"] == whole["scores"] and continued["best_step"] == whole["best_step"]


# -------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def checkpoint(encoder, tokenizer, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    encoder.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def call(monkeypatch, checkpoint, files, output, **changes) -> int:
    settings = {f"{split}_file": (path,) for split, path in files.items()}
    settings |= {"model": (checkpoint,), "output_dir": (output,), "task": ("custom-ner",), "max_seq_length": (40,)}
    settings |= {
        "lstm_size": (24,),
        "dropout": (0.1,),
        "learning_rate": (2e-2,),
        "epochs": (5,),
        "trackers": ("none",),
        "batch_size": (8,),
    }
    settings |= {name: value if isinstance(value, tuple) else (value,) for name, value in changes.items()}
    words = [word for name, values in settings.items() for word in (f"--{name}", *map(str, values))]
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(sys, "argv", ["feature_based_ner.py", *words])
    try:
        importlib.import_module("feature_based_ner").main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_recipe_leaves_a_table_beside_the_papers(monkeypatch, capsys, checkpoint, files, tmp_path):
    chosen = ("last", "weighted_all")
    assert call(monkeypatch, checkpoint, files, tmp_path / "out", combinations=chosen, seeds=(0, 1), epochs=4) == 0
    printed = capsys.readouterr().out
    assert "(94.9)" in printed and "(95.5)" in printed and printed.count("once") == 3
    table = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in chosen:
        assert len(table[name]["validation"]["values"]) == 2 and table[name]["test"]["std"] is not None
        assert table[name]["validation"]["mean"] > 20
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "cache",
        *(f"{name}-seed{seed}" for name in chosen for seed in (0, 1)),
    }
    # Again, with another seed: only that is trained.
    assert call(monkeypatch, checkpoint, files, tmp_path / "out", combinations="last", seeds=(0, 1, 2), epochs=4) == 0
    printed = capsys.readouterr().out
    assert "once" not in printed and printed.count("validation:") == 4, "the epochs of one run"
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["last"]["test"]["values"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "cola"}, "does not tag words"),
        ({"task": "ner"}, "unknown task 'ner'"),
        ({"combinations": "best"}, "combinations is ['best']; it must be"),
        ({"model": "./missing"}, "no checkpoint directory ./missing"),
        ({"max_seq_length": 400}, "max_seq_length is 400"),
        ({"encoder_precision": "int8"}, "encoder_precision is int8"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seeds": (1, 1)}, "seeds is [1, 1]"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0; it must be at least 1"),
        ({"micro_batch_size": 5}, "batch_size 8 is not a multiple of micro_batch_size 5"),
        ({"train_file": "missing.jsonl"}, "missing.jsonl: no such file"),
    ],
)
def test_bad_options_end_in_one_sentence(monkeypatch, capsys, checkpoint, files, tmp_path, changes, message):
    assert call(monkeypatch, checkpoint, files, tmp_path, **changes) == 2
    error = capsys.readouterr().err
    assert message in error and "error: " in error


def test_data_without_a_validation_split_are_refused(monkeypatch, capsys, checkpoint, files, tmp_path):
    assert call(monkeypatch, checkpoint, {"train": files["train"]}, tmp_path) == 2
    assert "needs a validation split" in capsys.readouterr().err

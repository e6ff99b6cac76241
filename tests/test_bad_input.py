"""What users get wrong, through the recipes: each case ends in one sentence that names the place and the remedy, in
the exit code of errors.py, and with every file as it was.

A case is a recipe, what is different from a command line that works, and what the sentence must say. A value that is
a function makes its file or directory first: it is called with the case's own directory and the good inputs. One
table, hence the length.
"""

import ast
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from corpus_helpers import build, documents, small_tokenizer, write_text
from finetuning_helpers import call, command, make_data, make_model, options, rows
from helpers import batch, make
from safetensors.torch import load_file, save_file
from task_helpers import write_jsonl
from training_helpers import RECIPES, arguments, environment

from hfbert_scratch.tasks.files import tables as loading
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError


USAGE, CHECKPOINT, OUTPUT = 2, 6, 7
Make = Callable[[Path, SimpleNamespace], Any]

# ---------------------------------------------------------------------------------------------------- good inputs


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Inputs that work: `text`, `tokenizer`, `corpus`, a headless `model`, `data` by task; none may change."""
    root = tmp_path_factory.mktemp("good")
    tokenizer = small_tokenizer()
    save_tokenizer(tokenizer, root / "tokenizer")
    build(root, documents(200), tokenizer, max_seq_length=64, validation_share=0.1)
    inputs = SimpleNamespace(
        text=root / "corpus.txt",
        tokenizer=root / "tokenizer",
        corpus=root / "corpus",
        model=make_model(root / "model", tokenizer),
        data={task: make_data(root / task, task) for task in ("mrpc", "stsb", "squad", "swag", "conll2003")},
    )
    before = snapshot(root)
    yield inputs
    assert snapshot(root) == before


def snapshot(directory: Path) -> dict[str, bytes]:
    """All files but caches, which a run may leave."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "cache" not in path.parts
    }


def command_line(recipe: str, good: SimpleNamespace, here: Path, changes: dict[str, Any]) -> list[str]:
    """A command line that would work but for `changes`; None leaves an option out."""
    output = here / "out"
    changes = {name: value(here, good) if callable(value) else value for name, value in changes.items()}
    if recipe == "pretrain":
        inputs = {"corpus": good.corpus, "tokenizer": good.tokenizer}
        return arguments(inputs, changes.pop("output_dir", output), **changes)
    if recipe in ("finetune", "sweep"):
        task = changes.pop("task", "mrpc")
        data = changes.pop("data_dir", good.data.get(task, good.data["mrpc"]))
        sizes = {"max_steps": 4, "cache_dir": here / "cache"}
        return options(task, data, good.model, output, **(sizes | changes))
    defaults = {
        "train_tokenizer": {"text": good.text, "vocab_size": 400},
        "build_corpus": {"text": good.text, "tokenizer": good.tokenizer, "max_seq_length": 64},
        "create_pretraining_data": {"corpus": good.corpus, "tokenizer": good.tokenizer, "max_seq_length": 64},
        "evaluate_model": {"model": good.model, "data_dir": good.data["mrpc"], "cache_dir": here / "cache"},
        "extract_features": {"model": good.model, "text": good.text, "layers": -1},
        "feature_based_ner": {"model": good.model, "data_dir": good.data["conll2003"]},
        "convert": {"to": "stock", "model": good.model},
        "demo": {"text": good.text},
    }
    return command({"output_dir": output} | defaults[recipe] | changes)


# ---------------------------------------------------------------------------------------------------- bad inputs


def file(name: str, content: bytes | str) -> Make:
    def make_it(here: Path, good: SimpleNamespace) -> Path:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return here / name

    return make_it


def lines(name: str, *made: Any) -> Make:
    return lambda here, good: write_jsonl(here / name, made)


def below_a_file(here: Path, good: SimpleNamespace) -> Path:
    (here / "file").write_text("mine")
    return here / "file" / "out"


def filled(here: Path, good: SimpleNamespace) -> Path:
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    return here / "full"


def changed(name: str, change: Callable[[Path], Any]) -> Make:
    """A copy of one of the good directories, with `change` made to it."""

    def make_it(here: Path, good: SimpleNamespace) -> Path:
        shutil.copytree(getattr(good, name), here / name)
        change(here / name)
        return here / name

    return make_it


def write(name: str, content: bytes | str) -> Callable[[Path], Any]:
    return lambda there: (there / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda there: (there / name).write_bytes((there / name).read_bytes()[:size])


def gone(name: str) -> Callable[[Path], Any]:
    return lambda there: (there / name).unlink()


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def config(**fields: Any) -> Make:
    """The good model with other fields in its config.json; None takes one out."""

    def change(there: Path) -> None:
        content = json.loads((there / "config.json").read_text()) | fields
        content = {name: value for name, value in content.items() if value is not None}
        (there / "config.json").write_text(json.dumps(content))

    return changed("model", change)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Make:
    def edit(there: Path) -> None:
        tensors = load_file(there / "model.safetensors")
        change(tensors)
        save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})

    return changed("model", edit)


def index(content: Any) -> Make:
    """The good model with an index in place of its weights, which lie outside."""

    def edit(there: Path) -> None:
        (there / "model.safetensors").rename(there.parent / "outside.safetensors")
        (there / "model.safetensors.index.json").write_text(json.dumps(content))

    return changed("model", edit)


class Code:
    """Pickled, it would print when it is read."""

    def __reduce__(self) -> Any:
        return print, ("code in the file was run",)


def pickled(there: Path) -> None:
    (there / "model.safetensors").unlink()
    torch.save({"a": Code()}, there / "pytorch_model.bin")


def own_code(there: Path) -> None:
    """A model of a new kind, with the code that makes it."""
    content = json.loads((there / "config.json").read_text())
    content |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (there / "config.json").write_text(json.dumps(content))
    (there / "code.py").write_text("print('code in the file was run')\n")


def tokens(change: Callable[[list[str]], list[str]]) -> Make:
    """A tokenizer directory of vocab.txt alone, its lines changed."""

    def make_it(here: Path, good: SimpleNamespace) -> Path:
        found = (good.tokenizer / "vocab.txt").read_text(encoding="utf-8").splitlines()
        file("vocabulary/vocab.txt", "".join(f"{line}\n" for line in change(found)))(here, good)
        return here / "vocabulary"

    return make_it


def tokenizer_of_another_text(here: Path, good: SimpleNamespace) -> Path:
    save_tokenizer(small_tokenizer(documents(50, seed=9), vocab_size=300), here / "other")
    return here / "other"


def train_rows(task: str, **changes: Any) -> Make:
    """A training file of the task whose last row has `changes` in it; a value None takes the field out."""

    def make_it(here: Path, good: SimpleNamespace) -> Path:
        made = rows(task, 9, 0)
        made[-1] = made[-1] | changes
        if None in changes.values():
            made = [{name: value for name, value in row.items() if changes.get(name, "") is not None} for row in made]
        return write_jsonl(here / "train.jsonl", made)

    return make_it


def parquet(content: dict[str, list], name: str = "t.parquet") -> Make:
    def make_it(here: Path, good: SimpleNamespace) -> Path:
        pq.write_table(pa.table(content), here / name)
        return here / name

    return make_it


def saved_dataset(here: Path, good: SimpleNamespace) -> Path:
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(here / "saved")
    return here / "saved"


def empty_directory(here: Path, good: SimpleNamespace) -> Path:
    (here / "empty").mkdir()
    return here / "empty"


def earlier_run(recipe: str, damage: Callable[[Path], Any] | None = None, **changes: Any) -> Make:
    """The output directory of a finished run of the recipe, with `damage` done to its checkpoints."""

    def make_it(here: Path, good: SimpleNamespace) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            assert call(patch, recipe, command_line(recipe, good, here, changes)) == 0
        for checkpoint in sorted((here / "out" / "checkpoints").glob("step-*")) if damage else []:
            damage(checkpoint)
        return here / "out"

    return make_it


SENTENCE = "The word is here and there."
GZIPPED = gzip.compress(SENTENCE.encode() * 50)
SHORT = {"max_steps": 2, "eval_every": 2, "save_every": 1, "warmup_steps": 0}

# ---------------------------------------------------------------------------------------------------- text

TEXT = {
    "a missing file": ("nothing.txt", "--text nothing.txt: no such file or directory"),
    "an empty file": (file("a.txt", ""), r"a\.txt holds no text"),
    "blank lines alone": (file("a.txt", " \n\n\t\n"), r"a\.txt holds no text"),
    "an empty directory": (empty_directory, r"empty: the directory holds no \.txt"),
    "a pattern of nothing": ("nothing/*.txt", "the pattern matches no file"),
    "UTF-16": (file("a.txt", SENTENCE.encode("utf-16")), r"a\.txt is UTF-16 text; convert it first: iconv"),
    "Latin-1": (
        file("a.txt", b"good\n" + "né".encode("latin-1")),
        r"a\.txt: byte 6, line 2, is not valid UTF-8 \(byte 0xe9\); .*--encoding_errors replace",
    ),
    "a binary file": (file("a.txt", bytes(range(256)) * 4), r"a\.txt: byte 128, line 2, is not valid UTF-8"),
    "a truncated .gz": (file("a.txt.gz", GZIPPED[:-12]), r"a\.txt\.gz is truncated or damaged after"),
    "text called .gz": (file("a.txt.gz", SENTENCE), r"a\.txt\.gz is not packed with gzip; take .gz from its name"),
    "text called .zst": (file("a.txt.zst", SENTENCE), r"a\.txt\.zst is not packed with zstd"),
    "broken JSON": (file("a.jsonl", '{"text": "a"}\n{"text": "b'), r"a\.jsonl: line 2 is not JSON"),
    "JSON without the field": (lines("a.jsonl", {"body": "a"}), "no column 'text', only 'body'; see --text_column"),
    "JSON with a number": (lines("a.jsonl", {"text": 5}), r"line 1: field 'text' is a int, not a string"),
    "JSON of brackets": (file("a.jsonl", "[" * 100_000), "line 1 is nested too deeply"),
    "JSON of digits": (file("a.jsonl", '{"text": %s}' % ("9" * 5000)), r"a\.jsonl: line 1 cannot be read \(Exceeds"),
    "half a surrogate pair": (file("a.jsonl", '{"text": "\\ud800"}'), "line 1 escapes half of a surrogate pair"),
    "Parquet cut off": (file("a.parquet", b"PAR1 and no more"), r"a\.parquet is not a readable Parquet file"),
    "Parquet of numbers": (parquet({"text": [1, 2]}), "column 'text' holds int64, not strings; see --text_column"),
    "packed Parquet": (file("a.parquet.gz", b""), "Parquet compresses by itself; unpack the file first"),
    "data set without train": (saved_dataset, r"has the splits test but no train; name one, as .*saved/test"),
}

CASES: dict[str, tuple[str, dict[str, Any], str] | tuple[str, dict[str, Any], str, int]] = {
    name: ("train_tokenizer", {"text": text}, message) for name, (text, message) in TEXT.items()
}

CASES |= {
    "the same file twice": (
        "train_tokenizer",
        {"text": lambda here, good: [good.text, good.text]},
        r"--text names .*corpus\.txt more than once",
    ),
    "a vocabulary below the alphabet": (
        "train_tokenizer",
        {"vocab_size": 10},
        r"vocab_size 10 is too small: this text needs 5 special tokens, \d+ characters",
    ),
    "a size in words": ("train_tokenizer", {"vocab_size": "many"}, "--vocab_size.*: invalid int value: 'many'"),
    "an unknown error rule": (
        "train_tokenizer",
        {"encoding_errors": "ignore"},
        "--encoding_errors must be one of strict, replace, not 'ignore'",
    ),
    "no room in a sequence": (
        "train_tokenizer",
        {"model_max_length": 3},
        "model_max_length 3 leaves no room for text",
    ),
    "a tokenizer below a file": ("train_tokenizer", {"output_dir": below_a_file}, "file/out cannot be", OUTPUT),
    # -------------------------------------------------------------------------------------------- corpus
    "no text in a corpus": ("build_corpus", {"text": file("a.txt", "\n\n")}, r"a\.txt holds no text"),
    "one document": (
        "build_corpus",
        {"text": file("a.txt", SENTENCE * 9)},
        r"at least 2 documents \(blank-line separated\); found 1.*--no_nsp",
    ),
    "three documents": (
        "build_corpus",
        {"text": lambda here, good: write_text(here / "a.txt", documents(3))},
        "--text holds 3 different documents, too few for a train and a validation split of 2 each",
    ),
    "one sentence a document": (
        "build_corpus",
        {"text": lambda here, good: write_text(here / "a.txt", [f"{text.split('.')[0]}." for text in documents(60)])},
        "have one sentence",
    ),
    "the same document 10,000 times": (
        "build_corpus",
        {"text": lambda here, good: write_text(here / "a.txt", documents(1) * 10_000)},
        r"at least 2 documents .*found 1 \(9999 duplicates",
    ),
    "text in another script": (
        "build_corpus",
        {"text": lambda here, good: write_text(here / "a.txt", [f"слово {n}. и ещё {n}." for n in range(50)])},
        r"% of the tokens are \[UNK\]",
    ),
    "all text held out": (
        "build_corpus",
        {"validation_share": 1},
        "--validation_share must be at least 0 and below 1",
    ),
    "sequences of four tokens": ("build_corpus", {"max_seq_length": 4}, "--max_seq_length 4 leaves no room for text"),
    "a negative seed": ("build_corpus", {"seed": -1}, "--seed must not be negative, not -1"),
    "no process": ("build_corpus", {"num_proc": 0}, "--num_proc must be at least 1, not 0"),
    "a host too many": (
        "build_corpus",
        {"num_tasks": 2, "task": 2},
        r"--task must be between 0 and 1 \(--num_tasks 2\), not 2",
    ),
    "shards of a gigabyte": ("build_corpus", {"shard_mb": 1000}, "--shard_mb must be between 1 and 512"),
    "a corpus over other files": ("build_corpus", {"output_dir": filled}, r"full is not empty \(it has notes\.txt\)"),
    "a corpus over another": (
        "build_corpus",
        {"output_dir": changed("corpus", lambda there: None)},
        r"corpus was begun with other arguments \(validation_share: 0\.1 there, 0\.01 now\)",
    ),
    "a corpus below a file": ("build_corpus", {"output_dir": below_a_file}, "file/out", OUTPUT),
    # -------------------------------------------------------------------------------------------- tokenizers
    "no tokenizer": ("build_corpus", {"tokenizer": "/nowhere"}, "no tokenizer directory /nowhere"),
    "a file for a tokenizer": (
        "build_corpus",
        {"tokenizer": file("vocab.txt", "a")},
        r"vocab\.txt is a file; name the",
    ),
    "a directory without one": ("build_corpus", {"tokenizer": filled}, "it has neither tokenizer.json nor vocab.txt"),
    "an empty vocabulary": ("build_corpus", {"tokenizer": tokens(lambda found: [])}, r"the vocabulary lacks \[PAD\]"),
    "a token twice": (
        "build_corpus",
        {"tokenizer": tokens(lambda found: [*found, "[SEP]"])},
        r"vocab\.txt: lines 4 and \d+ are both '\[SEP\]'; ids would shift",
    ),
    "a blank line": (
        "build_corpus",
        {"tokenizer": tokens(lambda found: [*found[:9], " ", *found[9:]])},
        r"vocab\.txt: line 10 is blank",
    ),
    "no [MASK]": (
        "build_corpus",
        {"tokenizer": tokens(lambda found: [token for token in found if token != "[MASK]"])},
        r"vocab\.txt: the vocabulary lacks \[MASK\]; BERT needs all of them",
    ),
    "no [UNK]": (
        "build_corpus",
        {"tokenizer": tokens(lambda found: [token for token in found if token != "[UNK]"])},
        r"the vocabulary lacks \[UNK\]",
    ),
    "a tokenizer.json cut off": (
        "build_corpus",
        {"tokenizer": changed("tokenizer", cut("tokenizer.json", 999))},
        r"tokenizer\.json is truncated or damaged",
    ),
    # -------------------------------------------------------------------------------------------- pretraining
    "no corpus": ("pretrain", {"corpus": "/nowhere"}, "no corpus directory /nowhere; build one with"),
    "a directory that is no corpus": (
        "pretrain",
        {"corpus": filled},
        r"full is not a corpus: it has no manifest\.json",
    ),
    "a manifest of garbage": (
        "pretrain",
        {"corpus": changed("corpus", write("manifest.json", "[]"))},
        r"manifest\.json is not a manifest of format 1; build the corpus again",
    ),
    "a manifest of nothing": (
        "pretrain",
        {"corpus": changed("corpus", write("manifest.json", '{"format": 1}'))},
        r"manifest\.json has no tokenizer_hash, vocab_size, .*; build the corpus again",
    ),
    "a manifest that points outside": (
        "pretrain",
        {
            "corpus": changed(
                "corpus", lambda there: replace(there / "manifest.json", "data-00000.arrow", "../x.arrow")
            )
        },
        r"manifest\.json points outside its directory: '\.\./x\.arrow'",
    ),
    "a corpus without its tokens": (
        "pretrain",
        {"corpus": changed("corpus", gone("train/data-00000.arrow"))},
        r"data-00000\.arrow is missing or damaged",
    ),
    "tokens cut off": (
        "pretrain",
        {"corpus": changed("corpus", cut("train/data-00000.arrow", 1000))},
        r"data-00000\.arrow is missing or damaged",
    ),
    "the tokenizer of another text": ("pretrain", {"tokenizer": tokenizer_of_another_text}, "was built with another"),
    "a sequence longer than the corpus's": (
        "pretrain",
        {"max_seq_length": 128, "max_position_embeddings": 128},
        "max_seq_length 128 is longer than the 64 the corpus .* was built for",
    ),
    "a sequence longer than the model": (
        "pretrain",
        {"max_seq_length": 128},
        "max_seq_length 128 exceeds max_position_embeddings 64; shorten the one or raise the other",
    ),
    "heads that do not divide": (
        "pretrain",
        {"num_attention_heads": 5},
        "hidden_size 32 is not a multiple of num_attention_heads 5",
    ),
    "minus one layer": (
        "pretrain",
        {"num_hidden_layers": -1},
        "num_hidden_layers is -1; it must be between 1 and 1000",
    ),
    "an unknown size": ("pretrain", {"size": "huge"}, "unknown size 'huge'; the published sizes are tiny, mini"),
    "a model of a hundred terabytes": (
        "pretrain",
        {"hidden_size": 65536, "num_hidden_layers": 100},
        r"this size asks for 5,\d+\.\d billion parameters, [\d,]+ GiB in float32; this machine has",
    ),
    "no step": ("pretrain", {"max_steps": 0}, "max_steps is 0; it must be at least 1"),
    "four tokens": ("pretrain", {"max_seq_length": 4}, "max_seq_length is 4; it must be at least 5"),
    "an unknown tracker": ("pretrain", {"trackers": "nosuch"}, "trackers .*nosuch"),
    "a batch of nothing": ("pretrain", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    "micro-batches that do not divide": (
        "pretrain",
        {"micro_batch_size": 6},
        "batch_size 16 is not a multiple of micro_batch_size 6",
    ),
    "a negative learning rate": ("pretrain", {"learning_rate": -1}, r"learning_rate is -1\.0; it must be above 0"),
    "a learning rate of NaN": ("pretrain", {"learning_rate": "nan"}, "learning_rate is nan; it must be above 0"),
    "an epsilon of minus one": ("pretrain", {"adam_epsilon": -1}, r"adam_epsilon is -1\.0; it must be above 0"),
    "a warm-up longer than the run": (
        "pretrain",
        {"warmup_steps": 21},
        r"warmup_steps is 21; it must be 0 to max_steps",
    ),
    "eight bits": ("pretrain", {"precision": "float8"}, "precision is float8; it must be auto, float32 or bfloat16"),
    "an unknown optimizer": (
        "pretrain",
        {"optimizer": "adafactor"},
        "optimizer is adafactor; it must be adamw, lamb or bert_adam",
    ),
    "an unknown attention": ("pretrain", {"attention": "nosuch"}, "attention 'nosuch' does not work here"),
    "a dropout above one": ("pretrain", {"dropout": 1.5}, r"dropout is 1\.5; it must be at least 0 and below 1"),
    "shares beyond one": ("pretrain", {"mask_share": 0.9}, "mask_share"),
    "nothing to predict": ("pretrain", {"masked_lm_prob": 0}, "masked_lm_prob"),
    "a probability of two": ("pretrain", {"short_seq_prob": 2}, r"short_seq_prob must be between 0 and 1, not 2\.0"),
    "initial weights of no width": (
        "pretrain",
        {"initializer_range": 0},
        r"initializer_range is 0\.0; it must be above 0",
    ),
    "a misspelled option": (
        "pretrain",
        {"learning_rat": 1},
        "unknown argument '--learning_rat'; did you mean '--learning_rate'",
    ),
    "an option left out": ("pretrain", {"output_dir": "x", "corpus": None}, "corpus"),
    "a switch that is neither": ("pretrain", {"whole_word": "perhaps"}, "Truthy value expected: got perhaps"),
    "settings that are not there": ("pretrain", {"config": "nosuch"}, "--config nosuch: no such file, and not one of"),
    "a misspelled setting": (
        "pretrain",
        {"config": file("my.yaml", "learning_rat: 1")},
        r"my\.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'",
    ),
    "a setting of the wrong type": (
        "pretrain",
        {"config": file("my.yaml", "weight_decay: much")},
        "--weight_decay.*: invalid float value: 'much'",
    ),
    "settings that are a list": (
        "pretrain",
        {"config": file("my.yaml", "- a")},
        "must hold a mapping of argument names",
    ),
    "a list in a list": (
        "pretrain",
        {"config": file("my.yaml", "trackers: [[a], [b]]")},
        "trackers must be a list of single values",
    ),
    "settings that are not YAML": ("pretrain", {"config": file("my.yaml", "a: [")}, r"my\.yaml is not readable YAML"),
    "settings of brackets": ("pretrain", {"config": file("my.yaml", "[" * 1000)}, r"my\.yaml is not readable YAML"),
    "a run below a file": ("pretrain", {"output_dir": below_a_file}, "file/out cannot be written", OUTPUT),
    "a resume with another seed": (
        "pretrain",
        {**SHORT, "output_dir": earlier_run("pretrain", **SHORT), "seed": 1},
        "step-2 belongs to a run with other settings .*seed: 0 there, 1 now.*use those, or another output_dir",
        CHECKPOINT,
    ),
    "every checkpoint damaged": (
        "pretrain",
        {**SHORT, "output_dir": earlier_run("pretrain", cut("model.safetensors", 2000), **SHORT)},
        r"every checkpoint in .* is damaged \(.*model\.safetensors has 2000 bytes, not \d+: .*; restore one",
        CHECKPOINT,
    ),
    "no model to start from": ("pretrain", {"model": "/nowhere"}, "no checkpoint directory /nowhere"),
    "a model of another vocabulary": (
        "pretrain",
        {"model": lambda here, good: make_model(here / "other", small_tokenizer(documents(200, seed=9)))},
        r"differ in \d+ of 400 tokens .*: its embeddings belong to other words; use the tokenizer in",
    ),
    "a model smaller than the tokenizer": (
        "pretrain",
        {"model": lambda here, good: make_model(here / "small", vocab_size=90)},
        r"the tokenizer has 400 tokens, the model embeds 90; use the one it was trained with",
    ),
    "a model that pads otherwise": (
        "pretrain",
        {"model": config(pad_token_id=3)},
        "the tokenizer pads with id 0, the model has pad_token_id 3; use the one it was trained with",
    ),
    "a sequence longer than the model to start from": (
        "pretrain",
        {"model": lambda here, good: make_model(here / "short", small_tokenizer(), max_position_embeddings=16)},
        "max_seq_length 32 exceeds the model's max_position_embeddings 16",
    ),
    "fewer layers than config.json says": (
        "pretrain",
        {"model": config(num_hidden_layers=3)},
        r"lacks 32 weights of its own encoder, the first bert\.encoder\.layer\.1\.attention",
    ),
}

# What is in a model's directory, through the recipe that fine-tunes it.
CASES |= {
    name: ("finetune", {"model": model}, message)
    for name, model, message in [
        ("a file for a model", file("model.bin", "x"), r"model\.bin is a file; name the directory of the checkpoint"),
        ("a directory that is no model", filled, r"full is not a checkpoint: it has no config\.json"),
        (
            "no config.json",
            changed("model", gone("config.json")),
            r"is not a checkpoint: it has no config\.json",
        ),
        ("config.json cut off", changed("model", cut("config.json", 99)), r"config\.json is not readable JSON"),
        ("config.json a list", changed("model", write("config.json", "[]")), "must hold a JSON object, not a list"),
        ("config.json of brackets", changed("model", write("config.json", "[" * 99_999)), "is not readable JSON"),
        ("a misspelled field", config(hiden_size=32), "unknown field 'hiden_size'; did you mean 'hidden_size'"),
        ("an unknown activation", config(hidden_act="nosuch"), "hidden_act is 'nosuch'; known activations"),
        ("10^12 rows", config(vocab_size=10**12), r"config\.json: vocab_size is 1000000000000; it must be at most"),
        (
            "10^12 layers of another name",
            config(n_layers=10**12),
            "n_layers is 1000000000000; it must be at most 1000",
        ),
        (
            "rows and columns that multiply",
            config(vocab_size=10**7, hidden_size=65536, num_attention_heads=1024, intermediate_size=1),
            r"config\.json asks for [\d,]+\.\d billion parameters, [\d,]+ GiB in float32; this machine has",
        ),
        (
            "padding outside the vocabulary",
            config(pad_token_id=500),
            "pad_token_id 500 is outside the vocabulary of 400",
        ),
        ("a negative epsilon", config(layer_norm_eps=-1.0), r"layer_norm_eps is -1\.0; it must be above 0"),
        ("another kind of model", config(model_type="gpt2"), "cannot be opened|lacks|describes no model"),
        ("an unknown kind of model", config(model_type="nosuch", auto_map=None), "model_type 'nosuch' is not known"),
        ("a kind that is a number", config(model_type=5), "model_type is 5; it must be a name, such as bert"),
        (
            "a model with code of its own",
            changed("model", own_code),
            r"names code of its own \(auto_map\).*none of it is",
        ),
        ("another width", config(hidden_size=64), "lacks .* of its own encoder"),
        (
            "weights cut off",
            changed("model", cut("model.safetensors", 5000)),
            r"model\.safetensors is truncated or damaged",
        ),
        (
            "empty weights",
            changed("model", write("model.safetensors", b"")),
            r"model\.safetensors is truncated or damaged",
        ),
        (
            "a huge header",
            changed("model", write("model.safetensors", b"\xff" * 64)),
            r"model\.safetensors is truncated or damaged",
        ),
        ("no weights", changed("model", gone("model.safetensors")), r"it has no model\.safetensors"),
        ("a pickle", changed("model", pickled), r"holds its weights as a pickle .*hfbert convert --to hfbert makes"),
        (
            "weights outside the directory",
            index({"weight_map": {"bert.pooler.dense.bias": "../outside.safetensors"}}),
            r"index\.json points outside its directory: '\.\./outside\.safetensors'",
        ),
        ("an index to nothing", index({"weight_map": {"a": "b.safetensors"}}), r"b\.safetensors is missing, which"),
        ("an index of nothing", index([]), "has no weight_map of parameter and file names"),
        (
            "NaN in the weights",
            weights(lambda found: found["embeddings.LayerNorm.bias"].fill_(float("nan"))),
            r"embeddings\.LayerNorm\.bias holds values that are not finite; its training diverged",
        ),
        ("a layer left out", weights(lambda found: found.pop("encoder.layer.0.output.dense.bias")), "lacks 1 weights"),
        (
            "special tokens out of place",
            changed("model", lambda there: gone("tokenizer.json")(there) or turned_around(there)),
            r"the tokenizer pads with id \d+, the model has pad_token_id 0; use the one",
        ),
    ]
}


def turned_around(there: Path) -> None:
    lines = (there / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (there / "vocab.txt").write_text("".join(f"{line}\n" for line in reversed(lines)), encoding="utf-8")


def task_file(task: str, made: Make, message: str, **changes: Any) -> tuple[str, dict[str, Any], str]:
    return "finetune", {"task": task, "train_file": made, **changes}, message


CASES |= {
    "an unknown task": ("finetune", {"task": "mpc"}, "unknown task 'mpc'"),
    "a task without training data": (
        "finetune",
        {"task": "ax"},
        "ax has only a test set; predict it with hfbert evaluate",
    ),
    "no data directory": ("finetune", {"data_dir": Path("/nowhere")}, "--data_dir /nowhere is not a directory"),
    "a data directory of other files": (
        "finetune",
        {"data_dir": filled},
        r"holds no file of train.*it holds 'notes\.txt'",
    ),
    "no training file": ("finetune", {"train_file": "/nowhere.jsonl"}, r"--train_file /nowhere\.jsonl: no such file"),
    "a spreadsheet": task_file("mrpc", file("a.xlsx", b"PK"), r"a\.xlsx: unknown suffix '\.xlsx'; it must be one of"),
    "an empty training file": task_file("mrpc", file("a.jsonl", ""), r"a\.jsonl holds no rows"),
    "a header alone": task_file(
        "mrpc", file("a.csv", "sentence1,sentence2,label\n"), "holds no rows below its header"
    ),
    "a row in Latin-1": task_file("mrpc", file("a.tsv", b"caf\xe9"), r"a\.tsv: line 1 is not valid UTF-8 .*iconv"),
    "a quote left open": task_file(
        "mrpc", file("a.csv", 'sentence1,sentence2,label\n"a,b,1\n'), "is a quote left open"
    ),
    "a ragged row": task_file(
        "mrpc", file("a.csv", "sentence1,sentence2,label\na,b\n"), "line 2 has 2 fields, but the header has 3"
    ),
    "a TSV of one column": task_file(
        "mrpc", file("a.tsv", "sentence1\na\n"), "no column 'sentence2', only 'sentence1'"
    ),
    "a column left out": task_file(
        "mrpc", lines("a.jsonl", {"sentence1": "a", "sentence_2": "b", "label": 0}), "did you mean 'sentence_2'"
    ),
    "a field left out": task_file(
        "mrpc",
        lines("a.jsonl", {"sentence1": "a", "sentence2": "b", "label": 0}, {"sentence1": "a", "label": 0}),
        "line 2 has no field 'sentence2'",
    ),
    "a null": task_file(
        "mrpc", train_rows("mrpc", sentence2=float("nan")), r"'sentence2' is missing \(null\) in row 8"
    ),
    "text that is a list": task_file(
        "mrpc", lines("a.jsonl", {"sentence1": ["a"], "sentence2": "b", "label": 0}), "not text"
    ),
    "a label that is a list": task_file(
        "mrpc",
        lines("a.jsonl", {"sentence1": "a", "sentence2": "b", "label": [1]}),
        r"'label' holds lists or objects such as \[1\]; every row needs a single label",
    ),
    "an unknown class": task_file("mrpc", train_rows("mrpc", label=7), "row 8: unknown label 7; it must be"),
    "half a class": task_file("mrpc", train_rows("mrpc", label=0.5), r"row 8: unknown label 0\.5"),
    "one row without label": task_file(
        "mrpc", train_rows("mrpc", label=-1), "row 8 has no label, while other rows have"
    ),
    "a test set to train on": task_file(
        "mrpc",
        lambda here, good: good.data["mrpc"] / "test.jsonl",
        "no label column; name yours: --columns label=NAME; to predict the split, name it --test_file",
    ),
    "a similarity of 5.5": task_file("stsb", train_rows("stsb", label=5.5), r"row 8: label 5\.5 is outside 0 … 5"),
    "a similarity in words": task_file(
        "stsb", train_rows("stsb", label="high"), "row 8 holds 'high', other rows float"
    ),
    "three endings": task_file(
        "swag", lambda here, good: without(here, "swag", "ending3"), "no column 'ending3', nor 'endings'"
    ),
    "a fifth ending": task_file("swag", train_rows("swag", label=4), "row 8: unknown label 4"),
    "an unknown tag": task_file(
        "conll2003", lines("a.jsonl", {"tokens": ["a"], "ner_tags": ["B-CITY"]}), "row 0: unknown tag 'B-CITY'"
    ),
    "more tags than words": task_file(
        "conll2003", lines("a.jsonl", {"tokens": ["a"], "ner_tags": ["O", "O"]}), "row 0: 1 words but 2 tags"
    ),
    "a line with missing columns": task_file(
        "conll2003", file("a.conll", "EU NNP I-NP I-ORG\nrejects O\n"), "line 2 has 2 columns, but those before have 4"
    ),
    "training data without an entity": task_file(
        "conll2003", file("a.conll", "EU O\nrejects O\n"), "split train: every word is tagged 'O'"
    ),
    "tags that are numbers": task_file(
        "custom-ner",
        lines("a.jsonl", {"tokens": ["a"], "ner_tags": [1]}),
        "holds numbers, 1 to 1; name their tags",
        validation_file=file("a.conll", "EU O\nAnn B-PER\n"),
        test_file=file("a.conll", "EU O\nAnn B-PER\n"),
    ),
    "classes that are fractions": task_file(
        "custom-classification",
        lines("a.jsonl", {"text": "a", "label": 0.5}, {"text": "b", "label": 1.0}),
        r"fractional numbers such as 0\.5; predict them as numbers with --task custom-regression",
        validation_file=lines("b.jsonl", {"text": "a", "label": 1.0}),
        test_file=lines("b.jsonl", {"text": "a", "label": 1.0}),
    ),
    "names for no classes": (
        "finetune",
        {"task": "stsb", "class_names": ["a", "b"]},
        "--class_names a b: stsb has no classes to be named",
    ),
    "names of other classes": (
        "finetune",
        {"class_names": ["a", "b"]},
        "--class_names must name all classes of mrpc: not_equivalent, equi",
    ),
    "documents alone": task_file("conll2003", file("a.conll", "-DOCSTART- -X- O O\n\n"), r"a\.conll holds no words"),
    "SQuAD cut off": task_file("squad", file("a.json", '{"data": [{"paragraphs": ['), r"a\.json is not JSON"),
    "SQuAD without its nesting": task_file(
        "squad", file("a.json", '{"data": [{"paragraphs": [{"qas": [{"id": "a"}]}]}]}'), "question 0 has no 'question'"
    ),
    "a question that is null": task_file(
        "squad",
        file("a.json", '{"data": [{"paragraphs": [{"qas": [null]}]}]}'),
        "question 0 lies among values of other",
    ),
    "answers that are nowhere": task_file(
        "squad",
        lines(
            "a.jsonl", {"id": "x", "question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}}
        ),
        r"no answer stands in its context at its answer_start \(ids x",
    ),
    "an answer without a place": task_file(
        "squad",
        lines("a.jsonl", {"id": "x", "question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}),
        "question 'x': answers has 1 text, but 0 answer_start",
    ),
    "an id twice": task_file("squad", train_rows("squad", id="0"), "id '0' occurs more than once"),
    "no room for a context": (
        "finetune",
        {"task": "squad", "max_seq_length": 11},
        "max_seq_length 11 leaves no room for context beside a question of max_query_length 8; it must be at least 12",
    ),
    "no stride": ("finetune", {"task": "squad", "doc_stride": 0}, "doc_stride is 0; it must be at least 1"),
    "a column without a name": (
        "finetune",
        {"columns": "label"},
        "--columns label: write it as COLUMN=NAME_IN_YOUR_DATA",
    ),
    "a column of another task": ("finetune", {"columns": "text=a"}, "the task has no column 'text', only sentence1"),
    "longer than the model": (
        "finetune",
        {"max_seq_length": 129},
        "max_seq_length 129 exceeds the model's max_position_embeddings 128",
    ),
    "seven tokens": ("finetune", {"max_seq_length": 7}, "max_seq_length is 7; it must be at least 8"),
    "no example in a batch": ("finetune", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    "examples that do not divide": (
        "finetune",
        {"batch_size": 10, "micro_batch_size": 4},
        "batch_size 10 is not a multiple of micro_batch_size 4",
    ),
    "an evaluation without checkpoint": (
        "finetune",
        {"eval_every": 10, "save_every": 4},
        "eval_every 10 is not a multiple of save_every 4; it must be, so that",
    ),
    "no epoch": ("finetune", {"epochs": 0}, r"epochs is 0\.0; it must be above 0"),
    "another task in the same directory": (
        "finetune",
        {"output_dir": earlier_run("finetune"), "task": "stsb"},
        "belongs to a run with other settings .*task: 'mrpc' there, 'stsb' now",
        CHECKPOINT,
    ),
    "a model with an option's name in the same directory": (
        "finetune",
        {
            "output_dir": earlier_run("finetune"),
            "model": lambda here, good: shutil.copytree(good.model, here / "max_steps"),
        },
        r"model: .*max_steps' now\); use those, or another output_dir$",
        CHECKPOINT,
    ),
    "a cache below a file": ("finetune", {"cache_dir": below_a_file}, "the feature cache .*file/out cannot", OUTPUT),
    # -------------------------------------------------------------------------------------------- the other recipes
    "a model of no task": ("evaluate_model", {}, "does not say what it was fine-tuned for; name it with --task"),
    "a model without the head": (
        "evaluate_model",
        {"task": "mrpc"},
        "is not fine-tuned for mrpc: .*; run hfbert finetune first",
    ),
    "a question without a text": (
        "evaluate_model",
        {"question": "who?"},
        "--question and --context are given together",
    ),
    "a question to a classifier": (
        "evaluate_model",
        {"task": "mrpc", "question": "who?", "context": "me"},
        "--question needs a model fine-tuned on squad or squad_v2, not mrpc",
    ),
    "a text in Latin-1": (
        "evaluate_model",
        {"model": lambda here, good: qa_model(here), "question": "who?", "context": file("c.txt", b"caf\xe9")},
        r"c\.txt: line 1 is not valid UTF-8",
    ),
    "task.json cut off": (
        "evaluate_model",
        {"model": changed("model", write("task.json", '{"task": '))},
        r"task\.json is not readable JSON",
    ),
    "task.json a list": (
        "evaluate_model",
        {"model": changed("model", write("task.json", "[]"))},
        r"task\.json must hold",
    ),
    "task.json with words for numbers": (
        "evaluate_model",
        {"model": changed("model", write("task.json", '{"task": "mrpc", "max_seq_length": "long"}'))},
        r"task\.json: max_seq_length is 'long', but must be of type int; correct or remove it",
    ),
    "nowhere to write": (
        "evaluate_model",
        {"output_dir": None},
        r"--output_dir is needed \(or --question and --context\)",
    ),
    "a layer too many": ("extract_features", {"layers": [3]}, "layer 3|layers"),
    "a layer twice": ("extract_features", {"layers": [1, 1]}, r"layers \[1, 1\] names a layer twice"),
    "an unknown pooling": (
        "extract_features",
        {"pooling": "sum"},
        "pooling is 'sum'; it must be one of none, mean, max, cls",
    ),
    "no texts": ("extract_features", {"text": file("a.txt", "")}, r"a\.txt holds no texts"),
    "no text to encode": ("extract_features", {"text": "/nowhere.txt"}, r"/nowhere\.txt"),
    "features over other files": (
        "extract_features",
        {"output_dir": filled},
        "full is not empty and holds no features",
    ),
    "no tokens in a batch": ("extract_features", {"batch_tokens": 0}, "batch_tokens is 0"),
    "an encoder from a pickle": (
        "extract_features",
        {"model": changed("model", pickled)},
        "holds its weights as a pickle",
    ),
    "an encoder with code of its own": (
        "extract_features",
        {"model": changed("model", own_code)},
        "names code of its own",
    ),
    "tags of no words": ("feature_based_ner", {"task": "mrpc"}, "--task mrpc does not tag words"),
    "an unknown combination": ("feature_based_ner", {"combinations": "best"}, r"combinations is \['best'\]"),
    "instances over other files": (
        "create_pretraining_data",
        {"output_dir": filled},
        "full is not empty; name a new directory",
    ),
    "no copy": ("create_pretraining_data", {"dupe_factor": 0}, "dupe_factor is 0; it must be at least 1"),
    "a conversion over other files": ("convert", {"output_dir": filled}, "full is not empty; name a new one"),
    "a conversion to nothing known": (
        "convert",
        {"to": "onnx"},
        r"invalid choice: 'onnx' \(choose from 'stock', 'hfbert'",
    ),
    "a conversion of a pickle with code": (
        "convert",
        {"to": "hfbert", "model": changed("model", lambda there: stock_config(there) or pickled(there))},
        "pytorch_model.bin is damaged, or holds code besides weights, which is not run",
    ),
    "a sweep of everything": ("sweep", {"task": "all-glue"}, "a sweep is of one task; run one for each of GLUE's"),
    "a demo below a file": ("demo", {"output_dir": below_a_file}, "file/out cannot be written", OUTPUT),
}


def without(here: Path, task: str, column: str) -> Path:
    return write_jsonl(
        here / "train.jsonl",
        [{name: value for name, value in row.items() if name != column} for row in rows(task, 3, 0)],
    )


def qa_model(here: Path) -> Path:
    """Good enough to be opened for a question."""
    import hfbert_scratch

    tokenizer = small_tokenizer()
    save_tokenizer(tokenizer, here / "qa")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    settings = hfbert_scratch.HFBertConfig(vocab_size=len(tokenizer), **sizes)
    hfbert_scratch.HFBertForQuestionAnswering(settings).save_pretrained(here / "qa")
    return here / "qa"


def stock_config(there: Path) -> None:
    content = json.loads((there / "config.json").read_text()) | {"model_type": "bert", "architectures": ["BertModel"]}
    (there / "config.json").write_text(json.dumps({key: value for key, value in content.items() if key != "auto_map"}))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_in_one_sentence_and_leaves_everything_as_it_was(name, good, tmp_path, monkeypatch, capsys):
    recipe, changes, message, *code = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(RECIPES))
    line = command_line(recipe, good, tmp_path, changes)
    if (
        recipe in ("train_tokenizer", "pretrain", "finetune", "evaluate_model", "sweep")
        and not (tmp_path / "out").exists()
    ):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "results.json").write_text("of an earlier run")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert call(monkeypatch, recipe, line) == (code or [USAGE])[0]
    printed = capsys.readouterr()
    sentence = printed.err.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and re.search(message, sentence), sentence
    assert len(re.findall("^error: ", printed.err, re.MULTILINE)) == 1 and "Traceback" not in printed.err
    assert "was run" not in printed.out
    after = snapshot(tmp_path)
    # A build that fails on what it has read keeps its place in a directory of its own, to go on from.
    begun = {path: data for path, data in after.items() if recipe == "build_corpus" and path.startswith("out/")}
    assert {path: data for path, data in after.items() if path not in begun} == before


def test_there_are_at_least_sixty_cases():
    assert len(CASES) >= 60


# ---------------------------------------------------------------------------------------------------- beside the table


# describe_environment has no command_line: it must run where the package cannot be imported.
WITHOUT_DEBUG = {"demo_text", "describe_environment"}


@pytest.mark.parametrize("recipe", sorted({path.stem for path in RECIPES.glob("*.py")} - WITHOUT_DEBUG))
def test_debug_shows_where_an_error_comes_from(recipe, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    for debug in (False, True):
        assert call(monkeypatch, recipe, ["--nosuch", "1", *["--debug"] * debug]) == USAGE
        printed = capsys.readouterr().err
        assert ("Traceback" in printed) == debug and printed.splitlines()[-1].startswith("error: ")


def test_programs_say_the_same_and_run_no_code_of_a_model(good, tmp_path):
    """In processes of their own, whose input is closed: nobody can be asked whether the code may run."""
    cases = {
        "build_corpus": ({"text": file("a.txt", b"caf\xe9")}, r"a\.txt: byte 3, line 1, is not valid UTF-8"),
        "evaluate_model": (
            {"model": changed("model", own_code), "task": "mrpc"},
            "names code of its own|no tokenizer",
        ),
    }
    running = {}
    for recipe, (changes, _) in cases.items():
        (tmp_path / recipe).mkdir()
        line = command_line(recipe, good, tmp_path / recipe, changes)
        running[recipe] = subprocess.Popen(
            [sys.executable, str(RECIPES / f"{recipe}.py"), *line],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for recipe, process in running.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == USAGE, out + err
        sentence = err.strip().splitlines()[-1]
        assert sentence.startswith("error: ") and re.search(cases[recipe][1], sentence), err
        assert "Traceback" not in err and "was run" not in out


def test_a_small_file_cannot_unpack_without_end(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "MAX_UNPACKED", 1000)
    with pytest.raises(InputError, match=r"a\.txt\.gz unpacks to more than 1000 bytes"):
        loading.read_text(file("a.txt.gz", gzip.compress(bytes(10_000)))(tmp_path, None))
    assert loading.read_text(file("b.txt.gz", gzip.compress(bytes(1000)))(tmp_path, None)) == "\0" * 1000


def test_a_text_too_long_for_a_file_name_is_a_text(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    context = " ".join(documents(1)[0].split()[:80])
    assert len(context) > 255
    line = command({"model": qa_model(tmp_path), "question": "who?", "context": context, "precision": "float32"})
    assert call(monkeypatch, "evaluate_model", line) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answer"] in context


def changed_batch(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict]:
    return lambda inputs: inputs | {name: change(inputs[name].clone()) for name, change in changes.items()}


def put(row: int, column: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row, column] = value
        return tensor

    return change


# head, what is done to a batch of (3, 12), what the ValueError says; shapes are in test_modeling.py
MODEL_INPUTS = {
    "a token beyond the vocabulary": (
        "base",
        changed_batch(input_ids=put(1, 4, 99)),
        r"input_ids\[1, 4\] is 99; it must be 0 … 98 \(vocab_size 99\)",
    ),
    "a negative token": (
        "base",
        changed_batch(input_ids=put(2, 0, -1)),
        r"input_ids\[2, 0\] is -1; it must be 0 … 98",
    ),
    "a third segment": (
        "base",
        changed_batch(token_type_ids=put(0, 7, 2)),
        r"token_type_ids\[0, 7\] is 2; it must be 0 … 1 \(type_vocab_size 2\)",
    ),
    "a position beyond the table": (
        "base",
        lambda inputs: inputs | {"position_ids": torch.arange(29, 41)[None]},
        r"position_ids\[0, 11\] is 40; it must be 0 … 39 \(max_position_embeddings 40\)",
    ),
    "tokens that are fractions": (
        "base",
        changed_batch(input_ids=torch.Tensor.float),
        "input_ids is of torch.float32",
    ),
    "a class too many": (
        "single_label",
        lambda inputs: inputs | {"labels": torch.tensor([0, 3, 1])},
        "the labels go from 0 to 3; they must be 0 … 2, or -100 where there is none",
    ),
    "GLUE's hidden label": (
        "single_label",
        lambda inputs: inputs | {"labels": torch.tensor([-1, -1, -1])},
        "the labels go from -1 to -1; they must be 0 … 2",
    ),
    "a tag too many": ("token", changed_batch(labels=put(0, 3, 7)), "the labels go from 0 to 7; they must be 0 … 2"),
    "a predicted token beyond the vocabulary": (
        "masked_lm",
        changed_batch(labels=put(0, 1, 99)),
        r"the labels go from \d+ to 99; they must be 0 … 98",
    ),
}


@pytest.mark.parametrize("name", MODEL_INPUTS)
def test_model_inputs_that_have_no_meaning(name):
    case, change, message = MODEL_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        make(case)(**change(batch(case)))


# ---------------------------------------------------------------------------------------------------- no code but ours


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def keyword(made: ast.Call, name: str) -> Any:
    """The constant given under that name; None for none and for anything else."""
    return next((getattr(word.value, "value", None) for word in made.keywords if word.arg == name), None)


def test_no_file_can_bring_code_along():
    """torch.load reads weights alone, nothing is unpickled, and every Auto class is told to run no code."""
    loads = opened = 0
    for path in [*(RECIPES.parent / "src").rglob("*.py"), *RECIPES.glob("*.py")]:
        for made in calls(path):
            name = ast.unparse(made.func)
            where = f"{path.name}:{made.lineno}"
            assert not re.fullmatch(r"(pickle|dill|joblib|marshal|shelve)\.\w+|eval|exec|.*\.load_pickle", name), where
            assert keyword(made, "allow_pickle") is not True and keyword(made, "trust_remote_code") is not True, where
            if name == "torch.load":
                loads += 1
                assert keyword(made, "weights_only") is True, where
            if re.fullmatch(r"(transformers\.)?Auto\w+\.from_\w+|(config|model)_class\.from_pretrained", name):
                opened += 1
                assert keyword(made, "trust_remote_code") is False, where
    assert loads >= 1 and opened >= 5, "the patterns above match nothing any more"

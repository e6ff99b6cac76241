"""Damaged and hostile files of every kind that is read: whatever is in them, the reader works or says what is wrong.

Each kind of file is made INPUTS times by hypothesis: bytes at random, good files with pieces changed, and structures
of the right outline with wrong values in them. Nothing but the package's own errors may come out.
HYPOTHESIS_INPUTS=20000 in the environment looks longer, and elsewhere each time.
"""

import contextlib
import gzip
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
import zstandard
from corpus_helpers import small_tokenizer
from finetuning_helpers import make_model, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfbert_scratch.features.files import TextFile
from hfbert_scratch.model.loading import check_directory
from hfbert_scratch.tasks import DataArguments, get_task
from hfbert_scratch.text.readers import read_documents
from hfbert_scratch.text.sources import find_sources
from hfbert_scratch.text.tokenizer import load_tokenizer, save_tokenizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import HFBertError


INPUTS = int(os.environ.get("HYPOTHESIS_INPUTS", "100"))
fuzz = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize="HYPOTHESIS_INPUTS" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

# ---------------------------------------------------------------------------------------------------- what is made up

awkward = st.sampled_from(
    ["", " ", "\0", "\n", "\r\n", "\t", '"', "'", "{", "[", "\ufeff", "\u2028", "\ud7ff", "é", "[MASK]", "\\ud800"]
)
text = st.one_of(st.text(max_size=20), awkward)
numbers = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**12, 10**400]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)


# What parsers choke on: depth, numbers of thousands of digits, aliases that unfold without end.
HOSTILE = [b"[" * 2000, b'{"text":' * 2000, b'{"text": 1%s}' % (b"0" * 5000), b"\xff\xfet\0e\0"]
UNFOLDING = "names: [&a0 [x,x]" + "".join(f", &a{n} [*a{n - 1},*a{n - 1},*a{n - 1}]" for n in range(1, 40)) + "]"
HOSTILE.append(UNFOLDING.encode())


@st.composite
def edited(draw, good: bytes) -> bytes:
    """`good` with pieces cut out, repeated, or replaced by random bytes."""
    content = good
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, min(len(content), begin + 40)))
        new = draw(
            st.one_of(st.binary(max_size=6), st.just(content[begin:end] * 2), st.sampled_from([b"", b"\xff", b"["]))
        )
        content = content[:begin] + new + content[end:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


def files(good: bytes, *structured: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Random bytes, edited good files, and files of a right outline."""
    return st.one_of(st.binary(max_size=60), edited(good), edited(good), st.sampled_from(HOSTILE), *structured)


def objects(good: dict, **more: st.SearchStrategy) -> st.SearchStrategy[dict]:
    """`good` with some of its fields replaced by anything, left out, or beside strange ones."""

    def merge(changes: dict, gone: set) -> dict:
        return {key: value for key, value in {**good, **changes}.items() if key not in gone}

    names = st.sampled_from(sorted(good))
    changes = st.dictionaries(st.one_of(names, names, names, text), values, max_size=3)
    return st.builds(merge, changes, st.one_of(st.just(set()), st.sets(names, max_size=1)))


def json_bytes(content: object) -> bytes:
    return json.dumps(content).encode()


def json_lines(row: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(row, row, row, values), min_size=1, max_size=4).map(
        lambda made: b"\n".join(map(json_bytes, made))
    )


@contextlib.contextmanager
def only_clear_errors():
    """Nothing but the package's own errors, of one line, may come out of the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HFBertError as error:
        assert str(error) and "\n" not in str(error), repr(str(error))


# ---------------------------------------------------------------------------------------------------- text and models

JSON_ROW = objects({"text": "A good sentence. Another one."})
TEXT = "First document.\nIt goes on.\n\nSecond one: é 线.\n".encode()
SOURCES = {
    "t.txt": files(TEXT),
    "t.txt.gz": files(
        gzip.compress(TEXT, mtime=0), st.binary(max_size=60).map(lambda data: gzip.compress(data, mtime=0))
    ),
    "t.txt.zst": files(zstandard.compress(TEXT)),
    "t.jsonl": files(b'{"text": "good"}\n{"text": "also"}\n', json_lines(JSON_ROW)),
}


def parquet(directory: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["good", "also good"] * 20, "label": [0, 1] * 20}), directory / "good.parquet")
    return (directory / "good.parquet").read_bytes()


@pytest.mark.parametrize("name", [*SOURCES, "t.parquet"])
def test_text_sources(name, tmp_path):
    path = tmp_path / name
    content = SOURCES[name] if name in SOURCES else files(parquet(tmp_path))

    @fuzz
    @given(content, st.sampled_from(["strict", "replace"]))
    def read(data, errors):
        path.write_bytes(data)
        with only_clear_errors():
            for document in read_documents(find_sources([str(path)]), encoding_errors=errors):
                document.encode()  # no half surrogate pairs either
        with only_clear_errors():
            TextFile(path, "text", None).check()

    read()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def test_configurations_of_models(model, tmp_path):
    good = json.loads((model / "config.json").read_text())
    directory = tmp_path / "model"
    shutil.copytree(model, directory)

    @fuzz
    @given(files((model / "config.json").read_bytes(), objects(good).map(json_bytes), values.map(json_bytes)))
    def read(data):
        (directory / "config.json").write_bytes(data)
        with only_clear_errors():
            check_directory(directory)

    read()


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(name, tmp_path):
    save_tokenizer(small_tokenizer(["a b c ab bc abc. " * 9], vocab_size=40), tmp_path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    good = (tmp_path / name).read_bytes()
    structured = () if name == "vocab.txt" else (objects(json.loads(good)).map(json_bytes),)

    @fuzz
    @given(files(good, *structured))
    def read(data):
        (tmp_path / name).write_bytes(data)
        with only_clear_errors():
            load_tokenizer(tmp_path)

    read()


# ---------------------------------------------------------------------------------------------------- tasks

PAIR = {"sentence1": "a b", "sentence2": "c", "label": 1}
COLUMNS = b"-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP I-PER\n"
QUESTION = {"id": "q", "question": "who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False}
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "Ada wrote it.", "qas": [QUESTION]}]}]}
SQUAD_ROW = {"id": "q", "question": "who?", "context": "Ada", "answers": {"text": ["Ada"], "answer_start": [0]}}


def nested(question: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    """SQuAD's nesting with something strange at one of its levels."""
    paragraph = st.one_of(
        question.map(lambda made: {"context": "Ada wrote it.", "qas": [made]}),
        objects(SQUAD["data"][0]["paragraphs"][0]),
    )
    article = st.one_of(paragraph.map(lambda made: {"paragraphs": [made]}), objects(SQUAD["data"][0]))
    return st.one_of(article.map(lambda made: {"data": [made]}), objects(SQUAD)).map(json_bytes)


# task, file name, what is in it
TASK_FILES = [
    ("rte", "a.jsonl", files(json_bytes(PAIR), json_lines(objects(PAIR)))),
    ("rte", "a.json", files(json_bytes([PAIR]), st.lists(objects(PAIR), max_size=3).map(json_bytes))),
    ("rte", "a.tsv", files(b'index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\t"c\td\tnot_entailment\n')),
    ("rte", "a.csv", files(b'sentence1,sentence2,label\n"a, b",c,entailment\nd,e,not_entailment\n')),
    ("cola", "a.tsv.gz", files(gzip.compress(b"gj04\t1\t\tThe sailors rode.\n", mtime=0))),
    ("stsb", "a.jsonl", json_lines(objects(PAIR | {"label": 2.5}))),
    ("custom-classification", "a.jsonl", json_lines(objects({"text": "a", "label": "x"}))),
    ("swag", "a.jsonl", json_lines(objects(rows("swag", 1, 0)[0]))),
    ("squad", "a.json", files(json_bytes(SQUAD), nested(objects(QUESTION)))),
    ("squad_v2", "a.jsonl", json_lines(objects(SQUAD_ROW))),
    ("conll2003", "a.conll", files(COLUMNS)),
    ("conll2003", "a.jsonl", json_lines(objects({"tokens": ["a", "b"], "ner_tags": [0, 1], "document": "d"}))),
    ("custom-ner", "a.jsonl", json_lines(objects({"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}))),
]


@pytest.mark.parametrize(
    ("task", "name", "content"), TASK_FILES, ids=[f"{task}-{name}" for task, name, _ in TASK_FILES]
)
def test_task_files(task, name, content, tmp_path):
    path = tmp_path / name

    @fuzz
    @given(content, st.sampled_from(["train", "test"]))
    def read(made, split):
        path.write_bytes(made)
        with only_clear_errors():
            get_task(task).load(DataArguments(**{f"{split}_file": str(path)}))

    read()


# ---------------------------------------------------------------------------------------------------- settings


def test_settings_files(tmp_path):
    import dataclasses

    @dataclasses.dataclass
    class Arguments:
        steps: int = argument(1, help="")
        rate: float = argument(0.1, help="")
        fast: bool = argument(False, help="")
        name: str | None = argument(None, help="")
        names: list[str] = argument([], help="")

    good = {"steps": 5, "rate": 0.5, "fast": True, "name": "a", "names": ["a", "b"]}
    path = tmp_path / "settings.yaml"

    @fuzz
    @given(files(yaml.safe_dump(good).encode(), objects(good).map(json_bytes)))
    def read(data):
        path.write_bytes(data)
        with only_clear_errors():
            parse_arguments(Arguments, ["--config", str(path)])

    read()

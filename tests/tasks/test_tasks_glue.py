"""Classification, regression and multiple choice: files, labels, features, predictions, averages, submission."""

import csv
import dataclasses
import gzip
import itertools
import json
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_helpers import documents, small_tokenizer
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from task_helpers import settings, write_jsonl, write_tsv

from hfbert_scratch.tasks import (
    SUBMISSION_FILES,
    TASKS,
    DataArguments,
    collect_notes,
    get_task,
    glue_average,
    glue_leaderboard_score,
    summarize,
    summary_lines,
    write_submission,
)
from hfbert_scratch.tasks.encoding import token_ids, with_special_tokens
from hfbert_scratch.tasks.labels import class_ids, distinct_classes, match_model_classes
from hfbert_scratch.tasks.notes import Notes
from hfbert_scratch.utils.environment import hub_commits
from hfbert_scratch.utils.errors import InputError, OutputError


def load_rows(task, tmp_path, rows, split="validation", **arguments):
    path = write_jsonl(tmp_path / f"{split}.jsonl", rows)
    return get_task(task).load(DataArguments(**{f"{split}_file": str(path)}, **arguments))[split]


# -------------------------------------------------------------------------------------------------------------- table


def test_the_table_of_tasks():
    assert list(TASKS) == [
        *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"),
        *("squad", "squad_v2", "custom-qa", "swag", "conll2003", "custom-ner"),
        *("custom-classification", "custom-pair", "custom-regression", "custom-multilabel"),
    ]
    # The Hub's orders, of which WNLI's is the reverse of RTE's.
    assert TASKS["rte"].classes == ("entailment", "not_entailment")
    assert TASKS["wnli"].classes == ("not_entailment", "entailment")
    assert TASKS["mnli"].classes == TASKS["ax"].classes == ("entailment", "neutral", "contradiction")
    assert TASKS["cola"].classes == ("unacceptable", "acceptable")
    assert TASKS["squad_v2"].defaults.batch_sizes[0] == 48 and TASKS["squad_v2"].defaults.epochs[0] == 2
    assert TASKS["swag"].defaults.learning_rates == (2e-5,)


def test_unknown_task():
    with pytest.raises(InputError, match="did you mean 'mrpc'"):
        get_task("MPRC")
    with pytest.raises(InputError, match="there are cola, sst2"):
        get_task("zzzz")


# ------------------------------------------------------------------------------------------------------ original files

PARSES = ["p"] * 8
ORIGINALS = {
    "cola": {
        "train.tsv": [["gj04", "1", "", 'A "good one.'], ["gj04", "0", "*", "bad one"]],
        "dev.tsv": [["gj04", "0", "*", "NA"]],
        "test.tsv": [["index", "sentence"], ["0", "null"]],
    },
    "sst2": {
        "train.tsv": [["sentence", "label"], ["so good ", "1"], ["bad", "0"]],
        "dev.tsv": [["sentence", "label"], ["fine", "1"]],
        "test.tsv": [["index", "sentence"], ["0", "well"]],
    },
    "mrpc": {
        "train.tsv": [["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["1", "7", "8", "a 'b", 'c "d']],
        "dev.tsv": [["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["0", "7", "8", "e", "f"]],
        "test.tsv": [["index", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["0", "7", "8", "g", "h"]],
    },
    "stsb": {
        "train.tsv": [
            [
                "index",
                "genre",
                "filename",
                "year",
                "old_index",
                "source1",
                "source2",
                "sentence1",
                "sentence2",
                "score",
            ],
            ["0", "g", "f", "y", "1", "s", "s", "a", "b", "3.800"],
        ],
        "test.tsv": [
            ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"],
            ["0", "g", "f", "y", "1", "s", "s", "c", "d"],
        ],
    },
    "qqp": {
        # QQP's training file has rows that end early.
        "train.tsv": [
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            ["1", "2", "3", "a", "b", "1"],
            ["1", "2", "3", "cut"],
        ],
        "test.tsv": [["id", "question1", "question2"], ["0", "c", "d"]],
    },
    "mnli": {
        "train.tsv": [
            ["index", "promptID", "pairID", "genre", *PARSES[:4], "sentence1", "sentence2", "label1", "gold_label"],
            [*PARSES, "a", "b", "neutral", "contradiction"],
        ],
        "dev_matched.tsv": [
            [*PARSES, "sentence1", "sentence2", "label1", "label2", "gold_label"],
            [*PARSES, "c", "d", "neutral", "neutral", "entailment"],
        ],
        "dev_mismatched.tsv": [
            [*PARSES, "sentence1", "sentence2", "gold_label"],
            [*PARSES, "e", "f", "neutral"],
            [*PARSES, "e", "f", "neutral"],
        ],
        "test_matched.tsv": [[*PARSES, "sentence1", "sentence2"], [*PARSES, "g", "h"]],
        "test_mismatched.tsv": [[*PARSES, "sentence1", "sentence2"], [*PARSES, "i", "j"]],
    },
    "qnli": {"dev.tsv": [["index", "question", "sentence", "label"], ["0", "q", "s", "not_entailment"]]},
    "wnli": {"dev.tsv": [["index", "sentence1", "sentence2", "label"], ["0", "q", "s", "1"]]},
    "ax": {"diagnostic.tsv": [["index", "sentence1", "sentence2"], ["0", "a", "b"]]},
}
EXPECTED = {
    "cola": {
        "train": [{"sentence": 'A "good one.', "label": 1}, {"sentence": "bad one", "label": 0}],
        "validation": [{"sentence": "NA", "label": 0}],
        "test": [{"sentence": "null", "label": -1}],
    },
    "sst2": {
        "train": [{"sentence": "so good ", "label": 1}, {"sentence": "bad", "label": 0}],
        "validation": [{"sentence": "fine", "label": 1}],
        "test": [{"sentence": "well", "label": -1}],
    },
    "mrpc": {
        "train": [{"sentence1": "a 'b", "sentence2": 'c "d', "label": 1}],
        "validation": [{"sentence1": "e", "sentence2": "f", "label": 0}],
        "test": [{"sentence1": "g", "sentence2": "h", "label": -1}],
    },
    "stsb": {
        "train": [{"sentence1": "a", "sentence2": "b", "label": pytest.approx(3.8)}],
        "test": [{"sentence1": "c", "sentence2": "d"}],
    },
    "qqp": {
        "train": [{"question1": "a", "question2": "b", "label": 1}],
        "test": [{"question1": "c", "question2": "d", "label": -1}],
    },
    "mnli": {
        "train": [{"premise": "a", "hypothesis": "b", "label": 2}],
        "validation": [{"premise": "c", "hypothesis": "d", "label": 0}],
        "validation_mismatched": [{"premise": "e", "hypothesis": "f", "label": 1}] * 2,
        "test": [{"premise": "g", "hypothesis": "h", "label": -1}],
        "test_mismatched": [{"premise": "i", "hypothesis": "j", "label": -1}],
    },
    "qnli": {"validation": [{"question": "q", "sentence": "s", "label": 1}]},
    "wnli": {"validation": [{"sentence1": "q", "sentence2": "s", "label": 1}]},
    "ax": {"test": [{"premise": "a", "hypothesis": "b", "label": -1}]},
}


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_glue_originals(name, ends, tmp_path, capsys):
    for file, rows in ORIGINALS[name].items():
        path = write_tsv(tmp_path / file, rows, bom=True)
        path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    raw = get_task(name).load(DataArguments(data_dir=str(tmp_path)))
    assert {split: part.to_list() for split, part in raw.items()} == EXPECTED[name]
    for split, part in raw.items():
        assert get_task(name).is_labelled(part) == (not split.startswith("test"))
    assert ("skipped 1 of 2 rows" in capsys.readouterr().out) == (name == "qqp")


def test_a_test_file_with_a_short_row_is_refused(tmp_path):
    write_tsv(tmp_path / "test.tsv", [["index", "question1", "question2"], ["0", "a", "b"], ["1", "a"]])
    with pytest.raises(InputError, match="test.tsv: 1 rows have too few .* first row 1"):
        get_task("qqp").load(DataArguments(data_dir=str(tmp_path)))


# ------------------------------------------------------------------------------------------------------- hub's schema

ROWS = [
    {"sentence1": "NA", "sentence2": "null", "label": 1, "idx": 0},
    {"sentence1": 'a, "b"\nc\u2028d', "sentence2": "", "label": 0, "idx": 1},
]


def test_all_formats_give_the_same_rows(tmp_path):
    jsonl = write_jsonl(tmp_path / "a.jsonl", ROWS)
    named = [row | {"label": ["entailment", "not_entailment"][row["label"]]} for row in ROWS]
    write_jsonl(tmp_path / "names.jsonl", named)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl.read_bytes()))
    (tmp_path / "list.json").write_text("[" + ",".join(jsonl.read_text().splitlines()) + "]")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    # As on the Hub: class names in the schema, here in the other order.
    features = datasets.Features({k: datasets.Value("string") for k in ("sentence1", "sentence2")})
    features["label"] = datasets.ClassLabel(names=["not_entailment", "entailment"])
    hub = datasets.Dataset.from_list(
        [{**{k: row[k] for k in ("sentence1", "sentence2")}, "label": 1 - row["label"]} for row in ROWS], features
    )
    hub.to_parquet(tmp_path / "classes.parquet")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    loaded = [
        get_task("rte").load(DataArguments(validation_file=str(tmp_path / name)))["validation"]
        for name in ("a.jsonl", "names.jsonl", "a.jsonl.gz", "list.json", "a.parquet", "classes.parquet", "a.csv")
    ]
    assert loaded[0].to_list() == [{k: v for k, v in row.items() if k != "idx"} for row in ROWS]
    # Equal content has an equal fingerprint, so features are made once for all of them.
    assert len({part._fingerprint for part in loaded}) == 1


def test_saved_datasets_and_shards(tmp_path):
    parts = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "validation_matched": datasets.Dataset.from_list(ROWS)}
    )
    parts.save_to_disk(tmp_path / "saved")
    raw = get_task("rte").load(DataArguments(dataset=str(tmp_path / "saved")))
    assert list(raw) == ["train", "validation"] and len(raw["train"]) == 2
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(ROWS[number:][:1]), tmp_path / f"train-0000{number}-of-00002.parquet")
    raw = get_task("rte").load(DataArguments(data_dir=str(tmp_path)))
    assert raw["train"]["label"][:] == [1, 0]


def test_a_part_of_the_data_is_spread_over_it(tmp_path):
    rows = [{"sentence": str(number), "label": number % 2} for number in range(10)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    data = DataArguments(
        train_file=path, validation_file=path, test_file=path, max_train_samples=4, max_eval_samples=2
    )
    raw = get_task("sst2").load(data)
    assert raw["train"]["sentence"][:] == ["0", "3", "6", "9"]
    assert raw["validation"]["sentence"][:] == ["0", "9"]
    assert len(raw["test"]) == 10


def test_max_eval_samples_limits_every_validation_split(tmp_path):
    splits = ("validation", "validation_mismatched", "test")
    rows = [{"sentence": str(number), "label": number % 2} for number in range(6)]
    for split in splits:
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    task = dataclasses.replace(get_task("sst2"), splits=splits)
    raw = task.load(DataArguments(data_dir=str(tmp_path), max_eval_samples=4))
    assert [len(raw[split]) for split in splits] == [4, 4, 6]


# --------------------------------------------------------------------------------------------------------- bad input

GOOD = {"sentence1": "a", "sentence2": "b", "label": 0}
ENDINGS = {"sent1": "a", "sent2": "b", "ending0": "c", "ending1": "d", "ending2": "e", "ending3": "f", "label": 0}


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            "rte",
            [{"sentence1": "a", "sentence_2": "b", "label": 0}],
            r"no column 'sentence2', only 'sentence1', 'sentence_2', 'label' \(did you mean 'sentence_2'",
        ),
        ("rte", [GOOD, {"sentence1": "a", "label": 0}], r"line 2 has no field 'sentence2', only 'sentence1', 'label'"),
        (
            "rte",
            [GOOD, GOOD | {"label": 2}],
            r"row 1: unknown label 2; it must be entailment, not_entailment or 0 … 1",
        ),
        ("rte", [GOOD | {"label": 0.5}], r"row 0: unknown label 0.5"),
        ("rte", [GOOD | {"label": "maybe"}], r"row 0: unknown label 'maybe'"),
        ("rte", [GOOD, GOOD | {"label": -1}], r"split validation, row 1 has no label"),
        ("rte", [GOOD | {"label": -1}], r"split validation has no labels: it cannot serve as validation.*--test_file"),
        ("rte", [{"sentence1": "a", "sentence2": "b"}], r"has no label column.*--test_file"),
        ("rte", [GOOD | {"sentence1": None}], r"column 'sentence1' is missing \(null\) in row 0"),
        ("rte", [GOOD | {"sentence1": 7}], r"column 'sentence1' holds int64, not text; row 0 is 7"),
        ("rte", [GOOD, GOOD | {"sentence1": 7}], r"column 'sentence1' cannot be used: row 1 holds 7, other rows str"),
        ("stsb", [GOOD | {"label": 5.5}], r"row 0: label 5.5 is outside 0 … 5"),
        ("stsb", [GOOD, GOOD | {"label": "high"}], r"row 1 holds 'high', other rows int"),
        ("stsb", [GOOD | {"label": "1"}, GOOD | {"label": "high"}], r"row 1: label 'high' is not a number"),
        ("rte", [], r"holds no rows"),
        ("swag", [{name: text for name, text in ENDINGS.items() if name != "ending3"}], r"no column 'ending3'"),
        ("swag", [ENDINGS | {"ending3": None}], r"'ending3' is missing \(null\) in row 0"),
        ("swag", [ENDINGS | {"label": 4}], r"row 0: unknown label 4"),
        ("ax", [GOOD], r"no such split, only test"),
    ],
)
def test_bad_rows(task, rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_rows(task, tmp_path, rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"sentence": "a", "label": 0}\n{"sentence"', r"a.jsonl: line 2 is not JSON"),
        ("a.jsonl", b"[1]", r"entry 0 is a int"),
        ("a.jsonl", b'{"sentence": "\xff"}', r"line 1 is not valid UTF-8 \(byte 0xff\); .*iconv -f"),
        ("a.jsonl.gz", gzip.compress(b'{"sentence": "a", "label": 0}', mtime=0)[:-9], r"truncated or damaged"),
        ("a.csv", b"sentence,label\na,0,1\n", r"line 2 has 3 fields, but the header has 2"),
        ("a.csv", b'sentence,label\n"a,0\nb,1\n', r"quote left open"),
        ("a.csv", b"sentence,sentence,label\na,b,1\n", r"a.csv has 2 columns 'sentence'"),
        (
            "a.csv",
            b"sentence;label\na;1\n",
            r"no column 'sentence', only 'sentence;label' .fields are separated by comm",
        ),
        ("a.csv", b"sentence,label\n", r"no rows below its header"),
        ("a.tsv", b"", r"no rows"),
        ("a.tsv", b"text\tlabel\na\t1\n", r"no column 'sentence', only 'text', 'label'"),
        ("a.parquet", b"PAR1", r"not a readable Parquet file"),
        ("a.xlsx", b"", r"unknown suffix '.xlsx'"),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        get_task("sst2").load(DataArguments(validation_file=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("sst2", {"train_file": "nowhere.jsonl"}, "--train_file nowhere.jsonl: no such file"),
        ("sst2", {"data_dir": "nowhere"}, "--data_dir nowhere is not a directory"),
        ("custom-pair", {}, "custom-pair needs data: --train_file"),
        ("sst2", {"train_file": "x", "columns": ["sentence"]}, "--columns sentence: write it as"),
        ("sst2", {"train_file": "x", "columns": ["text=a"]}, "no column 'text', only sentence, label"),
    ],
)
def test_bad_arguments(task, arguments, message):
    with pytest.raises(InputError, match=message):
        get_task(task).load(DataArguments(**arguments))


def test_a_directory_without_splits_says_what_it_holds(tmp_path):
    write_jsonl(tmp_path / "other.jsonl", [GOOD])
    with pytest.raises(InputError, match="no file of train, validation, test.*it holds 'other.jsonl'"):
        get_task("rte").load(DataArguments(data_dir=str(tmp_path)))


def test_hub_without_network_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach\n the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="'nyu-mll/glue' cannot be loaded .*Couldn't reach the Hub.*--data_dir"):
        get_task("rte").load(DataArguments())


def test_hub_names(monkeypatch):
    asked = []

    def load_dataset(name, configuration, revision):
        asked.append((name, configuration, revision))
        files = {f"hf://datasets/{name}@{'c' * 40}/mnli/train.parquet": {"num_bytes": 1, "checksum": None}}
        info = datasets.DatasetInfo(download_checksums=files)
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 0}], info=info)
             for split in ("train", "validation_matched", "validation_mismatched", "test_matched")}
        )  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    raw = get_task("mnli").load(DataArguments())
    assert list(raw) == ["train", "validation", "validation_mismatched", "test"]
    get_task("mnli").load(DataArguments(dataset="someone/nli@v2:english"))
    assert asked == [("nyu-mll/glue", "mnli", None), ("someone/nli", "english", "v2")]
    assert hub_commits()["someone/nli"] == "c" * 40


# ---------------------------------------------------------------------------------------------------- the user's data


def test_custom_columns_and_classes(tmp_path):
    rows = [{"review": "x", "stars": stars} for stars in (5, 1, 3)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    task = get_task("custom-classification")
    raw = task.load(DataArguments(train_file=path, columns=["text=review", "label=stars"]))["train"]
    assert task.config_overrides(raw) == {
        "num_labels": 3,
        "id2label": {0: "1", 1: "3", 2: "5"},
        "label2id": {"1": 0, "3": 1, "5": 2},
        "problem_type": "single_label_classification",
    }
    assert raw["label"][:] == [2, 0, 1]
    # A trained model's classes rule over those that happen to be in a file.
    data = DataArguments(validation_file=path, columns=["text=review", "label=stars"])
    raw = task.load(data, model_classes=["1", "2", "3", "4", "5"])["validation"]
    assert raw["label"][:] == [4, 0, 2]
    with pytest.raises(InputError, match="unknown label 5; it must be 1, 3"):
        task.load(data, model_classes=["1", "3"])


def test_custom_regression_with_and_without_a_second_text(tmp_path):
    task = get_task("custom-regression")
    raw = load_rows("custom-regression", tmp_path, [{"text": "a", "label": -1}, {"text": "b", "label": 1e3}], "train")
    assert raw["label"][:] == [-1.0, 1000.0] and raw.column_names == ["text", "label"]
    assert task.config_overrides(raw) == {"num_labels": 1, "problem_type": "regression"}
    raw = load_rows("custom-regression", tmp_path, [{"text": "a", "text_pair": "c", "label": 2}], "train")
    assert raw.column_names == ["text", "text_pair", "label"]
    with pytest.raises(InputError, match="row 1 has no label"):
        load_rows("custom-regression", tmp_path, [{"text": "a", "label": 2}, {"text": "a", "label": None}], "train")


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        (["b", "a", "b", None], ["a", "b"], [1, 0, 1, -1]),
        ([3, 1, -1, 10], ["1", "3", "10"], [1, 0, -1, 2]),
        (["3", "1", "", "10"], ["1", "3", "10"], [1, 0, -1, 2]),
        ([1.0, 2.0], ["1", "2"], [0, 1]),
        ([True, False], ["0", "1"], [1, 0]),
    ],
)
def test_classes_of_own_data(values, names, ids):
    column = pa.chunked_array([pa.array(values)])
    assert distinct_classes(column) == names
    assert class_ids(column, names, "here", by_position=False).tolist() == ids


def test_one_class_is_refused(tmp_path):
    with pytest.raises(InputError, match="1 class in column 'label'"):
        load_rows("custom-classification", tmp_path, [{"text": "a", "label": "x"}] * 3, "train")


def labelled(*labels):
    return [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]


def write_csv(path, rows, **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("write", [write_jsonl, write_csv])
@pytest.mark.parametrize("labels", [(0.0, 0.5, 1.0), (1, 2, 2.25)])
def test_fractional_labels_are_not_classes(write, labels, tmp_path):
    path = str(write(tmp_path / f"a.{write.__name__[6:]}", labelled(*labels)))
    with pytest.raises(InputError, match="fractional numbers such as .*--task custom-regression"):
        get_task("custom-classification").load(DataArguments(train_file=path))
    assert get_task("custom-regression").load(DataArguments(train_file=path))["train"]["label"][:] == list(labels)


def test_a_number_is_one_class_however_it_is_written(tmp_path):
    task = get_task("custom-classification")
    forms = [("1", "2", "10"), ("1.0", "2.0", "10.0"), (1.0, 2.0, 10.0), (1, 2, 10), ("01", "+2", "10.")]
    for number, (train, validation) in enumerate(itertools.product(forms, forms)):
        write = write_csv if isinstance(train[0], str) else write_jsonl
        files = [write(tmp_path / f"t{number}.{write.__name__[6:]}", labelled(*train))]
        files.append(write_jsonl(tmp_path / f"v{number}.jsonl", labelled(*validation)))
        raw = task.load(DataArguments(train_file=str(files[0]), validation_file=str(files[1])))
        assert task.class_names(raw["train"]) == ["1", "2", "10"]
        assert raw["train"]["label"][:] == raw["validation"]["label"][:] == [0, 1, 2]


@pytest.mark.parametrize(
    "labels",
    [
        *[("0,5", "1", "2"), ("1,000", "2,500", "10"), ("1.234,5", "2"), ("50%", "75 %"), ("1e-3", "0,3")],
        *[("1'000", "2"), ("1 000", "2"), ("1\u202f000", "2"), ("０，５", "１"), ("٠,٥", "١"), ("1_000", "2")],
        ("0,5", "NA", "1"),
    ],
)
def test_numbers_in_other_notations_are_named(labels, tmp_path):
    path = str(write_csv(tmp_path / "a.csv", labelled(*labels)))
    with pytest.raises(InputError, match="row [01]: label .* is not a number; write numbers with a decimal point"):
        get_task("custom-regression").load(DataArguments(train_file=path))
    task = get_task("custom-classification")
    with pytest.raises(
        InputError, match="'label' holds numbers such as .*decimal point.* list them all after --class"
    ):
        task.load(DataArguments(train_file=path))
    raw = task.load(DataArguments(train_file=path, class_names=[*labels, "x"]))["train"]
    assert raw["label"][:] == list(range(len(labels)))


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ((" 1 ", "2\u00a0", "1"), [1, 2, 1]),
        (("１", "２", "１"), [1, 2, 1]),
        (("١", "२", "1"), [1, 2, 1]),
        (("１．５", "\u22122.5", "+1.5"), [1.5, -2.5, 1.5]),
        (("1.50", "2e0", "1.5"), [1.5, 2, 1.5]),
    ],
)
def test_digits_and_blanks_of_any_kind_are_numbers(labels, numbers, tmp_path):
    path = str(write_csv(tmp_path / "a.csv", labelled(*labels)))
    assert get_task("custom-regression").load(DataArguments(train_file=path))["train"]["label"][:] == numbers
    if all(float(number).is_integer() for number in numbers):
        raw = get_task("custom-classification").load(DataArguments(train_file=path))["train"]
        assert [raw.features["label"].names[label] for label in raw["label"]] == list(map(str, numbers))
    else:
        with pytest.raises(InputError, match="fractional numbers such as"):
            get_task("custom-classification").load(DataArguments(train_file=path))


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("custom-classification", [[1], [0]], r"holds lists or objects such as \[1\]; every row needs a single label"),
        ("custom-regression", [[1.5]], r"holds lists or objects such as \[1.5\]; every row needs a single label"),
        ("rte", [["entailment"]], r"holds lists or objects such as \['entailment'\]; every row needs a single"),
        ("rte", [True, False], "'label' holds true and false; write entailment, not_entailment instead"),
        ("rte", ["True", "false"], "'label' holds true and false; write entailment, not_entailment instead"),
        ("rte", ["Entailment"], r"unknown label 'Entailment'; .*\(did you mean 'entailment'\?\)"),
        ("rte", ["not-entailment"], r"unknown label 'not-entailment'; .*\(did you mean 'not_entailment'\?\)"),
        ("custom-classification", [-1, 1], "1 class in column 'label'.*list them, as --class_names -1 0 1"),
        ("custom-classification", [-1, 0, 1], "row 0 has no label.*list them, as --class_names -1 0 1"),
        ("custom-regression", [float("inf")], "row 0: label inf is not a finite number"),
    ],
)
def test_labels_of_the_wrong_kind(task, labels, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_rows(task, tmp_path, [GOOD | {"text": "a", "label": label} for label in labels], "train")


def test_truth_values_are_the_same_classes_however_they_are_written(tmp_path):
    task = get_task("custom-classification")
    forms = [(True, False), ("True", "False"), ("true", "false"), ("TRUE", "FALSE"), (1, 0)]
    for train, validation in itertools.product(forms, forms[:4]):
        files = {"train_file": write_jsonl(tmp_path / "t.jsonl", labelled(*train))}
        files |= {"validation_file": write_jsonl(tmp_path / "v.jsonl", labelled(*validation))}
        raw = task.load(DataArguments(**{name: str(path) for name, path in files.items()}))
        assert raw["train"]["label"][:] == raw["validation"]["label"][:] == [1, 0]


def test_negative_numbers_are_classes_if_they_are_listed(tmp_path):
    for labels in ((-1, 0, 1), ("-1", "0", "+1"), ("−1", "0.0", "1"), (-1.0, 0.0, 1.0)):
        raw = load_rows("custom-classification", tmp_path, labelled(*labels), "train", class_names=["-1", "0", "1"])
        assert raw["label"][:] == [0, 1, 2]


@pytest.mark.parametrize("missing", [None, float("nan"), "", -1])
def test_missing_labels_are_counted_and_refused(missing, tmp_path):
    labels = (1, 2, missing, missing) if isinstance(missing, float | int | None) else ("1", "2", missing, missing)
    with pytest.raises(InputError, match="row 2 has no label, while other rows have one; label or remove its 2 rows"):
        load_rows("custom-classification", tmp_path, labelled(*labels), "train")


def test_classes_can_be_named(tmp_path):
    """For data that hold numbers, and for classes that the training data do not show."""
    task = get_task("custom-classification")
    path = str(write_jsonl(tmp_path / "a.jsonl", labelled(1, 0, 1)))
    raw = task.load(DataArguments(train_file=path, class_names=["bad", "good"]))["train"]
    assert task.class_names(raw) == ["bad", "good"] and raw["label"][:] == [1, 0, 1]
    raw = task.load(DataArguments(train_file=path, class_names=["2", "1", "0"]))["train"]
    assert task.class_names(raw) == ["2", "1", "0"] and raw["label"][:] == [1, 2, 1]
    nli = [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1, 2)]
    order = ["contradiction", "entailment", "neutral"]
    raw = load_rows("mnli", tmp_path, nli, class_names=order)
    assert get_task("mnli").class_names(raw) == order and raw["label"][:] == [0, 1, 2]
    files = {"train_file": path, "validation_file": str(write_jsonl(tmp_path / "b.jsonl", labelled(2)))}
    with pytest.raises(InputError, match="split validation, row 0: unknown label 2; it must be 0, 1; --class_names"):
        task.load(DataArguments(**files))
    assert task.load(DataArguments(**files, class_names=["0", "1", "2"]))["validation"]["label"][:] == [2]
    for names, message in ((["a", "a"], "more than once"), (["a", "b"], "must name all classes of mnli: entailment")):
        with pytest.raises(InputError, match=message):
            load_rows("mnli", tmp_path, nli, class_names=names)
    with pytest.raises(InputError, match="stsb has no classes to be named"):
        load_rows("stsb", tmp_path, [GOOD], class_names=["a"])


def test_classes_that_look_alike_are_pointed_out(tmp_path, capsys):
    with collect_notes() as notes:
        load_rows("custom-classification", tmp_path, labelled("Pos", "pos", "pos ", "neg", "-"), "train")
    assert "'Pos', 'pos', 'pos ' differ only in case or blanks" in notes.warnings[0]
    assert "'-' is taken for a class" in notes.warnings[1]
    assert capsys.readouterr().out.count("warning: ") == 2
    with collect_notes() as notes:
        rows = labelled("caf\u00e9", "cafe\u0301", "po\u200bs", "pos\u00a0", "\uff4eeg", "neg", "ДА", "да")
        load_rows("custom-classification", tmp_path, rows, "train")
    found = sorted(note.partition("classes ")[2].partition(" differ")[0] for note in notes.warnings)
    assert found == [r"'cafe\u0301', 'caf\xe9'", r"'neg', '\uff4eeg'", r"'pos\xa0', 'po\u200bs'", "'ДА', 'да'"]
    capsys.readouterr()
    load_rows("custom-classification", tmp_path, labelled("+", "-", "+"), "train")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("task", ["mnli", "custom-pair"])
@pytest.mark.parametrize("none", ["-", None])
def test_nli_examples_without_a_gold_label_are_left_out(task, none, tmp_path, capsys):
    names = list(get_task(task).columns)
    labels = ["neutral", none, "entailment", "contradiction", none]
    rows = [dict(zip(names, (f"a{row}", "b", label), strict=True)) for row, label in enumerate(labels)]
    with collect_notes() as notes:
        raw = load_rows(task, tmp_path, rows, "train")
    assert raw[names[0]][:] == ["a0", "a2", "a3"] and "-" not in get_task(task).class_names(raw)
    (entry,) = notes.left_out
    assert entry["rows"] == 2 and "left out 2 of 5 rows without a gold label" in entry["reason"]
    assert entry["reason"] in capsys.readouterr().out
    blind = load_rows("mnli", tmp_path, [{"premise": "a", "hypothesis": "b", "label": "-"}] * 2, "test")
    assert len(blind) == 2 and not get_task("mnli").is_labelled(blind)


def test_training_on_one_label_is_pointed_out(tmp_path, capsys):
    for task, label in (("rte", 0), ("stsb", 2.5)):
        get_task(task).check_training(load_rows(task, tmp_path, [GOOD | {"label": label}] * 3, "train"))
    printed = capsys.readouterr().out
    assert "every label is 'entailment'" in printed and "every label is 2.5" in printed


# ---------------------------------------------------------------------------------------------- files of other writers

QUOTED = [{"text": text, "label": label} for text, label in (('He said "hi"', "a"), ("two\nlines", "b"), ("x", "a"))]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_tsv_with_added_quotes_is_read_without_them(quoting, ends, tmp_path, capsys):
    path = write_csv(tmp_path / "a.tsv", QUOTED, delimiter="\t", quoting=quoting, lineterminator=ends)
    raw = get_task("custom-classification").load(DataArguments(train_file=str(path)))["train"]
    assert raw["text"][:] == [row["text"] for row in QUOTED]
    assert not capsys.readouterr().out
    # GLUE's own files have quotes that are text.
    path = write_csv(tmp_path / "b.tsv", [{"sentence": 'a "b"', "label": 1}], delimiter="\t")
    raw = get_task("sst2").load(DataArguments(validation_file=str(path)))["validation"]
    assert raw["sentence"][:] == ['"a ""b"""'] and "quotes are read as text" in capsys.readouterr().out


def test_quotes_that_are_text_stay_text(tmp_path):
    for text in ('"so" he said', '"all of it"', 'an inch: 1"', '"open'):
        path = write_tsv(tmp_path / "a.tsv", [["text", "label"], [text, "a"], ["x", "b"]])
        raw = get_task("custom-classification").load(DataArguments(train_file=str(path)))["train"]
        assert raw["text"][:] == [text, "x"]


def test_fields_and_documents_of_any_size_and_nesting(tmp_path):
    rows = labelled("a", "b")
    rows[0]["text"] = "word " * 30_000
    limit = csv.field_size_limit()
    content = {"version": 1, "data": rows}
    (tmp_path / "flat.json").write_text(json.dumps(content))
    (tmp_path / "indented.json").write_text(json.dumps(content, indent=2))
    paths = [write_csv(tmp_path / "a.csv", rows), tmp_path / "flat.json", tmp_path / "indented.json"]
    for path in paths:
        raw = get_task("custom-classification").load(DataArguments(train_file=str(path)))["train"]
        assert raw["text"][:] == [row["text"] for row in rows]
    assert csv.field_size_limit() == limit


# ----------------------------------------------------------------------------------------------------------- features


def _google_truncate(a: list, b: list, most: int) -> tuple[list, list]:
    """The original code's rule, word for word: pop from the longer, from the second on a tie."""
    a, b = list(a), list(b)
    while len(a) + len(b) > most:
        (a if len(a) > len(b) else b).pop()
    return a, b


@given(st.integers(0, 30), st.integers(0, 30), st.integers(5, 40))
@hypothesis_settings(max_examples=300, deadline=None)
def test_truncation_is_the_original_rule(tokenizer, length_a, length_b, most):
    a, b = np.arange(100, 100 + length_a), np.arange(200, 200 + length_b)
    ids, types = with_special_tokens(tokenizer, a, b, most)
    kept_a, kept_b = _google_truncate(a.tolist(), b.tolist(), most - 3)
    assert ids.tolist() == [2, *kept_a, 3, *kept_b, 3]
    assert types.tolist() == [0] * (len(kept_a) + 2) + [1] * (len(kept_b) + 1)
    ids, types = with_special_tokens(tokenizer, a, None, most)
    assert ids.tolist() == [2, *a[: most - 2].tolist(), 3] and set(types.tolist()) == {0}


def test_features_are_the_tokenizers_own(tmp_path, tokenizer):
    texts = documents(40, seed=3, sentences=(1, 2))
    rows = [{"sentence1": texts[i], "sentence2": texts[i + 1], "label": i // 2 % 2} for i in range(0, 40, 2)]
    raw = load_rows("mrpc", tmp_path, rows)
    features = get_task("mrpc").features(raw, tokenizer, settings(tmp_path, 512))
    stock = tokenizer([row["sentence1"] for row in rows], [row["sentence2"] for row in rows])
    assert features["input_ids"][:] == stock["input_ids"]
    assert features["token_type_ids"][:] == stock["token_type_ids"]
    assert features["labels"][:] == raw["label"][:] and features["example"][:] == list(range(20))
    short = get_task("mrpc").features(raw, tokenizer, settings(tmp_path, 16))
    assert max(map(len, short["input_ids"])) == 16
    assert all(ids.count(tokenizer.sep_token_id) == 2 for ids in short["input_ids"])


def test_special_tokens_in_a_text_are_text(tokenizer):
    (ids,) = token_ids(tokenizer, ["a [SEP] [MASK]"])
    assert not {tokenizer.sep_token_id, tokenizer.mask_token_id} & set(ids.tolist())


def test_a_second_run_does_not_tokenize(tmp_path, tokenizer):
    def kept():
        """The finished features, and when they were written."""
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.arrow")}

    raw = load_rows("rte", tmp_path, [GOOD] * 5)
    first = get_task("rte").features(raw, tokenizer, settings(tmp_path))
    (written,) = kept().items()
    raw = load_rows("rte", tmp_path, [GOOD] * 5)
    again = get_task("rte").features(raw, tokenizer, settings(tmp_path))
    assert again.to_list() == first.to_list() and list(kept().items()) == [written]
    for other in (settings(tmp_path, 32), dataclasses.replace(settings(tmp_path), max_query_length=5)):
        before = kept()
        get_task("rte").features(raw, tokenizer, other)
        assert len(kept()) == len(before) + 1
    get_task("rte").features(raw, small_tokenizer(vocab_size=200), settings(tmp_path))
    assert len(kept()) == 4
    changed = load_rows("rte", tmp_path, [GOOD] * 4 + [GOOD | {"sentence2": "c"}])
    get_task("rte").features(changed, tokenizer, settings(tmp_path))
    assert len(kept()) == 5 and written in kept().items()


def test_a_cache_that_cannot_be_written(tmp_path, tokenizer):
    raw = load_rows("rte", tmp_path, [GOOD])
    (tmp_path / "features").write_text("a file")
    with pytest.raises(OutputError, match="feature cache .*features cannot be written"):
        get_task("rte").features(raw, tokenizer, settings(tmp_path))


def test_several_processes_give_the_same_features(tmp_path, tokenizer):
    raw = load_rows("rte", tmp_path, [GOOD | {"sentence1": text} for text in documents(30, sentences=(1, 3))])
    one = get_task("rte").features(raw, tokenizer, settings(tmp_path / "one"))
    two = get_task("rte").features(raw, tokenizer, settings(tmp_path / "two", num_proc=2))
    assert one.to_list() == two.to_list()


def test_unlabelled_splits_have_no_labels_to_feed(tmp_path, tokenizer):
    raw = load_rows("rte", tmp_path, [GOOD | {"label": -1}] * 3, "test")
    task = get_task("rte")
    assert "labels" not in task.features(raw, tokenizer, settings(tmp_path)).column_names
    assert task.config_overrides(raw)["id2label"] == {0: "entailment", 1: "not_entailment"}
    predictions = task.predict(raw, None, {"logits": np.array([[0, 1], [1, 0], [0, 2.0]])})
    assert predictions == ["not_entailment", "entailment", "not_entailment"]
    for act in (lambda: task.score(raw, predictions), lambda: task.features(raw, tokenizer, settings(tmp_path), True)):
        with pytest.raises(InputError, match="has no labels"):
            act()


# -------------------------------------------------------------------------------------------------------- predictions


def test_predictions_follow_the_models_own_class_order(tmp_path, capsys):
    raw = load_rows("mnli", tmp_path, [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1, 2)])
    task = get_task("mnli")
    # jiant's and google's order, and a model whose classes have no names.
    logits = np.array([[0, 9, 0], [0, 0, 9], [9, 0, 0]])
    named = task.predict(raw, None, {"logits": logits}, {0: "CONTRADICTION", 1: "entailment", 2: "neutral"})
    assert named == ["entailment", "neutral", "contradiction"] and task.score(raw, named) == {"accuracy": 1.0}
    assert not capsys.readouterr().out
    unnamed = task.predict(raw, None, {"logits": logits}, {i: f"LABEL_{i}" for i in range(3)})
    printed = capsys.readouterr().out
    assert "LABEL_0 is entailment, LABEL_1 is neutral, LABEL_2 is contradiction" in printed
    assert "accuracy is 0.000, in the order contradiction entailment neutral it is 1.000" in printed
    assert unnamed == ["neutral", "contradiction", "entailment"] and task.score(raw, unnamed) == {"accuracy": 0.0}


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(InputError, match="2 outputs, but mnli has the 3 classes"):
        match_model_classes(None, TASKS["mnli"].classes, 2, "mnli")
    with pytest.raises(InputError, match="classes positive, negative are not those of rte"):
        match_model_classes({0: "positive", 1: "negative"}, TASKS["rte"].classes, 2, "rte")


def test_regression_is_not_clamped_before_its_correlation(tmp_path):
    raw = load_rows("stsb", tmp_path, [GOOD | {"label": label} for label in (0, 2.5, 5)])
    task = get_task("stsb")
    predictions = task.predict(raw, None, {"logits": np.array([[-1.0], [6.0], [7.0]])})
    assert predictions == [-1.0, 6.0, 7.0]
    assert task.score(raw, predictions)["spearmanr"] == pytest.approx(1.0)
    # one row: not squeezed to nothing
    assert task.predict(raw.select([0]), None, {"logits": np.array([[3.0]])}) == [3.0]


def test_every_class_is_reported_and_the_data_described(tmp_path, tokenizer):
    task = get_task("rte")
    raw = load_rows("rte", tmp_path, [GOOD, GOOD | {"label": 1}, GOOD | {"sentence1": "ba " * 40}])
    report = task.report(raw, ["entailment", "entailment", "not_entailment"])
    assert report["classes"]["entailment"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    features = task.features(raw, tokenizer, settings(tmp_path, 16))
    summary = summarize(task, raw={"test": raw}, features={"test": features}, tokenizer=tokenizer, notes=Notes())
    entry = summary["splits"]["test"]
    assert entry["examples"] == 3 and entry["classes"] == {"entailment": 2, "not_entailment": 1}
    full = task.features(raw, tokenizer, settings(tmp_path, 512))["input_ids"][:]
    assert entry["cut_by_max_seq_length"] == {
        "examples": 1, "share": 0.3333, "tokens": len(full[2]) - 16, "longest": len(full[2])
    }  # fmt: skip
    assert summary["example"] == "[CLS] a [SEP] b [SEP] → 'entailment'"
    lines = summary_lines(summary, 16)
    assert "3 examples; 'entailment' 2, 'not_entailment' 1" in lines[0] and "1 (33.3%) cut" in lines[0]
    assert lines[1].startswith("warning: 33% of test lose their ends to max_seq_length 16; the longest has")
    regression = load_rows("stsb", tmp_path, [GOOD | {"label": label} for label in (1, 4)])
    assert get_task("stsb").describe_targets(regression) == {"labels": {"min": 1.0, "mean": 2.5, "max": 4.0}}


def test_prediction_file(tmp_path):
    raw = load_rows("rte", tmp_path, [GOOD] * 2)
    (path,) = get_task("rte").write_predictions(tmp_path / "new", raw, ["entailment", "not_entailment"], "validation")
    assert path.read_text() == "index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    assert path.name == "predictions_validation.tsv"


# --------------------------------------------------------------------------------------------------- multiple choice


def test_endings_may_stand_in_one_column(tmp_path, capsys):
    lists = [
        {"ctx_a": "a", "ctx_b": "b", "endings": ["c", "d", "e", "f"], "label": "1"},
        {"sent1": "a", "sent2": "b", "endings": ["c", "d", "e", "f"], "label": 1.0},
        {"sent1": "a", "sent2": "b", "endings": ["c", "d", "e", "f"], "label": 1, "ending4": "x"},
    ]
    for row in lists:
        assert load_rows("swag", tmp_path, [row]).to_list() == [ENDINGS | {"label": 1}]
    assert not get_task("swag").is_labelled(load_rows("swag", tmp_path, [lists[0] | {"label": ""}], "test"))
    load_rows("swag", tmp_path, [ENDINGS | {"ending2": " "}])
    assert "column 'ending2' is blank in 1 of 1 rows" in capsys.readouterr().out
    for change, message in (
        ({"endings": ["c", "d", "e"]}, "row 1: column 'endings' holds 3 endings; it must hold 4"),
        ({"endings": None}, "row 1: column 'endings' holds None for a list; it must hold 4"),
        ({"label": 4}, "row 1: unknown label 4; it must be 0, 1, 2, 3, the number of the right ending"),
        ({"label": None}, "row 1 has no label"),
    ):
        with pytest.raises(InputError, match=message):
            load_rows("swag", tmp_path, [lists[2], lists[2] | change])
    for label in (True, "A", [1], [0, 1, 0, 0]):
        with pytest.raises(InputError, match="holds true and false|unknown label 'A'|not one value a row"):
            load_rows("swag", tmp_path, [lists[1] | {"label": label}])


def test_swag_end_to_end(tmp_path, tokenizer):
    texts = documents(12, seed=5, sentences=(1, 1))
    names = list(ENDINGS)[:-1]
    rows = [dict(zip(names, texts[i:], strict=False)) | {"label": i % 4} for i in (0, 3, 6)]
    raw = load_rows("swag", tmp_path, rows)
    task = get_task("swag")
    features = task.features(raw, tokenizer, settings(tmp_path, 512), training=True)
    for row, feature in zip(rows, features, strict=True):
        stock = tokenizer([row["sent1"]] * 4, [f"{row['sent2']} {row[f'ending{n}']}" for n in range(4)])
        assert feature["input_ids"] == stock["input_ids"]
        assert feature["token_type_ids"] == stock["token_type_ids"]
        assert feature["labels"] == row["label"]
    predictions = task.predict(raw, features, {"logits": np.array([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]])})
    assert predictions == [0, 1, 2]
    assert task.score(raw, predictions) == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(InputError, match="gave 2 scores per question, but swag has 4"):
        task.predict(raw, features, {"logits": np.zeros((3, 2))})


# --------------------------------------------------------------------------------------------- averages, submission

# The paper's table 1: MNLI-m, MNLI-mm, QQP, QNLI, SST-2, CoLA, STS-B, MRPC, RTE → average.
PAPER = {
    "BASE": ([84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4], 79.6),
    "LARGE": ([86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1], 82.1),
    "GPT": ([82.1, 81.4, 70.3, 87.4, 91.3, 45.4, 80.0, 82.3, 56.0], 75.1),
}
# google-research/bert's README on the smaller models: CoLA, SST-2, MRPC F1/acc, STS-B P/S, QQP F1/acc, m, mm, QNLI,
# RTE, WNLI → score.
LEADERBOARD = {
    "Mini": ([0.0, 85.9, 81.1, 71.8, 75.4, 73.3, 66.4, 86.2, 74.8, 74.3, 84.1, 57.9, 62.3], 65.8),
    "Small": ([27.8, 89.7, 83.4, 76.2, 78.8, 77.0, 68.1, 87.0, 77.6, 77.0, 86.4, 61.8, 62.3], 71.2),
    "Medium": ([38.0, 89.6, 86.6, 81.6, 80.4, 78.4, 69.6, 87.9, 80.0, 79.1, 87.7, 62.2, 62.3], 73.5),
}


@pytest.mark.parametrize("model", PAPER)
def test_glue_average_of_the_paper(model):
    m, mm, qqp, qnli, sst2, cola, stsb, mrpc, rte = PAPER[model][0]
    scores = {
        "mnli": {"accuracy": m},
        "mnli_mismatched": {"accuracy": mm},
        "qqp": {"f1": qqp, "accuracy": 0.0},
        "qnli": {"accuracy": qnli},
        "sst2": {"accuracy": sst2},
        "cola": {"matthews_correlation": cola},
        "stsb": {"spearmanr": stsb, "pearson": 0.0},
        "mrpc": {"f1": mrpc, "accuracy": 0.0},
        "rte": {"accuracy": rte},
        "wnli": {"accuracy": 0.0},
    }
    assert round(glue_average(scores), 1) == PAPER[model][1]
    del scores["rte"]
    with pytest.raises(InputError, match="no accuracy of rte"):
        glue_average(scores)


@pytest.mark.parametrize("model", LEADERBOARD)
def test_leaderboard_score(model):
    cola, sst2, mrpc_f1, mrpc, pearson, spearman, qqp_f1, qqp, m, mm, qnli, rte, wnli = LEADERBOARD[model][0]
    scores = {
        "cola": {"matthews_correlation": cola},
        "sst2": {"accuracy": sst2},
        "mrpc": {"f1": mrpc_f1, "accuracy": mrpc},
        "stsb": {"pearson": pearson, "spearmanr": spearman},
        "qqp": {"f1": qqp_f1, "accuracy": qqp},
        "mnli": {"accuracy": m},
        "mnli_mismatched": {"accuracy": mm},
        "qnli": {"accuracy": qnli},
        "rte": {"accuracy": rte},
        "wnli": {"accuracy": wnli},
        "ax": {"matthews_correlation": 100.0},
    }
    assert round(glue_leaderboard_score(scores), 1) == LEADERBOARD[model][1]


def test_submission(tmp_path):
    predictions = {
        "cola": ["acceptable", "unacceptable"],
        "sst2": ["negative", "positive"],
        "mrpc": ["equivalent", "not_equivalent"],
        "stsb": [5.7, -0.2, 3.14159],
        "qqp": ["duplicate", "not_duplicate"],
        "mnli": ["entailment", "contradiction"],
        "mnli_mismatched": ["neutral"],
        "qnli": ["not_entailment"],
        "rte": ["entailment"],
        "wnli": ["entailment", "not_entailment"],
        "ax": ["neutral"],
    }
    with zipfile.ZipFile(write_submission(tmp_path / "out" / "glue.zip", predictions)) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in SUBMISSION_FILES)
        files = {name[:-4]: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert {lines[0] for lines in files.values()} == {"index\tprediction"}
    assert files["CoLA"][1:] == ["0\t1", "1\t0"]
    assert files["WNLI"][1:] == ["0\t1", "1\t0"]
    assert files["STS-B"][1:] == ["0\t5.000", "1\t0.000", "2\t3.142"]
    assert files["MNLI-m"][1:] == ["0\tentailment", "1\tcontradiction"]
    assert files["MNLI-mm"][1:] == ["0\tneutral"] and files["QNLI"][1:] == ["0\tnot_entailment"]
    with pytest.raises(InputError, match="none of rte, ax"):
        write_submission(tmp_path / "a.zip", {k: v for k, v in predictions.items() if k not in ("rte", "ax")})
    with pytest.raises(InputError, match="prediction 0 of rte is 'LABEL_0'"):
        write_submission(tmp_path / "a.zip", predictions | {"rte": ["LABEL_0"]})

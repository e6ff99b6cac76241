"""Files of rows as people have them: encodings, packing, separators, quotes, headers; and what is none of these."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pytest
import zstandard
from task_helpers import write_tsv

from hfbert_scratch.tasks import DataArguments, collect_notes, get_task
from hfbert_scratch.utils.errors import InputError


ROWS = [{"text": f"café {row}, {label}", "label": label} for row, label in enumerate(("pos", "neg", "pos"))]
TEXTS = [row["text"] for row in ROWS]
WORDS = "Ann B-PER\nRené I-PER\nlives O\n\nRome B-LOC\n"
QUESTIONS = [{"question": "q", "context": "It is é.", "answers": {"text": ["is"], "answer_start": [3]}}]


def table(separator: str = ",", header: tuple[str, ...] = ("text", "label"), **options) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator="\n", **options)
    writer.writerows([header, *(row.values() for row in ROWS)])
    return file.getvalue()


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# A file of every format: its task, and its text.
FORMATS = {
    "a.jsonl": ("custom-classification", json_lines(ROWS)),
    "a.ndjson": ("custom-classification", json_lines(ROWS)),
    "a.json": ("custom-classification", json.dumps(ROWS, ensure_ascii=False, indent=1)),
    "a.csv": ("custom-classification", table()),
    "a.tsv": ("custom-classification", table("\t")),
    "a.txt": ("custom-ner", WORDS),
    "q.json": ("custom-qa", json.dumps(QUESTIONS, ensure_ascii=False)),
}


def load(tmp_path, name: str, content: bytes | str, task: str = "custom-classification", **arguments):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return get_task(task).load(DataArguments(train_file=str(path), **arguments))["train"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_read_however_it_ends_its_lines_and_is_packed(name, tmp_path):
    task, text = FORMATS[name]
    expected = load(tmp_path, name, text, task).to_list()
    data = text.encode()
    for variant in ("\r\n", "\r"):
        assert load(tmp_path, name, text.replace("\n", variant), task).to_list() == expected
    for mark in ("\ufeff", "\ufeff\ufeff"):
        assert load(tmp_path, name, mark + text, task).to_list() == expected
    assert load(tmp_path, f"{name}.gz", gzip.compress(data), task).to_list() == expected
    assert load(tmp_path, f"{name}.zst", zstandard.compress(data), task).to_list() == expected
    assert load(tmp_path, name.upper(), text, task).to_list() == expected


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", data)
    return file.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_another_encoding_or_kind_is_named_with_the_remedy(name, tmp_path):
    task, text = FORMATS[name]
    data = text.encode()
    wide = "is {} text; convert it first: iconv -f {}"
    cases = [
        *((text.encode(encoding), wide.format("UTF-16", "UTF-16")) for encoding in ("utf-16", "utf-16-le")),
        (text.encode("utf-32"), wide.format("UTF-32", "UTF-32")),
        (text.encode("latin-1"), r"line \d+ is not valid UTF-8 \(byte 0xe9\); .* iconv -f WINDOWS-1252"),
        (gzip.compress(data), "is packed with gzip; add .gz"),
        (zstandard.compress(data), "is packed with zstd; add .zst"),
        (bz2.compress(data), "is packed with bzip2; unpack"),
        (lzma.compress(data), "is packed with xz; unpack"),
        (zipped(data), "is a ZIP archive or a spreadsheet; unpack it, or save the sheet as .csv in UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "is a document of an office program"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html>\n<html></html>\n", "is a web page, not the data"),
    ]
    for content, message in cases:
        with pytest.raises(InputError, match=message):
            load(tmp_path, name, content, task)
    for suffix in (".gz", ".zst"):
        with pytest.raises(InputError, match=f"is not packed with .*; take {suffix} from its name"):
            load(tmp_path, name + suffix, data, task)


INDEXED = "".join(f'{number},"{row["text"]}",{row["label"]}\n' for number, row in enumerate(ROWS))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("quoted.csv", table(quoting=csv.QUOTE_ALL)),
        ("index.csv", f"Unnamed: 0,text,label\n{INDEXED}"),
        ("index.csv", f",text,label\n{INDEXED}"),
        ("case.csv", table(header=("TEXT", "Label"))),
        ("blanks.csv", table(header=(" text ", " label "))),
        ("blanks.csv", "label, text\n" + "".join(f'{row["label"]}, "{row["text"]}"\n' for row in ROWS)),
        ("first.tsv", "label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in ROWS)),
        ("lines.csv", "\n" + table().replace("\n", "\n\n")),
        ("more.jsonl", json_lines([{"id": 7} | row for row in ROWS])),
        ("data.json", json.dumps({"version": 1, "data": ROWS})),
        ("array.jsonl", json.dumps(ROWS)),
        ("lines.json", json_lines(ROWS)),
    ],
)
def test_rows_are_found_however_they_are_written(name, content, tmp_path):
    raw = load(tmp_path, name, content)
    assert raw["text"][:] == TEXTS and raw["label"][:] == [1, 0, 1]


@pytest.mark.parametrize("names", ['"text"\t"label"', "text\tlabel"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_tsv_whose_columns_of_text_are_quoted_is_read_without_the_quotes(names, ends, tmp_path):
    lines = [names, '"He said ""hi"""\t1', '"two\nlines"\t0', '"x"\t1']
    raw = load(tmp_path, "a.tsv", ends.join(lines) + ends)
    assert raw["text"][:] == ['He said "hi"', "two\nlines", "x"] and raw["label"][:] == [1, 0, 1]
    # Quotes around some of a column's texts are text.
    raw = load(tmp_path, "b.tsv", 'text\tlabel\n"a"\t1\nb\t0\n')
    assert raw["text"][:] == ['"a"', "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", table(";").replace(",", ""), "'text;label' .*by commas, not by ';'; write it again with commas"),
        ("a.csv", 'text;label\n"a; b, c";x\n"c";y\n', "by commas, not by ';'"),
        ("a.csv", table("\t"), r"by commas, not by '\\t'; name it .tsv"),
        ("a.tsv", table(), "by tabs, not by ','; name it .csv"),
        ("a.csv", "text,label\na, b,x\n", "line 2 has 3 fields, .* fields that hold commas need quotes"),
        ("a.csv", "a nice film,pos\na bad one,neg\n", "--columns text=NAME, or add the header if it is missing"),
        ("a.csv", "text,sentiment\na,x\nb,y\n", "has no label column; name yours: --columns label=NAME"),
        ("a.json", '{"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}', "to_json.*orient='records'"),
        ("a.json", '[\n{"text": "a"},\n{"text" "b"}]', "is not JSON .* at line 3, column 9"),
        ("a.jsonl", '{"text": "a\x00", "label": 1}\n', r"Invalid control character at column 12\)"),
        ("a.jsonl", '{"text": "b"}\n{"text": "a", "label": "x"}\n', "1 class in column 'label'"),
        ("a.jsonl", json_lines([{"text": "a"}, *ROWS]), "row 0 has no label, while other rows have one"),
        ("a.jsonl", '{"text": "b", "label": NaN}\n' + json_lines(ROWS), "row 0 has no label, while other rows"),
        ("a.jsonl", '{"text": NaN, "label": "y"}\n' + json_lines(ROWS), r"'text' is missing \(null\) in row 0"),
        ("a.xlsx", b"PK", "unknown suffix '.xlsx'.*save a spreadsheet as .csv"),
    ],
)
def test_rows_that_cannot_be_read_are_named(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(tmp_path, name, content)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_among_the_rows_does_not_become_labels(name, tmp_path):
    """As in files that were joined."""
    text = table("\t" if name == "a.tsv" else ",")
    with collect_notes() as notes:
        raw = load(tmp_path, name, text + text)
    assert raw["text"][:] == TEXTS * 2 and get_task("custom-classification").class_names(raw) == ["neg", "pos"]
    (entry,) = notes.left_out
    assert entry["rows"] == 1 and "left out 1 lines that repeat the header" in entry["reason"]
    with pytest.raises(InputError, match="holds no rows below its header"):
        load(tmp_path, name, text.partition("\n")[0] + "\n" + text.partition("\n")[0] + "\n")


def test_blank_texts_are_counted(tmp_path):
    texts = ["x", "", " ", "\u200b", "\u00ad\u3000", "\u2028\x85\x0c", "\ufeff\u2060"]
    path = write_tsv(tmp_path / "a.tsv", [["text", "label"], *([text, row % 2] for row, text in enumerate(texts))])
    with collect_notes() as notes:
        get_task("custom-classification").load(DataArguments(train_file=str(path)))
    place = "custom-classification, split train: column 'text'"
    assert notes.warnings == [f"{place} is blank in 6 of 7 rows, first in row 1"]

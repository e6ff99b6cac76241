"""Reading documents from every kind of file, good and bad, and splitting them into sentences."""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import unicodedata

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
import zstandard
from corpus_helpers import document, documents, words

from hfbert_scratch.features.files import TextFile
from hfbert_scratch.text import readers as text_sources
from hfbert_scratch.text import streams
from hfbert_scratch.text.readers import ReadStats, read_documents
from hfbert_scratch.text.sentences import MAX_SENTENCE, split_sentences
from hfbert_scratch.text.sources import find_sources
from hfbert_scratch.utils.errors import InputError


def read(path, **options):
    return list(read_documents(find_sources([str(path)]), **options))


def test_plain_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\nline two\r\n\r\n \t\r\ntwo\u2028still\x0btwo\x85yes\n\n\nthree\0".encode())
    assert read(path) == ["one\nline two\n", "two\u2028still\x0btwo\x85yes\n", "three\0"]
    path.write_bytes(b"a\n\nb")
    (tmp_path / "u.txt").write_bytes(b"c\n")
    # The end of a file ends a document; the order is that of the names.
    assert read(tmp_path) == ["a\n", "b", "c\n"]
    (tmp_path / "notes").write_bytes(b"of unknown suffix")
    assert read(tmp_path / "notes") == ["of unknown suffix"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "v.txt").write_bytes(b"d")
    assert read(tmp_path / "**" / "*.txt") == ["d", "a\n", "b", "c\n"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_compressed(tmp_path, suffix, compression):
    texts = documents(30)
    if suffix == ".txt":
        data = "\n\n".join(texts).encode()
    else:
        data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    path = tmp_path / f"t{suffix}{compression}"
    path.write_bytes(pack(data))
    assert [text.strip() for text in read(path)] == texts
    if compression:
        # Two frames one after the other are one stream.
        path.write_bytes(pack(data[:1000]) + pack(data[1000:]))
        assert [text.strip() for text in read(path)] == texts
        path.write_bytes(pack(data)[:-30])
        with pytest.raises(InputError, match=rf"t{suffix}{compression} is truncated or damaged after \d+ bytes"):
            read(path)
        path.write_bytes(b"not compressed at all")
        with pytest.raises(InputError, match=rf"is not packed with .*; take {compression} from its name"):
            read(path)


def line_by_line(text):
    """The documents of a plain text, the simplest way: what read_documents must give however it reads."""
    found, held = [], []
    for line in [line + "\n" for line in text.split("\n")[:-1]] + [text.split("\n")[-1]]:
        if line.strip():
            held.append(line)
        elif held:
            found.append("".join(held).replace("\r\n", "\n"))
            held = []
    return found + (["".join(held).replace("\r\n", "\n")] if held else [])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_documents_do_not_depend_on_what_is_read_at_once(tmp_path, monkeypatch, suffix):
    rng = random.Random(0)
    parts = ["a", "bc def", " ", "\n", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\u2028", "é中", " " * 12]
    path = tmp_path / f"t.txt{suffix}"
    for block in (2, 3, 7, 20, 1 << 18):
        monkeypatch.setattr(streams, "BLOCK", block)
        for _ in range(150):
            text = "".join(rng.choices(parts, k=rng.randint(0, 30)))
            path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
            assert read(path) == line_by_line(text), ascii(text)


def test_parquet_and_datasets(tmp_path):
    texts = documents(300)
    table = pa.table({"text": [*texts, None], "n": range(301)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    counts = ReadStats()
    assert read(tmp_path / "t.parquet", stats=counts) == texts
    assert counts.null_texts == 1
    with pytest.raises(InputError, match=r"no column 'body', only 'text', 'n'; see --text_column"):
        read(tmp_path / "t.parquet", text_column="body")
    with pytest.raises(InputError, match="column 'n' holds int64"):
        read(tmp_path / "t.parquet", text_column="n")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="t.parquet is not a readable Parquet file"):
        read(tmp_path / "t.parquet")
    saved = datasets.Dataset.from_dict({"text": texts})
    saved.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == texts
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits") == texts
    datasets.DatasetDict(test=saved).save_to_disk(tmp_path / "test")
    with pytest.raises(InputError, match="but no train"):
        read(tmp_path / "test")
    with pytest.raises(InputError, match="no column 'body'"):
        read(tmp_path / "saved", text_column="body")


def test_hub_names(monkeypatch):
    calls = []

    def load_dataset(name, configuration, split, streaming, revision):
        calls.append((name, configuration, split, streaming))
        if name == "no/where":
            raise FileNotFoundError("not on the Hub")
        return datasets.Dataset.from_dict({"text": ["a", None, "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_documents(find_sources(["hub:some/set", "hub:some/other:en:test"]))) == ["a", "b"] * 2
    assert calls == [("some/set", None, "train", True), ("some/other", "en", "test", True)]
    with pytest.raises(InputError, match="hub:no/where: cannot be loaded from the Hub .not on the Hub"):
        list(read_documents(find_sources(["hub:no/where"])))


BAD_LINES = {
    '{"text": "a"': r"t.jsonl: line 2 is not JSON",
    "[1, 2]": r"line 2 is a list; every row must be an object",
    '{"body": "a"}': r"line 2 has no column 'text', only 'body'; see --text_column",
    '{"text": 5}': r"line 2: field 'text' is a int, not a string",
    '{"text": "\\ud800"}': r"line 2 escapes half of a surrogate pair",
    "[" * 100_000: r"line 2 is nested too deeply",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_jsonl(tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(InputError, match=BAD_LINES[line]):
        read(path)


def test_jsonl_details(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('\ufeff{"text": "a\\r\\nb"}\r\n\r\n{"text": null}\n{"text": " "}\n{"text": "\\ud83d\\ude00"}')
    counts = ReadStats()
    assert read(path, stats=counts) == ["a\nb", "😀"]
    assert counts.null_texts == 1
    path.write_text('{"text": "x\\ud800y"}')
    assert read(path, encoding_errors="replace") == ["x\ufffdy"]
    path.write_bytes(b'{"text": "good"}\n{"text": "b\xe9d"}\n')
    with pytest.raises(InputError, match="line 2, byte 28, is not valid UTF-8"):
        read(path)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl"])
def test_lines_that_end_with_cr_alone(tmp_path, monkeypatch, suffix):
    texts = [f"Line one of {i}.\nLine two, é中 {i}.\n" for i in range(3000)]
    text = "\n".join(texts) if suffix != ".jsonl" else "".join(json.dumps({"text": text}) + "\n" for text in texts)
    data = text.replace("\n", "\r").encode()
    (tmp_path / f"t{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    monkeypatch.setattr(text_sources, "MAX_LINE", 1000)
    assert read(tmp_path / f"t{suffix}") == texts
    if suffix != ".txt.gz":
        assert len(list(TextFile(tmp_path / f"t{suffix}"))) == (3000 if suffix == ".jsonl" else 8999)
    # A document with no other line end than CR has CR ones; elsewhere a CR is a character like others.
    (tmp_path / "u.jsonl").write_text(json.dumps({"text": "a\rb\r"}) + "\n" + json.dumps({"text": "a\rb\nc"}))
    assert read(tmp_path / "u.jsonl") == ["a\nb\n", "a\rb\nc"]
    (tmp_path / "v.txt").write_bytes(b"a\rb\nc")
    assert read(tmp_path / "v.txt") == ["a\rb\nc"]


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", "\u2060 ", "\u00a0", "\u2028", "\x0c", "\u3000\u200b"])
def test_a_line_without_a_visible_character_is_blank(tmp_path, blank):
    path = tmp_path / "t.txt"
    path.write_text(f"{blank}\none\n{blank}\ntwo\n{blank}\n{blank}\nthr{blank}ee\n{blank}", newline="")
    assert read(path) == ["one\n", "two\n", f"thr{blank}ee\n"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_a_file_without_line_ends_but_other_separators_is_named(tmp_path, separator):
    path = tmp_path / "t.txt"
    path.write_text(separator.join(f"line {number}" for number in range(11)))
    code = f"U+{ord(separator):04X}"
    with pytest.raises(InputError, match=rf"has no line ends, but 10 times {re.escape(code)}; .* < FILE") as error:
        read(path)
    command = re.search(r'python -c "(.*)" <', str(error.value))[1]
    done = subprocess.run([sys.executable, "-c", command], input=path.read_bytes(), capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [f"line {number}" for number in range(11)]
    path.write_text(separator.join("ab") + "\n")
    assert len(read(path)) == 1
    path.write_text(separator * 100)
    assert read(path) == []


@pytest.mark.parametrize("name", ["t.json", "t.csv", "t.tsv.gz", "T.JSON"])
def test_rows_are_not_read_as_plain_text(tmp_path, name):
    (tmp_path / name).write_bytes(b"a")
    with pytest.raises(InputError, match=r"holds rows, not plain text; write it as .jsonl .* or name it .txt"):
        read(tmp_path / name)


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", ["A plain line.\n", "Это простая строка.\n", "यह एक पंक्ति है।\n", "这是 1 行。\n"])
def test_wide_encodings_are_named_with_and_without_byte_order_mark(tmp_path, encoding, text):
    for mark in ("", "\ufeff"):
        for data in (text * 40, json.dumps({"text": text * 20}, ensure_ascii=False)):
            path = tmp_path / "t.jsonl"
            path.write_bytes((mark + data).encode(encoding))
            message = rf"t.jsonl is {encoding[:6]} text; convert it first: iconv -f {encoding[:6]}(LE|BE)? -t UTF-8"
            with pytest.raises(InputError, match=message):
                read(path)
            with pytest.raises(InputError, match=message):
                list(TextFile(path))


def test_invalid_utf8(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("é good\n\n".encode() + b"caf\xe9\n")
    with pytest.raises(InputError, match=r"t.txt: byte 12, line 3, is not valid UTF-8 .byte 0xe9.*replace"):
        read(path)
    assert read(path, encoding_errors="replace")[1] == "caf\ufffd\n"
    with pytest.raises(InputError, match="--encoding_errors must be one of strict, replace, not 'ignore'"):
        read(path, encoding_errors="ignore")
    path.write_bytes("text".encode("utf-16"))
    with pytest.raises(InputError, match="t.txt is UTF-16 text; convert it first: iconv"):
        read(path)
    path.write_bytes(os.urandom(2000))
    with pytest.raises(InputError):
        read(path)
    path.write_bytes(gzip.compress(b"x" * 50 + b"\xff"))
    path.rename(tmp_path / "t.txt.gz")
    with pytest.raises(InputError, match="byte 50 of the unpacked text"):
        read(tmp_path / "t.txt.gz")


def test_missing_things(tmp_path):
    cases = {
        "no.txt": "no such file or directory .*hub:",
        "*.txt": "the pattern matches no file",
        ".": "the directory holds no .txt",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            find_sources([str(tmp_path / name)])
    with pytest.raises(InputError, match="names no file"):
        find_sources([])
    (tmp_path / "a.txt").write_text("")
    assert read(tmp_path / "a.txt") == []
    with pytest.raises(InputError, match="more than once"):
        find_sources([str(tmp_path / "a.txt"), str(tmp_path / "*.txt")])
    (tmp_path / "p.parquet.gz").write_bytes(b"")
    with pytest.raises(InputError, match="unpack the file first"):
        find_sources([str(tmp_path / "p.parquet.gz")])
    if os.geteuid():
        (tmp_path / "a.txt").chmod(0)
        with pytest.raises(InputError, match="a.txt: cannot be read .Permission denied"):
            read(tmp_path / "a.txt")


def test_long_lines_and_documents_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sources, "MAX_LINE", 64)
    monkeypatch.setattr(text_sources, "MAX_DOCUMENT", 1000)
    text = " ".join(words(400))
    for content in (text, "é" * 3000, "x" * 3000, text.replace(" ", "\n"), "日本" * 900):
        for suffix in (".txt", ".jsonl"):
            path = tmp_path / f"t{suffix}"
            path.write_text(content if suffix == ".txt" else json.dumps({"text": content}))
            counts = ReadStats()
            pieces = read(path, stats=counts)
            assert "".join(pieces) == content
            assert all(len(piece) <= 1000 for piece in pieces)
            assert counts.cut_documents == len(pieces) - 1 > 0
    assert all(piece.endswith((" ", pieces[-1][-1])) for piece in pieces)
    monkeypatch.setattr(streams, "MAX_WHOLE_LINE", 500)
    with pytest.raises(InputError, match="the line at byte 0 is longer than 500 bytes"):
        read(tmp_path / "t.jsonl")


@pytest.mark.slow
def test_a_200_mb_line_in_bounded_memory(tmp_path):
    path = tmp_path / "t.txt"
    line = (" ".join(words(300)) + " ").encode()
    with open(path, "wb") as file:
        for _ in range(200_000_000 // len(line)):
            file.write(line)
    # Not ru_maxrss, in which this process's own memory counts for its children.
    code = (
        "import re, sys; from hfbert_scratch.text.readers import *; from hfbert_scratch.text.sources import *;"
        "n = sum(len(d) for d in read_documents(find_sources([sys.argv[1]])));"
        "print(n, *re.findall(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read()))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    size, kibibytes = map(int, out.split())
    assert size == path.stat().st_size and kibibytes < 900 * 1024


# ---------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
        (
            "J. R. Tolkien of the U.S. Army, e.g. Mordor. End.",
            ["J. R. Tolkien of the U.S. Army, e.g. Mordor.", "End."],
        ),
        ("See No. 5 and Fig. 3. He said no. Then 5 went.", ["See No. 5 and Fig. 3.", "He said no.", "Then 5 went."]),
        ('"Go!" she said. "Now." (Later.) He went.', ['"Go!" she said.', '"Now."', "(Later.)", "He went."]),
        ("3.14 is pi. It is 5. Six.", ["3.14 is pi.", "It is 5.", "Six."]),
        ("line one\nline two. and on", ["line one", "line two. and on"]),
        ("So did I. Really.", ["So did I.", "Really."]),
        ("Élan. Été.", ["Élan.", "Été."]),
        ("我们走吧。他说：“好！”然后走了。", ["我们走吧。", "他说：“好！”", "然后走了。"]),
        ("Это да. А это нет.", ["Это да.", "А это нет."]),
        ("\u2028 \x0b\n\n  \r\n", []),
        ("", []),
        ("a\u2028b\x0bc\x85d", ["a\u2028b\x0bc\x85d"]),
        # Other scripts: a mark of their own ends a sentence whatever follows.
        ("वह घर गया। बच्चे स्कूल में हैं।वे पढ़ते हैं।", ["वह घर गया।", "बच्चे स्कूल में हैं।", "वे पढ़ते हैं।"]),
        ('उसने कहा, "चलो।" फिर वह गया।', ['उसने कहा, "चलो।"', "फिर वह गया।"]),
        ("هل تحب القراءة؟ نعم أحبها. وأنت؟لا", ["هل تحب القراءة؟", "نعم أحبها.", "وأنت؟", "لا"]),
        ("پی۔ٹی۔وی دیکھو۔ وہ قلم ہے۔", ["پی۔ٹی۔وی دیکھو۔", "وہ قلم ہے۔"]),
        ("Բարեւ։ Ինչպես ես։", ["Բարեւ։", "Ինչպես ես։"]),
        ("ሰላም፡ነው። እሺ፡፡ደህና፧ አዎ", ["ሰላም፡ነው።", "እሺ፡፡", "ደህና፧", "አዎ"]),
        ("Τι κάνεις; Καλά· εσύ; “Ναι.” Είπε", ["Τι κάνεις;", "Καλά· εσύ;", "“Ναι.”", "Είπε"]),
        ("He came; Then (Κύπρος; Turkish: Kıbrıs); he left.", ["He came; Then (Κύπρος; Turkish: Kıbrıs); he left."]),
        ("约３．１４です．次は“走。”）好｡", ["约３．１４です．", "次は“走。”）", "好｡"]),
        ("Např. škola. Šest. Він є. їх є. Є", ["Např. škola.", "Šest.", "Він є. їх є.", "Є"]),
        ("วันนี้อากาศดีมากทุกคน เด็ก ๆ เล่นน้ำ", ["วันนี้อากาศดีมากทุกคน", "เด็ก ๆ เล่นน้ำ"]),
        (
            "One.\0 Two.\u200f \u202bThree.\u200b\u202c Four",
            ["One.\0", "Two.\u200f", "\u202bThree.\u200b\u202c", "Four"],
        ),
        # A full stop that also abbreviates, with no blank after it.
        ("پی۔ٹی۔وی دیکھو۔وہ قلم ہے۔کیا؟ہاں۔", ["پی۔ٹی۔وی دیکھو۔", "وہ قلم ہے۔", "کیا؟", "ہاں۔"]),
        ("ڈاکٹر اے۔ پی۔ جے کلام ۳۔۵ ماہ رہے۔ گئے۔", ["ڈاکٹر اے۔ پی۔ جے کلام ۳۔۵ ماہ رہے۔", "گئے۔"]),
        ("Ｊ．Ｒ．Ｒ．トールキン．次", ["Ｊ．Ｒ．Ｒ．トールキン．", "次"]),
        ("د. أحمد ذهب. عاد. נפגש עם ד. כהן. כן.", ["د. أحمد ذهب.", "عاد.", "נפגש עם ד. כהן.", "כן."]),
        # Marks that Unicode does not call sentence terminal, and other marks typed for those of a script.
        ("ගියා෴ඔහු ආවා෴ එයයි෴", ["ගියා෴", "ඔහු ආවා෴", "එයයි෴"]),
        ("བོད་རེད། །ང་ཡོད།། །།ད་༔ན་", ["བོད་རེད། །", "ང་ཡོད།། །།", "ད་༔", "ན་"]),
        ("दोहा गाया॥ १॥ फिर॥२॥अंत। ३. अब", ["दोहा गाया॥ १॥", "फिर॥२॥", "अंत।", "३.", "अब"]),
        ("Բարեւ: Ինչպես ես: մոտ 12:30 Լավ:", ["Բարեւ:", "Ինչպես ես: մոտ 12:30 Լավ:"]),
        ("ሰላም ነው:: እሺ::አዎ 3::4", ["ሰላም ነው::", "እሺ::", "አዎ 3::4"]),
        ("ត្រី សាច់ ។ល។ ទៅ។គាត់មក។", ["ត្រី សាច់ ។ល។", "ទៅ។", "គាត់មក។"]),
        ("なに!?ほんと?そう。Yahoo!知恵袋 什么?走", ["なに!?", "ほんと?", "そう。", "Yahoo!知恵袋 什么?", "走"]),
        ("走……然后。……我不知道。", ["走……然后。", "……我不知道。"]),
        # A quotation ends a sentence only where the sentence does not go on behind it.
        ("「行く。」と言った。「帰る。」彼は去った。", ["「行く。」と言った。", "「帰る。」", "彼は去った。"]),
        ("「行く。帰る！」って。｢待て｡｣ところが来た", ["「行く。", "帰る！」って。", "｢待て｡｣", "ところが来た"]),
        (
            "彼は「行け！？」、『え？』という。「はい。」はい。",
            ["彼は「行け！？」、『え？』という。", "「はい。」", "はい。"],
        ),
        ("「痛い！」。なぜ？と聞く。（第1版。）を読む", ["「痛い！」。", "なぜ？と聞く。", "（第1版。）を読む"]),
        ("“走吧。”妈妈说。“好？”她问道，“嗯。”我知道。", ["“走吧。”妈妈说。", "“好？”她问道，“嗯。”", "我知道。"]),
        ("他问“为什么？”的时候，“好。”的确。", ["他问“为什么？”的时候，“好。”", "的确。"]),
        ('"가자." 라고 했다. "응." 그는 갔다.', ['"가자." 라고 했다.', '"응."', "그는 갔다."]),
        ("Er rief: „Los.“ Dann ging er. »Halt!« Sie", ["Er rief: „Los.“", "Dann ging er.", "»Halt!«", "Sie"]),
        ("Il dit : « Va. » Puis il part. « Oui », dit-il.", ["Il dit : « Va. »", "Puis il part.", "« Oui », dit-il."]),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


def test_every_mark_that_unicode_calls_sentence_terminal_ends_a_sentence():
    marks = [chr(point) for point in range(0x10000) if unicodedata.category(chr(point)) != "Cn"]
    marks = [mark for mark in marks if regex.match(r"\p{Sentence_Terminal}", mark)]
    assert len(marks) > 80
    missed = [mark for mark in marks if len(split_sentences(f"Abc{mark} Def{mark}")) != 2]
    assert not missed


def test_sentences_lose_nothing_but_blanks():
    for text in [
        *documents(20),
        "x" * 35_000,
        "." * 200_000,
        "ab " * 20_000,
        "... ! ? . A " * 50,
        "。" * 50,
        "กขค " * 9,
    ]:
        sentences = split_sentences(text)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(0 < len(sentence) <= MAX_SENTENCE and sentence == sentence.strip() for sentence in sentences)


def test_made_up_documents_are_split_as_made():
    rng = random.Random(0)
    for count in (1, 2, 7, 20):
        assert len(split_sentences(document(rng, words(50), count))) == count


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_texts_for_features_are_unpacked_too(tmp_path, suffix):
    lines = ["one", "two ||| three"] if suffix == ".txt" else ['{"text": "one"}', '{"text": "two", "pair": "three"}']
    data = "\n".join(lines).encode()
    for packed, name in ((data, ""), (gzip.compress(data), ".gz"), (zstandard.compress(data), ".zst")):
        (tmp_path / f"t{suffix}{name}").write_bytes(packed)
        first = list(TextFile(tmp_path / f"t{suffix}{name}"))[0]
        assert first == "one"
    (tmp_path / "p.parquet.gz").write_bytes(b"")
    with pytest.raises(InputError, match="unpack the file first"):
        list(TextFile(tmp_path / "p.parquet.gz"))

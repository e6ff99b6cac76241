"""Corpus building: text in any shape to a directory that `datasets` opens, and what happens to bad input."""

import errno
import filecmp
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpus_helpers import build, document, documents, small_tokenizer, words, write_text

from hfbert_scratch import shard_forming, shard_writing, text_sources
from hfbert_scratch.corpus import BuildArguments, Corpus, build_corpus
from hfbert_scratch.errors import InputError, OutputError
from hfbert_scratch.segment_pairs import SegmentPairs
from hfbert_scratch.sentences import MAX_SENTENCE, split_sentences
from hfbert_scratch.text_sources import ReadingCounts, find_sources, read_documents
from hfbert_scratch.tokenization import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer, train_wordpiece


RECIPE = Path(__file__).parent.parent / "recipes" / "build_corpus.py"


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def texts():
    return documents(120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts, tokenizer):
    return build(tmp_path_factory.mktemp("corpus"), texts, tokenizer, validation_share=0.1)


def read(path, **options):
    return list(read_documents(find_sources([str(path)]), **options))


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*.arrow"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.arrow"))
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


# ---------------------------------------------------------------------------------------------------- the result


def test_opens_with_datasets_and_holds_the_text(corpus, texts, tokenizer):
    loaded = datasets.load_from_disk(str(corpus.directory))
    assert set(loaded) == {"train", "validation"}
    assert loaded["train"].features["tokens"].feature.dtype == "uint16"
    assert len(loaded["train"]) + len(loaded["validation"]) == 120
    stored = {}
    for split in loaded.values():
        for row in split:
            assert sum(row["sentence_lengths"]) == len(row["tokens"])
            stored[tokenizer.decode(row["tokens"])] = row["sentence_lengths"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        lengths = stored[tokenizer.decode(ids)]
        assert lengths == [
            len(tokenizer(sentence, add_special_tokens=False)["input_ids"]) for sentence in split_sentences(text)
        ]
    # Documents keep their order.
    beginnings = {tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:20]): i
                  for i, text in enumerate(texts)}  # fmt: skip
    order = [beginnings[tokenizer.decode(row["tokens"][:20])] for row in loaded["train"]]
    assert order == sorted(order)


def test_manifest(corpus, texts):
    manifest = json.loads((corpus.directory / "manifest.json").read_text())
    assert manifest == corpus.manifest
    assert manifest["documents_read"] == 120 and manifest["duplicates"] == 0
    for name in ("train", "validation"):
        split, opened = manifest["splits"][name], corpus.split(name)
        assert (split["documents"], split["tokens"]) == (opened.num_documents, opened.num_tokens)
        assert sum(split["documents_by_tokens"].values()) == split["documents"]
        assert sum(split["sentences_by_tokens"].values()) == split["sentences"]
        tokens = np.concatenate([opened.tokens(shard) for shard in range(opened.num_shards)])
        share = np.unique(tokens, return_counts=True)[1] / len(tokens)
        assert split["unigram_entropy"] == pytest.approx(-(share * np.log(share)).sum(), abs=1e-3)
        assert split["unigram_accuracy"] == pytest.approx(share.max(), abs=1e-4)
    assert set(manifest["pairs"]["train"]) == {"128", "512"}
    entry = manifest["pairs"]["train"]["128"]
    pairs = SegmentPairs(corpus.split("train"), max_seq_length=128, seed=0)
    assert entry["instances"] == len(pairs.group(0, 0))
    batch = pairs.assemble(pairs.group(0, 0))
    assert entry["padding_rate"] == pytest.approx((batch["input_ids"] == 0).mean(), abs=1e-3)
    assert entry["not_next_rate"] == pytest.approx(batch["next_sentence_label"].mean(), abs=1e-3)
    assert manifest["special_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert manifest["sources"][0]["bytes"] == Path(manifest["sources"][0]["name"]).stat().st_size
    assert len(manifest["sources"][0]["sha256"]) == 64


def test_open_refuses_what_it_was_not_built_for(corpus, tokenizer, tmp_path, texts):
    assert Corpus.open(corpus.directory, tokenizer, 512).manifest["vocab_size"] == len(tokenizer)
    with pytest.raises(InputError, match="built with another tokenizer"):
        Corpus.open(corpus.directory, train_wordpiece(texts, vocab_size=200))
    with pytest.raises(InputError, match="max_seq_length 1024 is longer than the 512"):
        Corpus.open(corpus.directory, max_seq_length=1024)
    with pytest.raises(InputError, match="no corpus directory"):
        Corpus.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not a corpus"):
        Corpus.open(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(InputError, match="unfinished; run the same"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1')
    with pytest.raises(InputError, match="manifest.json is not readable JSON"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not a manifest of format"):
        Corpus.open(tmp_path)
    whole = build(tmp_path, texts[:20], tokenizer, validation_share=0.0)
    assert list(whole.manifest["splits"]) == ["train"]
    with pytest.raises(InputError, match="no split 'validation', only train"):
        whole.split("validation")


def test_same_result_for_any_number_of_processes_and_hosts(tmp_path, tokenizer, monkeypatch, texts):
    monkeypatch.setattr(shard_forming, "shard_size", lambda sources: 6_000)
    one = build(tmp_path, texts, tokenizer, "one")
    assert one.split("train").num_shards > 5
    source = str(tmp_path / "one.txt")
    arguments = BuildArguments(text=(source,), tokenizer="small")
    build_corpus(arguments, tokenizer, tmp_path / "two", num_proc=2)
    assert same_files(tmp_path / "one", tmp_path / "two")
    parts = [
        build_corpus(arguments, tokenizer, tmp_path / "hosts", num_hosts=3, host_index=host) for host in (1, 0, 2)
    ]
    assert parts[0] is parts[1] is None and parts[2] is not None
    assert same_files(tmp_path / "one", tmp_path / "hosts")
    statistics = ("splits", "pairs", "duplicates", "identity")
    assert all(parts[2].manifest[key] == one.manifest[key] for key in statistics)
    # The same command again opens what is there; a host that comes late too.
    before = (tmp_path / "hosts" / "manifest.json").stat().st_mtime_ns
    assert (
        build_corpus(arguments, tokenizer, tmp_path / "hosts", num_hosts=3, host_index=1).manifest == parts[2].manifest
    )
    assert (tmp_path / "hosts" / "manifest.json").stat().st_mtime_ns == before


def test_an_interrupted_build_goes_on(tmp_path, tokenizer, monkeypatch, texts):
    monkeypatch.setattr(shard_forming, "shard_size", lambda sources: 6_000)
    build(tmp_path, texts, tokenizer, "whole")
    arguments = BuildArguments(text=(str(tmp_path / "whole.txt"),), tokenizer="small")
    write, written = shard_writing.ShardWriter.write, []

    def failing(self, shard):
        if shard.number == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(shard.number)
        return write(self, shard)

    monkeypatch.setattr(shard_writing.ShardWriter, "write", failing)
    with pytest.raises(
        OutputError, match="cannot write the corpus .*No space left on device; finished shards are kept"
    ):
        build_corpus(arguments, tokenizer, tmp_path / "again")
    with pytest.raises(InputError, match="unfinished"):
        Corpus.open(tmp_path / "again")
    with pytest.raises(InputError, match=r"begun with other arguments: seed \(0 before, 1 now\)"):
        build_corpus(BuildArguments(arguments.text, "small", seed=1), tokenizer, tmp_path / "again")
    monkeypatch.setattr(shard_writing.ShardWriter, "write", lambda self, s: written.append(s.number) or write(self, s))
    build_corpus(arguments, tokenizer, tmp_path / "again")
    assert sorted(written) == list(range(max(written) + 1))  # none twice
    assert same_files(tmp_path / "whole", tmp_path / "again")
    assert not (tmp_path / "again" / ".build").exists()
    with pytest.raises(InputError, match="sources"):
        build_corpus(
            BuildArguments((str(write_text(tmp_path / "o.txt", texts[:50])),), "s"), tokenizer, tmp_path / "again"
        )


def test_a_killed_build_goes_on(tmp_path, tokenizer):
    text = write_text(tmp_path / "t.txt", documents(2500, sentences=(10, 40)))
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    command = [sys.executable, RECIPE, "--text", text, "--tokenizer", tmp_path / "tokenizer", "--shard_mb", "1"]
    command = [*map(str, command), "--output_dir"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob(".build/shard-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "train").glob("data-*.arrow")}
    assert done and not (tmp_path / "killed" / "manifest.json").exists()
    again = subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    arguments = BuildArguments((str(text),), "small", shard_mb=1)
    build_corpus(arguments, tokenizer, tmp_path / "whole")
    assert same_files(tmp_path / "whole", tmp_path / "killed")
    first = min(done)
    assert first.stat().st_mtime_ns == done[first]


def test_errors_of_worker_processes_come_through(tmp_path, tokenizer, texts):
    source = write_text(tmp_path / "t.txt", texts)
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / ".build").mkdir()
    blocked = tmp_path / "out" / "train" / "data-00000.arrow"
    blocked.mkdir()
    arguments = BuildArguments((str(source),), "small")
    (tmp_path / "out" / "train").rename(tmp_path / "train")
    (tmp_path / "out" / "train").symlink_to(tmp_path / "train")
    with pytest.raises((OutputError, InputError)):
        build_corpus(arguments, tokenizer, tmp_path / "out", num_proc=2)


def test_split_follows_the_documents(tmp_path, tokenizer, texts):
    def validation(name, order, **options):
        made = build(tmp_path, order, tokenizer, name, validation_share=0.2, **options)
        rows = datasets.load_from_disk(str(made.directory))["validation"]
        return {tokenizer.decode(row["tokens"]) for row in rows}

    first = validation("a", texts)
    assert 10 <= len(first) <= 40
    assert validation("b", texts[::-1]) == first
    assert validation("c", texts, seed=1) != first
    few = build(tmp_path, texts[:12], tokenizer, "few", validation_share=0.0001)
    assert few.manifest["splits"]["validation"]["documents"] == 2  # next-sentence prediction needs two
    single = build(tmp_path, texts[:12], tokenizer, "single", validation_share=0.0001, next_sentence=False)
    assert single.manifest["splits"]["validation"]["documents"] == 1
    most = build(tmp_path, texts[:6], tokenizer, "most", validation_share=0.999)
    assert most.manifest["splits"]["train"]["documents"] == 2
    with pytest.raises(InputError, match="holds 3 different documents, too few"):
        build(tmp_path, texts[:3], tokenizer, "three")


def test_duplicates(tmp_path, tokenizer, texts):
    doubled = build(tmp_path, texts[:30] + texts[:20] + texts[5:10], tokenizer, "doubled")
    assert doubled.manifest["duplicates"] == 25
    assert sum(split["documents"] for split in doubled.manifest["splits"].values()) == 30
    assert any("copies" in warning for warning in doubled.manifest["warnings"])
    kept = build(tmp_path, texts[:30] + texts[:20], tokenizer, "kept", drop_duplicates=False)
    assert kept.manifest["duplicates"] == 20
    assert sum(split["documents"] for split in kept.manifest["splits"].values()) == 50
    with pytest.raises(InputError, match="at least 2 documents .*found 1 .9999 duplicates"):
        build(tmp_path, texts[:1] * 10_000, tokenizer, "same", validation_share=0.0)
    with pytest.raises(InputError, match="of the documents are copies"):
        build(tmp_path, texts[:10] * 100, tokenizer, "copies", drop_duplicates=False)


def test_digests_against_a_set():
    rng = np.random.default_rng(0)
    digests, known = shard_forming._Digests(), set()
    for _ in range(200):
        batch = rng.integers(0, 3000, rng.integers(1, 60)).astype(np.uint64)
        new = digests.add(batch)
        for value, flag in zip(batch.tolist(), new.tolist(), strict=True):
            assert flag == (value not in known)
            known.add(value)
    assert len(digests._runs) < 14


def test_literal_special_tokens_stay_text(tmp_path, tokenizer, texts):
    marked = [texts[0] + " [SEP] ba [MASK] be [CLS][PAD]", *texts[1:30]]
    made = build(tmp_path, marked, tokenizer, validation_share=0.0)
    tokens = np.concatenate([made.split("train").tokens(0)])
    assert not np.isin(tokens, [0, 2, 3, 4]).any()
    assert any("special tokens as text" in warning for warning in made.manifest["warnings"])


def test_large_vocabulary_takes_four_bytes(tmp_path):
    vocabulary = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(70_000))]
    large = bert_tokenizer({token: i for i, token in enumerate(vocabulary)}, True)
    made = build(tmp_path, [f"w{i} w{69_999 - i} w1\nw2 w3" for i in range(30)], large, validation_share=0.0)
    tokens = made.split("train").tokens(0)
    assert tokens.dtype == np.uint32 and tokens.max() == 70_004


def test_other_segmenter(tmp_path, tokenizer, texts):
    made = build(tmp_path, texts[:20], tokenizer, segmenter=str.split, validation_share=0.0)
    assert made.manifest["splits"]["train"]["sentences"] == sum(len(text.split()) for text in texts[:20])
    assert made.manifest["identity"]["segmenter"] == "str.split"


# ---------------------------------------------------------------------------------------------------- doomed corpora


def test_corpora_nothing_can_be_learnt_from(tmp_path, tokenizer, texts):
    with pytest.raises(InputError, match="one.txt holds no text"):
        build(tmp_path, ["\n \n\t\n"], tokenizer, "one")
    with pytest.raises(InputError, match="no document for the train split"):
        build(tmp_path, ["\0\1\2", "\0"], tokenizer, "control", validation_share=0.0)
    with pytest.raises(InputError, match="at least 2 documents .blank-line separated.; found 1 .*--no_nsp"):
        build(tmp_path, texts[:1], tokenizer, "single", validation_share=0.0)
    one = build(tmp_path, texts[:1], tokenizer, "nonsp", validation_share=0.0, next_sentence=False)
    assert one.manifest["splits"]["train"]["documents"] == 1
    assert "not_next_rate" not in one.manifest["pairs"]["train"]["128"]
    with pytest.raises(InputError, match="one document cannot be split"):
        build(tmp_path, texts[:1], tokenizer, "unsplit", next_sentence=False)
    lines = [line for text in texts for line in split_sentences(text)]
    with pytest.raises(InputError, match="have one sentence.*blank line behind every sentence"):
        build(tmp_path, lines, tokenizer, "lines")
    with pytest.raises(InputError, match=r"% of the tokens are \[UNK\]"):
        russian = ["Шла Саша по шоссе. И сосала сушку.", *(f"Они пошли. Мы нет {i}." for i in range(9))]
        build(tmp_path, russian, tokenizer, "russian", validation_share=0.0)
    mixed = build(tmp_path, texts[:8] + lines[:4], tokenizer, "mixed", validation_share=0.0)
    assert any("have one sentence" in warning for warning in mixed.manifest["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 1.0}, "--validation_share"),
        ({"max_seq_length": 4}, "--max_seq_length 4"),
        ({"seed": -1}, "--seed"),
        ({"shard_mb": 4096}, "--shard_mb"),
    ],
)
def test_argument_ranges(options, message):
    with pytest.raises(InputError, match=message):
        BuildArguments(("a",), "b", **options)


def test_output_directory(tmp_path, tokenizer, texts):
    source = write_text(tmp_path / "t.txt", texts)
    arguments = BuildArguments((str(source),), "small")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the corpus .*file"):
        build_corpus(arguments, tokenizer, tmp_path / "file" / "corpus")
    with pytest.raises(InputError, match="is not empty"):
        build_corpus(arguments, tokenizer, tmp_path)
    with pytest.raises(InputError, match="--host_index must be between 0 and 1"):
        build_corpus(arguments, tokenizer, tmp_path / "c", num_hosts=2, host_index=2)
    with pytest.raises(InputError, match="--num_proc"):
        build_corpus(arguments, tokenizer, tmp_path / "c", num_proc=0)
    import fcntl

    (tmp_path / "locked" / ".build").mkdir(parents=True)
    with open(tmp_path / "locked" / ".build" / "host-0.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another build is writing"):
            build_corpus(arguments, tokenizer, tmp_path / "locked")


# ---------------------------------------------------------------------------------------------------- reading


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
        with pytest.raises(InputError, match="is truncated or damaged"):
            read(path)


def test_parquet_and_datasets(tmp_path):
    texts = documents(300)
    table = pa.table({"text": [*texts, None], "n": range(301)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    counts = ReadingCounts()
    assert read(tmp_path / "t.parquet", counts=counts) == texts
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

    def load_dataset(name, configuration, split, streaming):
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
    "[1, 2]": r"line 2 is a list; every line must be an object with 'text'",
    '{"body": "a"}': r"line 2 has no field 'text', only 'body'; see --text_column",
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
    counts = ReadingCounts()
    assert read(path, counts=counts) == ["a\nb", "😀"]
    assert counts.null_texts == 1
    path.write_text('{"text": "x\\ud800y"}')
    assert read(path, encoding_errors="replace") == ["x\ufffdy"]
    path.write_bytes(b'{"text": "good"}\n{"text": "b\xe9d"}\n')
    with pytest.raises(InputError, match="line 2, byte 28, is not valid UTF-8"):
        read(path)


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
            counts = ReadingCounts()
            pieces = read(path, counts=counts)
            assert "".join(pieces) == content
            assert all(len(piece) <= 1000 for piece in pieces)
            assert counts.cut_documents == len(pieces) - 1 > 0
    assert all(piece.endswith((" ", pieces[-1][-1])) for piece in pieces)
    monkeypatch.setattr(text_sources, "MAX_JSON_LINE", 500)
    with pytest.raises(InputError, match="the line at byte 0 is longer than 500 bytes"):
        read(tmp_path / "t.jsonl")


@pytest.mark.slow
def test_a_200_mb_line_in_bounded_memory(tmp_path, tokenizer):
    path = tmp_path / "t.txt"
    line = (" ".join(words(300)) + " ").encode()
    with open(path, "wb") as file:
        for _ in range(200_000_000 // len(line)):
            file.write(line)
    code = (
        "import sys, resource; from hfbert_scratch.text_sources import *;"
        "n = sum(len(d) for d in read_documents(find_sources([sys.argv[1]])));"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    size, megabytes = map(int, out.split())
    assert size == path.stat().st_size and megabytes < 900


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
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


def test_sentences_lose_nothing_but_blanks():
    for text in [*documents(20), "x" * 35_000, "ab " * 20_000, "... ! ? . A " * 50, "。" * 50]:
        sentences = split_sentences(text)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(0 < len(sentence) <= MAX_SENTENCE and sentence == sentence.strip() for sentence in sentences)


def test_made_up_documents_are_split_as_made():
    import random

    rng = random.Random(0)
    for count in (1, 2, 7, 20):
        assert len(split_sentences(document(rng, words(50), count))) == count


# ---------------------------------------------------------------------------------------------------- recipe


def test_recipe(tmp_path, tokenizer, texts):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    text = write_text(tmp_path / "t.txt", texts)
    command = [sys.executable, RECIPE, "--text", text, "--tokenizer", tmp_path / "tokenizer", "--output_dir"]
    run = lambda *rest: subprocess.run([*map(str, [*command, *rest])], capture_output=True, text=True)  # noqa: E731
    done = run(tmp_path / "corpus", "--validation_share", "0.1")
    assert done.returncode == 0, done.stderr
    assert "unigram entropy" in done.stdout and "length 128: instances" in done.stdout
    made = Corpus.open(tmp_path / "corpus", tokenizer, 128)
    assert len(SegmentPairs(made.split("validation"), max_seq_length=128, seed=0).group(0, 0)) > 0
    wrong = run(tmp_path / "corpus", "--validation_share", "0.2")
    assert wrong.returncode == 2
    assert "validation_share (0.1 before, 0.2 now)" in wrong.stderr and "Traceback" not in wrong.stderr

"""Corpus building: text in any shape to a directory that `datasets` opens, and what happens to bad input."""

import errno
import filecmp
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from corpus_helpers import FailingSegmenter, build, documents, small_tokenizer, write_text
from training_helpers import RECIPES

from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.build import build_corpus
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.corpus.segment_pairs import SegmentPairSampler
from hfbert_scratch.corpus.stages import index, shards
from hfbert_scratch.corpus.stages.index import first_occurrences
from hfbert_scratch.text.sentences import split_sentences
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer, train_wordpiece
from hfbert_scratch.utils.errors import InputError, OutputError


RECIPE = RECIPES / "build_corpus.py"


@pytest.fixture(scope="module")
def texts():
    return documents(120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts, tokenizer):
    return build(tmp_path_factory.mktemp("corpus"), texts, tokenizer, validation_share=0.1)


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
    pairs = SegmentPairSampler(corpus.split("train"), max_seq_length=128, seed=0)
    assert entry["instances"] == len(pairs.sample_buffer(0, 0))
    batch = pairs.to_batch(pairs.sample_buffer(0, 0))
    assert entry["padding_rate"] == pytest.approx((batch["input_ids"] == 0).mean(), abs=1e-3)
    assert entry["not_next_rate"] == pytest.approx(batch["next_sentence_label"].mean(), abs=1e-3)
    assert manifest["special_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert manifest["sources"][0]["bytes"] == Path(manifest["sources"][0]["name"]).stat().st_size
    assert len(manifest["sources"][0]["sha256"]) == 64


def test_token_counts_are_kept_with_each_split(corpus, texts, tmp_path):
    copy, vocab_size = tmp_path / "copy", corpus.manifest["vocab_size"]
    shutil.copytree(corpus.directory, copy)
    for name in ("train", "validation"):
        file, split = copy / name / "token_counts.npy", Corpus.open(copy).split(name)
        kept, rows = split.token_counts(vocab_size), datasets.load_from_disk(str(copy))[name]["tokens"]
        assert kept.tolist() == np.bincount(np.concatenate(rows), minlength=vocab_size).tolist()
        np.save(file, kept + 1)
        with pytest.raises(InputError, match="delete it to count anew"):
            split.token_counts(vocab_size)
        file.write_bytes(b"damaged")
        with pytest.raises(InputError, match="delete it to count anew"):
            split.token_counts(vocab_size)
        file.unlink()  # as in corpora of 0.1.0
        assert split.token_counts(vocab_size).tolist() == kept.tolist()


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
    monkeypatch.setattr(index, "shard_size", lambda total: 6_000)
    one = build(tmp_path, texts, tokenizer, "one")
    assert one.split("train").num_shards > 5
    source = str(tmp_path / "one.txt")
    arguments = BuildArguments(text=(source,), tokenizer="small")
    build_corpus(arguments, tokenizer, tmp_path / "two", num_proc=2)
    assert same_files(tmp_path / "one", tmp_path / "two")
    whole = build_corpus(arguments, tokenizer, tmp_path / "tasks", num_tasks=3, task=1)
    assert same_files(tmp_path / "one", tmp_path / "tasks")
    statistics = ("splits", "pairs", "duplicates", "identity")
    assert all(whole.manifest[key] == one.manifest[key] for key in statistics)
    # The same command again opens what is there; a task that comes late too.
    before = (tmp_path / "tasks" / "manifest.json").stat().st_mtime_ns
    assert build_corpus(arguments, tokenizer, tmp_path / "tasks", num_tasks=3, task=0).manifest == whole.manifest
    assert (tmp_path / "tasks" / "manifest.json").stat().st_mtime_ns == before


def test_an_interrupted_build_goes_on(tmp_path, tokenizer, monkeypatch, texts):
    monkeypatch.setattr(index, "shard_size", lambda total: 6_000)
    build(tmp_path, texts, tokenizer, "whole")
    arguments = BuildArguments(text=(str(tmp_path / "whole.txt"),), tokenizer="small")
    write, written = shards.ShardWriter.write, []

    def failing(self, shard):
        if shard.number == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(shard.number)
        return write(self, shard)

    monkeypatch.setattr(shards.ShardWriter, "write", failing)
    with pytest.raises(
        OutputError, match="the corpus .* cannot be written .No space left on device.; finished shards are kept"
    ):
        build_corpus(arguments, tokenizer, tmp_path / "again")
    with pytest.raises(InputError, match="unfinished"):
        Corpus.open(tmp_path / "again")
    with pytest.raises(InputError, match=r"begun with other arguments \(seed: 0 there, 1 now\)"):
        build_corpus(BuildArguments(arguments.text, "small", seed=1), tokenizer, tmp_path / "again")
    monkeypatch.setattr(shards.ShardWriter, "write", lambda self, s: written.append(s.number) or write(self, s))
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


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), InputError("bad sentence")])
def test_errors_of_worker_processes_come_through(tmp_path, tokenizer, texts, error):
    with pytest.raises(OutputError if isinstance(error, OSError) else InputError, match=str(error.args[-1])):
        build(tmp_path, texts, tokenizer, num_proc=2, segmenter=FailingSegmenter(error))


def test_split_follows_the_documents(tmp_path, tokenizer, texts):
    def validation(name, order, **options):
        corpus = build(tmp_path, order, tokenizer, name, validation_share=0.2, **options)
        rows = datasets.load_from_disk(str(corpus.directory))["validation"]
        return {tokenizer.decode(row["tokens"]) for row in rows}

    first = validation("a", texts)
    assert 10 <= len(first) <= 40
    assert validation("b", texts[::-1]) == first
    assert validation("c", texts, seed=1) != first
    few = build(tmp_path, texts[:12], tokenizer, "few", validation_share=0.0001)
    assert few.manifest["splits"]["validation"]["documents"] == 2  # next-sentence prediction needs two
    single = build(tmp_path, texts[:12], tokenizer, "single", validation_share=0.0001, no_nsp=True)
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


def test_first_occurrences_are_those_of_a_set_also_by_digest_range(monkeypatch):
    rng = np.random.default_rng(0)
    for at_once in (1 << 24, 100):
        monkeypatch.setattr(index, "SORTED_AT_ONCE", at_once)
        for spread in (1 << 64, 3000 << 50, 10):
            units = [rng.integers(0, spread, rng.integers(0, 60), dtype=np.uint64) for _ in range(60)]
            known: set[int] = set()
            for value, flag in zip(np.concatenate(units).tolist(), first_occurrences(units).tolist(), strict=True):
                assert flag == (value not in known)
                known.add(value)
    assert len(first_occurrences([])) == 0


def test_literal_special_tokens_stay_text(tmp_path, tokenizer, texts):
    marked = [texts[0] + " [SEP] ba [MASK] be [CLS][PAD]", *texts[1:30]]
    corpus = build(tmp_path, marked, tokenizer, validation_share=0.0)
    tokens = np.concatenate([corpus.split("train").tokens(0)])
    assert not np.isin(tokens, [0, 2, 3, 4]).any()
    assert any("special tokens as text" in warning for warning in corpus.manifest["warnings"])


def test_large_vocabulary_takes_four_bytes(tmp_path):
    vocabulary = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(70_000))]
    large = bert_tokenizer({token: i for i, token in enumerate(vocabulary)}, True)
    corpus = build(tmp_path, [f"w{i} w{69_999 - i} w1\nw2 w3" for i in range(30)], large, validation_share=0.0)
    tokens = corpus.split("train").tokens(0)
    assert tokens.dtype == np.uint32 and tokens.max() == 70_004


def test_other_segmenter(tmp_path, tokenizer, texts):
    corpus = build(tmp_path, texts[:20], tokenizer, segmenter=str.split, validation_share=0.0)
    assert corpus.manifest["splits"]["train"]["sentences"] == sum(len(text.split()) for text in texts[:20])
    assert corpus.manifest["identity"]["segmenter"] == "str.split"


def test_a_file_that_appears_during_the_build_is_not_part_of_it(tmp_path, tokenizer, texts):
    (tmp_path / "texts").mkdir()
    source = write_text(tmp_path / "texts" / "a.txt", texts[:20])

    def segment(text):
        write_text(tmp_path / "texts" / "b.txt", ["Late."])
        return split_sentences(text)

    arguments = BuildArguments((str(tmp_path / "texts"),), "small")
    corpus = build_corpus(arguments, tokenizer, tmp_path / "corpus", segmenter=segment)
    assert [entry["name"] for entry in corpus.manifest["sources"]] == [str(source)]


# ---------------------------------------------------------------------------------------------------- doomed corpora


def test_corpora_nothing_can_be_learnt_from(tmp_path, tokenizer, texts):
    with pytest.raises(InputError, match="one.txt holds no text"):
        build(tmp_path, ["\n \n\t\n"], tokenizer, "one")
    with pytest.raises(InputError, match="no document for the train split"):
        build(tmp_path, ["\0\1\2", "\0"], tokenizer, "control", validation_share=0.0)
    with pytest.raises(InputError, match="at least 2 documents .blank-line separated.; found 1 .*--no_nsp"):
        build(tmp_path, texts[:1], tokenizer, "single", validation_share=0.0)
    one = build(tmp_path, texts[:1], tokenizer, "nonsp", validation_share=0.0, no_nsp=True)
    assert one.manifest["splits"]["train"]["documents"] == 1
    assert "not_next_rate" not in one.manifest["pairs"]["train"]["128"]
    with pytest.raises(InputError, match="one document cannot be split"):
        build(tmp_path, texts[:1], tokenizer, "unsplit", no_nsp=True)
    lines = [line for text in texts for line in split_sentences(text)]
    with pytest.raises(InputError, match="have one sentence.*blank line behind every sentence"):
        build(tmp_path, lines, tokenizer, "lines")
    with pytest.raises(
        InputError, match=r"% of the tokens are \[UNK\]: .* another script \(it does not know .*о.*\); train one"
    ):
        # The reason names characters.
        russian = ["Шла Саша по шоссе. И сосала сушку.", *(f"Они пошли. Мы нет {i}." for i in range(9))]
        build(tmp_path, russian, tokenizer, "russian", validation_share=0.0)
    unsegmented = ["вода" * 30 + f". И так {i}. Да." for i in range(9)]
    with pytest.raises(
        InputError, match=r"are \[UNK\]: \d+% of the text is in words of more than 100 .* segmenter first"
    ):
        build(tmp_path, unsegmented, small_tokenizer([*texts, "водаИтк 012345678 " * 9]), "long")
    with pytest.raises(InputError, match=r"another script .* in words of more than 100 characters"):
        build(tmp_path, unsegmented, tokenizer, "both")
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
    with pytest.raises(OutputError, match="the corpus .*file.* cannot be written"):
        build_corpus(arguments, tokenizer, tmp_path / "file" / "corpus")
    with pytest.raises(InputError, match="is not empty"):
        build_corpus(arguments, tokenizer, tmp_path)
    with pytest.raises(InputError, match="--task must be between 0 and 1"):
        build_corpus(arguments, tokenizer, tmp_path / "c", num_tasks=2, task=2)
    with pytest.raises(InputError, match="--num_proc"):
        build_corpus(arguments, tokenizer, tmp_path / "c", num_proc=0)
    import fcntl

    (tmp_path / "locked" / ".build").mkdir(parents=True)
    with open(tmp_path / "locked" / ".build" / "task-0.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another build is writing"):
            build_corpus(arguments, tokenizer, tmp_path / "locked")


def test_sentences_that_are_mostly_cut_off_are_named(tmp_path, tokenizer, texts):
    endless = [" ".join(text.split()).replace(".", "") for text in documents(60, sentences=(20, 40))]
    endless = [f"{text[: len(text) // 2]}\n{text[len(text) // 2 :]}" for text in endless]
    corpus = build(tmp_path, endless, tokenizer, "endless", max_seq_length=128)
    rate = corpus.manifest["pairs"]["train"]["128"]["tokens_truncated_rate"]
    assert any(
        f"at length 128, {rate:.0%} of the tokens drawn are cut off" in text for text in corpus.manifest["warnings"]
    )
    assert not any("cut off" in text for text in build(tmp_path, texts, tokenizer, "usual").manifest["warnings"])


def test_advice_for_small_corpora_leads_to_one_that_can_be_trained_on(tmp_path, tokenizer, texts):
    with pytest.raises(
        InputError, match=r"2 different documents, too few .* of 2 each.*--no_nsp: 1 each.*or add text$"
    ):
        build(tmp_path, texts[:2], tokenizer, "two")
    for name, count, next_sentence in (("nonsp", 2, False), ("four", 4, True)):
        corpus = build(tmp_path, texts[:count], tokenizer, name, no_nsp=not next_sentence)
        for split in ("train", "validation"):
            pairs = SegmentPairSampler(corpus.split(split), max_seq_length=128, seed=0, next_sentence=next_sentence)
            assert len(pairs.sample_buffer(0, 0)) > 0
    none = build(tmp_path, texts[:2], tokenizer, "none", validation_share=0.0)
    assert "no document is held out, and hfbert pretrain needs some" in none.manifest["warnings"][0]
    with pytest.raises(InputError, match="no split 'validation'.* from 4 documents or more .2 with --no_nsp"):
        none.split("validation")


def test_whole_words_that_are_single_ideographs_are_named(tmp_path, corpus, tokenizer):
    assert corpus.whole_word_note(tokenizer) is None
    chinese = ["孩子们走路去学校。水冷吗？我姐姐在看书。" + str(i) for i in range(20)]
    other = small_tokenizer(chinese)
    corpus = build(tmp_path, chinese, other)
    assert "continue a word (##), and 79% are ideographs" in corpus.whole_word_note(other)


# ---------------------------------------------------------------------------------------------------- recipe


def test_recipe(tmp_path, tokenizer, texts):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    text = write_text(tmp_path / "t.txt", texts)
    command = [sys.executable, RECIPE, "--text", text, "--tokenizer", tmp_path / "tokenizer", "--output_dir"]
    command += [tmp_path / "corpus", "--validation_share", "0.1"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unigram entropy" in done.stdout and " sequences of " in done.stdout.split("length 128: ")[1]
    corpus = Corpus.open(tmp_path / "corpus", tokenizer, 128)
    assert len(SegmentPairSampler(corpus.split("validation"), max_seq_length=128, seed=0).sample_buffer(0, 0)) > 0

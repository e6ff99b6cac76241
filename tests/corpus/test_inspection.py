"""hfbert inspect shows what is in the files: the same tokens, marks where the collator put them, true counts."""

import json
import re

import numpy as np
import pytest
from corpus_helpers import build, documents
from finetuning_helpers import call
from training_helpers import RECIPES

from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.inspection import (
    STYLES,
    describe_instance,
    inspect_batch,
    inspect_corpus,
    inspect_tokenizer,
    join_pieces,
    painted,
)
from hfbert_scratch.corpus.masking import collate
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    return build(tmp_path_factory.mktemp("inspected"), documents(60), tokenizer, validation_share=0.1)


def uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_documents_are_those_of_the_split(corpus, tokenizer):
    result = inspect_corpus(corpus, tokenizer, split="train", first=3, count=2)
    shard = corpus.split("train").shard(0)
    for number in (3, 4):
        begin, end = shard.documents[number : number + 2]
        expected = [
            tokenizer.decode(shard.tokens[shard.sentences[place] : shard.sentences[place + 1]])
            for place in range(begin, end)
        ]
        start = result.lines.index(
            f"document {number} of train: {end - begin} sentences, "
            f"{shard.sentences[end] - shard.sentences[begin]} tokens"
        )
        shown = [line[7:] for line in result.lines[start + 1 : start + 1 + len(expected)]]
        assert ["".join(line.split()) for line in shown] == ["".join(text.split()) for text in expected]
    counts = corpus.split("train").token_counts(len(tokenizer))
    token, share = next(iter(result.figures["most_frequent"].items()))
    assert tokenizer.convert_tokens_to_ids(token) == counts.argmax()
    assert share == pytest.approx(counts.max() / counts.sum(), abs=1e-6)
    special = set(tokenizer.all_special_ids)
    assert result.figures["never_used"] == sum(
        count == 0 and number not in special for number, count in enumerate(counts)
    )
    words = sum(
        int(count)
        for piece, count in zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), counts, strict=True)
        if not piece.startswith("##")
    )
    assert 1.2 < counts.sum() / words == pytest.approx(result.figures["pieces_per_word"], abs=1e-4)
    assert sum(result.histograms["tokens of the vocabulary by frequency"].values()) == len(tokenizer)
    with pytest.raises(InputError, match=r"--row 60: the split train has \d+ documents, numbered from 0"):
        inspect_corpus(corpus, tokenizer, split="train", first=60, count=1)


@pytest.mark.parametrize("paint", [painted, lambda text, style: text])
def test_an_instance_can_be_read_back_from_its_lines(corpus, tokenizer, paint):
    arguments = PretrainingDataArguments(seed=3)
    sampler = arguments.sampler(corpus.split("train"), 64)
    batch, lengths = collate(sampler, arguments.collator(tokenizer, 64), sampler.sample_buffer(0, 0)[:40])
    kinds = set()
    for row in range(40):
        heading, *segments = describe_instance(batch, row, int(lengths[row]), tokenizer, "instance", paint)
        label = ("IsNext", "NotNext")[batch["next_sentence_label"][row]]
        predicted = int((batch["labels"][row] != -100).sum())
        assert uncoloured(heading) == f"instance: {label}, {lengths[row]} tokens, {predicted} of them predicted"
        assert [uncoloured(line)[2] for line in segments] == ["A", "B"]
        marks = re.findall(r"\[([^\[\]→]+)→(\[MASK\]|[^\[\]]+)\]", uncoloured(" ".join(segments)))
        assert len(marks) == predicted
        ids = np.flatnonzero(batch["labels"][row] != -100)
        for place, (before, after) in zip(ids, marks, strict=True):
            assert after == tokenizer.convert_ids_to_tokens(int(batch["input_ids"][row, place]))
            assert before == tokenizer.convert_ids_to_tokens(int(batch["labels"][row, place])).removeprefix("##")
            kinds.add("mask" if after == "[MASK]" else "kept" if before == after.removeprefix("##") else "random")
        if paint is painted:
            codes = set(re.findall(r"\x1b\[([\d;]+)m", " ".join(segments)))
            assert codes <= {"0", *STYLES.values()}
    assert kinds == {"mask", "kept", "random"}


def test_rows_of_a_batch_are_numbered_through_the_epoch(corpus, tokenizer):
    options = {"max_seq_length": 64, "split": "train", "epoch": 1}
    arguments = PretrainingDataArguments()
    five = inspect_batch(corpus, tokenizer, arguments, first=0, count=5, **options).lines[:15]
    two = inspect_batch(corpus, tokenizer, arguments, first=3, count=2, **options)
    assert two.lines[:6] == five[9:]
    assert two.figures["masked_share_of_predicted"] == pytest.approx(0.8, abs=0.05)
    assert sum(two.histograms["instances by tokens"].values()) == two.figures["counted_instances"]
    with pytest.raises(InputError, match=r"--row 9999: epoch 1 has \d+ instances"):
        inspect_batch(corpus, tokenizer, arguments, first=9999, count=2, **options)


def test_pieces_are_joined_to_words_with_their_marks():
    assert join_pieces(["##a", "b", "##c", "##[d→[MASK]]", "."]) == "##a bc[d→[MASK]] ."


def test_the_tokenizer_and_the_command(corpus, tokenizer, tmp_path, monkeypatch, capsys):
    figures = inspect_tokenizer(tokenizer, corpus).figures
    assert figures["tokens"] == len(tokenizer) == sum(figures["tokens_by_characters"].values()) + 5
    assert figures["usage"]["unknown_share"] == corpus.manifest["splits"]["train"]["unk_rate"]
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    monkeypatch.syspath_prepend(str(RECIPES))
    common = ["--tokenizer", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "out"), "--rows", "1"]
    for words in (["corpus", str(corpus.directory)], ["batch", str(corpus.directory)]):
        assert call(monkeypatch, "inspect_data", [*words, *common]) == 0
        printed = capsys.readouterr().out
        assert "\x1b" not in printed and ("instance 0: " in printed or "document 0 of train: " in printed)
        assert json.loads((tmp_path / "out" / "inspection.json").read_text())
        assert (tmp_path / "out" / "inspection.png").read_bytes().startswith(b"\x89PNG")
    assert call(monkeypatch, "inspect_data", ["tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert f"{len(tokenizer):,} tokens" in capsys.readouterr().out
    assert call(monkeypatch, "inspect_data", ["text", "x"]) == 2
    assert "what is text; it must be corpus, batch or tokenizer" in capsys.readouterr().err

"""Sentence scores: the numbers of a plain loop over masks, and minimal pairs judged by them."""

import json

import pytest
import torch
from corpus_helpers import words
from finetuning_helpers import call, read
from task_helpers import write_jsonl

from hfbert_scratch import HFBertConfig, HFBertForMaskedLM, HFBertForSequenceClassification
from hfbert_scratch.scoring import open_language_model, score_sentences
from hfbert_scratch.text.tokenizer import save_tokenizer
from hfbert_scratch.utils.errors import InputError


WORDS = words(400)
# Of different lengths, with words of one and of several pieces, and one twice.
SENTENCES = [" ".join(WORDS[start : start + size]) + "." for start, size in ((0, 1), (10, 9), (30, 3), (50, 25))]
SENTENCES += ["Babababoku dadedidodu, bababoku!", SENTENCES[1]]


@pytest.fixture(scope="module", params=[False, True], ids=["masked", "left to right"])
def checkpoint(request, tokenizer, tmp_path_factory):
    """A random model with a wide head, so that no two tokens are equally probable."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = HFBertConfig(
        **sizes,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        initializer_range=0.3,
        left_to_right=request.param,
    )
    HFBertForMaskedLM(config).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def plain_scores(directory, tokenizer, sentence, method):
    """One token at a time, one sequence at a time, logits for everything, stock's attention."""
    model = HFBertForMaskedLM.from_pretrained(directory, attn_implementation="eager").eval()
    encoding = tokenizer(sentence, return_tensors="pt")
    ids, words = encoding["input_ids"][0], encoding.word_ids()
    scores = []
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        if method == "left_to_right":
            with torch.no_grad():
                logits = model(ids[None]).logits[0, place - 1]
        else:
            for later in range(place, len(ids) - 1):
                if later == place or (method == "within_word_l2r" and words[later] == words[place]):
                    masked[later] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(masked[None]).logits[0, place]
        scores.append(logits.log_softmax(-1)[ids[place]].item())
    return scores


@pytest.mark.parametrize("method", [None, "pll", "within_word_l2r"])
def test_scores_are_those_of_the_plain_loop(checkpoint, tokenizer, method):
    model = open_language_model(checkpoint)
    if model.config.left_to_right and method:
        with pytest.raises(InputError, match="which a left-to-right model has never seen"):
            score_sentences(model, tokenizer, SENTENCES, method=method)
        return
    plain = "left_to_right" if model.config.left_to_right else method or "pll"
    for batch_tokens in (40, 2048):
        scores = list(score_sentences(model, tokenizer, SENTENCES, method=method, batch_tokens=batch_tokens))
        assert len(scores) == len(SENTENCES)
        for sentence, score in zip(SENTENCES, scores, strict=True):
            expected = plain_scores(checkpoint, tokenizer, sentence, plain)
            assert tokenizer.decode(score.input_ids) == tokenizer.decode(tokenizer(sentence)["input_ids"][1:-1])
            assert score.log_probabilities.tolist() == pytest.approx(expected, abs=1e-4)
            assert score.total == pytest.approx(sum(expected), abs=1e-3)


def test_masking_the_rest_of_a_word_matters_for_words_of_several_pieces_alone(checkpoint, tokenizer):
    model = open_language_model(checkpoint)
    if model.config.left_to_right:
        return
    pll, within = (
        next(score_sentences(model, tokenizer, [SENTENCES[4]], method=method)) for method in ("pll", "within_word_l2r")
    )
    ids = tokenizer(SENTENCES[4]).word_ids()[1:-1]
    differs = (pll.log_probabilities != within.log_probabilities).tolist()
    assert differs == [word in ids[place + 1 :] for place, word in enumerate(ids)]


def pairs(count=4, **changes):
    return [
        {"sentence_good": SENTENCES[2], "sentence_bad": f"{SENTENCES[2]} {WORDS[60 + i]}", "UID": f"group_{i % 2}"}
        | changes
        for i in range(count)
    ]


def test_minimal_pairs_are_counted_by_group_and_ties_are_wrong(checkpoint, tmp_path, monkeypatch, capsys):
    # More tokens are less probable, here always; in the second file nothing differs.
    first = write_jsonl(tmp_path / "first.jsonl", pairs())
    tied = [{key: value for key, value in row.items() if key != "UID"} for row in pairs(2, sentence_bad=SENTENCES[2])]
    second = write_jsonl(tmp_path / "second.jsonl", tied)
    line = ["--model", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--pairs", str(first), str(second)]
    assert call(monkeypatch, "score", line) == 0
    results = read(tmp_path / "out" / "results.json")
    assert {name: (group["accuracy"], group["ties"]) for name, group in results["groups"].items()} == {
        "group_0": (1.0, 0),
        "group_1": (1.0, 0),
        "second": (0.0, 2),
    }
    assert results["accuracy"] == pytest.approx(2 / 3) and results["files"] == {"first": 1.0, "second": 0.0}
    assert "12/12 sentences" in capsys.readouterr().out
    # A run that was killed before the second file scores that alone.
    (tmp_path / "out" / "scores" / "second.jsonl").unlink()
    assert call(monkeypatch, "score", line) == 0
    assert read(tmp_path / "out" / "results.json")["groups"] == results["groups"]
    assert "9/12" not in capsys.readouterr().out
    assert call(monkeypatch, "score", [*line, "--precision", "bfloat16"]) == 6
    assert "holds scores with other settings (precision" in capsys.readouterr().err


def test_sentences_of_a_file_get_scores_of_tokens(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES) + "\n")
    line = ["--model", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--text", str(tmp_path / "text.txt")]
    assert call(monkeypatch, "score", line) == 0
    rows = [json.loads(row) for row in (tmp_path / "out" / "scores" / "text.jsonl").read_text().splitlines()]
    assert [row["sentence"] for row in rows] == SENTENCES
    assert rows[0]["score"] == pytest.approx(sum(rows[0]["log_probabilities"]), abs=1e-3)
    assert read(tmp_path / "out" / "results.json")["perplexity"] > 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"sentence_good": "a"}], "line 1 has no text under 'sentence_bad'"),
        ([{"sentence_good": "a", "sentence_bad": " "}], "line 1 has no text under 'sentence_bad'"),
        (["a"], "line 1 is a str"),
        ([], "holds no minimal pairs"),
        ([{"sentence_good": "ba", "sentence_bad": "ba " * 200}], "pairs: sentence 2 has 202 tokens; this model takes"),
    ],
)
def test_pairs_that_cannot_be_scored_are_named(checkpoint, tmp_path, monkeypatch, capsys, rows, message):
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    line = ["--model", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--pairs", str(path)]
    assert call(monkeypatch, "score", line) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_a_head_is_refused(tokenizer, tmp_path):
    config = HFBertConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1)
    HFBertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no language-model head"):
        open_language_model(tmp_path)

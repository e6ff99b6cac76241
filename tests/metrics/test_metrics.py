"""The metric modules: worked values, the rules where libraries differ, offline use."""

import re
import string
import warnings
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfbert_scratch.metrics
from hfbert_scratch.metrics import METRICS, load_metric
from hfbert_scratch.metrics.squad_scoring import best_threshold, normalize_answer, score_v1, score_v2
from hfbert_scratch.utils.errors import InputError


DIRECTORY = Path(hfbert_scratch.metrics.__file__).parent


def answers(*texts: str) -> dict:
    return {"text": list(texts), "answer_start": [0] * len(texts)}


# ------------------------------------------------------------------------------------------------------------- GLUE


@pytest.mark.parametrize(
    ("config", "predictions", "references", "expected"),
    [
        ("sst2", [1, 0, 1, 1], [1, 0, 0, 1], {"accuracy": 0.75}),
        # 2 true positives, 1 false positive, 1 false negative
        ("mrpc", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], {"accuracy": 0.6, "f1": 2 / 3}),
        ("qqp", [0, 0], [1, 1], {"accuracy": 0.0, "f1": 0.0}),
        # (2·2 − 1·1) / sqrt(3·3·3·3)
        ("cola", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], {"matthews_correlation": 1 / 3}),
        # three classes: (c·s − Σ p_k t_k) / …, with c = 3 right of s = 6 and two per class: (18 − 12) / (36 − 12)
        ("ax", [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0], {"matthews_correlation": 0.25}),
        ("mnli", [2, 1], [2, 0], {"accuracy": 0.5}),
        ("stsb", [1.0, 2.0, 4.0], [0.5, 1.0, 2.0], {"pearson": 1.0, "spearmanr": 1.0}),
        ("stsb", [3.0, 2.0, 1.0], [1.0, 2.0, 9.0], {"pearson": -0.9176629354822471, "spearmanr": -1.0}),
    ],
)
def test_glue_values(config, predictions, references, expected):
    result = load_metric("glue", config).compute(predictions=predictions, references=references)
    assert result == pytest.approx(expected)


@pytest.mark.parametrize("config", ["cola", "stsb", "ax", "classification"])
def test_constant_input_is_zero_with_a_warning(config):
    with pytest.warns(UserWarning, match="0"):
        result = load_metric("glue", config).compute(predictions=[1, 1, 1], references=[0, 1, 0])
    correlations = [
        value for name, value in result.items() if name in ("matthews_correlation", "pearson", "spearmanr")
    ]
    assert correlations and set(correlations) == {0.0}


@pytest.mark.parametrize(
    ("config", "predictions", "references", "message"),
    [
        ("sst2", [0.7, 1], [1, 1], r"predictions\[0\] is 0.7"),
        ("sst2", [0, 1], [1, -1], r"references\[1\] is -1"),
        ("stsb", [0, float("nan")], [1, 2], r"predictions\[1\] is not a finite"),
        ("rte", [], [], "nothing to score"),
    ],
)
def test_glue_refuses_what_is_no_label(config, predictions, references, message):
    metric = load_metric("glue", config)
    with pytest.raises(InputError, match=message):
        metric.compute(predictions=predictions, references=references)
    # and can be used again after the error
    assert metric.compute(predictions=[0, 1], references=[0, 1])


def test_regression_keeps_double_precision():
    predictions = np.array([1.0, 1.0 + 1e-9, 1.0 + 2e-9])
    result = load_metric("glue", "regression").compute(predictions=predictions, references=[1, 2, 3])
    assert result["spearmanr"] == pytest.approx(1.0)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="glue, squad"):
        load_metric("rouge")
    with pytest.raises(InputError, match="mrpc"):
        load_metric("glue", "mprc")


@pytest.mark.parametrize("name", METRICS)
def test_loads_by_path_without_network(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "unwritable"))
    load_metric(name, "rte")
    assert not (tmp_path / "unwritable").exists()
    by_path = evaluate.load(str(DIRECTORY / name), "rte", cache_dir=str(tmp_path), keep_in_memory=True)
    assert set(by_path.features) == {"predictions", "references"}


# ------------------------------------------------------------------------------------------------------------ SQuAD


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("1990-1995", "19901995"),
        ("“a quote” – an end", "“ quote” – end"),
        ("  An   a the ", ""),
        ("Theatre and a-b", "theatre and ab"),
        ("STRASSE ß É", "strasse ß é"),
    ],
)
def test_normalize_answer(text, normal):
    assert normalize_answer(text) == normal


def test_best_over_golds_is_taken_for_each_score_by_itself():
    assert score_v1("the big red dog", ["red dog", "big red dog"]) == (1.0, 1.0)
    exact, f1 = score_v1("big dog", ["red dog house", "dog"])
    assert exact == 0.0 and f1 == pytest.approx(2 / 3)


def test_answers_that_normalize_to_nothing():
    assert score_v1("the", ["a"]) == (1.0, 0.0)
    assert score_v2("the", ["a"]) == (1.0, 1.0)
    assert score_v2("", []) == (1.0, 1.0)
    assert score_v2("dog", ["the"]) == (0.0, 0.0)
    assert score_v2("", ["dog", "the"]) == (0.0, 0.0)


_TEXTS = st.text(alphabet="the an.,-“AB ", max_size=12)


def _reference(prediction: str, gold: str) -> tuple[float, float]:
    """The 1.1 rules once more, written down step by step."""

    def normal(text):
        text = "".join(character for character in text.lower() if character not in string.punctuation)
        return " ".join(word for word in re.split(r"\b(?:a|an|the)\b", text)).split()

    mine, theirs = normal(prediction), normal(gold)
    shared = sum((Counter(mine) & Counter(theirs)).values())
    f1 = 2 * shared / (len(mine) + len(theirs)) if shared else 0.0
    return float(" ".join(mine) == " ".join(theirs)), f1


@settings(max_examples=300, deadline=None)
@given(_TEXTS, st.lists(_TEXTS, min_size=1, max_size=3))
def test_scores_agree_with_the_rules_step_by_step(prediction, golds):
    each = [_reference(prediction, gold) for gold in golds]
    exact, f1 = score_v1(prediction, golds)
    assert exact == max(score for score, _ in each)
    assert f1 == pytest.approx(max(score for _, score in each))


def test_squad_pairs_by_id_and_counts_missing_predictions():
    references = [{"id": "a", "answers": answers("one", "One two")}, {"id": "b", "answers": answers("the")}]
    predictions = [{"id": "x", "prediction_text": "one"}, {"id": "a", "prediction_text": "two"}]
    with pytest.warns(UserWarning, match="1 of 2 questions"):
        result = load_metric("squad").compute(predictions=predictions, references=references)
    assert result == pytest.approx({"exact_match": 0.0, "f1": 100 / 3})


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_no_questions_are_no_score(name):
    with pytest.raises(InputError, match="no references"):
        load_metric(name).compute(predictions=[], references=[])


def test_squad_v1_refuses_a_question_without_answer():
    with pytest.raises(InputError, match="reference q7 has no answer.*squad_v2"):
        load_metric("squad").compute(
            predictions=[{"id": "q7", "prediction_text": ""}], references=[{"id": "q7", "answers": answers()}]
        )


def test_squad_v2_values():
    references = [
        {"id": "1", "answers": answers("red dog")},
        {"id": "2", "answers": answers("cat")},
        {"id": "3", "answers": answers()},
        {"id": "4", "answers": answers()},
    ]
    rows = [("1", "dog", -5.0), ("2", "cat", 3.0), ("3", "bird", 1.0), ("4", "fish", -2.0)]
    predictions = [{"id": i, "prediction_text": text, "no_answer_probability": p} for i, text, p in rows]
    result = load_metric("squad_v2").compute(predictions=predictions, references=references, no_answer_threshold=0.0)
    # 1 answered, half right; 2 wrongly refused; 3 rightly refused; 4 wrongly answered
    assert result == pytest.approx(
        {
            "exact": 25.0,
            "f1": 100 * (2 / 3 + 1) / 4,
            "total": 4,
            "HasAns_exact": 0.0,
            "HasAns_f1": 100 / 3,
            "HasAns_total": 2,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
            # answering nothing: 2 of 4; answering 1: F1 + 2/3
            "best_exact": 50.0,
            "best_exact_thresh": -np.inf,
            "best_f1": 100 * (2 / 3 + 2) / 4,
            "best_f1_thresh": -5.0,
        }
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0, np.inf]), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()
        ),
        min_size=1,
        max_size=12,
    )
)
def test_best_threshold_is_the_best_a_threshold_can_reach(rows):
    difference, answered, unanswered = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    threshold, score, thresholds, scores = best_threshold(difference, answered, unanswered)

    def reached(at: float) -> float:
        return float(np.where(difference > at, unanswered, answered).mean())

    assert score == pytest.approx(max(reached(at) for at in [-np.inf, *difference[difference < np.inf]]))
    assert score == pytest.approx(reached(threshold))
    assert [reached(at) for at in thresholds] == pytest.approx(list(scores))


def test_ties_share_a_side():
    # The naive sweep answers tied examples one by one and would report 1.0 here.
    difference, answered, unanswered = np.zeros(2), np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert best_threshold(difference, answered, unanswered)[1] == 0.5


# -------------------------------------------------------------------------------------------------------------- NER


def test_ner_counts_entities_not_tags():
    result = load_metric("ner").compute(
        predictions=[["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]],
        references=[["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG"]],
    )
    assert result == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "accuracy": 4 / 6})


def test_ner_reads_tags_as_conlleval_does():
    # I- after O or after another type opens an entity, and none crosses a sentence.
    result = load_metric("ner").compute(
        predictions=[["O", "I-PER", "I-LOC"], ["I-LOC"]], references=[["O", "B-PER", "B-LOC"], ["B-LOC"]]
    )
    assert result["f1"] == 1.0 and result["accuracy"] == 0.25


def test_ner_without_entities_is_zero_and_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = load_metric("ner").compute(predictions=[["O", "O"], []], references=[["O", "O"], []])
    assert result == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}


def test_ner_refuses_lengths_that_differ():
    with pytest.raises(InputError, match="sentence 1 has 2 tags but 1"):
        load_metric("ner").compute(predictions=[["O"], ["O"]], references=[["O"], ["O", "O"]])


def test_ner_counts_every_type_and_is_strict_if_asked_to():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "O"]]
    predictions = [["B-PER", "I-PER", "O", "I-LOC"], ["B-PER", "O", "B-ORG"]]
    metric = load_metric("ner")
    lenient = metric.compute(predictions=predictions, references=references, per_type=True)
    assert lenient["types"] == {
        "LOC": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "ORG": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        "PER": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    }
    assert {name: lenient[name] for name in ("precision", "recall")} == pytest.approx(
        {"precision": 0.5, "recall": 2 / 3}
    )
    # An I- that begins an entity is none in IOB2: the LOC is gone.
    strict = metric.compute(predictions=predictions, references=references, mode="strict", per_type=True)
    assert strict["types"]["LOC"]["recall"] == 0.0
    assert (strict["precision"], strict["recall"]) == pytest.approx((1 / 3, 1 / 3))
    with pytest.raises(InputError, match="mode 'lax'"):
        metric.compute(predictions=predictions, references=references, mode="lax")
    with pytest.raises(InputError, match="not those of IOB2: .*S-LOC"):
        metric.compute(predictions=[["S-LOC"]], references=[["O"]], mode="strict")


@pytest.mark.parametrize(
    ("tags", "types"),
    [
        # Types without a prefix: seqeval takes "ORG" for O by its first letter, and "PER" for a P- of type ER.
        (["ORG", "ORG", "O", "PER"], {"ORG": 1, "PER": 1}),
        # BILOU and BMES: two entities of one word side by side are two.
        (["U-ORG", "U-ORG", "B-PER", "L-PER"], {"ORG": 2, "PER": 1}),
        (["S-ORG", "B-PER", "M-PER", "E-PER"], {"ORG": 1, "PER": 1}),
    ],
)
def test_ner_knows_the_ways_to_write_tags(tags, types):
    metric = load_metric("ner")
    actual = metric.compute(predictions=[tags], references=[tags], per_type=True)["types"]
    assert {name: entry["support"] for name, entry in actual.items()} == types
    assert all(entry["f1"] == 1.0 for entry in actual.values())
    if "-" in tags[0]:
        strict = metric.compute(predictions=[tags], references=[tags], mode="strict", scheme="IOBES", per_type=True)
        assert strict["types"] == actual


def test_classes_by_themselves():
    result = load_metric("glue", "sst2").compute(predictions=[0, 0, 1, 2], references=[0, 1, 1, 0], per_class=4)
    assert result["accuracy"] == 0.5
    assert result["classes"][:2] == [
        {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
    ]
    assert result["classes"][3] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}

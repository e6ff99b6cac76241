"""Question answering: windows, labels, the search for spans, nulls and thresholds, files."""

import gzip
import json

import numpy as np
import pytest
from corpus_helpers import documents
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from task_helpers import settings, write_jsonl

from hfbert_scratch.tasks import Answers, DataArguments, collect_notes, get_task
from hfbert_scratch.tasks.squad_spans import answer_tokens, best_spans, max_context_windows, windows
from hfbert_scratch.utils.errors import InputError


TASK = get_task("squad")


def question(context: str, *answers: tuple[str, int], text: str = "ba be bi", name: str = "q") -> dict:
    golds = {"text": [answer for answer, _ in answers], "answer_start": [start for _, start in answers]}
    return {"id": name, "question": text, "context": context, "answers": golds}


def load_rows(tmp_path, rows, split="validation", task=TASK):
    path = write_jsonl(tmp_path / f"{split}.jsonl", rows)
    return task.load(DataArguments(**{f"{split}_file": str(path)}))[split]


# ----------------------------------------------------------------------------------------------------------- windows


def _google_windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The original code's loop."""
    spans, start = [], 0
    while True:
        size = min(length - start, room)
        spans.append((start, start + size))
        if start + size == length:
            return spans
        start += min(size, stride)


def _google_max_context(position: int, spans: list[tuple[int, int]]) -> int:
    best, chosen = None, None
    for number, (start, end) in enumerate(spans):
        if start <= position < end:
            score = min(position - start, end - 1 - position) + 0.01 * (end - start)
            if best is None or score > best:
                best, chosen = score, number
    return chosen


def test_the_step_is_the_stride():
    # As overlap, 384/128 would give 3 windows.
    assert len(windows(828, 384 - 3 - 12, 128)) == 5
    assert windows(0, 10, 5) == [(0, 0)]
    assert windows(10, 10, 5) == [(0, 10)]
    assert windows(11, 10, 5) == [(0, 10), (5, 11)]
    assert windows(25, 10, 128) == [(0, 10), (10, 20), (20, 25)]


@given(st.integers(0, 200), st.integers(1, 60), st.integers(1, 80))
@hypothesis_settings(max_examples=300, deadline=None)
def test_windows_and_max_context_are_the_originals(length, room, stride):
    spans = windows(length, room, stride)
    assert spans == (_google_windows(length, room, stride) if length else [(0, 0)])
    chosen = max_context_windows(length, spans)
    assert chosen.tolist() == [_google_max_context(position, spans) for position in range(length)]


def test_answer_tokens():
    #         "The Japanese, 1990"
    starts, ends = np.array([0, 4, 9, 12, 14]), np.array([3, 9, 12, 13, 18])
    assert answer_tokens(starts, ends, 4, 9) == (1, 1)  # Japan
    assert answer_tokens(starts, ends, 5, 11) == (1, 2)  # apanes: pieces are labelled whole
    assert answer_tokens(starts, ends, 3, 18) == (1, 4)  # with the blank before it
    assert answer_tokens(starts, ends, 13, 14) is None  # only the blank


# ------------------------------------------------------------------------------------------------------- span search


def brute_force(start, end, may_start, count, max_length):
    found = [
        (float(start[i]) + float(end[j]), i, j)
        for i in range(len(start))
        if may_start[i]
        for j in range(i, min(i + max_length, len(start)))
    ]
    return sorted(found, key=lambda span: (-span[0], span[1], span[2]))[:count]


@given(st.integers(0, 2**32 - 1), st.integers(0, 25), st.integers(1, 30), st.integers(1, 8), st.booleans())
@hypothesis_settings(max_examples=300, deadline=None)
def test_span_search_is_exhaustive(seed, length, count, max_length, ties):
    rng = np.random.default_rng(seed)
    start, end = rng.standard_normal((2, length)).astype(np.float32)
    if ties:
        start, end = np.round(start), np.round(end)
    may_start = rng.random(length) < 0.6
    expected = brute_force(start, end, may_start, count, max_length)
    found = best_spans(start, end, may_start, count, max_length)
    assert [(span.score, span.start, span.end) for span in found] == expected
    assert [span.start_logit + span.end_logit for span in found] == pytest.approx([span.score for span in found])


# ---------------------------------------------------------------------------------------------------------- features

CONTEXT = " ".join(documents(6, seed=1, sentences=(4, 6)))


def test_windows_hold_the_context_and_the_labels_the_answer(tmp_path, tokenizer):
    word = CONTEXT.split()[60]
    start = CONTEXT.index(word)
    rows = [question(CONTEXT, (word, start), name="a"), question(CONTEXT, name="b")]
    raw = load_rows(tmp_path, rows, "train")
    options = settings(tmp_path, 64, doc_stride=16, max_query_length=8)
    train = TASK.features(raw, tokenizer, options, training=True)
    test = TASK.features(raw, tokenizer, options)
    assert train["input_ids"][:] == test["input_ids"][:] and len(train) > 8
    stock = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)
    asked = tokenizer("ba be bi", add_special_tokens=False)["input_ids"]
    room = 64 - 3 - len(asked)
    spans = windows(len(stock["input_ids"]), room, 16)
    assert len(train) == 2 * len(spans)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    found = 0
    for number, (feature, other) in enumerate(zip(train, test, strict=True)):
        begin, end = spans[number % len(spans)]
        assert feature["input_ids"] == [cls, *asked, sep, *stock["input_ids"][begin:end], sep]
        assert feature["token_type_ids"] == [0] * (len(asked) + 2) + [1] * (end - begin + 1)
        assert feature["example"] == number // len(spans)
        assert list(zip(other["starts"], other["ends"], strict=True)) == stock["offset_mapping"][begin:end]
        first, last = feature["start_positions"], feature["end_positions"]
        if (first, last) != (0, 0):
            found += 1
            at = other["context_first"]
            assert CONTEXT[other["starts"][first - at] : other["ends"][last - at]] == word
        else:
            assert feature["example"] == 1 or not (
                other["starts"][0] <= start and start + len(word) <= other["ends"][-1]
            )
    assert found >= 1
    # Every context token has its maximal context in one window exactly.
    per_example = [
        sum(sum(test[n]["max_context"]) for n in range(k * len(spans), (k + 1) * len(spans))) for k in (0, 1)
    ]
    assert per_example == [len(stock["input_ids"])] * 2


def test_an_answer_is_labelled_where_the_window_holds_all_of_it(tmp_path, tokenizer):
    stock = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    runs = [(first, first + length) for first in range(0, 100) for length in (0, 3)]
    texts = [(stock[first][0], CONTEXT[stock[first][0] : stock[last][1]]) for first, last in runs]
    rows = [question(CONTEXT, (text, at), name=str(number)) for number, (at, text) in enumerate(texts)]
    raw = load_rows(tmp_path, rows, "train")
    options = settings(tmp_path, 64, doc_stride=16, max_query_length=8)
    features = TASK.features(raw, tokenizer, options, training=True)
    first_context = len(tokenizer("ba be bi")["input_ids"])
    spans = windows(len(stock), 64 - 1 - first_context, 16)
    expected = [
        (first - begin + first_context, last - begin + first_context) if begin <= first and last < end else (0, 0)
        for first, last in runs
        for begin, end in spans
    ]
    assert list(zip(features["start_positions"], features["end_positions"], strict=True)) == expected


def test_odd_characters_keep_their_offsets(tmp_path, tokenizer):
    context = "É ba\u0301  👩‍👩‍👧 中文 ko\u200bko be"
    raw = load_rows(tmp_path, [question(context, ("be", context.index("be")))], "train")
    feature = TASK.features(raw, tokenizer, settings(tmp_path, 80))[0]
    for start, end in zip(feature["starts"], feature["ends"], strict=True):
        assert 0 <= start < end <= len(context)
    assert context[feature["starts"][-1] : feature["ends"][-1]].endswith("e")
    train = TASK.features(raw, tokenizer, settings(tmp_path, 80), training=True)[0]
    assert train["end_positions"] == len(train["input_ids"]) - 2


def test_empty_context_and_long_question(tmp_path, tokenizer):
    rows = [question("", name="empty"), question(CONTEXT[:50], text="ba " * 300, name="long")]
    raw = load_rows(tmp_path, rows, task=get_task("squad_v2"))
    options = settings(tmp_path, 68)
    features = TASK.features(raw, tokenizer, options)
    assert features["example"][:][0] == 0 and features["example"][:][1:] == [1] * (len(features) - 1)
    assert features[0]["starts"] == [] and features[0]["input_ids"].count(tokenizer.sep_token_id) == 2
    # 64 tokens of the question and one of the context
    assert {len(ids) for ids in features["input_ids"][:][1:]} == {68}
    outputs = {name: [np.zeros(len(ids)) for ids in features["input_ids"]] for name in ("start_logits", "end_logits")}
    answers = TASK.predict(raw, features, outputs)
    assert answers.texts[0] == "" and answers.differences[0] == np.inf and answers.final()[0] == ""
    assert [entry.text for entry in answers.n_best[0]] == [""]
    trained = TASK.features(raw, tokenizer, options, training=True)
    assert set(trained["start_positions"]) == {0}


def test_too_little_room_is_refused(tmp_path, tokenizer):
    raw = load_rows(tmp_path, [question("ba", ("ba", 0))])
    with pytest.raises(InputError, match="max_seq_length 67 leaves no room .* it must be at least 68"):
        TASK.features(raw, tokenizer, settings(tmp_path, 67))
    with pytest.raises(InputError, match="doc_stride is 0; it must be at least 1"):
        settings(tmp_path, 128, doc_stride=0)


# ------------------------------------------------------------------------------------------------------- predictions


def reference_predictions(raw, features, outputs):
    """Per row by plain loops over windows, starts and ends."""
    results = []
    for example, context in enumerate(raw["context"]):
        best, null = None, np.inf
        for number, feature in enumerate(features):
            if feature["example"] != example:
                continue
            start, end = outputs["start_logits"][number], outputs["end_logits"][number]
            null = min(null, float(start[0]) + float(end[0]))
            first = feature["context_first"]
            for i in range(len(feature["starts"])):
                for j in range(i, min(i + 30, len(feature["starts"]))):
                    score = float(start[first + i]) + float(end[first + j])
                    if feature["max_context"][i] and (best is None or score > best[0]):
                        best = (score, context[feature["starts"][i] : feature["ends"][j]])
        results.append(("", np.inf) if best is None else (best[1], null - best[0]))
    return results


def test_predictions_equal_plain_loops(tmp_path, tokenizer):
    texts = documents(5, seed=2, sentences=(3, 8))
    rows = [question(text, name=str(number)) for number, text in enumerate([*texts, ""])]
    raw = load_rows(tmp_path, rows, task=get_task("squad_v2"))
    features = TASK.features(raw, tokenizer, settings(tmp_path, 48, doc_stride=12, max_query_length=10))
    rng = np.random.default_rng(0)
    # Padded rows, whose padding must not matter.
    outputs = {
        name: rng.standard_normal((len(features), 60)).astype(np.float32) for name in ("start_logits", "end_logits")
    }
    answers = TASK.predict(raw, features, outputs)
    expected = reference_predictions(raw, features, outputs)
    assert answers.texts == [text for text, _ in expected]
    assert answers.differences == pytest.approx([difference for _, difference in expected])
    assert answers.unanswerable
    for text, entries in zip(answers.texts, answers.n_best, strict=True):
        assert sum(entry.probability for entry in entries) == pytest.approx(1)
        scores = [entry.start_logit + entry.end_logit for entry in entries]
        assert scores == sorted(scores, reverse=True) and len({entry.text for entry in entries}) == len(entries) <= 21
        assert text == next((entry.text for entry in entries if entry.text), "") and "" in {e.text for e in entries}
    # The features' order does not matter, only whose they are.
    order = rng.permutation(len(features))
    shuffled = TASK.predict(raw, features.select(order), {name: rows[order] for name, rows in outputs.items()})
    assert shuffled.texts == answers.texts and np.array_equal(shuffled.differences, answers.differences)


def test_the_right_logits_give_the_right_answers(tmp_path, tokenizer):
    word = CONTEXT.split()[70].rstrip(".")
    rows = [question(CONTEXT, (word, CONTEXT.index(word)), ("other", 0), name="a"), question(CONTEXT, name="b")]
    raw = load_rows(tmp_path, rows, "train")
    options = settings(tmp_path, 64, doc_stride=16, max_query_length=8)
    train, test = TASK.features(raw, tokenizer, options, training=True), TASK.features(raw, tokenizer, options)
    outputs = {
        f"{side}_logits": [10.0 * (np.arange(len(f["input_ids"])) == f[f"{side}_positions"]) for f in train]
        for side in ("start", "end")
    }
    answers = TASK.predict(raw, test, outputs)
    assert answers.texts[0] == word
    # A window without the answer says "none" with 20, one with it says 0: the lowest counts.
    assert answers.differences.tolist() == [-20.0, 20.0] and answers.final() == [word, ""]
    scores = TASK.score(raw, answers)
    assert scores["exact"] == scores["f1"] == scores["best_f1"] == 100.0
    assert (scores["HasAns_total"], scores["NoAns_total"]) == (1, 1)
    threshold, f1, thresholds, curve = TASK.threshold_curve(raw, answers)
    assert (threshold, f1) == (-20.0, 100.0)
    assert thresholds.tolist() == [-np.inf, -20.0, 20.0] and curve.tolist() == [50.0, 100.0, 50.0]
    answers.threshold = 20.0  # equal is not above: answered
    assert answers.final()[1] != "" and TASK.score(raw, answers)["NoAns_f1"] == 0.0


def test_the_version_follows_from_the_data(tmp_path):
    one = load_rows(tmp_path, [question("ba be", ("ba", 0))], task=get_task("squad_v2"))
    two = load_rows(tmp_path, [question("ba be", ("ba", 0)), question("ba", name="r")])
    assert not get_task("squad_v2").has_unanswerable(one) and TASK.has_unanswerable(two)
    assert set(TASK.score(one, Answers(["ba"], np.zeros(1), [], False))) == {"exact_match", "f1"}
    blind = load_rows(tmp_path, [{"id": "a", "question": "q", "context": "c"}], "test")
    assert get_task("squad_v2").has_unanswerable(blind) and not TASK.has_unanswerable(blind)
    for hidden in (None, {"text": [], "answer_start": []}):
        assert not TASK.is_labelled(load_rows(tmp_path, [question("c") | {"answers": hidden}], "test"))
    with pytest.raises(InputError, match="has no labels"):
        TASK.score(blind, Answers([""], np.zeros(1), [], False))


def test_prediction_files(tmp_path, tokenizer):
    raw = load_rows(tmp_path, [question("ba be", ("ba", 0), name="é"), question("", name="r")])
    features = TASK.features(raw, tokenizer, settings(tmp_path, 80))
    outputs = {
        name: [np.arange(len(ids)) * 1.0 for ids in features["input_ids"]] for name in ("start_logits", "end_logits")
    }
    answers = TASK.predict(raw, features, outputs)
    paths = TASK.write_predictions(tmp_path / "out", raw, answers, "validation")
    names = [f"{name}_validation.json" for name in ("predictions", "nbest_predictions", "null_odds")]
    assert [path.name for path in paths] == names
    predictions, n_best, odds = (json.loads(path.read_text()) for path in paths)
    assert predictions == {"é": "be", "r": ""}
    assert list(n_best["é"][0]) == ["text", "probability", "start_logit", "end_logit"]
    assert odds["é"] < 0 and odds["r"] == np.inf


# ------------------------------------------------------------------------------------------------------------- files


def original(version: str = "1.1", **changes) -> dict:
    qas = [
        {
            "id": "a",
            "question": "who?",
            "answers": [{"text": "ba", "answer_start": 0}, {"text": "be", "answer_start": 3}],
        },
    ]
    if version == "2.0":
        plausible = [{"text": "ba", "answer_start": 0}]
        qas.append({"id": "b", "question": "x", "answers": [], "plausible_answers": plausible, "is_impossible": True})
    qas[0] |= changes
    return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": "ba be", "qas": qas}]}]}


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_original_json(version, tmp_path):
    (tmp_path / f"dev-v{version}.json").write_text(json.dumps(original(version)))
    (tmp_path / f"train-v{version}.json.gz").write_bytes(gzip.compress(json.dumps(original(version)).encode()))
    raw = TASK.load(DataArguments(data_dir=str(tmp_path)))
    assert list(raw) == ["train", "validation"]
    rows = [
        {"id": "a", "question": "who?", "context": "ba be", "answers": {"text": ["ba", "be"], "answer_start": [0, 3]}}
    ]
    if version == "2.0":
        rows.append({"id": "b", "question": "x", "context": "ba be", "answers": {"text": [], "answer_start": []}})
    assert raw["validation"].to_list() == raw["train"].to_list() == rows
    # The Hub's schema holds the same.
    assert load_rows(tmp_path, rows)._fingerprint == raw["validation"]._fingerprint


def test_a_list_of_answers_and_own_columns(tmp_path):
    rows = [{"q": "who", "passage": "ba", "gold": [{"text": "ba", "answer_start": 0}]}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = DataArguments(train_file=str(path), columns=["question=q", "context=passage", "answers=gold"])
    raw = get_task("custom-qa").load(data)["train"]
    answers = {"text": ["ba"], "answer_start": [0]}
    assert raw.to_list() == [{"id": "0", "question": "who", "context": "ba", "answers": answers}]


FLAT = [question("It is ba be.", ("ba", 6), name="a"), question("It is ba be.", ("be", 9), name="b")]
PARAGRAPH = {
    "context": "It is ba be.",
    "qas": [
        {"id": "a", "question": "ba be bi", "answers": [{"text": "ba", "answer_start": 6}]},
        {"id": "b", "question": "ba be bi", "answers": [{"text": "be", "answer_start": 9}]},
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flat.json", json.dumps({"version": "1", "data": FLAT})),
        ("flat.json", json.dumps({"version": "1", "data": FLAT}, indent=2)),
        ("list.json", json.dumps(FLAT)),
        ("paragraphs.json", json.dumps([PARAGRAPH])),
        ("paragraphs.json", json.dumps({"data": [PARAGRAPH]}, indent=1)),
        ("paragraphs.jsonl", json.dumps(PARAGRAPH) + "\n"),
        ("squad.json", json.dumps({"data": [{"title": "t", "paragraphs": [PARAGRAPH]}]})),
        ("places.json", json.dumps({"data": FLAT}).replace("[6]", "[6.0]").replace("[9]", "[9.0]")),
        ("places.json", json.dumps([PARAGRAPH]).replace(": 6}", ': "6"}').replace(": 9}", ': "9"}')),
        ("single.jsonl", "\n".join(json.dumps(row) for row in FLAT).replace("[", "").replace("]", "")),
    ],
)
def test_questions_as_projects_write_them(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert get_task("custom-qa").load(DataArguments(train_file=str(tmp_path / name)))["train"].to_list() == FLAT


@pytest.mark.parametrize(
    ("false", "true"),
    [(False, True), ("false", "true"), ("False", "TRUE"), (0, 1), ("0", "1"), (None, 1.0), ("no", "yes")],
)
def test_plausible_answers_are_no_answers(false, true, tmp_path):
    expected = [FLAT[0]["answers"], {"text": [], "answer_start": []}]
    rows = [FLAT[0] | {"is_impossible": false}, FLAT[1] | {"is_impossible": true}]
    assert load_rows(tmp_path, rows, "train")["answers"][:] == expected
    marks = zip(PARAGRAPH["qas"], (false, true), strict=True)
    paragraph = PARAGRAPH | {"qas": [question | {"is_impossible": mark} for question, mark in marks]}
    assert load_rows(tmp_path, [paragraph], "train")["answers"][:] == expected


def test_ids_and_answers_of_several_types_go_together(tmp_path):
    one = question("It is ba be.", ("be", 9), name="c")
    forms = [one["answers"], [{"text": "be", "answer_start": "9"}], {"text": "be", "answer_start": 9.0}]
    forms.append(json.dumps(one["answers"]))
    rows = [*FLAT, *(one | {"id": number, "answers": answers} for number, answers in enumerate(forms))]
    raw = load_rows(tmp_path, rows, "train")
    assert raw["id"][:] == ["a", "b", "0", "1", "2", "3"] and raw["answers"][2:] == [one["answers"]] * 4
    qas = [*PARAGRAPH["qas"], {"id": "c", "question": "q", "answer": "be"}]
    with pytest.raises(
        InputError, match="1 questions have no field 'answers', while others have it; the first is 'c'"
    ):
        load_rows(tmp_path, [PARAGRAPH | {"qas": qas}], "train")


@pytest.mark.parametrize(
    ("context", "text", "start", "count"),
    [
        ("café ba be", "be", 9, "bytes of UTF-8"),
        ("東京は日本の首都", "首都", 18, "bytes of UTF-8"),
        ("😀😀 ba be", "be", 8, "UTF-16 units"),
        ("a\nb\nba be", "be", 9, "every line end as two characters"),
        ("xx が ba be", "be", 9, "the characters of Unicode's form NFD"),
        ("cafe\u0301 xe\u0301 xe\u0301 ba be", "be", 14, "the characters of Unicode's form NFC"),
        ("xx ba be", "be", 7, "from 1"),
    ],
)
def test_the_way_in_which_misplaced_answers_are_counted_is_named(context, text, start, count, tmp_path):
    rows = [*FLAT, question(context, (text, start), name="c"), question("xx", ("yy", 0), name="d")]
    with collect_notes() as notes:
        load_rows(tmp_path, rows, "train")
    assert f"at answer_start: c, d; in 1 of these, answer_start counts {count}" in notes.left_out[0]["reason"]


@pytest.mark.parametrize("none", [([""], [-1]), ([""], [0]), ([" "], [3]), ([], []), ([None], [None])])
def test_every_way_to_say_that_there_is_no_answer(none, tmp_path, capsys):
    rows = [*FLAT, question("c", name="c") | {"answers": dict(zip(("text", "answer_start"), none, strict=True))}]
    raw = load_rows(tmp_path, rows, "train")
    assert raw["answers"][2] == {"text": [], "answer_start": []} and TASK.has_unanswerable(raw)
    assert not capsys.readouterr().out
    assert not TASK.is_labelled(load_rows(tmp_path, rows[2:], "test"))
    with pytest.raises(InputError, match="split train: no question has an answer"):
        TASK.check_training(load_rows(tmp_path, rows[2:], "train"))


@pytest.mark.parametrize(
    ("context", "text", "start", "found"),
    [
        ("It is ba be.", " ba", 5, ("ba", 6)),
        ("It is ba be.", "ba ", 6, ("ba", 6)),
        ("It is ba be.", "ba", 5, ("ba", 6)),
        ("It is ba  be.", "ba be", 6, ("ba  be", 6)),
        ("  It is ba be.", "ba", 6, ("ba", 8)),  # counted in the stripped context
        ("It  is\r\nba be.", "be", 9, ("be", 11)),  # counted with each run of blanks as one
        ("It is ba be.", "ba", 7, None),
        ("It is ba be.", "Ba", 6, None),
        ("It is ba be.", "ba", 500, None),
    ],
)
def test_answers_that_are_off_by_blanks_are_found(context, text, start, found, tmp_path, capsys):
    rows = [*FLAT, question(context, (text, start), name="c")]
    raw = load_rows(tmp_path, rows, "train")
    printed = capsys.readouterr().out
    if found is None:
        assert len(raw) == 2 and "left out 1 rows" in printed
    else:
        assert raw[2]["answers"] == {"text": [found[0]], "answer_start": [found[1]]}
        assert "1 answers were off by blanks" in printed


def test_what_no_window_holds_is_counted(tmp_path, tokenizer):
    long = CONTEXT[: CONTEXT.index(" ", 300)]
    rows = [question(CONTEXT, (long, 0), name="a"), question(CONTEXT, (CONTEXT.split()[0], 0), text="ba " * 30)]
    raw = load_rows(tmp_path, rows, "train")
    features = TASK.features(raw, tokenizer, settings(tmp_path, 64, doc_stride=16, max_query_length=8), training=True)
    found = TASK.describe_features(raw, features)
    assert found["windows"] == len(features) and found["tokens"]["max"] == 64
    assert found["examples_in_several_windows"] == 2
    assert found["questions_cut_by_max_query_length"] == 1 and found["answers_in_no_window"] == 1
    assert TASK.describe_targets(raw) == {"classes": {"answer": 2, "no answer": 0}}


def test_answers_that_are_not_in_the_context(tmp_path, capsys):
    rows = [question("ba be", ("ba", 0), name="good"), question("ba be", name="none")]
    rows += [question("ba be", ("ba", start), name=f"bad{start}") for start in (-1, 1, 2, 3, 4, 5, 500)]
    raw = load_rows(tmp_path, rows, "train")
    assert raw["id"][:] == ["good", "none"]
    assert "left out 7 rows" in (out := capsys.readouterr().out) and "bad-1, bad1, bad2, bad3, bad4\n" in out
    # Scoring compares texts: there it does not matter.
    assert len(load_rows(tmp_path, rows)) == 9
    with pytest.raises(InputError, match=r"no answer stands in its context at its answer_start \(ids bad-1"):
        load_rows(tmp_path, rows[2:], "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([question("a", name="x"), question("b", name="x")], "id 'x' occurs more than once"),
        ([{"id": "x", "question": "q", "context": "c"}], "has no answers: it cannot serve as validation"),
        ([question("a") | {"context": None}], r"column 'context' is missing \(null\) in row 0"),
        *(
            (
                [*FLAT, question("a", name="x") | {"answers": answers}],
                f"question 'x': {message}.*; answers are written as",
            )
            for answers, message in (
                (None, "answers is None, without the places"),
                ("ba", "answers is 'ba', without the places"),
                (["ba"], r"answers is \['ba'\], without the places"),
                (5, "answers is 5, without the places"),
                ("{'text': ['ba'], 'answer_start': [0]}", "answers is .*, without the places"),
                ({"text": ["a"]}, "answers has no field 'answer_start', only 'text'"),
                ({"answer_start": [0]}, "answers has no field 'text', only 'answer_start'"),
                ({}, "answers has no field 'text', only none"),
                ([{"text": "a", "start": 0}], "answers has no field 'answer_start', only 'text', 'start'"),
                ({"text": ["a"], "answer_start": []}, "answers has 1 text, but 0 answer_start"),
                ({"text": ["a", "b"], "answer_start": [0]}, "answers has 2 text, but 1 answer_start"),
                ({"text": [5], "answer_start": [0]}, "the answer's text is 5, not a string"),
                *(
                    ({"text": ["a"], "answer_start": [start]}, "answer_start is .*, not a whole number")
                    for start in ("?", "", 0.5, None, True, [0], 10**30, float("inf"), float("nan"))
                ),
            )
        ),
        ([FLAT[0] | {"is_impossible": "maybe"}], "line 1: is_impossible is 'maybe'; it must be true or false"),
        ([{"id": "x", "context": "c", "answers": None}], "no column 'question', only 'id', 'context', 'answers'"),
    ],
)
def test_bad_rows(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_rows(tmp_path, rows)


def test_bad_original(tmp_path):
    content = original()
    del content["data"][0]["paragraphs"][0]["qas"][0]["question"]
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="dev-v1.1.json is not in SQuAD's format: question 0 has no 'question'"):
        TASK.load(DataArguments(data_dir=str(tmp_path)))

"""Tagging: CoNLL's files, first pieces, words that vanish, document context, predictions."""

import numpy as np
import pytest
from corpus_helpers import small_tokenizer, words
from task_helpers import settings, write_jsonl

from hfbert_scratch.model.kernels_hfbert import IGNORED_LABEL
from hfbert_scratch.tasks import DataArguments, collect_notes, get_task
from hfbert_scratch.tasks.files.ner import to_iob2
from hfbert_scratch.utils.errors import InputError


TASK = get_task("conll2003")
NAMES = list(TASK.classes)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer(vocab_size=150)


def load_rows(tmp_path, rows, split="validation", task=TASK, **arguments):
    path = write_jsonl(tmp_path / f"{split}.jsonl", rows)
    return task.load(DataArguments(**{f"{split}_file": str(path)}), **arguments)[split]


def sentences(count: int, seed: int = 0) -> list[dict]:
    """Tagged sentences of 1 to 12 made-up words, in documents of 1 to 6."""
    rng = np.random.default_rng(seed)
    vocabulary = words(200)
    rows, document, left = [], 0, 0
    for _ in range(count):
        if not left:
            document, left = document + 1, int(rng.integers(1, 7))
        left -= 1
        tokens = rng.choice(vocabulary, rng.integers(1, 13)).tolist()
        tags = rng.integers(0, len(NAMES), len(tokens)).tolist()
        rows.append({"tokens": tokens, "ner_tags": tags, "document": f"d{document}"})
    return rows


def perfect_outputs(features) -> dict:
    """Logits that say the label where there is one, and something else everywhere else."""
    rows = []
    for labels in features["labels"]:
        chosen = np.where(np.array(labels) == IGNORED_LABEL, 3, labels)
        rows.append(np.eye(len(NAMES))[chosen])
    return {"logits": rows}


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("I-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
        ("B-PER I-PER I-LOC", "B-PER I-PER B-LOC"),
        ("O O", "O O"),
        ("", ""),
    ],
)
def test_iob1_becomes_iob2_and_iob2_stays(tags, expected):
    assert to_iob2(tags.split()) == expected.split()
    assert to_iob2(expected.split()) == expected.split()


CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER


-DOCSTART- -X- O O

a\u00a0b NN I-NP I-LOC
x NN I-NP B-LOC
"""
ROWS = [
    {"tokens": ["EU", "rejects"], "ner_tags": [3, 0], "document": "1"},
    {"tokens": ["Peter", "Blackburn"], "ner_tags": [1, 2], "document": "1"},
    {"tokens": ["a\u00a0b", "x"], "ner_tags": [5, 5], "document": "2"},
]


@pytest.mark.parametrize("name", ["eng.testa", "dev.txt", "dev.conll"])
@pytest.mark.parametrize(
    "change", [str, lambda text: text.replace("\n", "\r\n"), lambda text: text.replace(" ", "\t")]
)
def test_conll_columns(name, change, tmp_path):
    (tmp_path / name).write_bytes(change(CONLL).encode())
    raw = TASK.load(DataArguments(data_dir=str(tmp_path)))
    assert raw["validation"].to_list() == ROWS
    assert load_rows(tmp_path, ROWS)._fingerprint == raw["validation"]._fingerprint


def test_columns_without_documents_and_without_tags(tmp_path):
    (tmp_path / "eng.testb").write_text("ba\nbe\n\nbi")
    raw = TASK.load(DataArguments(test_file=str(tmp_path / "eng.testb")))["test"]
    assert raw["tokens"][:] == [["ba", "be"], ["bi"]] and not TASK.is_labelled(raw)
    assert "document" not in raw.column_names
    with pytest.raises(InputError, match="split validation has no tags"):
        TASK.load(DataArguments(validation_file=str(tmp_path / "eng.testb")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU NNP O\nrejects O\n", "line 2 has 2 columns, but those before have 3"),
        ("EU I-CITY\n", "row 0: unknown tag 'B-CITY'; it must be one of O, B-PER"),
        ("-DOCSTART- O\n\n", "holds no words"),
        ("", "holds no words"),
    ],
)
def test_bad_columns(content, message, tmp_path):
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        TASK.load(DataArguments(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], {"tokens": ["a"], "ner_tags": [0, 0]}], "row 1: 1 words but 2 tags"),
        ([ROWS[0], {"tokens": ["a", "b"], "ner_tags": [0, 9]}], "row 1: unknown tag 9; it must be one of O"),
        ([{"tokens": ["a", "b"], "ner_tags": [0, -1]}], "row 0: unknown tag -1"),
        ([{"tokens": ["a"], "ner_tags": ["B-per"]}], "row 0: unknown tag 'B-per'"),
        ([{"tokens": "a b", "ner_tags": [0, 0]}], "column 'tokens' holds string, not lists"),
        ([{"tokens": [1], "ner_tags": [0]}], "column 'tokens' must be lists of words"),
        ([{"tokens": ["a"]}], "split validation has no tags"),
        ([{"words_": ["a"], "ner_tags": [0]}], "no column 'tokens', only 'words_', 'ner_tags'"),
    ],
)
def test_bad_rows(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_rows(tmp_path, rows)


def test_own_tags(tmp_path):
    task = get_task("custom-ner")
    rows = [{"tokens": ["a", "b", "c"], "ner_tags": ["I-Z", "O", "B-A"]}, {"tokens": [], "ner_tags": []}]
    raw = load_rows(tmp_path, rows, "train", task)
    assert task.config_overrides(raw)["id2label"] == {0: "O", 1: "B-A", 2: "I-Z"}
    assert raw["ner_tags"][:] == [[2, 0, 1], []]
    assert load_rows(tmp_path, rows, "train", task, model_classes=["I-Z", "B-A", "O"])["ner_tags"][0] == [0, 2, 1]
    with pytest.raises(InputError, match="has the tags B-A, but none is 'O'"):
        load_rows(tmp_path, [{"tokens": ["a"], "ner_tags": ["B-A"]}], "train", task)
    with pytest.raises(InputError, match="has the tags LABEL_0, LABEL_1, but none is 'O'.*--model_classes"):
        load_rows(tmp_path, rows, "train", task, model_classes=["LABEL_0", "LABEL_1"])


# One text, as different projects write it: words and tags of two sentences.
PEOPLE = [["Ann", "Lee", "lives"], ["Rome"]]
PEOPLE_TAGS = [["B-PER", "I-PER", "O"], ["B-LOC"]]
LAYOUTS = {
    "comments as wide as the lines": "# id 7 domain=en\nAnn _ _ B-PER\nLee _ _ I-PER\nlives _ _ O\n\n"
    "# id 8 domain=en\nRome _ _ B-LOC\n",
    "comments, indices, nested tags": "#\thttp://x [2009]\n1\tAnn\tB-PER\tO\n2\tLee\tI-PER\tO\n3\tlives\tO\tO\n\n"
    "#\thttp://y [2009]\n1\tRome\tB-LOC\tB-LOC\n",
    "indices, nothing nested": "1\tAnn\tB-PER\tO\n2\tLee\tI-PER\tO\n3\tlives\tO\tO\n\n1\tRome\tB-LOC\tO\n",
    "nested tags without indices": "Ann B-PER O\nLee I-PER B-PER\nlives O O\n\nRome B-LOC O\n",
    "indices from 0 and tags": "0 Ann B-PER\n1 Lee I-PER\n2 lives O\n\n0 Rome B-LOC\n",
    "indices and chunks": "1 Ann B-NP B-PER\n2 Lee I-NP I-PER\n3 lives B-VP O\n\n1 Rome B-NP B-LOC\n",
    "contractions": "# sent_id = 1\n# text = Ann Lee lives\n1\tAnn\tB-PER\n2-3\tLee lives\t_\n2\tLee\tI-PER\n"
    "3\tlives\tO\n3.1\tgone\t_\n\n1\tRome\tB-LOC\n",
    "indices through the file": "1 Ann B-PER\n2 Lee I-PER\n3 lives O\n\n4 Rome B-LOC\n",
    "an empty last column": "Ann B-PER _\nLee I-PER _\nlives O _\n\nRome B-LOC _\n",
    "chunks before the tags": "Ann N B-NP I-PER\nLee N I-NP I-PER\nlives V B-VP O\n\nRome N B-NP I-LOC\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_as_projects_write_them(name, tmp_path):
    (tmp_path / "train.txt").write_text(LAYOUTS[name])
    with collect_notes() as notes:
        raw = get_task("custom-ner").load(DataArguments(data_dir=str(tmp_path)))["train"]
    assert [entry["rows"] for entry in notes.left_out] == [2] * LAYOUTS[name].startswith("#")
    names = get_task("custom-ner").class_names(raw)
    assert names == ["O", "B-LOC", "B-PER", "I-PER"]
    assert raw["tokens"][:] == PEOPLE
    assert [[names[tag] for tag in tags] for tags in raw["ner_tags"]] == PEOPLE_TAGS


@pytest.mark.parametrize("name", ["train.tsv", "train.TXT", "train.bio", "train.iob2"])
def test_words_in_columns_may_have_any_suffix(name, tmp_path):
    (tmp_path / name).write_text(LAYOUTS["comments, indices, nested tags"])
    raw = get_task("custom-ner").load(DataArguments(train_file=str(tmp_path / name)))["train"]
    assert raw["tokens"][:] == PEOPLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 3 Ann B-PER\n4 7 Lee I-PER\n8 13 lives O\n", "column 1, .* holds only numbers; name the columns"),
        ("d1 1 Ann B-PER\nd1 2 Lee I-PER\n\nd2 1 lives O\n", "holds one value for all words of a sentence"),
        ("Ann B-PER\n\tO\nlives O\n", "line 2 has 1 columns, but those before have 2"),
        ("Ann\tB-PER\nlives\t\n", "the tag '' is neither 'O' nor"),
        ("word tag\nAnn B-PER\nlives O\n", "the tag 'tag' is neither 'O' nor .* header"),
        ("Ann O\nlives O\n\n<doc>\n", "line 4 has 1 columns"),
    ],
)
def test_columns_that_are_no_words_or_tags_are_named(text, message, tmp_path):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        get_task("custom-ner").load(DataArguments(data_dir=str(tmp_path)))


def test_an_empty_word_between_tabs_is_a_word(tmp_path):
    (tmp_path / "train.txt").write_text("Ann Lee\tB-PER\n\tO\nlives\tO\n\t\nRome\tB-LOC\n")
    raw = get_task("custom-ner").load(DataArguments(data_dir=str(tmp_path)))["train"]
    assert raw["tokens"][:] == [["Ann Lee", "", "lives"], ["Rome"]]


def test_hash_signs_blanks_and_numbers_can_be_words(tmp_path):
    text = "#rome\tB-LOC\n#\tO\n\n#only\tB-TAG\nNew York\tB-LOC\n\n1\tO\n2\tO\n"
    (tmp_path / "train.txt").write_text(text)
    raw = get_task("custom-ner").load(DataArguments(data_dir=str(tmp_path)))["train"]
    assert raw["tokens"][:] == [["#rome", "#"], ["#only", "New York"], ["1", "2"]]
    assert not TASK.is_labelled(load_text(tmp_path, "# id 1\nAnn _ _ _\nLee _ _ _\n", "test"))
    assert load_text(tmp_path, "1\tAnn\n2\tLee\n", "test")["tokens"][:] == [["Ann", "Lee"]]


def load_text(tmp_path, text, split, columns=()):
    (tmp_path / f"{split}.txt").write_text(text)
    data = DataArguments(**{f"{split}_file": str(tmp_path / f"{split}.txt")}, columns=list(columns))
    return TASK.load(data)[split]


def test_columns_are_chosen_by_number(tmp_path):
    text = "a Ann O B-PER x\nb Lee O I-PER x\n"
    raw = load_text(tmp_path, text, "validation", ["tokens=2", "ner_tags=4"])
    assert raw["tokens"][:] == [["Ann", "Lee"]] and raw["ner_tags"][:] == [[1, 2]]
    for column in ("ner_tags=tag", "ner_tags=6"):
        with pytest.raises(InputError, match="has no names for its columns, but numbers: 1 to 5"):
            load_text(tmp_path, text, "validation", [column])


def test_training_data_without_an_entity_are_refused(tmp_path):
    for task in (TASK, get_task("custom-ner")):
        raw = load_rows(tmp_path, [{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}], "train", task)
        with pytest.raises(InputError, match="split train: every word is tagged 'O'.*--columns ner_tags="):
            task.check_training(raw)
        task.check_training(load_rows(tmp_path, ROWS_BY_NAME, "train", task))


ROWS_BY_NAME = [{"tokens": ["EU", "Ann"], "ner_tags": ["B-ORG", "O"]}]


def test_tags_that_training_does_not_show_count_as_missed(tmp_path, tokenizer, capsys):
    task = get_task("custom-ner")
    more = [{"tokens": ["EU", "flu"], "ner_tags": ["B-ORG", "B-DIS"]}]
    files = {"train_file": write_jsonl(tmp_path / "t.jsonl", ROWS_BY_NAME)}
    files |= {f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", more) for split in ("validation", "test")}
    raw = task.load(DataArguments(**{name: str(path) for name, path in files.items()}))
    assert task.class_names(raw["train"]) == ["O", "B-ORG", "B-DIS"]
    assert task.check_training(raw["train"]) is None
    assert "split test: 1 words have tags that the training data do not show" in capsys.readouterr().out
    # A trained model meets new tags: it has no output for them.
    raw = load_rows(tmp_path, more, "test", task, model_classes=["O", "B-ORG"])
    assert "that the model does not know, and count as missed: B-DIS" in capsys.readouterr().out
    features = task.features(raw, tokenizer, settings(tmp_path))
    logits = [np.eye(2)[[1] * len(ids)] for ids in features["input_ids"]]
    predictions = task.predict(raw, features, {"logits": logits}, {0: "O", 1: "B-ORG"})
    assert predictions == [["B-ORG", "B-ORG"]] and task.score(raw, predictions)["recall"] == 0.5
    with pytest.raises(InputError, match="row 0: unknown tag 'odd'"):
        load_rows(tmp_path, [{"tokens": ["a"], "ner_tags": ["odd"]}], "test", task, model_classes=["O", "B-ORG"])


def test_tags_that_are_numbers_need_names(tmp_path):
    task = get_task("custom-ner")
    rows = [{"tokens": ["Ann", "Lee", "x"], "ner_tags": [1, 2, 0]}]
    for classes in (None, ["O", "B-PER", "I-PER"]):
        with pytest.raises(
            InputError, match="'ner_tags' holds numbers, 0 to 2; name their tags in order with --class"
        ):
            load_rows(tmp_path, rows, "train", task, model_classes=classes)
    data = DataArguments(train_file=str(tmp_path / "train.jsonl"), class_names=["O", "B-PER", "I-PER"])
    raw = task.load(data)["train"]
    assert task.class_names(raw) == data.class_names and raw["ner_tags"][:] == [[1, 2, 0]]
    with pytest.raises(InputError, match="--class_names must name all classes of conll2003"):
        TASK.load(data)


@pytest.mark.parametrize(
    "tags",
    [
        *(["O", "B-A", other] for other in ("tag", "0", "o", "", "-", "_", "PER", "B-")),
        *(["O", f"B{mark}A", f"I{mark}A"] for mark in "_:/|."),
        *(["O", "b-a", "i-a"], ["O", "A-B", "A-I"], ["O", "A_B", "A_I"], ["o", "B-A", "I-A"], ["O", "B-A ", "O"]),
    ],
)
def test_tags_that_are_no_tags_are_refused(tags, tmp_path):
    with pytest.raises(InputError, match=r"split train: the tag '.*' is neither 'O' nor a type with its prefix"):
        load_rows(tmp_path, [{"tokens": list("abc"), "ner_tags": tags}], "train", get_task("custom-ner"))


def test_types_without_prefixes_and_hidden_tags_are_fine(tmp_path, capsys):
    task = get_task("custom-ner")
    raw = load_rows(tmp_path, [{"tokens": list("abcd"), "ner_tags": ["O", "ORG", "ORG", "PER"]}], "train", task)
    assert not capsys.readouterr().out
    report = task.report(raw, [["O", "ORG", "O", "PER"]])
    assert report["classes"]["ORG"]["support"] == 1 and report["classes"]["PER"]["f1"] == 1.0
    assert "strict" not in report
    assert not TASK.is_labelled(load_rows(tmp_path, [{"tokens": ["a"], "ner_tags": []}], "test"))


def test_every_type_is_reported_also_strictly(tmp_path):
    raw = load_rows(tmp_path, ROWS)
    report = TASK.report(raw, [["B-ORG", "O"], ["I-PER", "I-PER"], ["O", "B-LOC"]])
    assert {name: entry["f1"] for name, entry in report["classes"].items()} == pytest.approx(
        {"LOC": 2 / 3, "ORG": 1.0, "PER": 1.0}
    )
    assert report["strict"]["scheme"] == "IOB2" and report["strict"]["classes"]["PER"]["recall"] == 0.0


def test_words_cut_off_are_counted(tmp_path, tokenizer):
    rows = [{"tokens": ["ba"] * 30, "ner_tags": [0] * 20 + [5] * 10}, {"tokens": ["ba"], "ner_tags": [0]}]
    raw = load_rows(tmp_path, rows)
    features = TASK.features(raw, tokenizer, settings(tmp_path, 12))
    pieces = len(tokenizer("ba", add_special_tokens=False)["input_ids"])
    found = TASK.describe_features(raw, features)
    cut = {"examples": 1, "share": 0.5, "tokens": 30 * pieces - 10, "longest": 30 * pieces + 2}
    assert found["cut_by_max_seq_length"] == cut
    assert found["words_without_token"] == 30 - -(-10 // pieces) and found["words_of_entities_without_token"] == 10
    assert TASK.describe_targets(raw) == {"classes": {"O": 21, "B-LOC": 10}}
    assert TASK.target_of(raw, 1) == "ba/O"


# ---------------------------------------------------------------------------------------------------------- features


def test_labels_are_at_first_pieces(tmp_path, tokenizer):
    raw = load_rows(tmp_path, sentences(40))
    features = TASK.features(raw, tokenizer, settings(tmp_path, 256), training=True)
    pieces = 0
    for row, feature in zip(raw, features, strict=True):
        stock = tokenizer(row["tokens"], is_split_into_words=True)
        assert feature["input_ids"] == stock["input_ids"]
        word_ids = stock.word_ids()
        pieces += len(word_ids) - 2 - len(row["tokens"])
        labels = [
            IGNORED_LABEL if word is None or word == word_ids[at - 1] else row["ner_tags"][word]
            for at, word in enumerate(word_ids)
        ]
        assert feature["labels"] == labels
        assert feature["positions"] == [word_ids.index(word) for word in range(len(row["tokens"]))]
    assert pieces > 0  # or the test would show nothing


def test_every_word_counts(tmp_path, tokenizer):
    """Words without a piece, and those cut off, are predicted O and stay in the references."""
    rows = [
        {"tokens": ["\u200b", "ba", "\u200b"], "ner_tags": [1, 3, 0]},
        {"tokens": ["ba"] * 30, "ner_tags": [5] * 30},
        {"tokens": [], "ner_tags": []},
    ]
    raw = load_rows(tmp_path, rows)
    features = TASK.features(raw, tokenizer, settings(tmp_path, 12))
    pieces = len(tokenizer("ba", add_special_tokens=False)["input_ids"])
    seen = -(-10 // pieces)
    assert features[0]["positions"] == [-1, 1, -1]
    assert features[1]["positions"] == [1 + pieces * n for n in range(seen)] + [-1] * (30 - seen)
    assert max(map(len, features["input_ids"])) == 12
    predictions = TASK.predict(raw, features, perfect_outputs(features))
    assert predictions == [["O", "B-ORG", "O"], ["B-LOC"] * seen + ["O"] * (30 - seen), []]
    scores = TASK.score(raw, predictions)
    assert scores["recall"] == pytest.approx((1 + seen) / 32) and scores["precision"] == 1.0
    assert scores["accuracy"] == pytest.approx((2 + seen) / 33)


def test_document_context_scores_each_word_once(tmp_path, tokenizer):
    raw = load_rows(tmp_path, sentences(300, seed=4))
    plain = TASK.features(raw, tokenizer, settings(tmp_path, 256))
    wide = TASK.features(raw, tokenizer, settings(tmp_path, 64, document_context=True))
    ids = [row[1:-1] for row in plain["input_ids"]]
    documents = raw["document"][:]
    sides = set()
    for row in range(len(raw)):
        feature = wide[row]
        own = feature["input_ids"][1:-1]
        before = sum((ids[n] for n in range(row) if documents[n] == documents[row]), [])
        after = sum((ids[n] for n in range(row + 1, len(raw)) if documents[n] == documents[row]), [])
        place = feature["positions"][0] - plain[row]["positions"][0]
        # The sentence, with what stands directly before and behind it, nothing of another document…
        left, right = own[:place], own[place + len(ids[row]) :]
        assert own[place : place + len(ids[row])] == ids[row][:62]
        assert before[len(before) - len(left) :] == left and after[: len(right)] == right
        # …and as much as fits, shared fairly.
        assert len(own) == min(62, len(before) + len(ids[row]) + len(after))
        if len(before) > 31 and len(after) > 31:
            assert abs(len(left) - len(right)) <= 1
        sides.add((bool(left), bool(right)))
        labelled = [label for label in feature["labels"] if label != IGNORED_LABEL]
        assert labelled == raw[row]["ner_tags"]
        assert set(feature["token_type_ids"]) == {0}
    assert len(sides) == 4
    predictions = TASK.predict(raw, wide, perfect_outputs(wide))
    assert TASK.score(raw, predictions)["f1"] == 1.0
    assert [len(tags) for tags in predictions] == [len(tokens) for tokens in raw["tokens"]]


def test_document_context_is_the_same_from_several_processes(tmp_path, tokenizer):
    raw = load_rows(tmp_path, sentences(300, seed=4))
    one = TASK.features(raw, tokenizer, settings(tmp_path / "one", 64, document_context=True))
    two = TASK.features(raw, tokenizer, settings(tmp_path / "two", 64, document_context=True, num_proc=2))
    assert one.to_list() == two.to_list()


def test_document_context_needs_documents(tmp_path, tokenizer):
    raw = load_rows(tmp_path, [{"tokens": ["a"], "ner_tags": [0]}])
    with pytest.raises(InputError, match="'document', or CoNLL's original files"):
        TASK.features(raw, tokenizer, settings(tmp_path, 64, document_context=True))


# ------------------------------------------------------------------------------------------------------- predictions


def test_padded_logits_and_another_order_of_classes(tmp_path, tokenizer):
    raw = load_rows(tmp_path, sentences(20))
    features = TASK.features(raw, tokenizer, settings(tmp_path, 128))
    rows = perfect_outputs(features)["logits"]
    width = max(map(len, rows)) + 5
    padded = np.stack([np.pad(row[:, ::-1], ((0, width - len(row)), (0, 0)), constant_values=9) for row in rows])
    predictions = TASK.predict(raw, features, {"logits": padded}, dict(enumerate(NAMES[::-1])))
    assert TASK.score(raw, predictions)["f1"] == 1.0
    with pytest.raises(InputError, match="the model has 2 outputs, but conll2003 has the 9 classes"):
        TASK.predict(raw, features, {"logits": [row[:, :2] for row in rows]})


def test_prediction_files(tmp_path):
    predictions = [["B-ORG", "O"], ["B-PER", "I-PER"], ["O", "B-LOC"]]
    raw = load_rows(tmp_path, ROWS)
    (path,) = TASK.write_predictions(tmp_path, raw, predictions, "validation")
    assert path.name == "predictions_validation.txt"
    assert path.read_text().split("\n")[:3] == ["EU B-ORG B-ORG", "rejects O O", ""]
    blind = load_rows(tmp_path, [{"tokens": row["tokens"]} for row in ROWS], "test")
    (path,) = TASK.write_predictions(tmp_path, blind, predictions, "test")
    assert path.read_text().split("\n")[3:5] == ["Peter B-PER", "Blackburn I-PER"]
    with pytest.raises(InputError, match="has no labels"):
        TASK.score(blind, predictions)

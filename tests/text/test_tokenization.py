"""WordPiece training, saving and loading."""

import gzip
import json
import subprocess
import sys
import time
import unicodedata

import pytest
import tokenizers
from corpus_helpers import documents, write_text
from training_helpers import RECIPES
from transformers import AutoTokenizer

from hfbert_scratch.text.readers import read_documents
from hfbert_scratch.text.sources import find_sources
from hfbert_scratch.text.tokenizer import (
    SPECIAL_TOKENS,
    TextLosses,
    bert_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_wordpiece,
    without_long_words,
)
from hfbert_scratch.utils.errors import InputError, OutputError


RECIPE = RECIPES / "train_tokenizer.py"


@pytest.fixture
def saved(tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_saved_tokenizer_needs_only_transformers(saved, tokenizer):
    loaded = AutoTokenizer.from_pretrained(saved)
    assert type(loaded).__name__ == "BertTokenizer" and loaded.is_fast
    assert [loaded.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert loaded.model_max_length == 512 and loaded.do_lower_case
    assert loaded("BaBe Ko.")["input_ids"] == tokenizer("babe ko.")["input_ids"]
    assert loaded("ba", "be")["token_type_ids"][-1] == 1
    lines = (saved / "vocab.txt").read_text().split("\n")
    assert lines[-1] == "" and len(lines) - 1 == len(loaded)
    assert lines[:5] == list(SPECIAL_TOKENS)
    assert tokenizer_hash(load_tokenizer(saved)) == tokenizer_hash(tokenizer)


def test_cased_keeps_case():
    cased = train_wordpiece(["Ab aB Ab aB é É"] * 3, vocab_size=30, lowercase=False)
    assert {"A", "B", "é", "É"} <= set(cased.get_vocab())
    uncased = train_wordpiece(["Ab aB Ab aB é É"] * 3, vocab_size=30)
    assert not {"A", "é"} & set(uncased.get_vocab())


def test_same_text_same_vocabulary_also_with_windows_line_ends(tmp_path):
    texts = documents(80)
    plain = "\n\n".join(texts)
    vocabularies = []
    for name, content in {
        "lf": plain,
        "again": plain,
        "crlf": plain.replace("\n", "\r\n"),
        "bom": "\ufeff" + plain,
        "nul": plain.replace(" ", " \0"),
    }.items():
        (tmp_path / f"{name}.txt").write_bytes(content.encode())
        sources = find_sources([str(tmp_path / f"{name}.txt")])
        save_tokenizer(train_wordpiece(list(read_documents(sources)), vocab_size=300), tmp_path / name)
        vocabularies.append((tmp_path / name / "vocab.txt").read_bytes())
    assert len(set(vocabularies)) == 1


def test_deterministic_across_processes(tmp_path):
    """Hash maps are seeded anew in every process; ties must not be broken by their order."""
    text = write_text(tmp_path / "t.txt", documents(150, seed=4))
    code = (
        "import sys; from hfbert_scratch.text.tokenizer import train_wordpiece as t;"
        "from hfbert_scratch.text.readers import *; from hfbert_scratch.text.sources import *;"
        "v=t(list(read_documents(find_sources([sys.argv[1]]))),vocab_size=500).get_vocab();"
        "print(sorted(v.items(), key=lambda x: x[1]))"
    )
    command = [sys.executable, "-c", code, str(text)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in "ab"]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second and first


def test_size_is_checked_and_honest():
    with pytest.raises(InputError, match=r"vocab_size 20 is too small.* together \d+"):
        train_wordpiece(documents(5), vocab_size=20)
    with pytest.raises(InputError, match="no character"):
        train_wordpiece([" \n\t", "\0"], vocab_size=100)
    assert len(train_wordpiece(documents(5), vocab_size=100_000)) < 5_000
    with pytest.raises(InputError, match="iterated over twice"):
        train_wordpiece(iter(documents(5)), vocab_size=100)


def test_a_huge_word_neither_hangs_nor_counts():
    texts = documents(20)
    start = time.monotonic()
    with_word = train_wordpiece([*texts, "a" * 3_000_000, "é" * 2_000_000], vocab_size=300)
    assert time.monotonic() - start < 20
    assert max(map(len, with_word.get_vocab())) <= 12
    assert without_long_words("x " + "y" * 101 + " z").split() == ["x", "z"]
    assert without_long_words("x " + "y" * 100 + " z") == "x " + "y" * 100 + " z"
    # Punctuation and ideographs end words, so these runs without a blank are kept.
    for kept in ("ab-" * 100, "中文" * 200, "http://" + "a.b/" * 60):
        assert without_long_words(kept) == kept
    assert "“" in without_long_words("“".join(["word"] * 50))


def test_rarest_characters_get_no_place():
    common = ["abc cab bca " * 20_000]
    tokenizer = train_wordpiece([*common, "ϗ ☃"], vocab_size=50)
    assert not {"ϗ", "☃"} & set(tokenizer.get_vocab())
    assert "ϗ" in train_wordpiece(["abc cab ϗ"], vocab_size=50).get_vocab()


def test_hash_depends_on_vocabulary_and_normalizer(tokenizer, tmp_path):
    vocabulary = tokenizer.get_vocab()
    assert tokenizer_hash(bert_tokenizer(vocabulary, True)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(bert_tokenizer(vocabulary, True, 128)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(bert_tokenizer(vocabulary, False)) != tokenizer_hash(tokenizer)
    assert tokenizer_hash(bert_tokenizer(vocabulary | {"zzz": len(vocabulary)}, True)) != tokenizer_hash(tokenizer)
    # The layout of the file does not matter, nor padding and truncation left over in it.
    save_tokenizer(tokenizer, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(tokenizer.backend_tokenizer) == tokenizer_hash(tokenizer)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_missing_special_token_is_named(saved, token):
    (saved / "tokenizer.json").unlink()
    vocabulary = saved / "vocab.txt"
    vocabulary.write_text("".join(line for line in vocabulary.read_text().splitlines(True) if line.strip() != token))
    with pytest.raises(InputError, match=rf"vocab.txt: the vocabulary lacks \[{token[1:-1]}\]"):
        load_tokenizer(saved)


def test_missing_special_token_in_tokenizer_json(saved):
    content = json.loads((saved / "tokenizer.json").read_text())
    del content["model"]["vocab"]["[MASK]"]
    (saved / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lacks \[MASK\]"):
        load_tokenizer(saved)


def test_damaged_directories(saved, tmp_path):
    vocabulary = saved / "vocab.txt"
    good = vocabulary.read_text()
    vocabulary.write_text(good + "\nend\n")
    with pytest.raises(InputError, match=r"line \d+ is blank"):
        load_tokenizer(saved)
    vocabulary.write_text(good + "[SEP]\n")
    with pytest.raises(InputError, match=r"lines 4 and \d+ are both '\[SEP\]'"):
        load_tokenizer(saved)
    vocabulary.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(saved)
    vocabulary.write_text("")
    with pytest.raises(InputError, match=r"lacks \[PAD\], \[UNK\]"):
        load_tokenizer(saved)
    vocabulary.write_text(good)
    content = (saved / "tokenizer.json").read_text()
    (saved / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(InputError, match="tokenizer.json is truncated or damaged"):
        load_tokenizer(saved)
    with pytest.raises(InputError, match="neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no tokenizer directory"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a file"):
        load_tokenizer(vocabulary)


# ---------------------------------------------------------------------------------------------------- agreement


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_vocab_txt_and_tokenizer_json_must_be_the_same(saved):
    vocabulary = saved / "vocab.txt"
    lines = vocabulary.read_text().splitlines()
    for changed, message in {
        "\n".join(
            [*lines[:200], "covid", *lines[201:]]
        ): rf"differ in 1 tokens \(line 201 .* 'covid', .* '{lines[200]}'",
        "\n".join(lines[:-1]): rf"differ in 1 tokens \(line {len(lines)} .* missing, .* '{lines[-1]}'",
        "\n".join([*lines, "covid"]): rf"differ in 1 tokens \(line {len(lines) + 1} .* 'covid', .* None",
        "\n".join([*lines[:5], *lines[:4:-1]]): r"differ in \d+ tokens \(line 6 ",
    }.items():
        vocabulary.write_text(changed + "\n")
        with pytest.raises(InputError, match=message):
            load_tokenizer(saved)
    # Either alone is the tokenizer, and an added token need not be in vocab.txt.
    (saved / "tokenizer.json").unlink()
    vocabulary.write_text("\n".join([*lines[:200], "covid", *lines[201:]]) + "\n")
    edited = load_tokenizer(saved)
    assert edited.tokenize("covid") == ["covid"]
    edited.add_tokens(["new york"])
    edited.save_pretrained(saved)
    assert load_tokenizer(saved).tokenize("new york") == ["new york"]


CASE_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


@pytest.mark.parametrize("name", CASE_SETTINGS)
def test_configuration_and_tokenizer_json_must_say_the_same(saved, name):
    def change(content):
        content[name] = not content[name]

    edit(saved / "tokenizer_config.json", change)
    message = r"not load what is written: normalizer\.\w+ is \w+ in tokenizer.json, \w+ as loaded; give do_lower_case"
    with pytest.raises(InputError, match=message):
        load_tokenizer(saved)


def test_silence_about_case_in_the_configuration_is_no_lower_case(tmp_path, tokenizer):
    save_tokenizer(bert_tokenizer(tokenizer.get_vocab(), lowercase=False), tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda content: content.pop("do_lower_case"))
    with pytest.raises(InputError, match=r"normalizer\.lowercase is false in tokenizer.json, true as loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("options", [{"lowercase": False}, {"strip_accents": False}], ids=["cased", "accents"])
def test_a_vocabulary_is_not_lower_cased_for_want_of_a_statement(tmp_path, capsys, options):
    save_tokenizer(train_wordpiece(["Trời hôm nay rất đẹp. Hà Nội."] * 20, vocab_size=80, **options), tmp_path)
    load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    load_tokenizer(tmp_path)
    assert not capsys.readouterr().out
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"\d+ of the \d+ entries .* lower-cases and strips accents; .*do_lower_case"):
        load_tokenizer(tmp_path)
    # A statement is obeyed, and what it costs is said.
    stated = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    load_tokenizer(tmp_path)
    assert "it lower-cases and strips accents; if that is not meant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\xef\xbb\xbf" + data, "vocab.txt begins with a byte order mark"),
        (
            lambda data: data.replace(b"\na\n", b"\na \n"),
            "line 7 is 'a '; every line must be one token, without blanks",
        ),
        (lambda data: data.replace(b"\n", b" \n"), r"line 1 is '\[PAD\] '; every line must be one token"),
        (lambda data: data.replace(b"\n", b"\t7\n"), r"line 1 is '\[PAD\]\\t7'; every line must be one token"),
        (
            lambda data: data.replace(b"\n", b"\r"),
            r"line 1 is '\[PAD\]\\r\[UNK\].{0,40}'; every line must be one token",
        ),
        (lambda data: data.replace(b"[MASK]", b"[mask]"), r"the vocabulary lacks \[MASK\]"),
        (lambda data: data + b"\xc2\xa0\n", "line 401 is blank"),
        (lambda data: data.decode().encode("utf-16"), "cannot be read"),
    ],
)
@pytest.mark.parametrize("serialized", [True, False])
def test_a_vocabulary_that_is_no_list_of_tokens_is_refused(saved, change, message, serialized):
    if not serialized:
        (saved / "tokenizer.json").unlink()
    (saved / "vocab.txt").write_bytes(change((saved / "vocab.txt").read_bytes()))
    with pytest.raises(InputError, match=message):
        load_tokenizer(saved)


def test_line_ends_of_a_vocabulary_do_not_matter(saved, tokenizer):
    data = (saved / "vocab.txt").read_bytes()
    for same in (data.replace(b"\n", b"\r\n"), data.rstrip(b"\n")):
        (saved / "vocab.txt").write_bytes(same)
        assert tokenizer_hash(load_tokenizer(saved)) == tokenizer_hash(tokenizer)
        (saved / "tokenizer.json").rename(saved / "other.json")
        assert tokenizer_hash(load_tokenizer(saved)) == tokenizer_hash(tokenizer)
        (saved / "other.json").rename(saved / "tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: "false"}, f'{name} is "false"; it must be true or false') for name in CASE_SETTINGS),
        ({"do_lower_case": None}, "do_lower_case is null; it must be true or false"),
        *(
            ({"model_max_length": value}, "model_max_length is .*; it must be a number of tokens")
            for value in (0, -1, "512")
        ),
        ({"cls_token": "[SEP]"}, r"the cls_token is '\[SEP\]', although the vocabulary has \[CLS\]"),
        ({"pad_token": "a"}, r"the pad_token is 'a', although the vocabulary has \[PAD\]"),
        ({"cls_token": None}, r"has no cls_token \(\[CLS\]\).*as {\"cls_token\": \"\[CLS\]\"}"),
        ({"mask_token": "<mask>"}, "the mask_token <mask> is not in the vocabulary"),
    ],
)
def test_settings_without_a_meaning_are_refused(saved, settings, message):
    edit(saved / "tokenizer_config.json", lambda content: content.update(settings))
    with pytest.raises(InputError, match=message):
        load_tokenizer(saved)
    (saved / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=message):
        load_tokenizer(saved)


def test_tokens_of_another_file_contradict_the_vocabulary(saved):
    (saved / "special_tokens_map.json").write_text('{"cls_token": "[SEP]"}')
    with pytest.raises(InputError, match=r"the cls_token is '\[SEP\]', although the vocabulary has \[CLS\]"):
        load_tokenizer(saved)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", {"type": "NFC"}),
        ("normalizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", {"continuing_subword_prefix": "@@"}),
    ],
)
def test_rules_that_no_setting_expresses_need_another_class(saved, part, change):
    def write(content):
        content[part] = content[part] | change if part == "model" else change

    edit(saved / "tokenizer.json", write)
    with pytest.raises(
        InputError, match='not load what is written: .*set "tokenizer_class": "PreTrainedTokenizerFast"'
    ):
        load_tokenizer(saved)
    edit(saved / "tokenizer_config.json", lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))
    written = json.loads((saved / "tokenizer.json").read_text())[part]
    assert json.loads(load_tokenizer(saved).backend_tokenizer.to_str())[part] == written


def test_a_class_that_reads_none_of_the_vocabulary_is_named(saved):
    (saved / "tokenizer.json").unlink()
    for name in ("RobertaTokenizer", "AlbertTokenizer"):
        edit(saved / "tokenizer_config.json", lambda content, name=name: content.update(tokenizer_class=name))
        with pytest.raises(InputError, match=rf'loads a {name}, with \d+ \w+ tokens, not the 400 .*"BertTokenizer"'):
            load_tokenizer(saved)
    (saved / "tokenizer_config.json").unlink()
    (saved / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(InputError, match="loads a RobertaTokenizer"):
        load_tokenizer(saved)


def test_files_of_another_algorithm_are_named(tmp_path):
    for name, algorithm in (("spiece.model", "SentencePiece"), ("merges.txt", "BPE"), ("vocab.json", "BPE")):
        (tmp_path / name).mkdir()
        ((tmp_path / name) / name).write_text("{}")
        with pytest.raises(InputError, match=f"holds a {algorithm} tokenizer; only WordPiece ones are supported"):
            load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(("options", "lowers"), [({}, "true"), ({"lowercase": False}, "false")])
def test_a_vocabulary_alone_says_what_is_to_be_added(tmp_path, options, lowers):
    texts = [text.title() for text in documents(60)]
    save_tokenizer(train_wordpiece(texts, vocab_size=400, **options), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    stated = f'{{"tokenizer_class": "BertTokenizer", "do_lower_case": {lowers}}}'
    with pytest.raises(InputError, match="vocab.txt alone does not say .*add a tokenizer_config.json with " + stated):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(stated)
    assert load_tokenizer(tmp_path).do_lower_case == (lowers == "true")


def test_a_vocabulary_without_capitals_that_keeps_case_is_named(tokenizer, tmp_path, capsys):
    save_tokenizer(bert_tokenizer(tokenizer.get_vocab(), lowercase=False), tmp_path)
    load_tokenizer(tmp_path)
    assert "keeps case, but its vocabulary has no capital letter" in capsys.readouterr().out


def test_a_tokenizer_is_compared_with_the_one_of_the_model(saved, tokenizer, tmp_path, capsys):
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)

    def model(name, tokens, lowercase=True):
        save_tokenizer(bert_tokenizer({token: i for i, token in enumerate(tokens)}, lowercase), tmp_path / name)
        return tmp_path / name

    load_tokenizer(saved, model=model("same", vocabulary))
    load_tokenizer(saved, model=saved)
    assert not capsys.readouterr().out
    reversed_model = model("reversed", [*vocabulary[:5], *vocabulary[:4:-1]])
    with pytest.raises(
        InputError, match=rf"differ in \d+ of 400 tokens \(id 5 is '{vocabulary[5]}' here, .*other words"
    ):
        load_tokenizer(saved, model=reversed_model)
    with pytest.raises(InputError, match="embeddings belong to other words; use the tokenizer in"):
        load_tokenizer(model("a", vocabulary[:300]), model=reversed_model)
    # New words in reserved places, some replaced ones, another rule: said.
    load_tokenizer(saved, model=model("unused", [*vocabulary[:300], *(f"[unused{i}]" for i in range(100))]))
    assert "differ in 100 of 400 tokens" in capsys.readouterr().out
    load_tokenizer(saved, model=model("edited", [*vocabulary[:-3], "x1", "x2", "x3"]))
    assert "differ in 3 of 400 tokens (id 397 is" in capsys.readouterr().out
    load_tokenizer(saved, model=model("cased", vocabulary, lowercase=False))
    assert "has normalizer.lowercase True, that of --model" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    load_tokenizer(saved, model=tmp_path / "none")
    assert "cannot be checked: " in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- losses


def test_what_a_vocabulary_cannot_learn_is_counted():
    hindi, vietnamese, thai = "बच्चे स्कूल में हैं। ", "Trời hôm nay rất đẹp. ", "วันนี้อากาศดีมาก" * 10 + " "
    losses = TextLosses()
    tokenizer = train_wordpiece([hindi * 50], vocab_size=60, losses=losses)
    assert tokenizer.tokenize("में") == ["म"]
    assert "strips accents and vowel signs, here from 50.0% of the letters" in losses.warnings()[0]
    losses = TextLosses()
    tokenizer = train_wordpiece([(hindi + vietnamese) * 50], vocab_size=90, strip_accents=False, losses=losses)
    assert tokenizer.tokenize("में đẹp Trời") == ["में", "đẹp", "trời"]
    assert losses.warnings() == []
    decomposed = unicodedata.normalize("NFD", vietnamese)
    losses = TextLosses()
    train_wordpiece([vietnamese * 9 + decomposed], vocab_size=90, lowercase=False, losses=losses)
    assert losses.not_nfc == sum(
        len(word) for word in decomposed.split() if not unicodedata.is_normalized("NFC", word)
    )
    assert "11.4% of the text is in words that are not in Unicode's composed form" in losses.warnings()[0]
    losses = TextLosses()
    train_wordpiece([vietnamese * 9 + decomposed], vocab_size=90, losses=losses)
    assert losses.not_nfc == 0  # stripped either way
    losses = TextLosses()
    train_wordpiece([thai * 5 + "หมา แมว " * 50], vocab_size=90, lowercase=False, losses=losses)
    assert losses.long_words == 5 and losses.in_long_words == 5 * 160
    assert "5 words of more than 100 characters, was left out" in losses.warnings()[0]
    losses = TextLosses()
    train_wordpiece(documents(20), vocab_size=300, losses=losses)
    assert losses.warnings() == [] and losses.characters == sum(len("".join(text.split())) for text in documents(20))


def test_unwritable_directory(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the tokenizer .* cannot be written"):
        save_tokenizer(tokenizer, tmp_path / "file" / "tokenizer")


def run_recipe(*arguments):
    return subprocess.run([sys.executable, str(RECIPE), *map(str, arguments)], capture_output=True, text=True)


def test_recipe(tmp_path):
    texts = documents(60)
    rows = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    done = run_recipe(
        "--text",
        tmp_path / "t.jsonl.gz",
        "--text_column",
        "body",
        "--vocab_size",
        90_000,
        "--output_dir",
        tmp_path / "o",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "o" / "record.json").read_text())
    assert record["documents"] == 60 and record["bytes"] == sum(map(len, texts))
    assert record["vocab_size"] == len(load_tokenizer(tmp_path / "o"))
    assert f"{record['vocab_size']} tokens instead of 90000" in done.stdout


def test_a_tokenizer_of_another_algorithm_is_refused_with_those_that_are_supported(tmp_path):
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "a": 1}, []))
    bpe.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="is a BPE tokenizer; only WordPiece ones are supported"):
        load_tokenizer(tmp_path)

"""The word encoder must give the tokenizer's ids on every string."""

import random
import unicodedata

import numpy as np
import pytest
from corpus_helpers import documents
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hfbert_scratch.text import word_encoder as word_encoding
from hfbert_scratch.text.tokenizer import train_wordpiece
from hfbert_scratch.text.word_encoder import WordEncoder, decomposes, plain_backend, text_encoder


# Characters that normalizers and pre-tokenizers treat in special ways, and some that compose with their neighbours.
AWKWARD = (
    [chr(point) for point in range(0x0, 0x100)]
    + list(
        "\u0300\u0301\u0327\u0338\u0345\u200b\u200d\u2028\u2029\u202e\u2060\ufe0f\ufeff\ufffd\u037e\u1fef\u2260\u226e"
    )
    + list(
        "İıſßǅΣςσÅÅéがㄱ가각가中文。，、「」！？　\u3000𠀀😀👩‍👩‍👧🇩🇪①½™ﬁ٣אבגअआ్ไทย…–—“”‘’«»¿¡§©®\ud7ff\ue000\U0010ffff"
    )
    + [
        "##",
        "[MASK]",
        "[SEP]",
        "[UNK]",
        "ba",
        "ka",
        "word",
        "The ",
        "  ",
        "\r\n",
        "a" * 99,
        "b" * 100,
        "c" * 101,
        "1.5",
    ]
)


def raw(lowercase: bool, strip_accents: bool = True) -> Tokenizer:
    texts = documents(60) + ["".join(AWKWARD), " ".join(AWKWARD)] * 2
    options = {"lowercase": lowercase, "strip_accents": strip_accents}
    tokenizer = train_wordpiece(texts, vocab_size=1800, **options).backend_tokenizer
    tokenizer.encode_special_tokens = True
    return tokenizer


RULES = {"uncased": (True,), "cased": (False,), "with accents": (True, False)}


@pytest.fixture(scope="module", params=RULES)
def tokenizer(request):
    return raw(*RULES[request.param])


def check(tokenizer, encoder, sentences):
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
    ids, lengths = encoder.encode(sentences)
    assert lengths.tolist() == [len(one) for one in expected]
    begin = 0
    for sentence, one, length in zip(sentences, expected, lengths.tolist(), strict=True):
        assert ids[begin : begin + length].tolist() == one, ascii(sentence)
        begin += length
    assert begin == len(ids)


def test_every_awkward_pair(tokenizer):
    encoder = WordEncoder(tokenizer, np.dtype(np.uint16))
    rng = random.Random(0)
    firsts = rng.sample(AWKWARD, 60)
    check(tokenizer, encoder, [one + other for one in firsts for other in AWKWARD])
    check(tokenizer, encoder, ["x" + one + other + "y" for one in firsts for other in rng.sample(AWKWARD, 100)])


def test_random_strings(tokenizer):
    encoder = WordEncoder(tokenizer, np.dtype(np.uint16))
    rng = random.Random(1)
    for _ in range(4):
        check(tokenizer, encoder, ["".join(rng.choices(AWKWARD, k=rng.randint(0, 30))) for _ in range(3000)])
    assigned = [chr(p) for p in range(0x110000) if unicodedata.category(chr(p)) not in ("Cn", "Co", "Cs")]
    check(tokenizer, encoder, ["".join(rng.choices(assigned, k=rng.randint(1, 12))) for _ in range(10_000)])
    check(tokenizer, encoder, [character + "a" + character for character in rng.sample(assigned, 10_000)])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(), max_size=20))
def test_any_text(texts):
    check(_uncased(), WordEncoder(_uncased(), np.dtype(np.uint16)), texts)


def _uncased(made=[]):  # noqa: B006 - one tokenizer for all examples
    if not made:
        made.append(raw(True))
    return made[0]


def test_edges(tokenizer):
    encoder = WordEncoder(tokenizer, np.dtype(np.uint16))
    for sentences in ([], [""], ["", "", "a", ""], [" "], ["\0"], ["ba\nba", "ka\n\n", "\n", "x"], ["a" * 20_000]):
        check(tokenizer, encoder, sentences)


def test_forgetting_changes_nothing(tokenizer, monkeypatch):
    monkeypatch.setattr(word_encoding, "MAX_PIECES", 50)
    encoder = WordEncoder(tokenizer, np.dtype(np.uint16))
    for text in documents(20, seed=3):
        check(tokenizer, encoder, text.split("\n"))
        check(tokenizer, encoder, text.split(". "))


def test_only_for_tokenizers_that_decompose():
    tokenizer = raw(True)
    assert decomposes(tokenizer)
    tokenizer.encode_special_tokens = False
    assert not decomposes(tokenizer)
    tokenizer.encode_special_tokens = True
    tokenizer.add_tokens([AddedToken("new york", normalized=True)])
    assert not decomposes(tokenizer)
    other = raw(True)
    other.model = models.WordPiece({"[UNK]": 0, "a": 1, "@@b": 2}, unk_token="[UNK]", continuing_subword_prefix="@@")
    assert not decomposes(other), "another mark of pieces inside a word"
    other = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    other.encode_special_tokens = True
    assert not decomposes(other)
    other.normalizer = normalizers.Sequence([normalizers.NFKC()])
    other.pre_tokenizer, other.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    other.train_from_iterator(documents(5), trainers.WordPieceTrainer(vocab_size=100, show_progress=False))
    assert not decomposes(other)


def test_a_tokenizer_of_other_rules_is_encoded_by_itself(tokenizer, monkeypatch):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    other.enable_truncation(4)
    backend = plain_backend(other.to_str())
    assert not decomposes(backend)
    texts = ["", *documents(20), "a [SEP] b", ""]
    expected = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    assert max(map(len, expected)) > 4, "nothing is cut"
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(word_encoding, "CALL_CHARACTERS", size)
        ids, counts = text_encoder(backend, np.dtype(np.int32))(texts)
        assert counts.tolist() == list(map(len, expected)) and ids.tolist() == sum(expected, [])
    ids, counts = text_encoder(backend, np.dtype(np.int32))([])
    assert len(ids) == len(counts) == 0

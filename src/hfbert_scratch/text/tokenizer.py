"""Train a WordPiece vocabulary, save it as a stock BERT tokenizer, and load it with checks.

The saved directory needs nothing of this package: `AutoTokenizer.from_pretrained` opens it.
"""

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from ..utils.errors import InputError, one_line
from ..utils.files import split_revision, writing
from .tokenizer_checks import (
    NOTABLE,
    OTHER_ALGORITHMS,
    SPECIAL_TOKENS,
    check_as_written,
    check_case,
    check_files,
    check_same_vocabulary,
    check_tokenizer,
    warn,
)


if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerBase


# BERT's tokenizers turn longer words into [UNK]; the trainer would take minutes for a word of megabytes.
MAX_WORD = 100
# The rarest characters, together this share of the text, get no place in the vocabulary: otherwise every stray symbol
# of a large corpus takes one. SentencePiece calls it character coverage and recommends 0.9995 to 1.
CHARACTER_COVERAGE = 0.9999
# A pair seen once is not evidence for a piece (trainers usually take 2 or less; BERT's value is not published).
MIN_FREQUENCY = 2

# Values of --unicode_form.
NO_FORM, FORMS = "none", ("NFC", "NFKC")
# Words of so many pieces on average are worth a warning; English has 1.1 to 1.3 with 30,000 tokens.
MANY_PIECES = 2.5

# The remedy for words beyond MAX_WORD.
SEGMENT_WORDS = (
    "text without blanks between its words, such as Thai, has to go through a word segmenter first (zero-width spaces "
    "do not count)"
)

_SAMPLE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Élan vital: naïve café, 3.14 % of 1,000 — “quoted” (e.g. U.S.A.) …",
    "unaffable\tsnake_case\r\nend\u2028线 中文字 ß İ ñ",
    "",
)
# A run of characters none of which is white space, ASCII punctuation or a CJK ideograph can only then be one word for
# BERT's pre-tokenizer. (Control characters vanish in its normalizer, so they do not end a run.)
_LONG_RUN = re.compile(
    r"[^\t\n\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000!-/:-@\[-`{-~\u4e00-\u9fff]"
    rf"{{{MAX_WORD + 1},}}"
)


@dataclasses.dataclass
class TextLosses:
    """Text that a vocabulary cannot learn, in characters other than white space; counted while training."""

    characters: int = 0
    letters: int = 0
    stripped: Counter[str] = dataclasses.field(default_factory=Counter)  # letters that lose an accent or vowel sign
    not_nfc: int = 0  # in words whose accents are written in another way than Unicode's form NFC
    long_words: int = 0
    in_long_words: int = 0

    def warnings(self) -> list[str]:
        """Return one sentence for each loss above `NOTABLE`, with its size and the remedy."""
        sentences = []
        stripped = self.stripped.total() / max(1, self.letters)
        if stripped > NOTABLE:
            most = " ".join(letter for letter, _ in self.stripped.most_common(5))
            sentences.append(
                f"an uncased vocabulary strips accents and vowel signs, here from {stripped:.1%} of the letters (most "
                f"often {most}); where they tell words apart, as in Hindi or Vietnamese, use --strip_accents false"
            )
        not_nfc = self.not_nfc / max(1, self.characters)
        if not_nfc > NOTABLE:
            sentences.append(
                f"{not_nfc:.1%} of the text is in words that are not in Unicode's composed form (NFC), so one word "
                "can have several spellings; convert all text to one form, for example by "
                "python -c \"import sys, unicodedata as u; [print(u.normalize('NFC', l), end='') for l in sys.stdin]\""
            )
        if self.in_long_words > NOTABLE * self.characters:
            sentences.append(
                f"{self.in_long_words / self.characters:.1%} of the text, {self.long_words} words of more than "
                f"{MAX_WORD} characters, was left out: BERT's tokenizers make [UNK] of them; {SEGMENT_WORDS}"
            )
        return sentences


def train_wordpiece(
    documents: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool = True,
    strip_accents: bool = True,
    segmented: bool = False,
    unicode_form: str = NO_FORM,
    model_max_length: int = 512,
    losses: TextLosses | None = None,
) -> "PreTrainedTokenizerBase":
    """Train a BERT tokenizer with a WordPiece vocabulary learnt from `documents`.

    The same text gives the same vocabulary, byte for byte. Ids: the special tokens 0–4, then the characters by code
    point, the same as word continuations (##x), then the merged pieces in the order of learning.

    Args:
        documents: texts that can be iterated over twice (a list or an object with `__iter__`, not a generator).
        vocab_size: tokens, special ones and characters included. The vocabulary is smaller when the text has no more
            pairs that occur twice; ask `len` of the result.
        lowercase: whether the tokenizer lower-cases text.
        strip_accents: whether lower-casing takes accents and vowel signs away too, as BERT's uncased models do.
        segmented: blanks in the text separate all words, as a word segmenter left them, so that ideographs make words
            of several characters, too.
        unicode_form: NFC or NFKC, to which the tokenizer brings every text first; NO_FORM leaves text as it is.
        model_max_length: stored with the tokenizer.
        losses: filled with the text that the vocabulary cannot learn.

    Returns:
        The stock tokenizer of transformers; with a Unicode form a PreTrainedTokenizerFast, for BertTokenizer has none.

    Raises:
        InputError: if the text is empty, or `vocab_size` has no room for the special tokens and the characters.
    """
    if isinstance(documents, Iterator):
        raise InputError("train_wordpiece needs documents that can be iterated over twice, not an iterator")
    losses = TextLosses() if losses is None else losses
    stripping = None if strip_accents else False  # None: together with lower case, as in every released BERT
    normalizer = _normalizer(lowercase, stripping, segmented, unicode_form)
    alphabet = _alphabet(documents, normalizer, losses)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the continuations in the order of a hash map that differs from run to run, and breaks ties by
    # number. Declared as special tokens they get their numbers from us.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=_first_tokens(alphabet, vocab_size),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    texts = (without_long_words(document, normalizer, losses) for document in documents)
    tokenizer.train_from_iterator(texts, trainer=trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    trained = bert_tokenizer(
        vocabulary, lowercase, model_max_length, strip_accents=stripping, tokenize_chinese_chars=not segmented
    )
    return trained if unicode_form == NO_FORM else _with_normalizer(trained, normalizer)


def _normalizer(lowercase: bool, strip_accents: bool | None, segmented: bool, unicode_form: str) -> Any:
    """Return the normalizer of a new tokenizer, for the options of `train_wordpiece`."""
    bert = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=not segmented
    )
    return bert if unicode_form == NO_FORM else normalizers.Sequence([getattr(normalizers, unicode_form)(), bert])


def _with_normalizer(tokenizer: "BertTokenizer", normalizer: Any) -> "PreTrainedTokenizerBase":
    """Return the tokenizer with another normalizer, in the class that keeps it when it is saved and opened."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizer
    special = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )


def _first_tokens(alphabet: list[str], vocab_size: int) -> list[str]:
    """List the tokens that are not learnt: special ones, characters, and characters that continue a word."""
    if not alphabet:
        raise InputError("the text holds no character to learn from")
    # Of a punctuation mark or an ideograph BERT makes a word of its own: they never continue one.
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    continuations = ["##" + character for character in alphabet if len(split("a" + character)) == 1]
    first = [*SPECIAL_TOKENS, *alphabet, *continuations]
    if vocab_size < len(first):
        raise InputError(
            f"vocab_size {vocab_size} is too small: this text needs {len(SPECIAL_TOKENS)} special tokens, "
            f"{len(alphabet)} characters and {len(continuations)} word continuations, together {len(first)}"
        )
    return first


def bert_tokenizer(
    vocabulary: dict[str, int],
    lowercase: bool,
    model_max_length: int = 512,
    strip_accents: bool | None = None,
    tokenize_chinese_chars: bool = True,
) -> "BertTokenizer":
    """Make the stock BERT tokenizer of transformers.

    Args:
        vocabulary: token → id.
        lowercase: whether the tokenizer lower-cases text.
        model_max_length: stored with the tokenizer, in tokens, special ones included.
        strip_accents: whether it strips accents. None: if it lower-cases.
        tokenize_chinese_chars: whether every ideograph is a word.

    Returns:
        The tokenizer.
    """
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab=vocabulary,
        do_lower_case=lowercase,
        model_max_length=model_max_length,
        strip_accents=strip_accents,
        tokenize_chinese_chars=tokenize_chinese_chars,
    )


def without_long_words(
    text: str, normalizer: normalizers.Normalizer | None = None, losses: TextLosses | None = None
) -> str:
    """Drop the words of more than `MAX_WORD` characters, which BERT's tokenizers turn into [UNK].

    Args:
        text: a document.
        normalizer: the tokenizer's; words are measured as it leaves them. None: BERT's for uncased text.
        losses: counts the dropped words and their characters. None: nothing is counted.

    Returns:
        The text without these words. A run of characters that held one is normalized, and its other words are joined
        by blanks.
    """

    def drop(run: re.Match[str]) -> str:
        words = bert_words(run.group(), normalizer or normalizers.BertNormalizer())
        short = [word for word in words if len(word) <= MAX_WORD]
        if len(short) == len(words):
            return run.group()
        if losses is not None:
            losses.long_words += len(words) - len(short)
            losses.in_long_words += sum(map(len, words)) - sum(map(len, short))
        return f" {' '.join(short)} "

    return _LONG_RUN.sub(drop, text)


def bert_words(text: str, normalizer: normalizers.Normalizer) -> list[str]:
    """Split a text into the words that WordPiece sees.

    Args:
        text: as the user wrote it.
        normalizer: the tokenizer's.

    Returns:
        The words as the normalizer leaves them. A punctuation mark is a word.
    """
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))]


def _alphabet(documents: Iterable[str], normalizer: normalizers.Normalizer, losses: TextLosses) -> list[str]:
    """List the characters of the normalized text by code point, without the rarest (see CHARACTER_COVERAGE)."""
    raw = np.zeros(0x110000, dtype=np.int64)
    keeps_accents = bool(normalizer.normalize_str("\u0301"))
    for document in documents:
        points = np.frombuffer(document.encode("utf-32-le", "replace"), dtype=np.uint32)
        counts = np.bincount(points)
        raw[: len(counts)] += counts
        if keeps_accents and not unicodedata.is_normalized("NFC", document):
            losses.not_nfc += sum(len(word) for word in document.split() if not unicodedata.is_normalized("NFC", word))
    counted: dict[str, int] = {}
    for point in np.flatnonzero(raw):
        character, count = chr(point), int(raw[point])
        losses.characters += 0 if character.isspace() else count
        losses.letters += count if unicodedata.category(character)[0] in "LM" else 0
        if not keeps_accents and any(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", character)):
            losses.stripped[character] += count
        for part in normalizer.normalize_str(character):
            if not part.isspace():
                counted[part] = counted.get(part, 0) + count
    droppable = int(sum(counted.values()) * (1 - CHARACTER_COVERAGE))
    kept = set(counted)
    for character in sorted(counted, key=lambda character: (counted[character], -ord(character))):
        droppable -= counted[character]
        if droppable < 0:
            break
        kept.remove(character)
    return sorted(kept)


def describe_words(tokenizer: "PreTrainedTokenizerBase", documents: Iterable[str]) -> dict[str, float]:
    """Measure how well a vocabulary covers the words of some documents.

    Args:
        tokenizer: a WordPiece tokenizer of transformers.
        documents: the texts. A word counts as often as it occurs.

    Returns:
        `pieces_per_word`, the mean, and `unknown_words`, the share of words that are [UNK], from 0 to 1.
    """
    backend = tokenizer.backend_tokenizer
    words = Counter(word for document in documents for word in bert_words(document, backend.normalizer))
    pieces = {word: [token.value for token in backend.model.tokenize(word)] for word in words}
    total = max(1, words.total())
    unknown = sum(count for word, count in words.items() if pieces[word] == [tokenizer.unk_token])
    return {
        "pieces_per_word": round(sum(count * len(pieces[word]) for word, count in words.items()) / total, 3),
        "unknown_words": round(unknown / total, 5),
    }


def word_warnings(figures: dict[str, float]) -> list[str]:
    """Return one sentence for each figure of `describe_words` that says that WordPiece does badly."""
    sentences = []
    if figures["pieces_per_word"] > MANY_PIECES:
        sentences.append(
            f"words have {figures['pieces_per_word']:.1f} pieces on average; where that is not the language's own way "
            "to build words, take a larger --vocab_size, more text, or segment the text into words first"
        )
    if figures["unknown_words"] > NOTABLE:
        sentences.append(f"{figures['unknown_words']:.1%} of the words are [UNK], of rare characters or too long")
    return sentences


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and vocab.txt, and check that AutoTokenizer reads them back.

    Args:
        tokenizer: of transformers.
        directory: created if it is missing.

    Raises:
        OutputError: if the directory cannot be written.
        RuntimeError: if the tokenizer read back differs.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    vocabulary = tokenizer.get_vocab()
    with writing(f"the tokenizer {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(directory)
        if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
            write_vocabulary(vocabulary, directory)
    reloaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    same = tokenizer_hash(reloaded) == tokenizer_hash(tokenizer) and all(
        reloaded(text)["input_ids"] == tokenizer(text)["input_ids"] for text in _SAMPLE_TEXTS
    )
    if not same:
        raise RuntimeError(f"the tokenizer read back from {directory} differs from the one that was written")


def write_vocabulary(vocabulary: dict[str, int], directory: Path) -> None:
    """Write vocab.txt: the tokens of `vocabulary` (token → id), one per line, in the order of their ids."""
    lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
    (directory / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")


def load_tokenizer(directory: str | Path, model: str | Path | None = None) -> "PreTrainedTokenizerBase":
    """Load a tokenizer and check that its files agree with each other.

    Oddities that may be intended are printed as warnings.

    Args:
        directory: of a tokenizer or a checkpoint, or its name on the Hub, perhaps with @REVISION.
        model: the checkpoint to use the tokenizer with. Its own tokenizer, if any, must have the same vocabulary.

    Returns:
        The tokenizer of transformers.

    Raises:
        InputError: if there is no tokenizer, a file is damaged, vocab.txt has blank or duplicate lines, a special
            token is missing, its files contradict each other, or `model` was trained with another vocabulary.
    """
    from transformers import AutoTokenizer

    path = Path(directory)
    if path.exists():
        check_files(path)
    elif str(directory).startswith((".", "/", "~")) or str(directory).count("/") > 1:
        raise InputError(f"no tokenizer directory {directory}")
    try:
        source, revision = split_revision(directory)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types, bare Exception among them
        raise InputError(f"{directory} holds no tokenizer that can be loaded ({one_line(error)})") from None
    check_tokenizer(tokenizer, str(directory))
    check_as_written(tokenizer, path)
    check_case(tokenizer, path)
    if model is not None and Path(model) != path:
        try:
            other = load_tokenizer(model)
        except InputError as error:
            warn(f"whether --model {model} was trained with the tokenizer {directory} cannot be checked: {error}")
        else:
            check_same_vocabulary(tokenizer, other, f"the tokenizer {directory}", str(model))
    return tokenizer


def load_any_tokenizer(name: str | Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of any encoder: WordPiece ones as `load_tokenizer` does, others as transformers does.

    Args:
        name: directory of a checkpoint, or its name on the Hub.

    Returns:
        The tokenizer of transformers.

    Raises:
        InputError: if there is none, it is not a fast one, or lacks a special token that an encoder needs.
    """
    from transformers import AutoTokenizer

    if Path(name).exists() and not _is_of_another_kind(Path(name)):
        return load_tokenizer(name)
    source, revision = split_revision(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # as in load_tokenizer
        raise InputError(f"{name} holds no tokenizer that can be loaded ({one_line(error)})") from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ == "WordPiece":
        return load_tokenizer(name)
    if backend is None:
        raise InputError(f"{name} is not backed by the tokenizers library; save it again with a current transformers")
    for role in ("cls_token", "sep_token", "pad_token", "unk_token"):
        if getattr(tokenizer, role) is None:
            raise InputError(f"{name} has no {role}, which fine-tuning an encoder needs")
    return tokenizer


def _is_of_another_kind(directory: Path) -> bool:
    """Return whether a directory holds a tokenizer that is not a WordPiece one; False for a faulty or missing one."""
    serialized = directory / "tokenizer.json"
    if not serialized.is_file():
        others = any(any(directory.glob(name)) for name in OTHER_ALGORITHMS)
        return others and not (directory / "vocab.txt").is_file()
    try:
        return json.loads(serialized.read_text(encoding="utf-8"))["model"].get("type", "WordPiece") != "WordPiece"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False  # load_tokenizer names the fault


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash everything that decides the ids of a text: vocabulary, normalizer, word rules.

    Args:
        tokenizer: of transformers or tokenizers.

    Returns:
        64 hex digits, independent of the form in which the tokenizer was saved.
    """
    backend: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    content = json.loads(backend.to_str())
    model = {key: value for key, value in content["model"].items() if key != "vocab"}
    essence = {
        "vocabulary": backend.get_vocab(with_added_tokens=True),
        "model": model,
        "normalizer": content["normalizer"],
        "pre_tokenizer": content["pre_tokenizer"],
    }
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()

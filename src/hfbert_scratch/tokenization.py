"""Train a WordPiece vocabulary, save it as a stock BERT tokenizer, and load it with checks.

The saved directory needs nothing of this package: `AutoTokenizer.from_pretrained` opens it.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from .errors import InputError, one_line
from .files import writing


if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerBase


# The ids of the special tokens, by position. [PAD] is 0 as in every released BERT.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# BERT's tokenizers turn longer words into [UNK]; the trainer would spend minutes on a word of megabytes.
MAX_WORD = 100
# The rarest characters, together this share of the text, get no place in the vocabulary: otherwise every stray symbol
# of a large corpus takes one. SentencePiece calls it character coverage and recommends 0.9995 to 1.
CHARACTER_COVERAGE = 0.9999
# A pair seen once is no evidence for a piece (the trainers' usual value is 2 or less; BERT's is not published).
MIN_FREQUENCY = 2

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


def train_wordpiece(
    documents: Iterable[str], *, vocab_size: int, lowercase: bool = True, model_max_length: int = 512
) -> "BertTokenizer":
    """A BERT tokenizer whose WordPiece vocabulary is learnt from `documents`, which is iterated over twice.

    The same text gives the same vocabulary, byte for byte. Ids: the special tokens 0–4, then the characters by code
    point, the same as word continuations (##x), then the merged pieces in the order of learning. The vocabulary is
    smaller than `vocab_size` when the text has no more pairs that occur twice; ask `len` of the result.

    `documents` must be re-iterable (a list or an object with `__iter__`), not a generator.

    Raises InputError if the text is empty, or if `vocab_size` has no room for the special tokens and the characters.
    """
    if isinstance(documents, Iterator):
        raise InputError("train_wordpiece needs documents that can be iterated over twice, not an iterator")
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(documents, normalizer)
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
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the continuations in the order of a hash map that differs from run to run, and breaks ties by
    # number. Declared as special tokens they get their numbers from us.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((without_long_words(document) for document in documents), trainer=trainer)
    return bert_tokenizer(tokenizer.get_vocab(with_added_tokens=False), lowercase, model_max_length)


def bert_tokenizer(vocabulary: dict[str, int], lowercase: bool, model_max_length: int = 512) -> "BertTokenizer":
    """The stock BERT tokenizer with `vocabulary` (token → id)."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=model_max_length)


def without_long_words(text: str) -> str:
    """`text` without the words of more than `MAX_WORD` characters, which BERT's tokenizer makes [UNK]."""
    return _LONG_RUN.sub(_drop_long_words, text)


def _drop_long_words(run: re.Match[str]) -> str:
    words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizers.BertNormalizer().normalize_str(run.group()))
    if all(len(word) <= MAX_WORD for word, _ in words):
        return run.group()
    return f" {' '.join(word for word, _ in words if len(word) <= MAX_WORD)} "


def _alphabet(documents: Iterable[str], normalizer: normalizers.Normalizer) -> list[str]:
    """The characters of the normalized text by code point, without the rarest (see CHARACTER_COVERAGE)."""
    raw = np.zeros(0x110000, dtype=np.int64)
    for document in documents:
        points = np.frombuffer(document.encode("utf-32-le", "replace"), dtype=np.uint32)
        counts = np.bincount(points)
        raw[: len(counts)] += counts
    counted: dict[str, int] = {}
    for point in np.flatnonzero(raw):
        for character in normalizer.normalize_str(chr(point)):
            if not character.isspace():
                counted[character] = counted.get(character, 0) + int(raw[point])
    droppable = int(sum(counted.values()) * (1 - CHARACTER_COVERAGE))
    kept = set(counted)
    for character in sorted(counted, key=lambda character: (counted[character], -ord(character))):
        droppable -= counted[character]
        if droppable < 0:
            break
        kept.remove(character)
    return sorted(kept)


# ---------------------------------------------------------------------------------------------------- saving, loading


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and vocab.txt, reload them through AutoTokenizer and compare.

    Raises OutputError if the directory cannot be written, and RuntimeError if what is read back differs.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    vocabulary = tokenizer.get_vocab()
    with writing(f"the tokenizer {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(directory)
        write_vocabulary(vocabulary, directory)
    reloaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    same = tokenizer_hash(reloaded) == tokenizer_hash(tokenizer) and all(
        reloaded(text)["input_ids"] == tokenizer(text)["input_ids"] for text in _SAMPLE_TEXTS
    )
    if not same:
        raise RuntimeError(f"the tokenizer read back from {directory} differs from the one that was written")


def write_vocabulary(vocabulary: dict[str, int], directory: Path) -> None:
    """Write vocab.txt: the tokens of `vocabulary` (token → id), one a line, in the order of their ids."""
    lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
    (directory / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")


def load_tokenizer(directory: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `directory` (or of that name on the Hub), checked.

    Raises InputError if there is none, a file is damaged, vocab.txt has blank or duplicate lines, or a special token
    is missing.
    """
    from transformers import AutoTokenizer

    path = Path(directory)
    if path.exists():
        _check_files(path)
    elif str(directory).startswith((".", "/", "~")) or str(directory).count("/") > 1:
        raise InputError(f"no tokenizer directory {directory}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types, bare Exception among them
        raise InputError(f"{directory} holds no tokenizer that can be loaded ({one_line(error)})") from None
    check_tokenizer(tokenizer, str(directory))
    return tokenizer


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", name: str = "the tokenizer") -> None:
    """Raise InputError unless `tokenizer` is a fast one, has BERT's five special tokens and ids 0 … len − 1."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"{name} is not backed by the tokenizers library; save it again with a current transformers")
    vocabulary = tokenizer.get_vocab()
    for usual in SPECIAL_TOKENS:
        role = f"{usual[1:-1].lower()}_token"
        token = getattr(tokenizer, role)
        if token is None:
            raise InputError(f"{name} has no {role} ({usual}); BERT needs it")
        if token not in vocabulary or vocabulary[token] >= tokenizer.vocab_size:
            raise InputError(f"{name}: the {role} {token} is not in the vocabulary; add it and train again")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise InputError(f"{name}: the ids are not 0 … {len(vocabulary) - 1} without gaps; two tokens share an id")


def _check_files(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path} is a file; name the directory of the tokenizer")
    vocabulary, serialized = path / "vocab.txt", path / "tokenizer.json"
    if not vocabulary.is_file() and not serialized.is_file():
        raise InputError(f"{path} is not a tokenizer directory: it has neither tokenizer.json nor vocab.txt")
    if serialized.is_file():
        try:
            content = json.loads(serialized.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{serialized} is truncated or damaged ({one_line(error)})") from None
        model = content.get("model") if isinstance(content, dict) else None
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocab, dict):
            raise InputError(f"{serialized} holds no WordPiece vocabulary; use one of train_tokenizer.py's")
        _check_special_tokens(serialized, set(vocab))
    if vocabulary.is_file():
        _check_vocabulary_lines(vocabulary)


def _check_vocabulary_lines(path: Path) -> None:
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)})") from None
    if lines[-1] == "":
        lines.pop()
    seen: dict[str, int] = {}
    for number, line in enumerate((line.removesuffix("\r") for line in lines), start=1):
        if not line.strip():
            raise InputError(f"{path}: line {number} is blank; every line must be one token")
        if line in seen:
            raise InputError(f"{path}: lines {seen[line]} and {number} are both {line!r}; ids would shift")
        seen[line] = number
    _check_special_tokens(path, set(seen))


def _check_special_tokens(path: Path, tokens: set[str]) -> None:
    """Without this check transformers appends a missing token behind the vocabulary, where no embedding is."""
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise InputError(f"{path}: the vocabulary lacks {', '.join(missing)}; BERT needs all of them")


def tokenizer_hash(tokenizer: Any) -> str:
    """A fingerprint (64 hex digits) of what decides the ids of a text: vocabulary, normalizer, word rules.

    Equal for the same tokenizer however its files are written; `tokenizer` is from transformers or tokenizers.
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


class Progress:
    """Counts text that goes by and prints a line at the start, and one with rate and remaining time now and then."""

    def __init__(self, label: str, total: int = 0, every: float = 10.0) -> None:
        self.label, self.total, self.every = label, total, every
        self.done = 0
        self.start = self._last = time.monotonic()
        print(f"{label}: {total / 1e6:,.1f} MB" if total else f"{label}: begins", flush=True)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.start

    @property
    def rate(self) -> float:
        """MB/s since the start."""
        return self.done / 1e6 / max(self.seconds, 1e-9)

    def add(self, size: int) -> None:
        """Note `size` more bytes."""
        self.done += size
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            print(self.line(), flush=True)

    def line(self) -> str:
        """The current state in one line."""
        text = f"{self.label}: {self.done / 1e6:,.1f} MB, {self.rate:.1f} MB/s"
        if self.total > self.done > 0:
            text += (
                f", {self.done / self.total:.0%}, {(self.total - self.done) / self.done * self.seconds:,.0f} s left"
            )
        return text

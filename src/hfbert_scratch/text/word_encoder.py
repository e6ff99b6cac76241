"""Token ids of much text at once: the tokenizer sees every distinct word only once.

BERT's normalizer looks at single characters (and at accents behind them), and its pre-tokenizer splits at white space
and punctuation. So the ids of a text are the ids of its pieces between ASCII blanks and punctuation marks, one after
the other, and most pieces have been seen before. Pieces are found and numbered in numpy and Arrow; only new ones go to
the tokenizer, whatever they consist of, words of ASCII letters and digits many at a time. The result equals the
tokenizer's on every string.
"""

import itertools
import json

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, pre_tokenizers


# What is remembered is thrown away when it grows beyond this: random strings would fill the memory.
_MAX_PIECES, _MAX_BYTES = 1 << 20, 1 << 26

# A byte ends the piece before it (blank), is a piece (ASCII punctuation), or belongs to one (also control characters,
# which the normalizer removes without splitting, and all bytes of other characters).
_BLANK, _MARK, _INSIDE = range(3)
_BLANKS, _MARKS = b" \t\n\r", b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_KIND = bytes(_BLANK if byte in _BLANKS else _MARK if byte in _MARKS else _INSIDE for byte in range(256))
# What WordPiece puts before a piece that continues a word.
_CONTINUATION = "##"
# Words the tokenizer gets in one string.
_LINE = 100


def decomposes(tokenizer: Tokenizer) -> bool:
    """Whether the words of a text can be tokenized one by one: BERT's rules, and no added token that is matched."""
    content = json.loads(tokenizer.to_str())
    normalizer = content["normalizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and (content["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and content["model"]["type"] == "WordPiece"
        and content["model"]["continuing_subword_prefix"] == _CONTINUATION
        and not content["model"]["unk_token"].startswith(_CONTINUATION)
        and all(token["special"] for token in content["added_tokens"])
        and tokenizer.encode_special_tokens
    )


class WordEncoder:
    """Encodes sentences with `tokenizer`, for which `decomposes` must hold, through a dictionary of pieces."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        content = json.loads(tokenizer.to_str())
        self._lowercase = content["normalizer"]["lowercase"]
        # For words of letters and digits, in lower case if need be, the normalizer has nothing to do, and takes longer
        # than all the rest.
        self._word_tokenizer = Tokenizer(tokenizer.model)
        self._word_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        vocabulary = content["model"]["vocab"]
        self._begins_word = np.ones(max(vocabulary.values()) + 1, dtype=bool)
        self._begins_word[[number for token, number in vocabulary.items() if token.startswith(_CONTINUATION)]] = False
        self._forget()

    def encode(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all sentences one after another, and the number of ids of each, (sentences,) int64."""
        data = "\n".join([*sentences, ""]).encode("utf-8")
        if self._lowercase:  # ASCII, and so fewer pieces to tell apart
            data = data.lower()
        kind = np.frombuffer(data.translate(_KIND), dtype=np.uint8)
        inside = kind == _INSIDE
        begins = inside.copy()
        begins[1:] &= ~inside[:-1]
        begins |= kind == _MARK
        # Without the blanks the pieces lie end to end, as an Arrow array of strings.
        solid = data.translate(None, _BLANKS)
        offsets = np.append(np.flatnonzero(begins[kind != _BLANK]), len(solid)).astype(np.int32)
        pieces = pa.Array.from_buffers(
            pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(solid)]
        ).dictionary_encode()
        numbers = self._numbers(pieces.dictionary.to_pylist())[pieces.indices.to_numpy(zero_copy_only=False)]
        counts = self._counts[numbers]
        behind = np.concatenate([[0], np.cumsum(counts)])
        source = np.repeat(self._starts[numbers] - behind[:-1], counts) + np.arange(behind[-1])
        pieces_before = np.searchsorted(np.flatnonzero(begins), self._ends(sentences, data))
        return self._ids[source], np.diff(behind[pieces_before], prepend=0)

    @staticmethod
    def _ends(sentences: list[str], data: bytes) -> np.ndarray:
        """Byte offsets of the line ends that were put behind the sentences."""
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)
        if len(ends) != len(sentences):  # line ends inside sentences
            ends = np.cumsum([len(sentence.encode("utf-8")) + 1 for sentence in sentences]) - 1
        return ends

    def _numbers(self, pieces: list[bytes]) -> np.ndarray:
        """The number under which each of these distinct pieces is remembered."""
        if len(self._known) > _MAX_PIECES or self._bytes > _MAX_BYTES:
            self._forget()
        known = self._known
        new = [piece for piece in pieces if piece not in known]
        if new:
            # In the order of `new`: words of ASCII letters and digits first.
            new.sort(key=bytes.isalnum, reverse=True)
            plain = sum(map(bytes.isalnum, new))
            words, others = self._encode_words(new[:plain]), self._encode_singly(new[plain:])
            ids, counts = (np.concatenate(parts) for parts in zip(words, others, strict=True))
            starts = len(self._ids) + np.cumsum(counts) - counts
            known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
            self._bytes += sum(map(len, new))
            self._ids = np.concatenate([self._ids, ids])
            self._starts = np.concatenate([self._starts, starts])
            self._counts = np.concatenate([self._counts, counts])
        return np.fromiter(map(known.__getitem__, pieces), dtype=np.int64, count=len(pieces))

    def _encode_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of words of ASCII letters and digits, and the number of each: every one is a word to the tokenizer.

        Many in a string, because a call costs more than a word; the pieces that begin a word tell them apart again.
        """
        lines = [b" ".join(words[begin : begin + _LINE]).decode("ascii") for begin in range(0, len(words), _LINE)]
        encoded = _ids(self._word_tokenizer, lines)
        ids = np.fromiter(itertools.chain.from_iterable(encoded), dtype=self.dtype)
        begins = np.append(np.flatnonzero(self._begins_word[ids]), len(ids))
        return ids, np.diff(begins)

    def _encode_singly(self, pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of any pieces, and the number of each."""
        encoded = _ids(self.tokenizer, [piece.decode("utf-8") for piece in pieces])
        counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        return np.fromiter(itertools.chain.from_iterable(encoded), dtype=self.dtype), counts

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}
        self._bytes = 0
        self._ids = np.zeros(0, dtype=self.dtype)
        self._starts, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

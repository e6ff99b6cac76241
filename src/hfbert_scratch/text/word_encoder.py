"""Encode many texts fast: the tokenizer sees every distinct word only once.

BERT's normalizer looks at single characters (and the accents after them), and its pre-tokenizer splits at white space
and punctuation. So the ids of a text are the concatenated ids of its pieces between ASCII blanks and punctuation
marks, and most pieces have been seen before. numpy and Arrow find and number the pieces; only new ones go to the
tokenizer, words of ASCII letters and digits many at a time. The result equals the tokenizer's on every string.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, pre_tokenizers


# The dictionary is emptied when it grows beyond this: random strings would fill the memory.
MAX_PIECES, _MAX_BYTES = 1 << 20, 1 << 26

# A byte is a blank, which ends the piece before it; an ASCII punctuation mark, a piece of its own; or inside a piece.
# Inside are also control characters, which the normalizer removes without splitting, and all bytes of non-ASCII
# characters.
_BLANK, _MARK, _INSIDE = range(3)
_BLANKS, _MARKS = b" \t\n\r", b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_KIND = bytes(_BLANK if byte in _BLANKS else _MARK if byte in _MARKS else _INSIDE for byte in range(256))
# The prefix of WordPiece tokens that continue a word.
_CONTINUATION = "##"
# Words joined in one string for the tokenizer, because a call costs more than a word.
_WORDS_PER_CALL = 100
# Characters encoded in one call, with the dictionary and without, which bounds the memory of the result.
_DICTIONARY_CHARACTERS, CALL_CHARACTERS = 1 << 22, 1 << 20

# Texts → their ids concatenated, and the number of ids of each text, (texts,) int64.
Encoder = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


def plain_backend(serialized: str) -> Tokenizer:
    """Open a serialized tokenizer so that it neither truncates nor pads, and reads "[SEP]" in a text as text."""
    backend = Tokenizer.from_str(serialized)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def text_encoder(backend: Tokenizer, dtype: np.dtype) -> Encoder:
    """Return the fastest encoder without special tokens: by a dictionary of words if the tokenizer allows it.

    Args:
        backend: from `plain_backend`.
        dtype: integer type of the ids.
    """
    encode_batch: Encoder
    if decomposes(backend):
        encode_batch, size = WordEncoder(backend, dtype).encode, _DICTIONARY_CHARACTERS
    else:
        encode_batch, size = functools.partial(_encode_batch, backend, dtype=dtype), CALL_CHARACTERS

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, counts = [np.zeros(0, dtype)], [np.zeros(0, np.int64)]
        for batch in _batches_of_characters(texts, size):
            flat, count = encode_batch(batch)
            ids.append(flat)
            counts.append(count)
        return np.concatenate(ids), np.concatenate(counts)

    return encode


def _batches_of_characters(texts: list[str], size: int) -> Iterator[list[str]]:
    """Split `texts` into runs of about `size` characters."""
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    begin = 0
    while begin < len(texts):
        before = int(ends[begin - 1]) if begin else 0
        end = int(np.searchsorted(ends, before + size)) + 1
        yield texts[begin:end]
        begin = end


def decomposes(tokenizer: Tokenizer) -> bool:
    """Tell whether words can be tokenized one by one: BERT's rules, and no added token matched inside text."""
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
    """Encode sentences through a dictionary of pieces; `decomposes` must hold for the tokenizer."""

    # The dictionary: piece → entry; the ids of all entries concatenated, and (entries,) where they start, how many.
    _known: dict[bytes, int]
    _ids: np.ndarray
    _starts: np.ndarray
    _counts: np.ndarray

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        content = json.loads(tokenizer.to_str())
        self._lowercase = content["normalizer"]["lowercase"]
        # The normalizer takes longer than all the rest, and changes no word of (lower-case) ASCII letters and digits.
        self._word_tokenizer = Tokenizer(tokenizer.model)
        self._word_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        vocabulary = content["model"]["vocab"]
        self._begins_word = np.ones(max(vocabulary.values()) + 1, dtype=bool)
        self._begins_word[[number for token, number in vocabulary.items() if token.startswith(_CONTINUATION)]] = False
        self._clear()

    def encode(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all sentences concatenated, and the number of ids of each, (sentences,) int64."""
        data = "\n".join([*sentences, ""]).encode("utf-8")
        if self._lowercase:  # changes ASCII only; fewer distinct pieces
            data = data.lower()
        kind = np.frombuffer(data.translate(_KIND), dtype=np.uint8)  # (bytes,)
        inside = kind == _INSIDE
        begins = inside.copy()  # (bytes,) bool: a piece begins here
        begins[1:] &= ~inside[:-1]
        begins |= kind == _MARK
        # Without the blanks the pieces are contiguous, the layout of an Arrow array of strings.
        solid = data.translate(None, _BLANKS)
        offsets = np.append(np.flatnonzero(begins[kind != _BLANK]), len(solid)).astype(np.int32)
        pieces = pa.Array.from_buffers(
            pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(solid)]
        ).dictionary_encode()
        distinct = self._lookup(pieces.dictionary.to_pylist())
        entries = distinct[pieces.indices.to_numpy(zero_copy_only=False)]  # (pieces,)
        counts = self._counts[entries]  # (pieces,) ids of each piece
        ends = np.concatenate([[0], np.cumsum(counts)])  # (pieces + 1,)
        # Gather the ids of all pieces from the dictionary's flat array.
        source = np.repeat(self._starts[entries] - ends[:-1], counts) + np.arange(ends[-1])  # (ids,)
        pieces_before = np.searchsorted(np.flatnonzero(begins), self._ends(sentences, data))  # (sentences,)
        return self._ids[source], np.diff(ends[pieces_before], prepend=0)

    @staticmethod
    def _ends(sentences: list[str], data: bytes) -> np.ndarray:
        """Find the byte offsets of the line ends that were appended to the sentences."""
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)
        if len(ends) != len(sentences):  # line ends inside sentences
            ends = np.cumsum([len(sentence.encode("utf-8")) + 1 for sentence in sentences]) - 1
        return ends

    def _lookup(self, pieces: list[bytes]) -> np.ndarray:
        """Return the dictionary entry of each of these distinct pieces, adding the new ones."""
        if len(self._known) > MAX_PIECES or self._bytes > _MAX_BYTES:
            self._clear()
        known = self._known
        new = [piece for piece in pieces if piece not in known]
        if new:
            # In the order of `new`: words of ASCII letters and digits first.
            new.sort(key=bytes.isalnum, reverse=True)
            plain = sum(map(bytes.isalnum, new))
            words = self._encode_words(new[:plain])
            others = _encode_batch(self.tokenizer, [piece.decode("utf-8") for piece in new[plain:]], self.dtype)
            ids, counts = (np.concatenate(parts) for parts in zip(words, others, strict=True))
            starts = len(self._ids) + np.cumsum(counts) - counts
            known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
            self._bytes += sum(map(len, new))
            self._ids = np.concatenate([self._ids, ids])
            self._starts = np.concatenate([self._starts, starts])
            self._counts = np.concatenate([self._counts, counts])
        return np.fromiter(map(known.__getitem__, pieces), dtype=np.int64, count=len(pieces))

    def _encode_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode words of ASCII letters and digits; return their ids concatenated, and the number of each.

        Many words go in one string. A token without the continuation prefix begins a word, which separates them again.
        """
        starts = range(0, len(words), _WORDS_PER_CALL)
        lines = [b" ".join(words[start : start + _WORDS_PER_CALL]).decode("ascii") for start in starts]
        ids, _ = _encode_batch(self._word_tokenizer, lines, self.dtype)
        begins = np.append(np.flatnonzero(self._begins_word[ids]), len(ids))
        return ids, np.diff(begins)

    def _clear(self) -> None:
        self._known = {}
        self._bytes = 0
        self._ids = np.zeros(0, dtype=self.dtype)
        self._starts, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def _encode_batch(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokenizer's ids of `texts` concatenated, and the number of each."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return np.fromiter(itertools.chain.from_iterable(encoded), dtype=dtype, count=int(counts.sum())), counts

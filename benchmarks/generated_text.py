"""Text for benchmarks, shaped like English: words with Zipf frequencies, sentences and documents as long as in prose.

No text is shipped or downloaded. The 150 most frequent words make up half of the text and the 10,000 most frequent
nearly nine tenths, and rare words keep coming, as in English (45 % and 88 % in Wikipedia and novels).
"""

from collections.abc import Iterator

import numpy as np


# Zipf–Mandelbrot: the word of rank r has a frequency proportional to 1/(r + SHIFT)^EXPONENT.
_SHIFT, _EXPONENT, _WORDS = 2.7, 1.12, 120_000
_ONSETS = ["", "b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "th", "pl", "br"]
_NUCLEI = ["a", "e", "i", "o", "u", "ea", "ou", "ai"]
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "d", "ng", "nt", "ck"]


class TextGenerator:
    """Sentences and documents; the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        syllables = [onset + nucleus + coda for onset in _ONSETS for nucleus in _NUCLEI for coda in _CODAS]
        # Frequent words are short: number r has one syllable and, of three more, a share that grows with log r.
        ranks = np.arange(2 * _WORDS)
        counts = 1 + self.rng.binomial(3, np.minimum(0.06 * np.log10(ranks + 1), 1))
        drawn = iter(self.rng.integers(len(syllables), size=int(counts.sum())).tolist())
        found = dict.fromkeys("".join(syllables[next(drawn)] for _ in range(count)) for count in counts.tolist())
        self._words = np.array(list(found)[:_WORDS], dtype=object)
        frequencies = 1 / (np.arange(_WORDS) + 1 + _SHIFT) ** _EXPONENT
        self._cumulative = np.cumsum(frequencies / frequencies.sum())

    def sentences(self, count: int, words: float = 17, spread: float = 0.6) -> list[str]:
        """`count` sentences of `words` words (the median of a log-normal distribution), with commas and names."""
        lengths = np.maximum(2, self.rng.lognormal(np.log(words), spread, count)).astype(np.int64)
        drawn = self._words[
            np.searchsorted(self._cumulative, self.rng.random(int(lengths.sum()))).clip(max=_WORDS - 1)
        ]
        signs = self.rng.random(len(drawn))
        drawn[signs < 0.05] += ","
        names = np.flatnonzero(signs > 0.95)
        drawn[names] = [word.capitalize() for word in drawn[names]]
        made = []
        begin = 0
        for length in lengths.tolist():
            sentence = " ".join(drawn[begin : begin + length]).rstrip(",") + "."
            made.append(sentence[0].upper() + sentence[1:])
            begin += length
        return made

    def documents(self, size: int) -> Iterator[list[str]]:
        """Documents of 2 to 60 sentences, until they have `size` characters."""
        held = 0
        while held < size:
            sentences = self.sentences(1000)
            while sentences and held < size:
                document = [sentences.pop() for _ in range(min(int(self.rng.integers(2, 60)), len(sentences)))]
                held += sum(map(len, document))
                yield document

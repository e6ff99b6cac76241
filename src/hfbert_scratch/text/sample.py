"""Explain why text does not suit a vocabulary, on a sample of its sentences taken while a corpus is built."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from .tokenizer import MAX_WORD, SEGMENT_WORDS
from .tokenizer_checks import NOTABLE


# Sentences inspected per shard: few enough to cost no time.
SAMPLED = 400
# Unknown characters kept per shard.
_KEPT = 50
Form = Literal["NFC", "NFD"]
_FORMS: dict[Form, str] = {"NFC": "composed", "NFD": "decomposed"}


@dataclasses.dataclass
class TextSample:
    """Counts over sampled sentences: words that become [UNK], unknown characters, Unicode forms."""

    sentences: int = 0
    characters: int = 0
    # Characters of words that become [UNK]: of all, of those longer than MAX_WORD, and those that are no token.
    in_unknown_words: int = 0
    in_long_words: int = 0
    strange: int = 0
    strange_characters: Counter[str] = dataclasses.field(default_factory=Counter)
    # Of the sentences that Unicode's form "NFC" or "NFD" changes: how many they are, and their tokens and [UNK] now
    # and in that form.
    forms: dict[Form, Counter[str]] = dataclasses.field(default_factory=lambda: {form: Counter() for form in _FORMS})

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for JSON, with the most frequent unknown characters only."""
        strange = dict(self.strange_characters.most_common(_KEPT))
        return vars(self) | {"strange_characters": strange, "forms": {form: dict(c) for form, c in self.forms.items()}}

    @staticmethod
    def merged(samples: Iterable[dict[str, Any]]) -> "TextSample":
        """Add up samples given as dicts of `as_dict`."""
        whole = TextSample()
        for sample in samples:
            for name, count in sample.items():
                if name == "forms":
                    for form, counts in count.items():
                        whole.forms[form].update(counts)
                elif name == "strange_characters":
                    whole.strange_characters.update(count)
                else:
                    setattr(whole, name, getattr(whole, name) + count)
        return whole

    def reasons(self) -> list[str]:
        """List the notable defects of the text, each with figures and the remedy."""
        return self._long_words() + self._other_forms()

    def reasons_for_many_unknown(self) -> list[str]:
        """List the reasons for many [UNK]; without a specific one, that the vocabulary is of other text."""
        reasons = self.reasons()
        if reasons and (self._other_forms() or self.strange < 0.1 * self.in_unknown_words):
            return reasons
        strange = ", ".join(character for character, _ in self.strange_characters.most_common(5))
        return [
            "the tokenizer was trained on other text or another script"
            + (f" (it does not know {strange})" if strange else "")
            + "; train one on this text with hfbert tokenizer",
            *reasons,
        ]

    def _long_words(self) -> list[str]:
        if self.in_long_words <= NOTABLE * self.characters:
            return []
        return [
            f"{self.in_long_words / self.characters:.0%} of the text is in words of more than {MAX_WORD} characters, "
            f"which become [UNK] as a whole; {SEGMENT_WORDS}"
        ]

    def _other_forms(self) -> list[str]:
        sentences = []
        for form, counts in self.forms.items():
            now, then = counts["unknown"], counts["unknown_in_form"]
            fewer = then < 0.8 * now or (then <= now and counts["tokens_in_form"] < 0.95 * counts["tokens"])
            if counts["sentences"] > NOTABLE * self.sentences and fewer:
                sentences.append(
                    f"{counts['sentences'] / self.sentences:.0%} of the sentences are not in Unicode's form {form} "
                    f"({_FORMS[form]}), which is the vocabulary's: in it they are {counts['tokens_in_form']} tokens "
                    f"with {then} [UNK] instead of {counts['tokens']} with {now}; convert the text, for example with "
                    f"unicodedata.normalize({form!r}, text)"
                )
        return sentences


def inspect_sentences(
    tokenizer: Tokenizer, sentences: list[str], tokens: np.ndarray, lengths: np.ndarray
) -> TextSample:
    """Inspect a sample of a shard's sentences.

    Args:
        tokenizer: the tokenizers library's one that made the tokens.
        sentences: all sentences of the shard.
        tokens: (tokens,) their ids concatenated.
        lengths: (sentences,) tokens of each.
    """
    sample = TextSample()
    unknown_id = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "[UNK]")
    ends = np.cumsum(lengths)
    chosen = (
        range(len(sentences)) if len(sentences) <= SAMPLED else range(0, len(sentences), len(sentences) // SAMPLED)
    )
    for number in chosen:
        sentence, end = sentences[number], int(ends[number])
        unknown = int(np.count_nonzero(tokens[end - int(lengths[number]) : end] == unknown_id))
        sample.sentences += 1
        sample.characters += len(sentence) - sentence.count(" ")
        if unknown:
            _count_unknown_words(sample, tokenizer, sentence, unknown_id)
        if not sentence.isascii():
            for form, counts in sample.forms.items():
                changed = unicodedata.normalize(form, sentence)
                if changed != sentence:
                    ids = tokenizer.encode(changed, add_special_tokens=False).ids
                    counts.update(sentences=1, tokens=int(lengths[number]), unknown=unknown)
                    counts.update(
                        tokens_in_form=len(ids), unknown_in_form=0 if unknown_id is None else ids.count(unknown_id)
                    )
    return sample


def _count_unknown_words(sample: TextSample, tokenizer: Tokenizer, sentence: str, unknown_id: int | None) -> None:
    normalized = tokenizer.normalizer.normalize_str(sentence) if tokenizer.normalizer else sentence
    words = tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else [(normalized, None)]
    for word, _ in words:
        if unknown_id not in [token.id for token in tokenizer.model.tokenize(word)]:
            continue
        sample.in_unknown_words += len(word)
        sample.in_long_words += len(word) if len(word) > MAX_WORD else 0
        strange = [character for character in word if tokenizer.token_to_id(character) is None]
        sample.strange += len(strange)
        sample.strange_characters.update(strange)

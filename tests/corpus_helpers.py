"""Text and corpora for tests: small, generated, the same every time."""

import random
from pathlib import Path

import numpy as np

from hfbert_scratch.corpus.arguments import BuildArguments
from hfbert_scratch.corpus.build import build_corpus
from hfbert_scratch.corpus.dataset import Corpus, TokenizedDocuments, write_documents
from hfbert_scratch.text.tokenizer import train_wordpiece


_SYLLABLES = [consonant + vowel for consonant in "bdfklmnrst" for vowel in "aeiou"]


def words(count: int, seed: int = 0) -> list[str]:
    """`count` different made-up words."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))] = None
    return list(found)


def document(rng: random.Random, vocabulary: list[str], sentences: int) -> str:
    """A document of `sentences` sentences, two a line."""
    made = [" ".join(rng.choices(vocabulary, k=rng.randint(3, 25))).capitalize() + "." for _ in range(sentences)]
    return "\n".join(" ".join(made[i : i + 2]) for i in range(0, len(made), 2))


def documents(count: int, seed: int = 0, sentences: tuple[int, int] = (2, 30)) -> list[str]:
    """`count` documents."""
    rng = random.Random(seed)
    vocabulary = words(400)
    return [document(rng, vocabulary, rng.randint(*sentences)) for _ in range(count)]


def write_text(path: Path, texts: list[str]) -> Path:
    """A plain-text file with a blank line behind every document."""
    path.write_bytes("".join(f"{text}\n\n" for text in texts).encode())
    return path


def small_tokenizer(texts: list[str] | None = None, vocab_size: int = 400):
    """A tokenizer that knows the made-up words."""
    return train_wordpiece(texts or documents(200), vocab_size=vocab_size)


def build(directory: Path, texts: list[str], tokenizer=None, name: str = "corpus", **options) -> Corpus:
    """A corpus of `texts` in directory/name; `options` of BuildArguments or build_corpus."""
    source = write_text(directory / f"{name}.txt", texts)
    calls = {
        key: options.pop(key) for key in ("num_proc", "num_tasks", "task", "stage", "segmenter") if key in options
    }
    arguments = BuildArguments(text=(str(source),), tokenizer="small", **options)
    return build_corpus(arguments, tokenizer or small_tokenizer(), directory / name, **calls)


def numbered_documents(
    directory: Path, sentence_lengths: list[list[int]], documents_per_shard: int = 10**9
) -> TokenizedDocuments:
    """Documents whose token ids are their positions (from 10 on), so that a test sees where a row comes from."""
    files = []
    first = 10
    for begin in range(0, len(sentence_lengths), documents_per_shard):
        part = sentence_lengths[begin : begin + documents_per_shard]
        lengths = np.array([length for lengths in part for length in lengths], dtype=np.int64)
        tokens = np.arange(first, first + lengths.sum(), dtype=np.uint32)
        first += len(tokens)
        files.append(directory / f"data-{len(files):05d}.arrow")
        write_documents(files[-1], tokens, lengths, np.array([len(lengths) for lengths in part]))
    return TokenizedDocuments(files, {"pad": 0, "cls": 2, "sep": 3})


def random_lengths(
    count: int, seed: int = 0, mean: float = 20.0, sentences: tuple[int, int] = (1, 60)
) -> list[list[int]]:
    """Sentence lengths of `count` documents: log-normal, as in prose."""
    rng = np.random.default_rng(seed)
    return [
        np.maximum(1, rng.lognormal(np.log(mean), 0.8, rng.integers(*sentences))).astype(int).tolist()
        for _ in range(count)
    ]


class FailingSegmenter:
    """Raises `error` for every document, also in a worker process."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, text: str) -> list[str]:
        raise self.error

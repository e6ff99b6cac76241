"""Vectors of words from all layers of a frozen encoder, computed once, kept on disk, and mapped into memory."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from ..utils.errors import InputError
from ..utils.files import lock, writing
from .encoder import EncoderInput, encode_inputs, weights_hash


@dataclass(frozen=True)
class WordVectors:
    """Vectors of the words of a split, from every layer, mapped into memory.

    Args:
        layers: one array per hidden state, (words, hidden_size) float16.
        offsets: (sentences + 1,) first word of every sentence.
        known: (words,) bool; a word without a piece, or cut off, is unknown and has zeros for a vector.
    """

    layers: list[np.ndarray]
    offsets: np.ndarray
    known: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of words of every sentence, (sentences,)."""
        return np.diff(self.offsets)

    def take(self, sentences: np.ndarray, layers: Sequence[int]) -> torch.Tensor:
        """Gather the vectors of some sentences, padded with zeros.

        Args:
            sentences: (n,) numbers of the sentences, at least one.
            layers: indices into `self.layers`, 0 for the embeddings.

        Returns:
            (n, most words, layers, hidden_size) float32.
        """
        lengths = self.lengths[sentences]
        shape = (len(sentences), int(lengths.max()), len(layers), self.layers[0].shape[1])
        vectors = np.zeros(shape, dtype=np.float32)
        for row, (sentence, length) in enumerate(zip(sentences, lengths, strict=True)):
            start = self.offsets[sentence]
            for position, layer in enumerate(layers):
                vectors[row, :length, position] = self.layers[layer][start : start + length]
        return torch.from_numpy(vectors)


def cached_word_vectors(
    model: PreTrainedModel,
    features: datasets.Dataset,
    cache_dir: Path,
    *,
    model_hash: str | None = None,
    batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = print,
) -> WordVectors:
    """Encode the first piece of every word, or read the vectors from disk if they are there.

    The cache key is made of the model's weights, the features (data, tokenizer, settings) and `dtype`. Vectors are
    kept as float16, whose relative error, 5e-4, is below bfloat16's. Several processes may call this at once.

    Args:
        model: the frozen encoder.
        features: of a task that tags words.
        cache_dir: directory of the vectors.
        model_hash: the encoder's `weights_hash`, where the caller has it; None: it is made here.
        batch_tokens: tokens per forward pass; None: a default for the device.
        dtype: the encoder's precision.
        say: prints the one line before encoding.

    Returns:
        The vectors.

    Raises:
        OutputError: if the cache cannot be written.
        InputError: if a value exceeds float16.
    """
    model_hash = weights_hash(model) if model_hash is None else model_hash
    key = hashlib.sha256(f"{model_hash} {features._fingerprint} {dtype}".encode()).hexdigest()[:24]
    directory = cache_dir / key
    positions = [np.asarray(row, dtype=np.int64) for row in features["positions"][:]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in positions])]).astype(np.int64)
    known = np.concatenate([np.zeros(0, dtype=np.int64), *positions]) >= 0
    count = model.config.num_hidden_layers + 1
    with writing(f"the feature cache {cache_dir}", "name another"), lock(cache_dir / f".{key}.lock", wait=True):
        if not directory.is_dir():
            size = count * len(known) * model.config.hidden_size * 2
            say(f"{len(known)} words through the frozen encoder, once: {size / 1e9:.2f} GB in {directory}")
            temporary = cache_dir / f".{key}.writing"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            rows = _word_rows(features, positions)
            encoded = encode_inputs(model, rows, layers=range(count), batch_tokens=batch_tokens, dtype=dtype)
            _write_layers(temporary, encoded, positions, count, (len(known), model.config.hidden_size))
            os.replace(temporary, directory)
    layers = [np.load(directory / f"layer-{layer:02d}.npy", mmap_mode="r") for layer in range(count)]
    return WordVectors(layers, offsets, known)


def _word_rows(features: datasets.Dataset, positions: list[np.ndarray]) -> Iterator[EncoderInput]:
    columns = features.select_columns(["input_ids", "token_type_ids"]).with_format("numpy")
    for row, word_positions in zip(columns, positions, strict=True):
        yield EncoderInput(row["input_ids"], row["token_type_ids"], word_positions[word_positions >= 0])


def _write_layers(
    directory: Path,
    encoded: Iterator[tuple[EncoderInput, np.ndarray]],
    positions: list[np.ndarray],
    count: int,
    shape: tuple[int, int],
) -> None:
    """Write layer-NN.npy for every layer, front to back: a memory map would kill the process on a full disk."""
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with ExitStack() as stack:
        files = [stack.enter_context((directory / f"layer-{layer:02d}.npy").open("wb")) for layer in range(count)]
        for file in files:
            np.lib.format.write_array_header_1_0(file, header)
        for word_positions, (_, vectors) in zip(positions, encoded, strict=True):
            words = np.zeros((count, len(word_positions), shape[1]), dtype="<f2")
            with np.errstate(over="ignore"):
                words[:, word_positions >= 0] = vectors
            if not np.isfinite(words).all():
                layer = int(np.argmin(np.isfinite(words).all(axis=(1, 2))))
                raise InputError(
                    f"layer {layer} of this model has values beyond float16; its features are no use here"
                )
            for file, layer_words in zip(files, words, strict=True):
                file.write(layer_words.tobytes())

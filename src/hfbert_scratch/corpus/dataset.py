"""Write and open a corpus on disk: Arrow files of tokenized documents, and their manifest.

The directory opens with `datasets.load_from_disk`: splits train and validation, one document per row, columns `tokens`
and `sentence_lengths`. manifest.json describes the content.
"""

import hashlib
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..text.tokenizer import tokenizer_hash
from ..text.tokenizer_checks import NOTABLE
from ..utils.errors import InputError, one_line
from ..utils.files import atomic, read_json, write_json


FORMAT = 1  # version of the directory format
MANIFEST = "manifest.json"
TOKEN_COUNTS = "token_counts.npy"  # in the directory of a split; corpora of 0.1.0 do not have it
# Keys that opening a corpus and training on it need.
_NEEDED = ("tokenizer_hash", "vocab_size", "max_seq_length", "special_ids", "arguments", "identity", "splits", "pairs")
# Directory of the records and other temporary files of a build.
BUILD = ".build"

# Tokens sampled to count how many continue a word.
_WORD_SAMPLE = 1 << 20
# Tokens counted at once, because counting makes 8 bytes of each.
_COUNTED_AT_ONCE = 1 << 22


class ShardArrays(NamedTuple):
    """The documents of a shard as flat arrays.

    Sentence i is tokens[sentences[i]:sentences[i + 1]]; document d has the sentences from documents[d] up to
    documents[d + 1].
    """

    tokens: np.ndarray  # (tokens,) uint16 or uint32, memory-mapped
    sentences: np.ndarray  # (sentences + 1,) int64, offsets into tokens
    documents: np.ndarray  # (documents + 1,) int64, offsets into sentences


class TokenizedDocuments:
    """The documents of one split, as zero-copy views of its Arrow files.

    Args:
        files: Arrow streams of one record batch each, with the columns tokens (list of unsigned integers) and
            sentence_lengths (list of int32).
        special_ids: token ids of pad, cls and sep.
        token_counts_file: occurrences of each token, (vocab_size,) int64, if they have been counted.

    Raises:
        InputError: if a file is missing or damaged.
    """

    def __init__(
        self, files: Sequence[Path], special_ids: dict[str, int], token_counts_file: Path | None = None
    ) -> None:
        self.special_ids, self._token_counts_file = special_ids, token_counts_file
        # A random B needs a second document, so a single-document shard joins its neighbour (by copy).
        self._batches: list[list[pa.RecordBatch]] = []
        lone = False
        for batch in (open_batch(file) for file in files):
            if lone or (self._batches and batch.num_rows < 2):
                self._batches[-1].append(batch)
            else:
                self._batches.append([batch])
            lone = sum(part.num_rows for part in self._batches[-1]) < 2
        self.num_documents = sum(batch.num_rows for parts in self._batches for batch in parts)
        self._tokens = [_joined([_values(batch, "tokens") for batch in parts]) for parts in self._batches]
        # (shards + 1,) position of each shard's first token in the split.
        self.first_tokens = np.cumsum([0, *(len(tokens) for tokens in self._tokens)], dtype=np.int64)
        self.num_tokens = int(self.first_tokens[-1])
        self.num_shards = len(self._batches)

    def tokens(self, shard: int) -> np.ndarray:
        """Return the token ids of a shard, (tokens,)."""
        return self._tokens[shard]

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token occurs in the split, (vocab_size,) int64.

        Args:
            vocab_size: of the tokenizer; larger than every id.

        Raises:
            InputError: if the counts that were kept are not those of this split.
        """
        if self._token_counts_file is not None and self._token_counts_file.is_file():
            return self._kept_counts(self._token_counts_file, vocab_size)
        counts = np.zeros(vocab_size, dtype=np.int64)
        for tokens in self._tokens:
            for begin in range(0, len(tokens), _COUNTED_AT_ONCE):
                counts += np.bincount(tokens[begin : begin + _COUNTED_AT_ONCE], minlength=vocab_size)
        return counts

    def _kept_counts(self, file: Path, vocab_size: int) -> np.ndarray:
        try:
            counts = np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{file} is damaged ({one_line(error)}); delete it to count anew") from None
        if counts.shape != (vocab_size,) or counts.sum() != self.num_tokens:
            raise InputError(f"{file} does not count the {self.num_tokens} tokens beside it; delete it to count anew")
        return counts

    def spread_shards(self, most: int) -> list[int]:
        """Choose at most `most` shards, spread evenly over the split.

        Args:
            most: at least 1. All shards are chosen if there are no more.

        Returns:
            Numbers of the shards, ascending.
        """
        return sorted({number * self.num_shards // most for number in range(most)})

    def shard(self, shard: int) -> ShardArrays:
        """Return the arrays of a shard. The offsets are computed, the tokens are not read."""
        parts = self._batches[shard]
        lengths = _joined([_values(batch, "sentence_lengths") for batch in parts])
        counts = _joined([np.diff(_offsets(batch, "sentence_lengths")) for batch in parts])
        return ShardArrays(self._tokens[shard], _cumulative(lengths), _cumulative(counts))


def _values(batch: pa.RecordBatch, column: str) -> np.ndarray:
    return batch.column(column).flatten().to_numpy(zero_copy_only=True)


def _offsets(batch: pa.RecordBatch, column: str) -> np.ndarray:
    return batch.column(column).offsets.to_numpy(zero_copy_only=True)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cumulative(lengths: np.ndarray) -> np.ndarray:
    result = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=result[1:])
    return result


class Corpus:
    """A finished corpus: `manifest` as a dict, and its splits."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest

    @classmethod
    def open(cls, directory: str | Path, tokenizer: Any | None = None, max_seq_length: int | None = None) -> "Corpus":
        """Open a finished corpus.

        Args:
            directory: where it was built.
            tokenizer: check that the corpus was built with this one. None: no check.
            max_seq_length: check that the corpus was built for sequences of at least this length, in tokens. None: no
                check.

        Raises:
            InputError: if there is no finished corpus, or a check fails.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"no corpus directory {directory}; build one with hfbert corpus")
        if not (directory / MANIFEST).is_file():
            if (directory / BUILD).is_dir():
                raise InputError(f"the corpus {directory} is unfinished; run the same hfbert corpus command again")
            raise InputError(f"{directory} is not a corpus: it has no {MANIFEST}; build it with hfbert corpus")
        manifest = read_json(directory / MANIFEST, "corpus")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"{directory / MANIFEST} is not a manifest of format {FORMAT}; build the corpus again")
        lacking = [name for name in _NEEDED if name not in manifest]
        if lacking:
            raise InputError(f"{directory / MANIFEST} has no {', '.join(lacking)}; build the corpus again")
        if tokenizer is not None and tokenizer_hash(tokenizer) != manifest["tokenizer_hash"]:
            raise InputError(
                f"the corpus {directory} was built with another tokenizer ({manifest['arguments']['tokenizer']}, "
                f"hash {manifest['tokenizer_hash'][:12]}, {manifest['vocab_size']} tokens) than the one given (hash "
                f"{tokenizer_hash(tokenizer)[:12]}); use that one or build the corpus again"
            )
        longest = manifest["max_seq_length"]
        if max_seq_length is not None and max_seq_length > longest:
            raise InputError(
                f"max_seq_length {max_seq_length} is longer than the {longest} the corpus {directory} was built for; "
                f"build it again with --max_seq_length {max_seq_length}"
            )
        return cls(directory, manifest)

    def split(self, name: str) -> TokenizedDocuments:
        """Open a split.

        Args:
            name: "train" or "validation".

        Raises:
            InputError: if the corpus has no such split, or one of its files is missing or damaged.
        """
        if name not in self.manifest["splits"]:
            raise InputError(
                f"the corpus {self.directory} has no split {name!r}, only {', '.join(self.manifest['splits'])}; "
                "build it with --validation_share above 0, from 4 documents or more (2 with --no_nsp)"
            )
        names = self.manifest["splits"][name]["files"]
        outside = next((file for file in names if Path(file).name != file), None)
        if outside is not None:
            raise InputError(f"{self.directory / MANIFEST} points outside its directory: {outside!r}")
        files = [self.directory / name / file for file in names]
        return TokenizedDocuments(files, self.manifest["special_ids"], self.directory / name / TOKEN_COUNTS)

    def whole_word_note(self, tokenizer: Any) -> str | None:
        """Check whether whole-word masking changes more than a few masks of this corpus.

        Args:
            tokenizer: the corpus's.

        Returns:
            A warning if it does not: few tokens continue a word, or many are ideographs, each a word of its own. None
            if it does.
        """
        tokens = self.split("train").tokens(0)[:_WORD_SAMPLE]
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        continues = np.array([piece.startswith("##") for piece in pieces])[tokens].mean()
        ideographs = np.array([unicodedata.name(piece[:1], "").startswith("CJK ") for piece in pieces])[tokens].mean()
        normalizer = tokenizer.backend_tokenizer.normalizer
        are_words = normalizer is None or " " in normalizer.normalize_str("中中").strip()  # ideographs, one by one
        if continues >= NOTABLE and (ideographs < 10 * NOTABLE or not are_words):
            return None
        return (
            f"whole_word hardly changes which tokens are masked together: {continues:.1%} of the corpus's tokens "
            f"continue a word (##), and {ideographs:.0%} are ideographs, each of which is a word to BERT's tokenizer"
        )


def write_documents(path: Path, tokens: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
    """Write documents as an Arrow stream of one batch.

    Args:
        path: the file.
        tokens: (tokens,) ids of all documents.
        lengths: (sentences,) tokens of each sentence.
        counts: (documents,) sentences of each document, none without any.
    """
    sentence_offsets = np.concatenate([[0], np.cumsum(counts)])
    token_offsets = np.concatenate([[0], np.cumsum(lengths)])[sentence_offsets]
    batch = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(pa.array(token_offsets.astype(np.int32)), pa.array(tokens)),
            "sentence_lengths": pa.ListArray.from_arrays(
                pa.array(sentence_offsets.astype(np.int32)), pa.array(lengths.astype(np.int32))
            ),
        }
    )
    write_batch(path, batch)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write an Arrow stream, the format of `datasets`, of one batch, so that its columns are flat arrays."""
    with atomic(path) as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)


def open_batch(path: Path) -> pa.RecordBatch:
    """Open the one batch of an Arrow stream, memory-mapped.

    Args:
        path: a file of `write_batch`.

    Raises:
        InputError: if the file is missing or damaged.
    """
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path), "r")) as stream:
            return stream.read_next_batch()
    except (OSError, pa.ArrowInvalid, StopIteration) as error:
        raise InputError(f"{path} is missing or damaged ({one_line(error)}); build it again") from None


def describe_for_datasets(output: Path, files: dict[str, list[str]]) -> None:
    """Write the JSON files of `datasets.load_from_disk`.

    The directories of splits without a file are removed.

    Args:
        output: directory of the corpus, with a directory for each split.
        files: split → names of its Arrow files in their order.

    Raises:
        InputError: if the first file of a split is missing or damaged.
    """
    import datasets

    kept = [split for split, names in files.items() if names]
    for split, names in files.items():
        directory = output / split
        if split not in kept:
            shutil.rmtree(directory)
            continue
        features = datasets.Features.from_arrow_schema(open_batch(directory / names[0]).schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(directory), pretty_print=True)
        digest = hashlib.sha256("".join(f"{name}{(directory / name).stat().st_size}" for name in names).encode())
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": digest.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        write_json(directory / "state.json", state)
    write_json(output / "dataset_dict.json", {"splits": kept})

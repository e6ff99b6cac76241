"""Build a pretraining corpus: text → documents → sentences → token ids → Arrow, with a manifest that is checked.

The directory opens with `datasets.load_from_disk`: splits train and validation, one row a document with `tokens` and
`sentence_lengths`. manifest.json, written last, says what is inside. Segment pairs are drawn from it while training
(segment_pairs.py), so one corpus serves every sequence length, epoch and seed.

One process reads the text, drops duplicates and forms shards; worker processes split, tokenize and write them. What a
shard holds depends on the text and the arguments alone, so the result is the same for any number of processes or
hosts, and a build that was interrupted goes on behind its finished shards.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from .arguments import read_json
from .corpus_statistics import check_corpus, describe_pairs, describe_split
from .errors import InputError, OutputError
from .segment_pairs import Documents
from .sentences import bounded, split_sentences
from .text_sources import ReadingCounts, Source, find_sources, read_documents
from .tokenization import SPECIAL_TOKENS, Progress, check_tokenizer, tokenizer_hash


FORMAT = 1  # of the directory; raised when what is written changes
MANIFEST = "manifest.json"
Segmenter = Callable[[str], list[str]]

# Documents are hashed, compared and handed on in portions of this many characters.
_PORTION = 1 << 23
# Text tokenized in one call, which bounds the memory of the tokenizer's result.
_TOKENIZER_BATCH = 1 << 20
# Tokens of a file of the validation split.
_VALIDATION_TOKENS = 1 << 24


class Corpus:
    """A finished corpus: `manifest` as a dict, and its splits."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest

    @classmethod
    def open(cls, directory: str | Path, tokenizer: Any | None = None, max_seq_length: int | None = None) -> "Corpus":
        """Open the corpus in `directory`; with `tokenizer` and `max_seq_length`, check that it was built for them.

        Raises InputError if there is no finished corpus, it was built with another tokenizer, or for shorter
        sequences.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"no corpus directory {directory}; build one with recipes/build_corpus.py")
        if not (directory / MANIFEST).is_file():
            if (directory / _BUILD).is_dir():
                raise InputError(f"the corpus {directory} is unfinished; run the same build_corpus command again")
            raise InputError(
                f"{directory} is not a corpus: it has no {MANIFEST}; build it with recipes/build_corpus.py"
            )
        manifest = read_json(directory / MANIFEST, "corpus")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"{directory / MANIFEST} is not a manifest of format {FORMAT}; build the corpus again")
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

    def split(self, name: str) -> Documents:
        """The documents of the split `name` ("train" or "validation")."""
        if name not in self.manifest["splits"]:
            raise InputError(
                f"the corpus {self.directory} has no split {name!r}, only {', '.join(self.manifest['splits'])}; "
                "build it with --validation_share above 0"
            )
        files = [self.directory / name / file for file in self.manifest["splits"][name]["files"]]
        return Documents(files, self.manifest["special_ids"])


# ---------------------------------------------------------------------------------------------------- building


@dataclasses.dataclass(frozen=True)
class BuildArguments:
    """What decides the content of a corpus; a build that is continued must have the same."""

    text: tuple[str, ...]
    tokenizer: str
    text_column: str = "text"
    encoding_errors: str = "strict"
    validation_share: float = 0.01
    max_seq_length: int = 512
    next_sentence: bool = True
    drop_duplicates: bool = True
    seed: int = 0
    shard_mb: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise InputError(f"--validation_share must be at least 0 and below 1, not {self.validation_share}")
        if self.max_seq_length < 5:
            raise InputError(f"--max_seq_length {self.max_seq_length} leaves no room for text; the smallest is 5")
        if self.seed < 0:
            raise InputError(f"--seed must not be negative, not {self.seed}")
        if not 0 <= self.shard_mb <= 512:
            raise InputError(
                f"--shard_mb must be between 1 and 512, or 0 to let it follow the text, not {self.shard_mb}"
            )


def build_corpus(
    arguments: BuildArguments,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    num_proc: int = 1,
    num_hosts: int = 1,
    host_index: int = 0,
    segmenter: Segmenter = split_sentences,
) -> Corpus | None:
    """Build the corpus `output_dir` from `arguments.text`, or go on with it, or open it when it is finished.

    `tokenizer` is a transformers tokenizer with BERT's special tokens. `segmenter` takes a document and returns its
    sentences; with several processes it must be a function that can be imported. Several hosts run the same call with
    their `host_index` on a shared file system: each reads all text and writes the shards index, index + num_hosts, …;
    the one that finds all shards finished completes the corpus, the others return None.

    Raises InputError for unusable text or arguments, for a corpus nothing can be learnt from, and for a directory
    that holds something else; OutputError if it cannot be written.
    """
    check_tokenizer(tokenizer, arguments.tokenizer)
    if not 0 <= host_index < num_hosts:
        raise InputError(
            f"--host_index must be between 0 and {num_hosts - 1} (--num_hosts {num_hosts}), not {host_index}"
        )
    if num_proc < 1:
        raise InputError(f"--num_proc must be at least 1, not {num_proc}")
    output, start = Path(output_dir), time.monotonic()
    sources = find_sources(arguments.text)
    identity = _identity(arguments, tokenizer, sources, segmenter)
    if (output / MANIFEST).is_file():
        corpus = Corpus.open(output)
        _refuse_differences(output, corpus.manifest["identity"], identity)
        return corpus
    with _output_errors(output), _lock(output, host_index):
        _claim(output, identity)
        counts = _Counts()
        shards = _form_shards(arguments, sources, counts)
        workers = _Workers(output, tokenizer, segmenter, num_proc)
        _tokenize_shards(output, shards, workers, num_hosts, host_index, sources)
        if counts.documents == 0:
            raise InputError(f"{_names(sources)} holds no text")
        records = _records(output, counts.shards)
        if records is None:
            missing = "the other hosts have not finished their shards; the last one completes the corpus"
            print(f"{output}: {missing}", flush=True)
            return None
        return _complete(output, arguments, tokenizer, identity, counts, records, time.monotonic() - start)


# ---------------------------------------------------------------------------------------------------- the directory


_BUILD = ".build"


def _identity(
    arguments: BuildArguments, tokenizer: Any, sources: list[Source], segmenter: Segmenter
) -> dict[str, Any]:
    """What must be the same when a build goes on. Text counts by content, not by path."""
    identity = dataclasses.asdict(arguments)
    del identity["text"], identity["tokenizer"]
    identity["tokenizer_hash"] = tokenizer_hash(tokenizer)
    identity["segmenter"] = getattr(segmenter, "__qualname__", type(segmenter).__qualname__)
    identity["sources"] = [{"bytes": source.size, "sha256": source.sha256()} for source in sources]
    return identity


def _refuse_differences(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    different = [
        f"{key} ({'other content' if key == 'sources' else f'{before.get(key)} before, {now.get(key)} now'})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if different:
        raise InputError(
            f"{output} was begun with other arguments: {', '.join(different)}; use them again, or another --output_dir"
        )


def _claim(output: Path, identity: dict[str, Any]) -> None:
    """Make `output` the directory of this build, or find that it is so already."""
    begun = output / _BUILD / "identity.json"
    if begun.is_file():
        _refuse_differences(output, read_json(begun, "corpus build"), identity)
    else:
        strangers = sorted(path.name for path in output.iterdir() if path.name != _BUILD)
        if strangers:
            raise InputError(f"--output_dir {output} is not empty (it has {strangers[0]}); name a new directory")
        _write_json(begun, identity)
    for split in ("train", "validation"):
        (output / split).mkdir(exist_ok=True)


@contextlib.contextmanager
def _lock(output: Path, host_index: int) -> Iterator[None]:
    """Keep a second build of the same host out of `output`; the lock goes with the process."""
    (output / _BUILD).mkdir(parents=True, exist_ok=True)
    path = output / _BUILD / f"host-{host_index}.lock"
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another build is writing to {output} (it holds {path})") from None
        yield


@contextlib.contextmanager
def _output_errors(output: Path) -> Iterator[None]:
    """Name the directory when it cannot be written; what reading raises is an InputError already."""
    try:
        yield
    except (InputError, OutputError):
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write the corpus {output}: {error.strerror or error}; finished shards are kept, the same command "
            "goes on"
        ) from error


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete and on disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_json(path: Path, content: Any) -> None:
    with _atomic(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


# ---------------------------------------------------------------------------------------------------- forming shards


@dataclasses.dataclass
class _Counts:
    """What the reading process counted."""

    reading: ReadingCounts = dataclasses.field(default_factory=ReadingCounts)
    documents: int = 0
    duplicates: int = 0
    bytes: int = 0
    shards: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class _Shard:
    """Documents on their way to a worker: UTF-8 text, and which of them are for validation."""

    number: int
    documents: list[bytes]
    validation: np.ndarray  # (documents,) bool

    @property
    def size(self) -> int:
        return sum(map(len, self.documents))


class _Digests:
    """A growing set of 64-bit document digests: 8 bytes each, in sorted runs of falling length.

    Two different documents among 10⁸ share a digest with a probability of 0.0003; one of them would be dropped.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add `digests` and return which of them were not there before (the first of equal ones counts as new)."""
        values, first = np.unique(digests, return_index=True)
        known = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, values), len(run) - 1)
            known |= run[place] == values
        self._runs.append(values[~known])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]))
        self._runs = [run for run in self._runs if len(run)]
        new = np.zeros(len(digests), dtype=bool)
        new[first[~known]] = True
        return new


def _form_shards(arguments: BuildArguments, sources: list[Source], counts: _Counts) -> Iterator[_Shard]:
    """Read everything; yield shards of about the same size, without duplicates, the split drawn."""
    size = arguments.shard_mb * 1_000_000 or _shard_size(sources)
    documents: list[bytes] = []
    hashes: list[np.ndarray] = []
    waiting: tuple[list[bytes], np.ndarray] | None = None
    held = 0

    def shard(content: tuple[list[bytes], np.ndarray]) -> _Shard:
        counts.shards += 1
        return _Shard(counts.shards - 1, content[0], _validation(arguments, content[1], first=counts.shards == 1))

    for portion, digests in _portions(arguments, sources, counts):
        documents += portion
        hashes.append(digests)
        held += sum(map(len, portion))
        if held >= size:
            if waiting is not None:
                yield shard(waiting)
            waiting = (documents, np.concatenate(hashes))
            documents, hashes, held = [], [], 0
    if documents:
        rest = (documents, np.concatenate(hashes))
        # A short rest joins the shard before it: random segments need documents to choose from.
        if waiting is not None and held < size / 2:
            waiting = (waiting[0] + rest[0], np.concatenate([waiting[1], rest[1]]))
        elif waiting is not None:
            yield shard(waiting)
            waiting = rest
        else:
            waiting = rest
    if waiting is not None:
        yield shard(waiting)


def _shard_size(sources: list[Source]) -> int:
    """Bytes of text in a shard: 64 shards if that makes them 8 to 64 MB."""
    return int(min(max(sum(source.size for source in sources) / 64, 8e6), 64e6))


def _portions(
    arguments: BuildArguments, sources: list[Source], counts: _Counts
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Portions of new documents with their digests (uint64)."""
    known = _Digests()
    texts = read_documents(
        sources,
        text_column=arguments.text_column,
        encoding_errors=arguments.encoding_errors,
        counts=counts.reading,
    )
    while True:
        start = time.monotonic()
        portion: list[bytes] = []
        held = 0
        for text in texts:
            portion.append(text.encode("utf-8"))
            held += len(portion[-1])
            if held >= _PORTION or len(portion) >= 10_000:
                break
        if not portion:
            return
        digests = np.frombuffer(
            b"".join(hashlib.blake2b(document.strip(), digest_size=8).digest() for document in portion), dtype="<u8"
        )
        new = known.add(digests) if arguments.drop_duplicates else np.ones(len(portion), dtype=bool)
        if not arguments.drop_duplicates:
            counts.duplicates += len(portion) - int(known.add(digests).sum())
        else:
            counts.duplicates += len(portion) - int(new.sum())
        counts.documents += len(portion)
        counts.bytes += held
        counts.seconds += time.monotonic() - start
        yield list(itertools.compress(portion, new)), digests[new]


def _validation(arguments: BuildArguments, digests: np.ndarray, *, first: bool) -> np.ndarray:
    """Which documents are for validation: those whose hash with the seed falls below the share.

    A tiny corpus could miss one split, so the first shard gives at least one document (two for next-sentence
    prediction) to each: those with the smallest hashes to validation.
    """
    hashes = _mix(digests ^ _mix(np.array([arguments.seed], dtype=np.uint64)))
    chosen = hashes < np.uint64(int(arguments.validation_share * 2.0**64))
    if not first or arguments.validation_share == 0:
        return chosen
    needed = 2 if arguments.next_sentence else 1
    if len(digests) < 2 * needed:
        if len(digests) == 1:
            return np.zeros(1, dtype=bool)  # one document: the check of the finished corpus says what to do
        raise InputError(
            f"--text holds {len(digests)} different documents, too few for a train and a validation split"
            f"{' of 2 each, as next-sentence prediction needs (or use --no_nsp)' if needed == 2 else ''}; "
            "separate documents by blank lines, or use --validation_share 0"
        )
    count = min(max(int(chosen.sum()), needed), len(digests) - needed)
    chosen[:] = False
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers that looks random (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---------------------------------------------------------------------------------------------------- tokenizing


class _Workers:
    """Processes that turn shards into files; with one, the work is done in this process."""

    def __init__(self, output: Path, tokenizer: Any, segmenter: Segmenter, num_proc: int) -> None:
        self.num_proc = num_proc
        self._setup = (str(output), tokenizer.backend_tokenizer.to_str(), len(tokenizer), segmenter)

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[_Shard], Future]]:
        """A function that starts the work on a shard."""
        if self.num_proc == 1:
            writer = _ShardWriter(*self._setup)

            def now(shard: _Shard) -> Future:
                done: Future = Future()
                done.set_result(writer.write(shard))
                return done

            yield now
            return
        # Not forked: the tokenizer's and Arrow's threads do not survive it.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.num_proc, context, _start_worker, self._setup)
        try:
            yield lambda shard: pool.submit(_write_shard, shard)
        except BrokenProcessPool:
            raise OutputError(
                "a worker process was killed, perhaps for want of memory; use a smaller --num_proc or --shard_mb and "
                "run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker: "_ShardWriter"


def _start_worker(*setup: Any) -> None:
    global _worker
    # The processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = _ShardWriter(*setup)


def _write_shard(shard: _Shard) -> int:
    return _worker.write(shard)


def _tokenize_shards(
    output: Path, shards: Iterator[_Shard], workers: _Workers, num_hosts: int, host_index: int, sources: list[Source]
) -> None:
    """Have every unfinished shard of this host written."""
    packed = any(source.compression or source.format != "text" for source in sources)
    progress = Progress("corpus", total=0 if packed or num_hosts > 1 else sum(source.size for source in sources))
    running: deque[Future] = deque()
    with workers.running() as start:
        for shard in shards:
            if shard.number % num_hosts != host_index or _record_path(output, shard.number).is_file():
                continue
            running.append(start(shard))
            # As many shards in memory as there are processes, and one to go on with.
            while len(running) > workers.num_proc:
                progress.add(running.popleft().result())
        while running:
            progress.add(running.popleft().result())
    print(progress.line(), flush=True)


class _ShardWriter:
    """Splits, tokenizes and writes shards."""

    def __init__(self, output: str, tokenizer: str, vocab_size: int, segmenter: Segmenter) -> None:
        self.output = Path(output)
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # "[SEP]" in the text is three words, not the special token.
        self.tokenizer.encode_special_tokens = True
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.segmenter = segmenter

    def write(self, shard: _Shard) -> int:
        """Write the shard's train file, the documents for validation and, last, its record; return its bytes."""
        start = time.monotonic()
        sentences, counts, literal = self._split(shard)
        split = time.monotonic()
        tokens, lengths = self._tokenize(sentences)
        tokenized = time.monotonic()
        document = np.repeat(np.arange(len(counts)), counts)[lengths > 0]
        lengths = lengths[lengths > 0]
        for name, chosen in (("train", ~shard.validation), ("validation", shard.validation)):
            sentence_chosen = chosen[document]
            _write_documents(
                _piece_path(self.output, name, shard.number),
                tokens[np.repeat(sentence_chosen, lengths)],
                lengths[sentence_chosen],
                np.bincount(document[sentence_chosen], minlength=len(counts)),
            )
        record = {
            "bytes": shard.size,
            "documents": len(counts),
            "without_text": int((np.bincount(document, minlength=len(counts)) == 0).sum()),
            "literal_special_tokens": literal,
            "seconds": {
                "split": split - start,
                "tokenize": tokenized - split,
                "write": time.monotonic() - tokenized,
            },
        }
        _write_json(_record_path(self.output, shard.number), record)
        return shard.size

    def _split(self, shard: _Shard) -> tuple[list[str], np.ndarray, int]:
        sentences: list[str] = []
        counts = np.zeros(len(shard.documents), dtype=np.int64)
        literal = 0
        for number, document in enumerate(shard.documents):
            text = document.decode("utf-8")
            literal += any(token in text for token in SPECIAL_TOKENS)
            before = len(sentences)
            sentences += self._segment(text)
            counts[number] = len(sentences) - before
        return sentences, counts, literal

    def _segment(self, text: str) -> list[str]:
        if self.segmenter is split_sentences:
            return split_sentences(text)
        return [piece for sentence in self.segmenter(text) for piece in bounded(sentence)]

    def _tokenize(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All token ids one after another, and the number of each sentence (0 where nothing is left of it)."""
        ids: list[np.ndarray] = [np.zeros(0, self.dtype)]
        lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        for batch in _batches(sentences):
            encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
            count = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
            lengths.append(count)
            ids.append(np.fromiter(itertools.chain.from_iterable(encoded), dtype=self.dtype, count=int(count.sum())))
        return np.concatenate(ids), np.concatenate(lengths)


def _batches(sentences: list[str]) -> Iterator[list[str]]:
    begin = held = 0
    for end, sentence in enumerate(sentences, start=1):
        held += len(sentence)
        if held >= _TOKENIZER_BATCH:
            yield sentences[begin:end]
            begin, held = end, 0
    if begin < len(sentences):
        yield sentences[begin:]


def _write_documents(path: Path, tokens: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
    """Write documents as an Arrow stream of one batch; `counts` has the sentences of each (0: not written)."""
    counts = counts[counts > 0]
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
    with _atomic(path) as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)


def _piece_path(output: Path, split: str, number: int) -> Path:
    """Train files stay where they are written; the few validation documents of a shard are collected in the end."""
    return output / ("train" if split == "train" else _BUILD) / f"data-{number:05d}.arrow"


def _record_path(output: Path, number: int) -> Path:
    return output / _BUILD / f"shard-{number:05d}.json"


def _records(output: Path, shards: int) -> list[dict[str, Any]] | None:
    """The records of all shards, None while some are missing."""
    paths = [_record_path(output, number) for number in range(shards)]
    if not all(path.is_file() for path in paths):
        return None
    return [read_json(path, "corpus build") for path in paths]


# ---------------------------------------------------------------------------------------------------- completing


def _complete(
    output: Path,
    arguments: BuildArguments,
    tokenizer: Any,
    identity: dict[str, Any],
    counts: _Counts,
    records: list[dict[str, Any]],
    seconds: float,
) -> Corpus:
    """Collect the validation split, count and check everything, and write the manifest."""
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
    files = {
        "train": _without_empty(output / "train", [f"data-{number:05d}.arrow" for number in range(counts.shards)]),
        "validation": _collect_validation(output, counts.shards),
    }
    documents = {
        name: Documents([output / name / file for file in names], special_ids)
        for name, names in files.items()
        if names
    }
    stage_seconds = {"read": counts.seconds}
    for stage in ("split", "tokenize", "write"):
        stage_seconds[stage] = sum(record["seconds"][stage] for record in records)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "arguments": dataclasses.asdict(arguments),
        "seed": arguments.seed,
        "max_seq_length": arguments.max_seq_length,
        "tokenizer_hash": identity["tokenizer_hash"],
        "vocab_size": len(tokenizer),
        "special_ids": special_ids,
        "documents_read": counts.documents,
        "duplicates": counts.duplicates,
        "duplicate_rate": round(counts.duplicates / counts.documents, 6),
        "null_texts": counts.reading.null_texts,
        "cut_documents": counts.reading.cut_documents,
        "documents_without_tokens": sum(record["without_text"] for record in records),
        "documents_with_literal_special_tokens": sum(record["literal_special_tokens"] for record in records),
        "splits": {
            name: {"files": files[name], **describe_split(split, len(tokenizer), special_ids["unk"])}
            for name, split in documents.items()
        },
    }
    check_corpus(manifest, arguments.next_sentence, arguments.validation_share)
    manifest["pairs"] = {
        name: describe_pairs(split, arguments.max_seq_length, arguments.next_sentence)
        for name, split in documents.items()
    }
    manifest["warnings"] = check_corpus(manifest, arguments.next_sentence, arguments.validation_share)
    manifest["megabytes"] = round(counts.bytes / 1e6, 3)
    manifest["seconds"] = round(seconds, 2)
    manifest["megabytes_per_second"] = {
        stage: round(counts.bytes / 1e6 / max(spent, 1e-9), 2) for stage, spent in stage_seconds.items()
    } | {"all": round(counts.bytes / 1e6 / seconds, 2)}
    manifest["versions"] = {name: version(name) for name in ("datasets", "numpy", "pyarrow", "tokenizers")} | {
        "python": platform.python_version()
    }
    manifest["identity"] = identity
    manifest["sources"] = [
        {"name": source.name, **content}
        for source, content in zip(find_sources(arguments.text), identity["sources"], strict=True)
    ]
    _describe_for_datasets(output, files)
    _write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / _BUILD, ignore_errors=True)
    return Corpus(output, manifest)


def _without_empty(directory: Path, files: list[str]) -> list[str]:
    """`files` without those of no document, which would be in the way of everyone who reads them."""

    def documents(file: str) -> int:
        with pa.ipc.open_stream(pa.memory_map(str(directory / file), "r")) as stream:
            return stream.read_next_batch().num_rows

    return [file for file in files if documents(file)]


def _collect_validation(output: Path, shards: int) -> list[str]:
    """Join the shards' validation documents into files of some million tokens; return the files' names."""
    files: list[str] = []
    batches: list[pa.RecordBatch] = []
    held = 0

    def write() -> None:
        name = f"data-{len(files):05d}.arrow"
        joined = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
        with _atomic(output / "validation" / name) as file, pa.ipc.new_stream(file, joined.schema) as stream:
            stream.write_batch(joined)
        files.append(name)

    for number in range(shards):
        with pa.ipc.open_stream(pa.memory_map(str(_piece_path(output, "validation", number)), "r")) as stream:
            batch = stream.read_next_batch()
        if batch.num_rows:
            batches.append(batch)
            held += len(batch.column("tokens").flatten())
        if held >= _VALIDATION_TOKENS:
            write()
            batches, held = [], 0
    if batches:
        write()
    return files


def _describe_for_datasets(output: Path, files: dict[str, list[str]]) -> None:
    """The JSON files `datasets.load_from_disk` looks for."""
    import datasets

    kept = [split for split, names in files.items() if names]
    for split, names in files.items():
        directory = output / split
        if split not in kept:
            shutil.rmtree(directory)
            continue
        with pa.ipc.open_stream(pa.memory_map(str(directory / names[0]), "r")) as stream:
            features = datasets.Features.from_arrow_schema(stream.schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(directory), pretty_print=True)
        digest = hashlib.sha256("".join(f"{name}{(directory / name).stat().st_size}" for name in names).encode())
        state = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": digest.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        _write_json(directory / "state.json", state)
    _write_json(output / "dataset_dict.json", {"splits": kept})


def _names(sources: list[Source]) -> str:
    return sources[0].name if len(sources) == 1 else f"{sources[0].name} … {sources[-1].name} ({len(sources)} sources)"

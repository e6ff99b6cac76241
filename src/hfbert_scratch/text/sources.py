"""Find the sources of text: files, directories, `datasets` directories and data sets of the Hub, and their parts.

A part is a fraction of a source that a process can read by itself. The parts depend on the source alone, so any number
of processes, on any hosts, share the work in the same way.
"""

import dataclasses
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import InputError, one_line
from ..utils.files import read_json
from .streams import BLOCK, COMPRESSIONS, open_file


FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
# Help of the options that name text.
SOURCES_HELP = (
    "files (.txt, .jsonl, .parquet; .gz and .zst of the first two), directories, glob patterns, or "
    "hub:NAME[@REVISION][:CONFIGURATION[:SPLIT]]"
)
# Files of rows, which as plain text would be read with their syntax.
_ROWS = (".json", ".csv", ".tsv")
_HUB = "hub:"


class Part(NamedTuple):
    """Part `number`, from 0, of the `total` parts of a source."""

    number: int = 0
    total: int = 1


WHOLE = Part()


class HubName(NamedTuple):
    """hub:REPOSITORY@REVISION:CONFIGURATION:SPLIT."""

    repository: str
    revision: str | None
    configuration: str | None
    split: str


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A file, a directory saved by `datasets`, or a data set of the Hub, with its format."""

    name: str
    format: str  # "text", "jsonl", "parquet", "datasets" or "hub"
    compression: str | None = None
    revision: str | None = None  # the commit of a data set of the Hub

    @property
    def size(self) -> int:
        """Bytes on disk, 0 for the Hub."""
        return sum(status.st_size for status in self._status())

    @property
    def modified(self) -> list[int]:
        """Times of the last change of the files, in nanoseconds."""
        return [status.st_mtime_ns for status in self._status()]

    def _status(self) -> list[os.stat_result]:
        try:
            return [path.stat() for path in self._files()]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def byte_range(self, part: Part = WHOLE) -> tuple[int, int]:
        """Return the first byte of a part and the one after its last, in the files one after the other."""
        size = self.size
        return size * part.number // part.total, size * (part.number + 1) // part.total

    def sha256(self, part: Part = WHOLE) -> str:
        """Hash the bytes of a part on disk.

        Raises:
            InputError: if a file cannot be read.
        """
        if part.total == 1:
            digests = []
            for path in self._files():
                with open_file(path) as file:
                    digests.append(hashlib.file_digest(file, "sha256").hexdigest())
            return combined_sha256(digests)
        begin, end = self.byte_range(part)
        digest = hashlib.sha256()
        for path in self._files():
            size = path.stat().st_size
            if begin < size and end > 0:
                with open_file(path) as file:
                    file.seek(max(begin, 0))
                    left = min(end, size) - max(begin, 0)
                    while left and (data := file.read(min(left, BLOCK))):
                        digest.update(data)
                        left -= len(data)
            begin, end = begin - size, end - size
        return digest.hexdigest()

    @property
    def hub_name(self) -> HubName:
        """The parts of the name of a data set of the Hub, as the user wrote them."""
        name, configuration, split = (self.name.removeprefix(_HUB).split(":") + [None, None])[:3]
        repository, _, revision = str(name).partition("@")
        return HubName(repository, revision or None, configuration or None, split or "train")

    def pinned(self) -> "TextSource":
        """Return the source with the commit that its name, or the revision in it, stands for at this moment.

        Raises:
            InputError: if the Hub cannot be reached, or does not have the data set or show it to this user.
        """
        import huggingface_hub

        name = self.hub_name
        try:
            commit = huggingface_hub.HfApi().dataset_info(name.repository, revision=name.revision).sha
        except Exception as error:  # offline, private, gated, misspelled: the library's message says which
            raise InputError(f"--text {self.name}: the Hub does not tell its commit ({one_line(error)})") from None
        return dataclasses.replace(self, revision=commit)

    def _files(self) -> list[Path]:
        path = Path(self.name)
        if self.format == "hub":
            return []
        return sorted(path.rglob("*.arrow")) if path.is_dir() else [path]


def combined_sha256(digests: Sequence[str]) -> str:
    """Return the digest of several parts or files, given theirs; of one, its own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def find_sources(paths: Iterable[str]) -> list[TextSource]:
    """Find the text sources named by `paths`.

    Args:
        paths: files (plain text if the suffix is unknown), directories (searched for known suffixes), directories
            written by `Dataset.save_to_disk`, glob patterns (** matches directories), or
            `hub:NAME[@REVISION][:CONFIGURATION[:SPLIT]]`.

    Returns:
        The sources in the given order, sorted within a directory or a pattern.

    Raises:
        InputError: if a path is missing or given twice, a directory holds no text file, or a pattern matches none.
    """
    sources: list[TextSource] = []
    for text in paths:
        path = Path(text)
        if text.startswith(_HUB):
            sources.append(TextSource(text, "hub"))
        elif path.is_dir():
            sources += _in_directory(path)
        elif path.is_file():
            sources.append(file_source(path))
        elif glob.has_magic(text):
            matches = [file_source(Path(match)) for match in sorted(glob.glob(text, recursive=True))]
            sources += [source for source in matches if Path(source.name).is_file()]
            if not matches:
                raise InputError(f"--text {text}: the pattern matches no file")
        elif path.exists():
            raise InputError(f"--text {text} is neither a file nor a directory")
        else:
            raise InputError(
                f"--text {text}: no such file or directory (a data set of the Hugging Face Hub is written hub:{text})"
            )
    if not sources:
        raise InputError("--text names no file")
    doubled = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if doubled:
        raise InputError(f"--text names {doubled[0]} more than once")
    return sources


def describe_sources(sources: Sequence[TextSource]) -> str:
    """Name the sources in a message."""
    return sources[0].name if len(sources) == 1 else f"{sources[0].name} … {sources[-1].name} ({len(sources)} sources)"


def file_source(path: Path) -> TextSource:
    """Tell the format and compression of a file by its suffixes.

    Raises:
        InputError: for packed Parquet, and rows in a format that is not read.
    """
    suffix, compression = path.suffix.lower(), None
    if suffix in COMPRESSIONS:
        compression = COMPRESSIONS[suffix]
        suffix = Path(path.stem).suffix.lower()
    kind = FORMATS.get(suffix, "text")
    if kind == "parquet" and compression:
        raise InputError(f"{path}: Parquet compresses by itself; unpack the file first")
    if suffix in _ROWS:
        raise InputError(
            f"{path} holds rows, not plain text; write it as .jsonl (an object on every line) or .parquet, or name it "
            ".txt to read it as it is"
        )
    return TextSource(str(path), kind, compression)


def _in_directory(path: Path) -> list[TextSource]:
    """Return the text files in a directory, or the one data set saved in it."""
    if (path / "dataset_dict.json").is_file():
        content = read_json(path / "dataset_dict.json", "the data set's splits")
        splits = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
            raise InputError(f"{path / 'dataset_dict.json'} names no splits; save the data set again")
        if "train" not in splits:
            raise InputError(
                f"{path} has the splits {', '.join(splits)} but no train; name one, as {path / splits[0]}"
            )
        path = path / "train"
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return [TextSource(str(path), "datasets")]
    try:
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and not file.name.startswith(".")
            and any(suffix.lower() in FORMATS for suffix in file.suffixes[-2:])
        )
    except OSError as error:
        raise InputError(f"--text {path}: cannot list the directory ({error.strerror})") from None
    if not files:
        raise InputError(f"--text {path}: the directory holds no {', '.join(FORMATS)} file (nor .gz or .zst of these)")
    return [file_source(file) for file in files]

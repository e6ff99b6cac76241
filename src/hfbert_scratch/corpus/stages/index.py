"""Index of a text, and the plan of its shards: which documents are kept, and where the shards begin.

A unit is a part of a source. Its index holds a digest and a length of every document, 12 bytes, and the hash of the
unit's bytes. The plan follows from the indexes of all units alone: any process indexes any unit, in any order, and the
shards are the same.
"""

import array
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...text.readers import ReadStats, read_part
from ...text.sources import Part, TextSource, describe_sources
from ...utils.errors import InputError
from ...utils.files import atomic, read_json, write_json
from ...utils.hashing import GOLDEN, splitmix64
from ..arguments import BuildArguments
from ..dataset import BUILD, open_batch, write_batch


# Fewest documents of a shard, however long: random segments need a choice.
_MIN_DOCUMENTS = 8
# Digests sorted at once, 24 bytes each. More documents are compared by ranges of their digests.
SORTED_AT_ONCE = 1 << 24
_RECORD = b"record"


class Unit(NamedTuple):
    """A part of a source, as one process reads it."""

    source: TextSource
    part: Part

    def __str__(self) -> str:
        number, count = self.part
        return self.source.name if count == 1 else f"{self.source.name} (part {number + 1} of {count})"


class UnitIndex(NamedTuple):
    """The documents of a unit in their order."""

    digests: np.ndarray  # (documents,) uint64
    lengths: np.ndarray  # (documents,) uint32, bytes of UTF-8
    record: dict[str, Any]


class Plan(NamedTuple):
    """The shards of a corpus; documents are numbered through all units."""

    kept: np.ndarray  # (documents,) bool, False for duplicates that are dropped
    first_documents: np.ndarray  # (units + 1,) number of each unit's first document
    borders: np.ndarray  # (shards + 1,) number of each shard's first document
    duplicates: int
    bytes: int  # of the documents that are kept


def document_digest(document: bytes) -> bytes:
    """Hash a document without the blanks around it, to 8 bytes.

    The probability that two different documents among 10⁸ share a digest, so that one is dropped, is 0.0003.
    """
    return hashlib.blake2b(document.strip(), digest_size=8).digest()


def list_units(sources: Sequence[TextSource], parts: Sequence[int]) -> list[Unit]:
    """List the units of `sources`; `parts` are their numbers of parts."""
    return [
        Unit(source, Part(number, count))
        for source, count in zip(sources, parts, strict=True)
        for number in range(count)
    ]


def index_path(output: Path, number: int) -> Path:
    """Return the file of a unit's index."""
    return output / BUILD / f"index-{number:05d}.arrow"


def index_unit(output: Path, number: int, unit: Unit, arguments: BuildArguments) -> int:
    """Read a unit, and write its index.

    Args:
        output: directory of the build.
        number: number of the unit.
        unit: the part of a source to read.
        arguments: options of the build.

    Returns:
        Bytes of the unit's documents, as UTF-8.

    Raises:
        InputError: if the unit cannot be read.
    """
    start = time.monotonic()
    stats, digests, lengths = ReadStats(), bytearray(), array.array("I")
    for text in read_part(unit.source, unit.part, arguments.text_column, arguments.encoding_errors, stats):
        document = text.encode("utf-8")
        digests += document_digest(document)
        lengths.append(len(document))
    on_disk = unit.source.format != "hub"
    record = {
        # Of what comes from the Hub, the documents are hashed.
        "sha256": unit.source.sha256(unit.part) if on_disk else hashlib.sha256(digests).hexdigest(),
        "null_texts": stats.null_texts,
        "cut_documents": stats.cut_documents,
        "seconds": time.monotonic() - start,
    }
    columns = {"digest": np.frombuffer(digests, "<u8"), "length": np.frombuffer(lengths, np.uint32)}
    batch = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
    write_batch(index_path(output, number), batch.replace_schema_metadata({_RECORD: json.dumps(record)}))
    return sum(lengths)


def open_index(output: Path, number: int) -> UnitIndex:
    """Open a unit's index, memory-mapped."""
    batch = open_batch(index_path(output, number))
    digests, lengths = (batch.column(name).to_numpy(zero_copy_only=True) for name in ("digest", "length"))
    return UnitIndex(digests, lengths, json.loads(batch.schema.metadata[_RECORD]))


def make_plan(output: Path, units: Sequence[Unit], arguments: BuildArguments) -> None:
    """Plan the shards from the indexes of all units, and write the plan.

    Args:
        output: directory of the build, with an index of every unit.
        units: all units of the text.
        arguments: options of the build.

    Raises:
        InputError: if there is no text, too little for two splits, or an index is damaged.
    """
    indexes = [open_index(output, number) for number in range(len(units))]
    new = first_occurrences([index.digests for index in indexes])
    if len(new) == 0:
        raise InputError(f"{describe_sources([unit.source for unit in units])} holds no text")
    duplicates = len(new) - int(new.sum())
    if not arguments.drop_duplicates:
        new[:] = True
    first_documents = np.cumsum([0, *(len(index.digests) for index in indexes)])
    total = sum(
        int(index.lengths.sum(where=new[first : first + len(index.lengths)], dtype=np.int64))
        for index, first in zip(indexes, first_documents, strict=False)
    )
    size = arguments.shard_mb * 1_000_000 or shard_size(total)
    borders = _shard_borders([index.lengths for index in indexes], new, size)
    # Too few documents for two splits are refused now, not by the process that writes the first shard.
    choose_validation(arguments, _kept_digests(indexes, first_documents, new, 0, borders[1]), first=True)
    with atomic(output / BUILD / "kept.npy") as file:
        np.save(file, new)
    plan = {
        "first_documents": first_documents.tolist(),
        "borders": borders,
        "duplicates": duplicates,
        "bytes": total,
    }
    write_json(_plan_path(output), plan)


def is_planned(output: Path) -> bool:
    """Tell whether the shards are planned."""
    return _plan_path(output).is_file()


def open_plan(output: Path) -> Plan:
    """Open the plan of a build."""
    plan = read_json(_plan_path(output), "corpus build")
    return Plan(
        np.load(output / BUILD / "kept.npy", mmap_mode="r"),
        np.array(plan["first_documents"]),
        np.array(plan["borders"]),
        plan["duplicates"],
        plan["bytes"],
    )


def _plan_path(output: Path) -> Path:
    return output / BUILD / "plan.json"


def shard_size(total: int) -> int:
    """Choose the bytes of text in a shard: a 64th of all, between 8 and 64 MB."""
    return int(min(max(total / 64, 8e6), 64e6))


def first_occurrences(units: Sequence[np.ndarray]) -> np.ndarray:
    """Tell which documents have no equal one before them.

    Args:
        units: digests of the documents of every unit, (documents of the unit,) uint64.

    Returns:
        (documents,) bool.
    """
    total = sum(map(len, units))
    first = np.ones(total, dtype=bool)
    bits = max(0, (max(total, 1) - 1) // SORTED_AT_ONCE).bit_length()
    for prefix in range(1 << bits):
        if bits == 0:
            repeated = _repeated(np.concatenate([np.empty(0, dtype=np.uint64), *units]))
        else:
            digests, places, before = [], [], 0
            for unit in units:
                inside = np.flatnonzero(unit >> np.uint64(64 - bits) == prefix)
                digests.append(unit[inside])
                places.append(inside + before)
                before += len(unit)
            repeated = np.concatenate(places)[_repeated(np.concatenate(digests))]
        first[repeated] = False
    return first


def _repeated(digests: np.ndarray) -> np.ndarray:
    """Return the places of digests that occur before, ascending."""
    ordered = np.sort(digests)  # several times faster than argsort
    doubles = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(doubles):
        return np.empty(0, dtype=np.int64)
    # Their last bits, marked in a table of some 16 places each, single out the documents to compare, and few others.
    mask = np.uint64(min(16 << len(doubles).bit_length(), SORTED_AT_ONCE) - 1)
    marked = np.zeros(int(mask) + 1, dtype=bool)
    marked[doubles & mask] = True
    candidates = np.flatnonzero(marked[digests & mask])
    order = np.argsort(digests[candidates])
    ordered, places = digests[candidates[order]], candidates[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])  # of a group of equal digests
    repeated = np.zeros(len(digests), dtype=bool)
    repeated[places] = True
    repeated[np.minimum.reduceat(places, np.flatnonzero(begins))] = False
    return np.flatnonzero(repeated)


def _shard_borders(units: Sequence[np.ndarray], kept: np.ndarray, size: int) -> list[int]:
    """Close a shard behind the document with which it has `size` bytes of kept documents, and enough documents.

    Args:
        units: lengths of the documents of every unit.
        kept: (documents,) bool.
        size: bytes.

    Returns:
        The number of each shard's first document, and the number of documents.
    """
    borders, before = [0], 0
    held = count = 0  # bytes and documents of the shard that is open
    for lengths in units:
        numbers = np.flatnonzero(kept[before : before + len(lengths)])
        ends = np.cumsum(lengths[numbers], dtype=np.int64)
        begin = start = 0  # documents of this unit in closed shards, and their bytes
        while True:
            last = max(int(np.searchsorted(ends, start + size - held)), begin + _MIN_DOCUMENTS - count - 1)
            if last >= len(ends):
                break
            borders.append(before + int(numbers[last]) + 1)
            begin, start, held, count = last + 1, int(ends[last]), 0, 0
        if len(ends):
            held, count = held + int(ends[-1]) - start, count + len(ends) - begin
        before += len(lengths)
    # A short rest joins the shard before it.
    if len(borders) > 1 and (held < size / 2 or count < _MIN_DOCUMENTS):
        borders.pop()
    return [*borders, before]


def kept_digests(output: Path, plan: Plan, number: int) -> np.ndarray:
    """Return the digests of the documents of a shard, without dropped duplicates.

    Args:
        output: directory of the build.
        plan: its plan.
        number: number of the shard.

    Returns:
        (documents,) uint64.
    """
    begin, end = int(plan.borders[number]), int(plan.borders[number + 1])
    first, last = _units_of(plan.first_documents, begin, end)
    indexes = [open_index(output, unit) for unit in range(first, last)]
    return _kept_digests(indexes, plan.first_documents[first:], plan.kept, begin, end)


def _units_of(first_documents: np.ndarray, begin: int, end: int) -> tuple[int, int]:
    """Return the first unit with documents from `begin` up to `end`, and the one after the last."""
    first = int(np.searchsorted(first_documents, begin, side="right")) - 1
    return first, int(np.searchsorted(first_documents, end, side="left"))


def _kept_digests(
    indexes: Sequence[UnitIndex], first_documents: np.ndarray, kept: np.ndarray, begin: int, end: int
) -> np.ndarray:
    parts = [np.empty(0, dtype=np.uint64)]
    for index, first in zip(indexes, first_documents.tolist(), strict=False):
        inside = slice(max(begin - first, 0), max(end - first, 0))
        digests = index.digests[inside]
        offset = first + inside.start
        parts.append(digests[kept[offset : offset + len(digests)]])
    return np.concatenate(parts)


def choose_validation(arguments: BuildArguments, digests: np.ndarray, *, first: bool) -> np.ndarray:
    """Choose the validation documents: their hash with the seed is below the share.

    A tiny corpus could miss one split. So the first shard has at least one document in each (two for next-sentence
    prediction): the smallest hashes go to validation.

    Args:
        arguments: options of the build, with the seed and the share.
        digests: (documents,) uint64 of a shard.
        first: this is the first shard.

    Returns:
        (documents,) bool. A share of 0 chooses none.

    Raises:
        InputError: if the first shard has two or three documents, too few for both splits. A single one is left to
            `check_corpus`.
    """
    golden = np.uint64(GOLDEN)
    seed = splitmix64(np.array([arguments.seed], dtype=np.uint64) + golden)
    hashes = splitmix64((digests ^ seed) + golden)
    chosen = hashes < np.uint64(int(arguments.validation_share * 2.0**64))
    if not first or arguments.validation_share == 0:
        return chosen
    needed = 2 if arguments.next_sentence else 1
    if len(digests) < 2 * needed:
        if len(digests) == 1:
            return np.zeros(1, dtype=bool)  # a single document: check_corpus names the remedy
        raise InputError(
            f"--text holds {len(digests)} different documents, too few for a train and a validation split"
            f"{' of 2 each, as next-sentence prediction needs (--no_nsp: 1 each)' if needed == 2 else ''}; "
            "separate documents by blank lines, or add text"
        )
    count = min(max(int(chosen.sum()), needed), len(digests) - needed)
    chosen[:] = False
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen

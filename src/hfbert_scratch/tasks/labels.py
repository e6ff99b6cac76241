"""Classes: their names, the ids of labels in data, and the classes behind a model's outputs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..utils.errors import InputError
from .data import check_single
from .notes import warn


# Plain decimal numbers only: "1e3" and "nan" may be names.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_NO_CLASS = -2


def as_number(value: Any) -> int | float | None:
    """The number that `value` is or spells, an int if it is whole; None for anything else."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            return None
        whole, _, fraction = value.partition(".")
        return float(value) if fraction.strip("0") else int(whole if whole.strip("+-") else f"{whole}0")
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return int(value) if isinstance(value, int) else None


def is_missing(value: Any) -> bool:
    """Whether a label says that there is none: null, empty, or NaN."""
    return value is None or value == "" or value != value


def class_names(values: pa.ChunkedArray, where: str = "column 'label'") -> list[str]:
    """The classes in a column of the user's own labels: names sorted, or numbers ascending, without negative ones.

    Numbers are classes by their value, however they are written: 1, 1.0 and "1.0" are the class 1.

    Raises:
        InputError: if the labels are fractional numbers.
    """
    found = [value for value in pc.unique(values).to_pylist() if not is_missing(value)]
    numbers = [as_number(value) for value in found]
    if any(number is None for number in numbers):
        return sorted({str(value) for value in found})
    fractional = next((value for value, number in zip(found, numbers, strict=True) if isinstance(number, float)), None)
    if fractional is not None:
        raise InputError(
            f"{where} holds fractional numbers such as {fractional!r}; predict them as numbers with --task "
            "custom-regression, or give every class a name that is not a number"
        )
    return [str(number) for number in sorted(set(numbers)) if number >= 0]  # type: ignore[type-var, operator]


def class_ids(
    values: pa.ChunkedArray, names: Sequence[str], where: str, *, by_position: bool, remedy: str = ""
) -> np.ndarray:
    """Labels, given as names or numbers, as ids 0 … len(names) − 1 and −1 for none; shape (rows,).

    A number is an id where `by_position`, else it must be one of the names. Raises InputError naming the first row
    whose label is neither, with `remedy`.
    """
    if pa.types.is_null(values.type):
        return np.full(len(values), -1, dtype=np.int64)
    check_single(values, f"{where}: the label")
    encoded = pc.dictionary_encode(values)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    distinct = encoded.dictionary.to_pylist()
    places = {name: place for place, name in enumerate(names)}
    ids = np.array([_class_id(value, places, by_position) for value in distinct] + [-1], dtype=np.int64)
    result = ids[encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)]
    if (result == _NO_CLASS).any():
        row = int(np.argmax(result == _NO_CLASS))
        allowed = f"{', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
        if by_position:
            allowed += f" or 0 … {len(names) - 1}"
        if are_unnamed(names):
            remedy = "; name the model's classes in their order with --model_classes"
        raise InputError(f"{where}, row {row}: unknown label {values[row].as_py()!r}; it must be {allowed}{remedy}")
    return result


def _class_id(value: Any, places: Mapping[str, int], by_position: bool) -> int:
    """`value`'s id, −1 for a missing label (null, empty, NaN, negative), or _NO_CLASS."""
    if is_missing(value):
        return -1
    if isinstance(value, str) and value in places:
        return places[value]
    number = as_number(value)
    if number is None or isinstance(number, float):
        return _NO_CLASS
    if number < 0:
        return -1
    if by_position:
        return number if number < len(places) else _NO_CLASS
    return places.get(str(number), _NO_CLASS)


def refuse_unlabelled(missing: np.ndarray, split: str, where: str) -> bool:
    """Whether the split is labelled; InputError for a split that must be and is not, or for one that is only partly.

    missing: (rows,) bool. Only a test split may lack its labels.
    """
    if not missing.any():
        return True
    if missing.all() and split.startswith("test"):
        return False
    if missing.all():
        raise InputError(f"{where} has no labels: it cannot serve as {split}; to predict it, name it --test_file")
    raise InputError(
        f"{where}, row {int(np.argmax(missing))} has no label, while other rows have one; label or remove its "
        f"{int(missing.sum())} rows without (null, empty or negative)"
    )


def warn_of_similar(names: Iterable[str], where: str) -> None:
    """Warn of classes that differ only in case or blanks, or that look like a mark for "no label"."""
    names = list(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            warn(f"{where}: the classes {', '.join(map(repr, group))} differ only in case or blanks; are they one?")
    for name in names:
        if name.strip(" -_?").casefold() in ("", "na", "n/a", "nan", "none", "null") and len(names) > 2:
            warn(f"{where}: {name!r} is taken for a class; if it means that there is no label, remove its rows")


def are_unnamed(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to classes without names: LABEL_0, LABEL_1, …"""
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]


def model_classes(id2label: Mapping[int, str] | None, own: Sequence[str], width: int, task: str) -> list[str]:
    """The task's class behind each of the model's `width` outputs.

    By name, in whatever order the model has them; by position, with a warning, if its classes have no names
    (LABEL_0 …).

    Raises:
        InputError: if the model's classes are not the task's.
    """
    if width != len(own):
        raise InputError(f"the model has {width} outputs, but {task} has the {len(own)} classes {', '.join(own)}")
    if id2label is None:
        return list(own)
    names = [str(id2label[i]) for i in range(width)]
    by_folded = {name.casefold(): name for name in own}
    if len(by_folded) == len(own) and {name.casefold() for name in names} == set(by_folded):
        return [by_folded[name.casefold()] for name in names]
    if set(names) == set(own):
        return names
    if are_unnamed(names):
        pairs = ", ".join(f"{name} is {own_name}" for name, own_name in zip(names[:12], own, strict=False))
        warn(
            f"the model's classes have no names; their order is assumed to be that of {task}: {pairs}"
            f"{', …' if width > 12 else ''}. Many checkpoints have another order: check it, and name the classes in "
            "the model's order with --model_classes"
        )
        return list(own)
    raise InputError(
        f"the model's classes {', '.join(names)} are not those of {task}: {', '.join(own)}; if they only "
        "have other names, give the task's names in the model's order with --model_classes"
    )


def check_numbered(task: str, numbered: Sequence[str], classes: Sequence[str] | None) -> None:
    """Raise InputError unless the user's names for numbers are those of the task, where it has its own."""
    if numbered and classes and set(numbered) != set(classes):
        raise InputError(f"--class_names must name all classes of {task}: {', '.join(classes)}")


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """num_labels, id2label and label2id for a model's configuration."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }

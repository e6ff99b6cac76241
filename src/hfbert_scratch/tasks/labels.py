"""Classes: their names in the data, the ids of labels, and the classes of a model's outputs."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..utils.errors import InputError
from .files.tables import INVISIBLE, check_single
from .notes import warn


# Plain decimal numbers only: "1e3" and "nan" may be names.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
# Numbers in other notations: with a decimal comma, thousands in groups, a per cent sign, or an exponent.
_OTHER_NUMBER = re.compile(
    r"[+-]?(\d+|\d{1,3}([., '’_]\d{3})+)([.,]\d*)?(e[+-]?\d+)?\s?[%‰]?", re.ASCII | re.IGNORECASE
)
PLAIN_NUMBERS = (
    "write numbers with a decimal point, and without groups of thousands, per cent signs and units, as 1234.5"
)
_NO_CLASS = -2
_TRUTH = {"true": True, "false": False}
# Marks for "no label"; they are classes where the data do not say otherwise.
_NO_LABEL = ("", "na", "n/a", "nan", "none", "null")


def as_number(value: Any) -> int | float | None:
    """Return the number that `value` is or spells, an int if it is whole; None for anything else."""
    if isinstance(value, str):
        value = _plain(value)
        if not _NUMBER.fullmatch(value):
            return None
        whole, _, fraction = value.partition(".")
        return float(value) if fraction.strip("0") else int(whole if whole.strip("+-") else f"{whole}0")
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return int(value) if isinstance(value, int) else None


def _plain(text: str) -> str:
    """Return a text without blanks around it, with ASCII digits and signs, as a number is written."""
    return unicodedata.normalize("NFKC", "".join(map(_ascii_digit, text))).replace("\u2212", "-").strip()


def _ascii_digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def is_missing(value: Any) -> bool:
    """Return whether a label is null, empty, or NaN."""
    return value is None or value == "" or value != value


def _means_no_label(name: str) -> bool:
    return name.strip(" -_?").casefold() in _NO_LABEL


def as_float(value: Any) -> float | None:
    """Return the number that a label of a regression is or spells, NaN for none; None for anything else."""
    if is_missing(value):
        return math.nan
    if isinstance(value, str):
        value = _plain(value)
        if "_" in value:  # Python's own notation
            return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def distinct_classes(values: pa.ChunkedArray, location: str = "column 'label'") -> list[str]:
    """List the classes in a column of labels: names sorted, or numbers ascending, without negative ones.

    Numbers are classes by their value, however they are written: 1, 1.0 and "1.0" are the class 1.

    Args:
        values: the labels.
        location: place of the column, for messages.

    Returns:
        The names of the classes.

    Raises:
        InputError: if the labels are fractional numbers, or in a notation of measured quantities.
    """
    labels = [value for value in pc.unique(values).to_pylist() if not is_missing(value)]
    _refuse_measures([value for value in labels if not _means_no_label(str(value))], location)
    numbers = [as_number(value) for value in labels]
    if any(number is None for number in numbers):
        return sorted({str(value) for value in labels})
    return [str(number) for number in sorted(set(numbers)) if number >= 0]  # type: ignore[type-var, operator]


def _refuse_measures(labels: list[Any], location: str) -> None:
    """Raise InputError if all labels are numbers, but some fractional or in a notation of measured quantities."""
    numbers = [as_number(value) for value in labels]
    for value, number in zip(labels, numbers, strict=True):
        if number is None and not (isinstance(value, str) and _OTHER_NUMBER.fullmatch(_plain(value))):
            return
    for value, number in zip(labels, numbers, strict=True):
        if isinstance(number, float):
            raise InputError(
                f"{location} holds fractional numbers such as {value!r}; predict them as numbers with --task "
                "custom-regression, or give every class a name that is not a number"
            )
        if number is None:
            raise InputError(
                f"{location} holds numbers such as {value!r}; to predict them as numbers with --task "
                f"custom-regression, {PLAIN_NUMBERS}; if they are classes, list them all after --class_names"
            )


def class_ids(
    values: pa.ChunkedArray, names: Sequence[str], location: str, *, by_position: bool, remedy: str = ""
) -> np.ndarray:
    """Convert labels, names or numbers, to ids.

    Args:
        values: the labels.
        names: the classes in the order of their ids.
        location: place of the column, for messages.
        by_position: a number is an id, not one of the names.
        remedy: end of the message for an unknown label.

    Returns:
        (rows,) ids 0 … len(names) − 1, −1 for a missing label.

    Raises:
        InputError: for an unknown label; the message names its row.
    """
    if pa.types.is_null(values.type):
        return np.full(len(values), -1, dtype=np.int64)
    check_single(values, f"{location}: the label")
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
        label = values[row].as_py()
        alike = [name for name in names if _folded(name) == _folded(label)]
        hint = f" (did you mean {alike[0]!r}?)" if alike else ""
        raise InputError(f"{location}, row {row}: unknown label {label!r}; it must be {allowed}{hint}{remedy}")
    return result


def _class_id(value: Any, places: Mapping[str, int], by_position: bool) -> int:
    """Return the id of a label, −1 for a missing one (null, empty, NaN, negative), or _NO_CLASS."""
    if is_missing(value):
        return -1
    if str(value) in places and not (by_position and isinstance(value, int)):
        return places[str(value)]
    truth = _truth(value)
    number = as_number(value if truth is None else truth)
    if number is None or isinstance(number, float):
        return _NO_CLASS
    if number < 0:
        return -1 if by_position else places.get(str(number), -1)
    if by_position:
        return number if number < len(places) else _NO_CLASS
    spellings = [str(number)] if truth is None else [str(number), str(truth), str(truth).lower(), str(truth).upper()]
    return next((places[spelling] for spelling in spellings if spelling in places), _NO_CLASS)


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _TRUTH.get(str(value).casefold())


def refuse_booleans(values: pa.ChunkedArray, names: Sequence[str], location: str) -> None:
    """Refuse true and false as labels of a task with named classes: which is which, nobody says.

    Args:
        values: the column of labels.
        names: the classes.
        location: the table's place, for errors.

    Raises:
        InputError: if a label is true or false, or spells it, and no class is named true.
    """
    if any(_truth(value) is not None for value in pc.unique(values).to_pylist()) and not any(map(_truth, names)):
        raise InputError(f"{location}: column 'label' holds true and false; write {', '.join(names)} instead")


def _visible(label: Any) -> str:
    """Return a label without differences that nobody sees: of blanks, Unicode forms and invisible characters."""
    words = unicodedata.normalize("NFKC", str(label)).split()
    return " ".join(filter(None, (INVISIBLE.sub("", word) for word in words)))


def _folded(label: Any) -> str:
    """Return a label without differences of case, blanks, Unicode forms, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", _visible(label)).strip().casefold()


def refuse_unlabelled(missing: np.ndarray, split: str, location: str, remedy: str = "") -> bool:
    """Return whether a split is labelled.

    Args:
        missing: (rows,) bool, rows without a label.
        split: name of the split; only a test split may lack all labels.
        location: the split, for messages.
        remedy: end of the message for labels that are missing in some rows.

    Raises:
        InputError: if labels are missing elsewhere, or in some rows only.
    """
    if not missing.any():
        return True
    if missing.all() and split.startswith("test"):
        return False
    if missing.all():
        raise InputError(f"{location} has no labels: it cannot serve as {split}; to predict it, name it --test_file")
    raise InputError(
        f"{location}, row {int(np.argmax(missing))} has no label, while other rows have one; label or remove its "
        f"{int(missing.sum())} rows without (null, empty or negative){remedy}"
    )


def warn_of_similar(names: Iterable[str], location: str) -> None:
    """Warn of classes that differ only in case or in invisible characters, or that look like a mark for "no label"."""
    names = list(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_visible(name).casefold(), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            is_plain = len(set(map(_visible, group))) == len(group)
            shown = ", ".join(map(repr if is_plain else ascii, group))
            warn(f"{location}: the classes {shown} differ only in case or blanks; are they one?")
    for name in names:
        if _means_no_label(name) and len(names) > 2:
            warn(f"{location}: {name!r} is taken for a class; if it means that there is no label, remove its rows")


def are_unnamed(names: Sequence[str]) -> bool:
    """Return whether these are transformers' names of unnamed classes: LABEL_0, LABEL_1, …"""
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]


def match_model_classes(id2label: Mapping[int, str] | None, own: Sequence[str], width: int, task: str) -> list[str]:
    """Match the outputs of a model with the classes of a task.

    Classes are matched by name, whatever their order; by position, with a warning, if the model's classes have no
    names (LABEL_0 …).

    Args:
        id2label: the model's; None: the classes are in the task's order.
        own: the classes of the task.
        width: number of the model's outputs.
        task: name of the task, for messages.

    Returns:
        The task's class of every output.

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


def check_user_classes(task: str, user_classes: Sequence[str], classes: Sequence[str] | None) -> None:
    """Refuse the user's names of classes if the task has classes of its own and these are others.

    Args:
        task: name of the task, for the error.
        user_classes: the user's names; empty if there are none.
        classes: the task's, in any order. None: it has none of its own.

    Raises:
        InputError: if both name classes, and not the same.
    """
    if user_classes and classes and set(user_classes) != set(classes):
        raise InputError(f"--class_names must name all classes of {task}: {', '.join(classes)}")


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """Return num_labels, id2label and label2id for a model's configuration."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }

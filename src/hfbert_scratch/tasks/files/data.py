"""Read a task's data, from files or the Hub, into Arrow tables with the task's column names."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from ...text.streams import COMPRESSIONS
from ...utils.arguments import argument
from ...utils.environment import note_commit
from ...utils.errors import InputError, one_line
from ...utils.files import split_revision
from .tables import SUFFIXES, Columns, choose_columns, class_names_in_place, listed


# Split → file names (without suffix), in the Hub's and in GLUE's naming.
SPLIT_FILES = {
    "train": ("train",),
    "validation": ("validation_matched", "validation", "dev_matched", "dev"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test_matched", "test"),
    "test_mismatched": ("test_mismatched",),
}


@dataclasses.dataclass(kw_only=True)
class DataArguments:
    """Sources of a task's data; without any of these the task's own data set on the Hub."""

    data_dir: str | None = argument(
        None, help="directory with the splits as files (train.jsonl, dev.tsv, train-v1.1.json, eng.testa…)"
    )
    train_file: str | None = argument(
        None, help="training data, as jsonl, parquet, csv, tsv or the task's original format"
    )
    validation_file: str | None = argument(None, help="validation data, in any of these formats")
    test_file: str | None = argument(None, help="data to predict, in any of these formats; labels are optional")
    dataset: str | None = argument(None, help="another data set of the Hub, NAME[@REVISION][:CONFIGURATION]")
    columns: list[str] = argument(
        [],
        help="names in your data for the task's columns, as text=review label=stars; in a "
        "file of tagged words their numbers, as tokens=2 ner_tags=3",
    )
    # None, not an empty list: a run that was begun without the option continues.
    class_names: list[str] | None = argument(
        None,
        help="names of the classes in the order of their numbers, for data that hold numbers, as O B-PER I-PER; also "
        "names classes that your training data do not show",
    )
    max_train_samples: int = argument(0, help="use so many training examples, evenly spaced over the data; 0 for all")
    max_eval_samples: int = argument(0, help="the same number for validation; 0 for all")

    def renamed(self, known: Columns) -> dict[str, Sequence[str]]:
        """Replace names of columns by the user's.

        Args:
            known: task column → names in known files.

        Returns:
            Task column → names, the user's alone where `columns` gives one.

        Raises:
            InputError: for an unknown or malformed entry of `columns`.
        """
        result = dict(known)
        for entry in self.columns:
            role, separator, name = entry.partition("=")
            if not separator or not name:
                raise InputError(f"--columns {entry}: write it as COLUMN=NAME_IN_YOUR_DATA")
            if role not in known:
                raise InputError(f"--columns {entry}: the task has no column {role!r}, only {', '.join(known)}")
            result[role] = (name,)
        return result


def find_files(
    data: DataArguments, splits: Iterable[str], original_files: Mapping[str, Sequence[str]]
) -> dict[str, list]:
    """Find the files of every split, in `data_dir` and by the options that name one.

    A file that an option names replaces the directory's file of that split.

    Args:
        data: the user's directory and files.
        splits: the splits that the task may have.
        original_files: split → glob patterns of the task's original files.

    Returns:
        Split → its files; empty if no option names a file or a directory.

    Raises:
        InputError: if a named file or the directory is missing, an option names a split that the task lacks, the
            directory holds no file of any split, or several of its files fit one pattern.
    """
    splits = list(splits)
    split_files: dict[str, list[Path]] = {}
    if data.data_dir is not None:
        directory = Path(data.data_dir)
        if not directory.is_dir():
            raise InputError(f"--data_dir {directory} is not a directory")
        for split in splits:
            files = _in_directory(directory, split, original_files.get(split, ()))
            if files:
                split_files[split] = files
        if not split_files:
            raise InputError(
                f"--data_dir {directory} holds no file of {', '.join(splits)} (as {splits[0]}.jsonl, .parquet, .csv, "
                f".tsv, or {', '.join(p for patterns in original_files.values() for p in patterns) or 'GLUE names'}); "
                f"it holds {listed(sorted(path.name for path in directory.iterdir())[:10])}"
            )
    for split, name in (
        ("train", data.train_file),
        ("validation", data.validation_file),
        ("test", data.test_file),
    ):
        if name is None:
            continue
        if split not in splits:
            raise InputError(f"--{split}_file {name}: this task has no such split, only {', '.join(splits)}")
        if not Path(name).is_file():
            raise InputError(f"--{split}_file {name}: no such file")
        split_files[split] = [Path(name)]
    return split_files


def _in_directory(directory: Path, split: str, original_files: Sequence[str]) -> list[Path]:
    for stem in SPLIT_FILES[split]:
        for suffix in [suffix + packed for packed in ("", *COMPRESSIONS) for suffix in SUFFIXES]:
            if (directory / f"{stem}{suffix}").is_file():
                return [directory / f"{stem}{suffix}"]
        shards = sorted(directory.glob(f"{stem}-*-of-*.parquet"))
        if shards:
            return shards
    for pattern in original_files:
        matches = sorted(directory.glob(pattern))
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise InputError(f"--data_dir {directory} holds {names}; name one with --{split}_file")
        if matches:
            return matches
    return []


def _commit(loaded: datasets.DatasetDict) -> str | None:
    """Find the commit of a data set of the Hub in the addresses of its files; None if they have none."""
    for split in loaded.values():
        for address in split.info.download_checksums or ():
            if match := re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", address):
                return match[1]
    return None


def load_hub(
    name: str, configuration: str | None, splits: Iterable[str], columns: Columns, optional_columns: Collection[str]
) -> dict[str, pa.Table]:
    """Load the splits of a data set on the Hub, or of a directory that `DatasetDict.save_to_disk` wrote.

    Args:
        name: NAME or NAME@REVISION on the Hub, or the directory.
        configuration: of the data set on the Hub. None: its only or default one.
        splits: the splits that the task may have.
        columns: task column → the names it may have in the data.
        optional_columns: task columns that a split may lack.

    Returns:
        Split → table with the task's column names; splits that the data set lacks are left out.

    Raises:
        InputError: if the data set cannot be loaded, has none of the splits, or lacks a column.
    """
    try:
        if Path(name).is_dir() and (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            repository, revision = split_revision(name)
            loaded = datasets.load_dataset(repository, configuration, revision=revision)
            note_commit(repository, _commit(loaded))
    except Exception as error:  # network, missing name, missing configuration: the library's message says which
        raise InputError(
            f"data set {name!r} cannot be loaded from the Hub ({one_line(error)}); offline, name local files with "
            "--data_dir or --train_file and --validation_file"
        ) from None
    tables = {}
    for split in splits:
        hub_split = next((stem for stem in SPLIT_FILES[split] if stem in loaded), None)
        if hub_split is None:
            continue
        part = loaded[hub_split]
        names = choose_columns(part.column_names, columns, optional_columns, f"{name}, split {hub_split},")
        table = class_names_in_place(part.select_columns(list(names.values())).with_format("arrow")[:])
        tables[split] = table.select(list(names.values())).rename_columns(list(names))
    if not tables:
        raise InputError(f"data set {name!r} has none of the splits {', '.join(splits)}, only {', '.join(loaded)}")
    return tables

"""Named entity recognition: CoNLL-2003 (Tjong Kim Sang and De Meulder 2003) and any tagged words in its shape."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.errors import InputError, one_line
from .column_files import OUTSIDE, TAG, read_columns
from .data import SUFFIXES, Columns, check_single, read_file
from .labels import are_unnamed, as_number, check_numbered, class_ids, label_maps, model_classes, warn_of_similar
from .notes import warn
from .task import (
    INPUT_FEATURES,
    Defaults,
    FeatureSettings,
    Task,
    cached_map,
    make_dataset,
    metric_scores,
    token_ids,
    write_lines,
)


# As prefixes are also written, though not read.
_LOOSE_TAG = re.compile(r"[BIESLUMbieslum][-_].+")
# Sentences tokenized at a time when a document is looked up.
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class NerTask(Task):
    """The words of a sentence → a tag for each, in the IOB2 scheme.

    A word is tagged at its first piece; a word that has none, or that is cut off, is O. classes: in the order of
    their ids; None: those of the data.
    """

    head: ClassVar[str] = "AutoModelForTokenClassification"
    label_column: ClassVar[str] = "ner_tags"
    optional: ClassVar[frozenset[str]] = frozenset({"ner_tags", "document"})
    originals: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": ("eng.train", "train.txt", "train.conll"),
        "validation": ("eng.testa", "valid.txt", "validation.txt", "dev.txt", "dev.conll"),
        "test": ("eng.testb", "test.txt", "test.conll"),
    }

    classes: tuple[str, ...] | None = None
    columns: Columns = field(
        default_factory=lambda: {
            "tokens": ("tokens", "words"),
            "ner_tags": ("ner_tags", "tags"),
            "document": ("document", "document_id", "doc_id"),
        }
    )
    main_metric: str = "f1"

    # ------------------------------------------------------------------------------------------------------- loading

    def read(self, path: Path, columns: Columns) -> pa.Table:
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if suffix in SUFFIXES:
            return read_file(path, columns, self.optional)
        # Columns that the user names are numbers here.
        chosen = {role: names[0] for role, names in columns.items() if names != self.columns[role]}
        return read_columns(path, chosen)

    @property
    def has_classes(self) -> bool:
        return True

    def validate(
        self, tables: dict[str, pa.Table], classes: Sequence[str] | None, numbered: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        check_numbered(self.name, numbered, self.classes)
        by_position = self.classes is not None or bool(numbered)
        tags = {
            split: _list_column(table, "ner_tags", f"{self.name}, split {split}").flatten()
            for split, table in tables.items()
            if _is_tagged(table)
        }
        for split, flat in tags.items():
            check_single(pa.chunked_array([flat]), f"{self.name}, split {split}: a tag")
            if not by_position:
                _refuse_numbers(flat, f"{self.name}, split {split}")
        names = list(numbered or self.classes or classes or _tags_of(tags, self.name))
        if OUTSIDE not in names:
            shown = f"{', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
            remedy = (
                "name the model's classes in their order with --model_classes"
                if are_unnamed(names)
                else "check which column holds the tags (--columns ner_tags=…)"
            )
            raise InputError(f"{self.name} has the tags {shown}, but none is {OUTSIDE!r}, for no entity; {remedy}")
        if not by_position:
            names += self._unseen(
                tags, names, "the model does not know" if classes else "the training data do not show"
            )
            warn_of_similar(names, self.name)
        return {split: self._dataset(split, table, names, by_position) for split, table in tables.items()}

    def _unseen(self, tags: dict[str, pa.Array], names: list[str], why: str) -> list[str]:
        """Tags of other splits than the one `names` are of: they can be scored, as missed, but not predicted."""
        unseen: list[str] = []
        bare = any(not TAG.fullmatch(name) for name in names)
        for split, flat in tags.items():
            more = [tag for tag in pc.unique(flat).to_pylist() if tag is not None and tag not in names]
            more = sorted(tag for tag in more if bare or TAG.fullmatch(tag))
            if more:
                count = pc.sum(pc.is_in(flat, value_set=pa.array(more, type=flat.type))).as_py()
                warn(
                    f"{self.name}, split {split}: {count} words have tags that {why}, and count as missed: "
                    f"{', '.join(more)}"
                )
            unseen += [tag for tag in more if tag not in unseen]
        return unseen

    def _dataset(self, split: str, table: pa.Table, names: list[str], by_position: bool) -> datasets.Dataset:
        where = f"{self.name}, split {split}"
        tokens = _list_column(table, "tokens", where)
        words = tokens.flatten()
        if not (pa.types.is_string(words.type) or pa.types.is_large_string(words.type)) or words.null_count:
            raise InputError(f"{where}: column 'tokens' must be lists of words, without nulls")
        columns: dict[str, Any] = {"tokens": tokens}
        features: dict[str, Any] = {"tokens": datasets.List(datasets.Value("string"))}
        labelled = _is_tagged(table)
        if not labelled and not split.startswith("test"):
            raise InputError(f"{where} has no tags: it cannot serve as {split}; to predict it, name it --test_file")
        if labelled:
            tags = _list_column(table, "ner_tags", where)
            differing = pc.not_equal(tags.value_lengths(), tokens.value_lengths())
            if pc.any(differing).as_py():
                row = pc.index(differing, True).as_py()
                raise InputError(f"{where}, row {row}: {len(tokens[row])} words but {len(tags[row])} tags")
            ids = _tag_ids(tags, names, where, by_position=by_position)
            if (ids == names.index(OUTSIDE)).all() and split != "train":
                warn(f"{where} has no entity: every word is {OUTSIDE!r}, and its precision, recall and F1 are 0")
            columns["ner_tags"] = pa.ListArray.from_arrays(_offsets(tags), pa.array(ids))
        else:
            columns["ner_tags"] = pa.array([[] for _ in range(table.num_rows)], type=pa.list_(pa.int64()))
        # Also without labels: the classes of a split to be predicted are known all the same.
        features["ner_tags"] = datasets.List(datasets.ClassLabel(names=names))
        if "document" in table.column_names:
            documents = check_single(table.column("document"), f"{where}: column 'document'")
            columns["document"] = documents.cast(pa.string())
            features["document"] = datasets.Value("string")
        return make_dataset(columns, datasets.Features(features))

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        return raw.num_rows == 0 or any(bool(tags) for tags in raw[self.label_column][:])

    def class_names(self, raw: datasets.Dataset) -> list[str]:
        """The tags in the order of their ids."""
        return raw.features["ner_tags"].feature.names

    def check_training(self, raw: datasets.Dataset) -> None:
        if set(self.describe_targets(raw).get("classes", ())) <= {OUTSIDE}:
            raise InputError(
                f"{self.name}, split train: every word is tagged {OUTSIDE!r}, so that there is no entity to learn; "
                "check which column holds the tags (--columns ner_tags=…)"
            )

    # ---------------------------------------------------------------------------------------------------- description

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        names = self.class_names(raw)
        counts = np.bincount(_flat(raw, "ner_tags"), minlength=len(names)).tolist()
        return {"classes": {name: count for name, count in zip(names, counts, strict=True) if count}}

    def describe_features(self, raw: datasets.Dataset, features: datasets.Dataset) -> dict[str, Any]:
        """Also how many words, and how many of those in entities, have no token that is left to predict a tag for."""
        without = _flat(features, "positions") < 0
        description = super().describe_features(raw, features) | {"words_without_token": int(without.sum())}
        if self.is_labelled(raw):
            inside = _flat(raw, "ner_tags") != self.class_names(raw).index(OUTSIDE)
            description["words_of_entities_without_token"] = int((without & inside).sum())
        return description

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        names, words = self.class_names(raw), raw[row]["tokens"]
        tags = [names[tag] for tag in raw[row]["ner_tags"]] or ["no label"] * len(words)
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))

    # ------------------------------------------------------------------------------------------------------ features

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        return label_maps(self.class_names(raw))

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """One feature per sentence; `positions` has for every word the place of its first piece, −1 for none.

        With settings.document_context the sentence stands in the middle of as much of its document as fits, and only
        its own words have labels and positions.
        """
        if training:
            self.require_labels(raw)
        labels = self.is_labelled(raw)
        kinds = dict(INPUT_FEATURES) | {"positions": datasets.List(datasets.Value("int32"))}
        if labels:
            kinds["labels"] = datasets.List(datasets.Value("int64"))
        if not settings.document_context:
            return cached_map(raw, sentence_features, datasets.Features(kinds), tokenizer, settings, labels=labels)
        if "document" not in raw.column_names:
            raise InputError(
                f"document_context needs to know which sentences belong to one document: give {self.name} a column "
                "'document', or CoNLL's original files with their -DOCSTART- lines"
            )
        # The sentences around a row are needed, which a batch need not hold.
        context = {"sentences": raw["tokens"][:], "documents": raw["document"][:]}
        return cached_map(
            raw, document_features, datasets.Features(kinds), tokenizer, settings, context, labels=labels
        )

    # ----------------------------------------------------------------------------------------------------- prediction

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> list[list[str]]:
        """A tag for every word of every row. outputs: `logits`, per feature (at least its length, tags)."""
        predictions: list[list[str]] = [[] for _ in range(len(raw))]
        table = features.select_columns(["example", "positions"])[:]
        own = self.class_names(raw)
        names: list[str] | None = None
        for number, (example, positions) in enumerate(zip(table["example"], table["positions"], strict=True)):
            logits = np.asarray(outputs["logits"][number])
            if names is None:
                # Tags that only the data have come last (see `_unseen`).
                known = own if self.classes or id2label is None else own[: logits.shape[-1]]
                names = model_classes(id2label, known, logits.shape[-1], self.name)
            chosen = logits.argmax(axis=-1).tolist()
            predictions[example] = [names[chosen[at]] if at >= 0 else OUTSIDE for at in positions]
        return predictions

    def score(self, raw: datasets.Dataset, predictions: list[list[str]]) -> dict[str, float]:
        return metric_scores("ner", None, predictions, self._references(raw))

    def _references(self, raw: datasets.Dataset) -> list[list[str]]:
        self.require_labels(raw)
        names = self.class_names(raw)
        return [[names[tag] for tag in tags] for tags in raw["ner_tags"][:]]

    def report(self, raw: datasets.Dataset, predictions: list[list[str]]) -> dict[str, Any]:
        """Figures for every type of entity under `classes`, and the same in strict mode under `strict`.

        Strict mode counts only entities written as the tags' scheme says, IOB2 or IOBES; tags without prefixes have
        no such scheme.
        """
        references = self._references(raw)
        result: dict[str, Any] = {
            "classes": metric_scores("ner", None, predictions, references, per_type=True)["types"]
        }
        tags = {tag for row in (*references, *predictions) for tag in row}
        if all(TAG.fullmatch(tag) for tag in tags):
            scheme = "IOB2" if all(tag[0] in "BIO" for tag in tags) else "IOBES"
            options = {"mode": "strict", "scheme": scheme, "per_type": True}
            strict: dict[str, Any] = metric_scores("ner", None, predictions, references, **options)
            figures = {name: strict[name] for name in ("precision", "recall", "f1")}
            result["strict"] = {"scheme": scheme} | figures | {"classes": strict["types"]}
        return result

    def write_predictions(
        self, directory: Path, raw: datasets.Dataset, predictions: list[list[str]], split: str
    ) -> list[Path]:
        """`predictions_<split>.txt`: per word a line `word tag` (`word gold tag`, as conlleval reads it, if labelled),
        an empty line after every sentence.
        """
        names, labelled = self.class_names(raw), self.is_labelled(raw)
        lines: list[str] = []
        for row, predicted in zip(raw.select_columns(["tokens", "ner_tags"]), predictions, strict=True):
            gold = [names[tag] for tag in row["ner_tags"]] if labelled else [""] * len(predicted)
            lines += [
                f"{word} {right} {tag}" if labelled else f"{word} {tag}"
                for word, right, tag in zip(row["tokens"], gold, predicted, strict=True)
            ]
            lines.append("")
        return [write_lines(Path(directory) / f"predictions_{split}.txt", lines)]


# ----------------------------------------------------------------------------------------------------------- features


def sentence_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    labels: bool,
) -> dict[str, list]:
    """`cached_map` function: [CLS], the sentence's pieces as far as they fit, [SEP]."""
    return _features(_word_pieces(tokenizer, batch["tokens"]), batch, indices, tokenizer, settings, labels)


def document_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    labels: bool,
    sentences: list[list[str]],
    documents: list[str],
) -> dict[str, list]:
    """`cached_map` function: the same with the rest of max_seq_length filled from before and after the sentence.

    Both sides get the same number of pieces, or what the other cannot use. sentences, documents: of all rows.
    """
    own = _word_pieces(tokenizer, batch["tokens"])
    room = settings.max_seq_length - 2
    pieces: dict[int, np.ndarray] = {}

    def sentence(row: int) -> np.ndarray:
        if row not in pieces:
            start = row - row % _BLOCK
            found = _word_pieces(tokenizer, sentences[start : start + _BLOCK])
            pieces.update((start + offset, _joined(words)) for offset, words in enumerate(found))
        return pieces[row]

    contexts = []
    for row, words in zip(indices, own, strict=True):
        free = room - sum(map(len, words))
        left = right = np.zeros(0, dtype=np.int32)
        before, after = row - 1, row + 1
        while before >= 0 and documents[before] == documents[row] and len(left) < free:
            left = np.concatenate([sentence(before), left])
            before -= 1
        while after < len(documents) and documents[after] == documents[row] and len(right) < free:
            right = np.concatenate([right, sentence(after)])
            after += 1
        for_left = min(len(left), max(free // 2, free - len(right)), max(free, 0))
        contexts.append((left[len(left) - for_left :], right[: max(free - for_left, 0)]))
    return _features(own, batch, indices, tokenizer, settings, labels, contexts)


def _features(
    own: list[list[np.ndarray]],
    batch: Mapping[str, list],
    indices: list[int],
    tokenizer: Any,
    settings: FeatureSettings,
    labels: bool,
    contexts: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, list]:
    names = ["input_ids", "token_type_ids", "example", "cut", "positions", *(["labels"] if labels else [])]
    columns: dict[str, list] = {name: [] for name in names}
    room = settings.max_seq_length - 2
    for number, words in enumerate(own):
        left, right = contexts[number] if contexts else (_joined([]), _joined([]))
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        first = np.cumsum(lengths) - lengths
        positions = np.where((lengths > 0) & (first < room), first + 1 + len(left), -1)
        ids = np.concatenate([[tokenizer.cls_token_id], left, _joined(words)[:room], right, [tokenizer.sep_token_id]])
        columns["input_ids"].append(ids)
        columns["token_type_ids"].append(np.zeros(len(ids), dtype=np.int8))
        columns["example"].append(indices[number])
        columns["cut"].append(max(0, int(lengths.sum()) - room))
        columns["positions"].append(positions)
        if labels:
            targets = np.full(len(ids), IGNORED_LABEL)
            scored = positions >= 0
            targets[positions[scored]] = np.array(batch["ner_tags"][number], dtype=np.int64)[scored]
            columns["labels"].append(targets)
    return columns


def _joined(words: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *words])


def _word_pieces(tokenizer: Any, sentences: list[list[str]]) -> list[list[np.ndarray]]:
    """The pieces of every word of every sentence; a word is tokenized by itself, and each different one once."""
    distinct = list(dict.fromkeys(word for words in sentences for word in words))
    known = dict(zip(distinct, token_ids(tokenizer, distinct), strict=True))
    return [[known[word] for word in words] for words in sentences]


# ------------------------------------------------------------------------------------------------------------ columns


def _is_tagged(table: pa.Table) -> bool:
    """Whether any row has tags: hidden ones come as nulls, or as empty lists in every row."""
    if "ner_tags" not in table.column_names or table.column("ner_tags").null_count == table.num_rows:
        return False
    tags, words = table.column("ner_tags"), table.column("tokens")
    if not (pa.types.is_list(tags.type) and pa.types.is_list(words.type)):
        return True
    return bool(pc.sum(pc.list_value_length(tags)).as_py()) or not pc.sum(pc.list_value_length(words)).as_py()


def _flat(rows: datasets.Dataset, name: str) -> np.ndarray:
    """All values of a list column, one after the other."""
    return rows.with_format("arrow")[:].column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _refuse_numbers(tags: pa.Array, where: str) -> None:
    """Raise InputError if the user's own tags are numbers, which do not say what is an entity."""
    found = [tag for tag in pc.unique(tags).to_pylist() if tag is not None]
    numbers = [as_number(tag) for tag in found]
    if found and all(number is not None for number in numbers):
        raise InputError(
            f"{where}: column 'ner_tags' holds numbers, {min(numbers)} to {max(numbers)}; name their tags in order "  # type: ignore[type-var]
            "with --class_names, as --class_names O B-PER I-PER"
        )


def _list_column(table: pa.Table, name: str, where: str) -> pa.ListArray:
    column = table.column(name)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InputError(f"{where}: column {name!r} holds {one_line(column.type)}, not lists; use jsonl or parquet")
    if column.null_count:
        raise InputError(
            f"{where}: column {name!r} is missing (null) in row {pc.index(column.is_null(), True).as_py()}"
        )
    if pa.types.is_null(column.type.value_type):  # all lists are empty
        column = column.cast(pa.list_(pa.string()))
    return column.combine_chunks().cast(pa.list_(column.type.value_type))


def _offsets(lists: pa.ListArray) -> pa.Array:
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())


def _tag_ids(tags: pa.ListArray, names: list[str], where: str, by_position: bool) -> np.ndarray:
    flat = check_single(pa.chunked_array([tags.flatten()]), f"{where}: a tag")
    try:
        ids = class_ids(flat, names, where, by_position=by_position)
        bad = int(np.argmax(ids < 0)) if (ids < 0).any() else -1
    except InputError:
        # Found for a word; said for its sentence.
        bad = next(i for i, value in enumerate(flat.to_pylist()) if not _is_tag(value, names, by_position))
    if bad >= 0:
        row = int(np.searchsorted(_offsets(tags).to_numpy(), bad, side="right")) - 1
        raise InputError(
            f"{where}, row {row}: unknown tag {flat[bad].as_py()!r}; it must be one of {', '.join(names)}"
        )
    return ids


def _is_tag(value: Any, names: list[str], by_position: bool) -> bool:
    return value in names or (by_position and isinstance(value, int) and 0 <= value < len(names))


def _tags_of(tags: dict[str, pa.Array], task: str) -> list[str]:
    """The tags of the training split: O first, then by type, B- before I-.

    Raises InputError where some tags have a prefix and others have none, as a header or a comment that was taken for
    words, and where prefixes are written in another way.
    """
    split = next((split for split in ("train", "validation") if split in tags), None)
    if split is None:
        raise InputError(f"{task} needs a split with tags, or a model that names its classes")
    names = sorted({str(tag) for tag in pc.unique(tags[split]).drop_null().to_pylist()}, key=_by_type)
    odd = [name for name in names if not TAG.fullmatch(name)]
    kinds = Counter(name[2:].casefold() for name in names if _LOOSE_TAG.fullmatch(name))
    if odd and (len(odd) < len(names) - (OUTSIDE in names) or max(kinds.values(), default=1) > 1):
        raise InputError(
            f"{task}, split {split}: the tag {odd[0]!r} is neither {OUTSIDE!r} nor a type with its prefix, as B-PER; "
            "correct it, or check whether it stands in a header, a comment or another column (--columns ner_tags=…)"
        )
    return names


def _by_type(tag: str) -> tuple[bool, str, str]:
    return tag != OUTSIDE, tag[2:], tag


# The paper gives no hyperparameters for NER; these are its appendix A.3, and 512 where document context is used.
_DEFAULTS = Defaults(learning_rates=(5e-5, 3e-5, 2e-5), batch_sizes=(32, 16), epochs=(3, 2, 4), max_seq_length=128)
NER_TASKS = (
    NerTask(
        name="conll2003",
        hub=("lhoestq/conll2003", None),  # the original there is a script, which datasets no longer runs
        classes=(
            OUTSIDE,
            *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI"),
        ),
        defaults=_DEFAULTS,
    ),
    NerTask(name="custom-ner", hub=None, defaults=_DEFAULTS),
)

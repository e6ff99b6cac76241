"""Named entity recognition: CoNLL-2003 (Tjong Kim Sang and De Meulder 2003) and any tagged words in its shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from seqeval.metrics.sequence_labeling import get_entities

from ..metrics.bootstrap import f1_rows
from ..metrics.ner.ner import to_iobes
from ..model.kernels_hfbert import IGNORED_LABEL
from ..utils.errors import InputError
from .encoding import (
    INPUT_FEATURES,
    FeatureSettings,
    as_inner_word,
    cached_map,
    make_dataset,
    special_tokens,
    token_ids,
)
from .files.ner import (
    OUTSIDE,
    TAG,
    is_in_columns,
    is_tagged,
    list_column,
    offsets,
    read_columns,
    refuse_numbers,
    tag_ids,
    tags_of,
)
from .files.tables import SUFFIXES, Columns, check_single, format_suffix, read_file
from .labels import are_unnamed, check_user_classes, label_maps, match_model_classes, warn_of_similar
from .notes import warn
from .task import Defaults, Task, metric_scores, write_lines


# Sentences tokenized at a time when a document is looked up.
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class NerTask(Task):
    """The words of a sentence → a tag for each, in the IOB2 scheme.

    A word is tagged at its first piece; a word without a piece, or cut off, is O.

    Args:
        classes: tags in the order of their ids; None: those of the data.
    """

    head: ClassVar[str] = "AutoModelForTokenClassification"
    per_token: ClassVar[bool] = True
    tags_words: ClassVar[bool] = True
    label_column: ClassVar[str] = "ner_tags"
    optional_columns: ClassVar[frozenset[str]] = frozenset({"ner_tags", "document"})
    original_files: ClassVar[Mapping[str, Sequence[str]]] = {
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

    # Loading.

    def read(self, path: Path, columns: Columns) -> pa.Table:
        if format_suffix(path) in SUFFIXES and not (format_suffix(path) == ".tsv" and is_in_columns(path, columns)):
            return read_file(path, columns, self.optional_columns)
        # The user names the columns of such a file by their numbers.
        user_columns = {role: names[0] for role, names in columns.items() if names != self.columns[role]}
        return read_columns(path, user_columns)

    @property
    def has_classes(self) -> bool:
        return True

    def validate(
        self, tables: dict[str, pa.Table], model_classes: Sequence[str] | None, user_classes: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        check_user_classes(self.name, user_classes, self.classes)
        by_position = self.classes is not None or bool(user_classes)
        tags = {
            split: list_column(table, "ner_tags", f"{self.name}, split {split}").flatten()
            for split, table in tables.items()
            if is_tagged(table)
        }
        for split, flat in tags.items():
            check_single(pa.chunked_array([flat]), f"{self.name}, split {split}: a tag")
            if not by_position:
                refuse_numbers(flat, f"{self.name}, split {split}")
        names = list(user_classes or self.classes or model_classes or tags_of(tags, self.name))
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
                tags, names, "the model does not know" if model_classes else "the training data do not show"
            )
            warn_of_similar(names, self.name)
        return {split: self._dataset(split, table, names, by_position) for split, table in tables.items()}

    def _unseen(self, tags: dict[str, pa.Array], names: list[str], why: str) -> list[str]:
        """Return the tags of other splits that are not among `names`: scored as missed, never predicted."""
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
        location = f"{self.name}, split {split}"
        tokens = list_column(table, "tokens", location)
        words = tokens.flatten()
        if not (pa.types.is_string(words.type) or pa.types.is_large_string(words.type)) or words.null_count:
            raise InputError(f"{location}: column 'tokens' must be lists of words, without nulls")
        columns: dict[str, Any] = {"tokens": tokens}
        features: dict[str, Any] = {"tokens": datasets.List(datasets.Value("string"))}
        labelled = is_tagged(table)
        if not labelled and not split.startswith("test"):
            raise InputError(f"{location} has no tags: it cannot serve as {split}; to predict it, name it --test_file")
        if labelled:
            tags = list_column(table, "ner_tags", location)
            differing = pc.not_equal(tags.value_lengths(), tokens.value_lengths())
            if pc.any(differing).as_py():
                row = pc.index(differing, True).as_py()
                raise InputError(f"{location}, row {row}: {len(tokens[row])} words but {len(tags[row])} tags")
            ids = tag_ids(tags, names, location, by_position=by_position)
            if (ids == names.index(OUTSIDE)).all() and split != "train":
                warn(f"{location} has no entity: every word is {OUTSIDE!r}, and its precision, recall and F1 are 0")
            columns["ner_tags"] = pa.ListArray.from_arrays(offsets(tags), pa.array(ids))
        else:
            columns["ner_tags"] = pa.array([[] for _ in range(table.num_rows)], type=pa.list_(pa.int64()))
        # Without labels too: predictions need the classes.
        features["ner_tags"] = datasets.List(datasets.ClassLabel(names=names))
        if "document" in table.column_names:
            documents = check_single(table.column("document"), f"{location}: column 'document'")
            columns["document"] = documents.cast(pa.string())
            features["document"] = datasets.Value("string")
        return make_dataset(columns, datasets.Features(features))

    def is_labelled(self, raw: datasets.Dataset) -> bool:
        return raw.num_rows == 0 or any(bool(tags) for tags in raw[self.label_column][:])

    def class_names(self, raw: datasets.Dataset) -> list[str]:
        """Return the tags in the order of their ids."""
        return raw.features["ner_tags"].feature.names

    def check_training(self, raw: datasets.Dataset) -> None:
        if set(self.describe_targets(raw).get("classes", ())) <= {OUTSIDE}:
            raise InputError(
                f"{self.name}, split train: every word is tagged {OUTSIDE!r}, so that there is no entity to learn; "
                "check which column holds the tags (--columns ner_tags=…)"
            )

    # Description.

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        names = self.class_names(raw)
        counts = np.bincount(_flat(raw, "ner_tags"), minlength=len(names)).tolist()
        return {"classes": {name: count for name, count in zip(names, counts, strict=True) if count}}

    def describe_features(self, raw: datasets.Dataset, features: datasets.Dataset) -> dict[str, Any]:
        """Count also the words, and the words of entities, without a token at which to predict a tag."""
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

    # Features.

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        return label_maps(self.class_names(raw))

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """Encode one feature per sentence, with `positions`: the first piece of every word, −1 for none.

        With settings.document_context the sentence stands in the middle of as much of its document as fits; only its
        own words have labels and positions.
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
        # A batch need not hold the sentences around its rows.
        context = {"sentences": raw["tokens"][:], "documents": raw["document"][:]}
        return cached_map(
            raw, document_features, datasets.Features(kinds), tokenizer, settings, context, labels=labels
        )

    # Predictions and scores.

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> list[list[str]]:
        """Return a tag for every word of every row, from `logits`, per feature (at least its length, tags)."""
        predictions: list[list[str]] = [[] for _ in range(len(raw))]
        table = features.select_columns(["example", "positions"])[:]
        own = self.class_names(raw)
        names: list[str] | None = None
        for number, (example, positions) in enumerate(zip(table["example"], table["positions"], strict=True)):
            logits = np.asarray(outputs["logits"][number])
            if names is None:
                # Tags that only the data have come last (see `_unseen`).
                known = own if self.classes or id2label is None else own[: logits.shape[-1]]
                names = match_model_classes(id2label, known, logits.shape[-1], self.name)
            tags = logits.argmax(axis=-1).tolist()
            predictions[example] = [names[tags[position]] if position >= 0 else OUTSIDE for position in positions]
        return predictions

    def majority_predictions(self, known: datasets.Dataset, raw: datasets.Dataset) -> list[list[str]]:
        """Return O for every word."""
        return [[OUTSIDE] * len(words) for words in raw["tokens"][:]]

    def score(self, raw: datasets.Dataset, predictions: list[list[str]]) -> dict[str, float]:
        return metric_scores("ner", None, predictions, self._references(raw))

    def example_rows(self, raw: datasets.Dataset, predictions: list[list[str]], metric: str) -> tuple[np.ndarray, str]:
        """Count the right entities of every sentence, and the missed and wrong ones."""
        if metric != "f1":
            return super().example_rows(raw, predictions, metric)
        counts = []
        for gold, predicted in zip(self._references(raw), predictions, strict=True):
            ours, theirs = ({*get_entities([to_iobes(tag) for tag in tags])} for tags in (predicted, gold))
            counts.append((len(ours & theirs), len(ours ^ theirs)))
        return f1_rows(*np.array(counts).T), "f1"

    def _references(self, raw: datasets.Dataset) -> list[list[str]]:
        self.require_labels(raw)
        names = self.class_names(raw)
        return [[names[tag] for tag in tags] for tags in raw["ner_tags"][:]]

    def report(self, raw: datasets.Dataset, predictions: list[list[str]]) -> dict[str, Any]:
        """Score every type of entity, under `classes`, and the same in strict mode, under `strict`.

        Strict mode counts only entities that follow the tags' scheme, IOB2 or IOBES; tags without prefixes have none.
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
        """Write `predictions_<split>.txt`, a line per word and an empty line after every sentence.

        A line is `word tag` or, for a labelled split, `word gold tag`, as conlleval reads it.
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


def sentence_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    labels: bool,
) -> dict[str, list]:
    """Encode a batch for `cached_map`: [CLS], the sentence's pieces as far as they fit, [SEP].

    Args:
        batch: the raw columns, with the words of each sentence in `tokens`.
        indices: numbers of the raw rows.
        tokenizer: any encoder's.
        settings: its max_seq_length truncates.
        labels: whether the rows have labels.

    Returns:
        The columns of INPUT_FEATURES, `positions` (words,) as `NerTask.features` describes it, and `labels` if there
        are any, -100 at tokens that are not the first piece of a word.
    """
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
    """Encode a batch for `cached_map`, filling max_seq_length from before and after each sentence.

    Both sides get the same number of pieces; one side also gets the rest that the other cannot use.

    Args:
        batch: the raw columns, with the words of each sentence in `tokens`.
        indices: numbers of the raw rows.
        tokenizer: any encoder's.
        settings: its max_seq_length is filled.
        labels: whether the rows have labels.
        sentences: the words of all rows of the split.
        documents: the document of each of them; sentences of other documents are no context.

    Returns:
        The columns of INPUT_FEATURES, `positions` (words,) as `NerTask.features` describes it, and `labels` if there
        are any, -100 at tokens that are not the first piece of a word.
    """
    own = _word_pieces(tokenizer, batch["tokens"])
    max_tokens = settings.max_seq_length - special_tokens(tokenizer).count(is_pair=False)
    pieces: dict[int, np.ndarray] = {}

    def sentence(row: int) -> np.ndarray:
        if row not in pieces:
            start = row - row % _BLOCK
            block = _word_pieces(tokenizer, sentences[start : start + _BLOCK])
            pieces.update((start + offset, _joined(words)) for offset, words in enumerate(block))
        return pieces[row]

    contexts = []
    for row, words in zip(indices, own, strict=True):
        free = max_tokens - sum(map(len, words))
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
    names = ["input_ids", "token_type_ids", "example", "num_truncated", "positions", *(["labels"] if labels else [])]
    columns: dict[str, list] = {name: [] for name in names}
    special = special_tokens(tokenizer)
    max_tokens = settings.max_seq_length - special.count(is_pair=False)
    for number, words in enumerate(own):
        left, right = contexts[number] if contexts else (_joined([]), _joined([]))
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        first = np.cumsum(lengths) - lengths
        positions = np.where((lengths > 0) & (first < max_tokens), first + len(special.begin) + len(left), -1)
        ids = np.concatenate([special.begin, left, _joined(words)[:max_tokens], right, special.end]).astype(np.int64)
        columns["input_ids"].append(ids)
        columns["token_type_ids"].append(np.zeros(len(ids), dtype=np.int8))
        columns["example"].append(indices[number])
        columns["num_truncated"].append(max(0, int(lengths.sum()) - max_tokens))
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
    """Tokenize every distinct word once, by itself; return the pieces of every word of every sentence."""
    distinct = list(dict.fromkeys(word for words in sentences for word in words))
    encoded = token_ids(tokenizer, [as_inner_word(tokenizer, word) for word in distinct])
    known = dict(zip(distinct, encoded, strict=True))
    return [[known[word] for word in words] for words in sentences]


def _flat(rows: datasets.Dataset, name: str) -> np.ndarray:
    """Return all values of a list column, one after the other."""
    return rows.with_format("arrow")[:].column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


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

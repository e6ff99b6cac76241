"""Extractive question answering: SQuAD 1.1 and 2.0, and the user's own data in their shape.

Which of the two versions it is follows from the data: with an unanswerable question it is 2.0.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..metrics.squad_scoring import best_threshold, score_v2
from ..utils.errors import InputError
from .data import Columns, check_single, check_strings, columns_of_rows, json_rows, read_file, table_of
from .notes import leave_out, warn
from .squad_files import check_answers, has_text, is_nested, locate, nested_rows, without_plausible_answers
from .squad_spans import N_BEST_SIZE, Span, answer_tokens, best_spans, max_context_windows, windows
from .task import (
    INPUT_FEATURES,
    Defaults,
    FeatureSettings,
    Task,
    cached_map,
    make_dataset,
    metric_scores,
    plain_backend,
    token_ids,
    write_lines,
)


class NBest(NamedTuple):
    """One entry of an example's n-best list; the probabilities of a list sum to 1."""

    text: str
    probability: float
    start_logit: float
    end_logit: float


@dataclass
class Answers:
    """Predictions for one split, in the order of its rows.

    texts: the best answer that is a span of the context ("" if there is none). differences: (rows,) the null score
    minus that answer's score, +inf if there is none. n_best: best first, with "" for no answer in SQuAD 2.0.
    threshold: in SQuAD 2.0, above which difference a question counts as unanswerable.
    """

    texts: list[str]
    differences: np.ndarray
    n_best: list[list[NBest]]
    unanswerable: bool
    threshold: float = 0.0

    def final(self) -> list[str]:
        """The answers: for SQuAD 2.0 with "" where the difference is above the threshold."""
        if not self.unanswerable:
            return self.texts
        above = self.differences > self.threshold
        return ["" if null else text for text, null in zip(self.texts, above, strict=True)]


@dataclass(frozen=True, kw_only=True)
class SquadTask(Task):
    """Question and context → a span of the context, or none."""

    head: ClassVar[str] = "AutoModelForQuestionAnswering"
    label_columns: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    label_column: ClassVar[str] = "answers"
    optional: ClassVar[frozenset[str]] = frozenset({"answers", "id"})
    originals: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": ("train-v*.json*",),
        "validation": ("dev-v*.json*",),
        "test": ("test-v*.json*",),
    }

    # Assumed of an unlabelled split; a labelled one shows it.
    unanswerable: bool = False
    columns: Columns = field(
        default_factory=lambda: {name: (name,) for name in ("id", "question", "context", "answers")}
    )
    main_metric: str = "f1"

    # ------------------------------------------------------------------------------------------------------- loading

    def read(self, path: Path, columns: Columns) -> pa.Table:
        if not {".json", ".jsonl"} & {*path.suffixes[-2:]}:
            return read_file(path, columns, self.optional)
        rows = json_rows(path)
        if is_nested(rows):
            return table_of(nested_rows(rows, str(path)), str(path))
        rows = without_plausible_answers(rows, columns["answers"])
        return table_of(columns_of_rows(rows, columns, self.optional), str(path))

    def validate(
        self, tables: dict[str, pa.Table], classes: Sequence[str] | None, numbered: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        return {split: self._dataset(split, table) for split, table in tables.items()}

    def _dataset(self, split: str, table: pa.Table) -> datasets.Dataset:
        where = f"{self.name}, split {split}"
        columns: dict[str, Any] = {
            name: check_strings(table.column(name), f"{where}: column {name!r}") for name in ("question", "context")
        }
        if "id" in table.column_names:
            ids = check_single(table.column("id"), f"{where}: column 'id'")
            columns["id"] = check_strings(ids.cast(pa.string()), f"{where}: column 'id'")
        else:
            columns["id"] = pa.array([str(row) for row in range(table.num_rows)])
        if len(pc.unique(columns["id"])) < table.num_rows:
            counts = pc.value_counts(columns["id"]).to_pylist()
            double = next(entry["values"] for entry in counts if entry["counts"] > 1)
            raise InputError(f"{where}: id {double!r} occurs more than once; answers are matched by id")
        string = datasets.Value("string")
        features: dict[str, Any] = {"id": string, "question": string, "context": string}
        given = table.column("answers").to_pylist() if "answers" in table.column_names else None
        if given is not None and split.startswith("test") and not any(map(has_text, given)):
            given = None  # hidden answers come as nulls, or as empty lists in every row
        if given is not None:
            answers = check_answers(given, where)
            if split == "train":
                answers = _located(answers, columns["context"].to_pylist(), where)
            features["answers"] = {
                "text": datasets.List(string),
                "answer_start": datasets.List(datasets.Value("int32")),
            }
            columns["answers"] = pa.array(answers, type=datasets.Features(features).arrow_schema.field("answers").type)
        elif not split.startswith("test"):
            raise InputError(f"{where} has no answers: it cannot serve as {split}; to predict it, name it --test_file")
        raw = make_dataset(columns, datasets.Features(features))
        return self._without_misplaced_answers(raw, where) if split == "train" else raw

    def _without_misplaced_answers(self, raw: datasets.Dataset, where: str) -> datasets.Dataset:
        """The rows whose first answer stands where it says; like the original code, the others cannot be learnt."""
        good = []
        for row, (context, answers) in enumerate(zip(raw["context"][:], raw["answers"][:], strict=True)):
            if answers["text"]:
                text, start = answers["text"][0], answers["answer_start"][0]
                if start < 0 or context[start : start + len(text)] != text:
                    continue
            good.append(row)
        bad = sorted(set(range(len(raw))) - set(good))
        if not bad:
            return raw
        ids = ", ".join(raw[row]["id"] for row in bad[:5])
        if not good:
            raise InputError(f"{where}: no answer stands in its context at its answer_start (ids {ids} …)")
        leave_out(
            len(bad), f"{where}: left out {len(bad)} rows whose answer is not in the context at answer_start: {ids}"
        )
        return raw.select(good)

    def check_training(self, raw: datasets.Dataset) -> None:
        if not _has_answer(raw).any():
            raise InputError(f"{self.name}, split train: no question has an answer, so that there is none to learn")

    # ---------------------------------------------------------------------------------------------------- description

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        answered = int(_has_answer(raw).sum())
        return {"classes": {"answer": answered, "no answer": len(raw) - answered}}

    def describe_features(self, raw: datasets.Dataset, features: datasets.Dataset) -> dict[str, Any]:
        """Lengths of the windows, and what no window holds: the ends of questions, and in training long answers."""
        table = features.with_format("arrow")[:]
        lengths, examples = self._lengths(table), table.column("example").to_numpy()
        cut = np.unique(examples[table.column("cut").to_numpy() > 0])
        description = {
            "windows": len(features),
            "tokens": {"mean": round(float(lengths.mean()), 1), "max": int(lengths.max())},
            "examples_in_several_windows": int((np.bincount(examples, minlength=len(raw)) > 1).sum()),
            "questions_cut_by_max_query_length": len(cut),
        }
        if "start_positions" in table.column_names:
            held = np.unique(examples[table.column("start_positions").to_numpy() > 0])
            description["answers_in_no_window"] = int(_has_answer(raw).sum()) - len(held)
        return description

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        if not self.is_labelled(raw):
            return super().target_of(raw, row)
        texts = raw[row]["answers"]["text"]
        return repr(texts[0]) if texts else "no answer"

    # ------------------------------------------------------------------------------------------------------ features

    def has_unanswerable(self, raw: datasets.Dataset) -> bool:
        """Whether `raw` is SQuAD 2.0: a question without answer shows it, and where no row is labelled, the task."""
        if not self.is_labelled(raw):
            return self.unanswerable
        return not _has_answer(raw).all()

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        return {}

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """One feature per window: for training with the answer's positions, else with what `predict` needs.

        The latter are `context_first` (the window's place of the first context token), and for the window's context
        tokens `starts` and `ends` (characters of the context) and `max_context` (whether an answer may begin there).
        """
        least = settings.max_query_length + 4
        if settings.max_seq_length < least:
            raise InputError(
                f"max_seq_length {settings.max_seq_length} leaves no room for context beside a question of "
                f"max_query_length {settings.max_query_length}; it must be at least {least}"
            )
        kinds = dict(INPUT_FEATURES)
        if training:
            self.require_labels(raw)
            kinds |= {name: datasets.Value("int64") for name in self.label_columns}
        else:
            kinds |= {
                "context_first": datasets.Value("int32"),
                "starts": datasets.List(datasets.Value("int32")),
                "ends": datasets.List(datasets.Value("int32")),
                "max_context": datasets.List(datasets.Value("bool")),
            }
        return cached_map(raw, squad_features, datasets.Features(kinds), tokenizer, settings, training=training)

    # ----------------------------------------------------------------------------------------------------- prediction

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> Answers:
        """The best span of each example over all its windows. outputs: `start_logits`, `end_logits`, as in the base
        class; of padded rows only the feature's own length is read.
        """
        unanswerable = self.has_unanswerable(raw)
        spans: list[list[tuple[Span, int]]] = [[] for _ in range(len(raw))]
        null_scores = np.full(len(raw), np.inf)
        null_logits = [(0.0, 0.0)] * len(raw)
        table = features.with_format("arrow")[:]
        offsets = [_ragged(table.column(name)) for name in ("starts", "ends", "max_context")]
        examples = table.column("example").to_numpy()
        for number, (example, first) in enumerate(
            zip(examples.tolist(), table.column("context_first").to_pylist(), strict=True)
        ):
            start, end = np.asarray(outputs["start_logits"][number]), np.asarray(outputs["end_logits"][number])
            null = float(start[0]) + float(end[0])
            if null < null_scores[example]:
                null_scores[example], null_logits[example] = null, (float(start[0]), float(end[0]))
            may_start = offsets[2][number]
            here = slice(first, first + len(may_start))
            spans[example] += [(span, number) for span in best_spans(start[here], end[here], may_start, N_BEST_SIZE)]
        answers = Answers([], np.full(len(raw), np.inf), [], unanswerable)
        for example, context in enumerate(raw["context"][:]):
            # Stable: of equal scores the earlier window's comes first.
            best = sorted(spans[example], key=lambda entry: -entry[0].score)[:N_BEST_SIZE]
            texts = [context[offsets[0][at][span.start] : offsets[1][at][span.end]] for span, at in best]
            if best:
                answers.differences[example] = null_scores[example] - best[0][0].score
            answers.texts.append(texts[0] if texts else "")
            null = null_logits[example] if unanswerable else None
            answers.n_best.append(_n_best(texts, [span for span, _ in best], null))
        return answers

    def score(self, raw: datasets.Dataset, predictions: Answers) -> dict[str, float]:
        """SQuAD 1.1: exact_match, f1. 2.0: exact, f1 and HasAns_, NoAns_ at the threshold; best_ over thresholds."""
        self.require_labels(raw)
        references = [{"id": i, "answers": a} for i, a in zip(raw["id"][:], raw["answers"][:], strict=True)]
        given = [{"id": i, "prediction_text": text} for i, text in zip(raw["id"][:], predictions.texts, strict=True)]
        if not predictions.unanswerable:
            return metric_scores("squad", None, given, references)
        for entry, difference in zip(given, predictions.differences.tolist(), strict=True):
            entry["no_answer_probability"] = difference
        return metric_scores("squad_v2", None, given, references, no_answer_threshold=float(predictions.threshold))

    def threshold_curve(
        self, raw: datasets.Dataset, predictions: Answers
    ) -> tuple[float, float, np.ndarray, np.ndarray]:
        """The threshold of the best F1 on this split, that F1, and F1 (0 to 100) against all thresholds to plot.

        Tuned on the split it is reported for, a threshold flatters it; say so, or use another split.
        """
        self.require_labels(raw)
        golds = [answers["text"] for answers in raw["answers"][:]]
        answered = [score_v2(text, gold)[1] for text, gold in zip(predictions.texts, golds, strict=True)]
        unanswered = [score_v2("", gold)[1] for gold in golds]
        threshold, f1, thresholds, curve = best_threshold(
            predictions.differences, np.array(answered), np.array(unanswered)
        )
        return threshold, 100 * f1, thresholds, 100 * curve

    def write_predictions(
        self, directory: Path, raw: datasets.Dataset, predictions: Answers, split: str
    ) -> list[Path]:
        """`predictions_<split>.json`, `nbest_predictions_<split>.json` and for SQuAD 2.0 `null_odds_<split>.json`.

        The first and the last are what the official evaluation script reads.
        """
        ids = raw["id"][:]
        files = {
            "predictions": dict(zip(ids, predictions.final(), strict=True)),
            "nbest_predictions": {
                i: [entry._asdict() for entry in entries] for i, entries in zip(ids, predictions.n_best, strict=True)
            },
        }
        if predictions.unanswerable:
            files["null_odds"] = dict(zip(ids, predictions.differences.tolist(), strict=True))
        return [
            write_lines(Path(directory) / f"{name}_{split}.json", [json.dumps(content, indent=1, ensure_ascii=False)])
            for name, content in files.items()
        ]


def _has_answer(raw: datasets.Dataset) -> np.ndarray:
    """Whether each row has an answer, (rows,) bool."""
    texts = pc.struct_field(raw.with_format("arrow")[:].column("answers"), "text")
    return pc.list_value_length(texts).to_numpy() > 0


def _located(answers: list[dict[str, list]], contexts: list[str], where: str) -> list[dict[str, list]]:
    """The answers, the first of each row put where it stands if it is off by blanks."""
    result, moved = [], 0
    for context, given in zip(contexts, answers, strict=True):
        if given["text"]:
            text, start = given["text"][0], given["answer_start"][0]
            found = locate(context, text, start)
            if found and found != (text, start):
                moved += 1
                given = {
                    "text": [found[0], *given["text"][1:]],
                    "answer_start": [found[1], *given["answer_start"][1:]],
                }
        result.append(given)
    if moved:
        warn(f"{where}: {moved} answers were off by blanks, and are taken from where they stand in their contexts")
    return result


def squad_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    training: bool,
) -> dict[str, list]:
    """`cached_map` function: one feature per window of each row's context."""
    questions = token_ids(tokenizer, batch["question"])
    contexts = _tokenize_contexts(tokenizer, batch["context"])
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    names = ["input_ids", "token_type_ids", "example", "cut"]
    names += ["start_positions", "end_positions"] if training else ["context_first", "starts", "ends", "max_context"]
    columns: dict[str, list] = {name: [] for name in names}
    for row, (index, question) in enumerate(zip(indices, questions, strict=True)):
        cut = max(0, len(question) - settings.max_query_length)
        question = question[: settings.max_query_length]
        ids, starts, ends = contexts[batch["context"][row]]
        first = len(question) + 2
        spans = windows(len(ids), settings.max_seq_length - len(question) - 3, settings.doc_stride)
        if training:
            answer = _first_answer(batch["answers"][row], starts, ends)
        else:
            best_window = max_context_windows(len(ids), spans)
        for number, (begin, end) in enumerate(spans):
            columns["input_ids"].append(np.concatenate([cls, question, sep, ids[begin:end], sep]))
            columns["token_type_ids"].append((np.arange(first + end - begin + 1) >= first).astype(np.int8))
            columns["example"].append(index)
            columns["cut"].append(cut)
            if training:
                inside = answer is not None and begin <= answer[0] and answer[1] < end
                shift = first - begin
                columns["start_positions"].append(answer[0] + shift if inside else 0)
                columns["end_positions"].append(answer[1] + shift if inside else 0)
            else:
                columns["context_first"].append(first)
                columns["starts"].append(starts[begin:end])
                columns["ends"].append(ends[begin:end])
                columns["max_context"].append(best_window[begin:end] == number)
    return columns


def _tokenize_contexts(tokenizer: Any, contexts: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Context → its ids and its tokens' first and last characters; a context of many questions is done once."""
    distinct = list(dict.fromkeys(contexts))
    result = {}
    for text, encoding in zip(
        distinct, plain_backend(tokenizer).encode_batch(distinct, add_special_tokens=False), strict=True
    ):
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        result[text] = (np.array(encoding.ids, dtype=np.int32), offsets[:, 0].copy(), offsets[:, 1].copy())
    return result


def _first_answer(answers: Mapping[str, list], starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    if not answers["text"]:
        return None
    first = answers["answer_start"][0]
    return answer_tokens(starts, ends, first, first + len(answers["text"][0]))


def _ragged(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column as one array per row, views of one buffer."""
    rows = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(chunk.value_lengths().to_numpy())
        rows += np.split(values, ends[:-1]) if len(ends) else []
    return rows


def _n_best(texts: list[str], spans: list[Span], null: tuple[float, float] | None) -> list[NBest]:
    """The list with equal texts merged into the better, and probabilities by softmax over what is in it."""
    entries: dict[str, tuple[float, float]] = {}
    for text, span in zip(texts, spans, strict=True):
        entries.setdefault(text, (span.start_logit, span.end_logit))
    if null is not None:
        entries.setdefault("", null)
    if not entries:
        return [NBest("", 1.0, 0.0, 0.0)]
    ordered = sorted(entries.items(), key=lambda entry: -sum(entry[1]))
    scores = np.array([sum(logits) for _, logits in ordered])
    weights = np.exp(scores - scores.max())
    return [
        NBest(text, probability, *logits)
        for (text, logits), probability in zip(ordered, (weights / weights.sum()).tolist(), strict=True)
    ]


# SQuAD's settings are the paper's sections 4.2 and 4.3; 384 and the stride of 128 google-research/bert's.
SQUAD_TASKS = (
    SquadTask(
        name="squad",
        hub=("rajpurkar/squad", None),
        defaults=Defaults(learning_rates=(5e-5, 3e-5), batch_sizes=(32, 12), epochs=(3, 2), max_seq_length=384),
    ),
    SquadTask(
        name="squad_v2",
        hub=("rajpurkar/squad_v2", None),
        unanswerable=True,
        defaults=Defaults(learning_rates=(5e-5, 3e-5), batch_sizes=(48, 24), epochs=(2, 3), max_seq_length=384),
    ),
    SquadTask(
        name="custom-qa",
        hub=None,
        defaults=Defaults(learning_rates=(5e-5, 3e-5), batch_sizes=(32, 12), epochs=(3, 2), max_seq_length=384),
    ),
)

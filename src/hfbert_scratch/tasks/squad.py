"""Extractive question answering: SQuAD 1.1 and 2.0, and the user's own data in their shape.

The data decide the version: with an unanswerable question it is 2.0.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from ..metrics.bootstrap import mean_rows
from ..metrics.squad_scoring import best_threshold, score_v1, score_v2
from ..utils.errors import InputError
from .encoding import INPUT_FEATURES, FeatureSettings, cached_map, cls_and_sep, make_dataset, plain_backend, token_ids
from .files.squad import (
    check_answers,
    explain_misplaced,
    has_text,
    is_nested,
    locate,
    nested_rows,
    without_plausible_answers,
)
from .files.tables import (
    Columns,
    check_single,
    check_strings,
    columns_of_rows,
    format_suffix,
    json_rows,
    read_file,
    table_of,
    warn_of_blanks,
)
from .notes import leave_out, warn
from .squad_spans import N_BEST_SIZE, Answers, Span, answer_tokens, best_spans, max_context_windows, n_best, windows
from .task import Defaults, Task, metric_scores, write_lines


@dataclass(frozen=True, kw_only=True)
class SquadTask(Task):
    """Question and context → a span of the context, or none.

    Args:
        unanswerable: whether questions may have no answer, assumed of an unlabelled split; a labelled one shows it.
    """

    head: ClassVar[str] = "AutoModelForQuestionAnswering"
    label_columns: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    per_token: ClassVar[bool] = True
    pads_to_batch: ClassVar[bool] = True  # the softmax is over all positions, padding too
    can_pack: ClassVar[bool] = False
    score_scale: ClassVar[int] = 1  # the official scripts give percentages
    answers_questions: ClassVar[bool] = True
    plot: ClassVar[str] = "threshold.png"
    label_column: ClassVar[str] = "answers"
    optional_columns: ClassVar[frozenset[str]] = frozenset({"answers", "id"})
    original_files: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": ("train-v*.json*",),
        "validation": ("dev-v*.json*",),
        "test": ("test-v*.json*",),
    }

    unanswerable: bool = False
    columns: Columns = field(
        default_factory=lambda: {name: (name,) for name in ("id", "question", "context", "answers")}
    )
    main_metric: str = "f1"

    # Loading.

    def read(self, path: Path, columns: Columns) -> pa.Table:
        if format_suffix(path) not in (".json", ".jsonl", ".ndjson"):
            return read_file(path, columns, self.optional_columns)
        rows = json_rows(path)
        if is_nested(rows):
            values = nested_rows(rows, str(path))
        else:
            rows = without_plausible_answers(rows, columns["answers"])
            values = columns_of_rows(rows, columns, self.optional_columns)
        ids = values.get("id", range(len(rows)))
        if "id" in values:
            values["id"] = [str(i) if isinstance(i, int) else i for i in ids]
        if "answers" in values:
            # Before Arrow sees them, which demands one type. Hidden answers may be null.
            given = [(i, answers) for i, answers in zip(ids, values["answers"], strict=True) if answers is not None]
            checked = iter(check_answers([answers for _, answers in given], [i for i, _ in given], str(path)))
            values["answers"] = [None if answers is None else next(checked) for answers in values["answers"]]
        return table_of(values, str(path))

    def validate(
        self, tables: dict[str, pa.Table], model_classes: Sequence[str] | None, user_classes: Sequence[str] = ()
    ) -> dict[str, datasets.Dataset]:
        return {split: self._dataset(split, table) for split, table in tables.items()}

    def _dataset(self, split: str, table: pa.Table) -> datasets.Dataset:
        location = f"{self.name}, split {split}"
        columns: dict[str, Any] = {
            name: check_strings(table.column(name), f"{location}: column {name!r}") for name in ("question", "context")
        }
        for name, texts in columns.items():
            warn_of_blanks(texts, f"{location}: column {name!r}")
        if "id" in table.column_names:
            ids = check_single(table.column("id"), f"{location}: column 'id'")
            columns["id"] = check_strings(ids.cast(pa.string()), f"{location}: column 'id'")
        else:
            columns["id"] = pa.array([str(row) for row in range(table.num_rows)])
        if len(pc.unique(columns["id"])) < table.num_rows:
            counts = pc.value_counts(columns["id"]).to_pylist()
            double = next(entry["values"] for entry in counts if entry["counts"] > 1)
            raise InputError(f"{location}: id {double!r} occurs more than once; answers are matched by id")
        string = datasets.Value("string")
        features: dict[str, Any] = {"id": string, "question": string, "context": string}
        column = table.column("answers").to_pylist() if "answers" in table.column_names else None
        if column is not None and split.startswith("test") and not any(map(has_text, column)):
            column = None  # hidden answers come as nulls, or as empty lists in every row
        if column is not None:
            answers = check_answers(column, columns["id"].to_pylist(), location)
            if split == "train":
                answers = _located(answers, columns["context"].to_pylist(), location)
            features["answers"] = {
                "text": datasets.List(string),
                "answer_start": datasets.List(datasets.Value("int32")),
            }
            columns["answers"] = pa.array(answers, type=datasets.Features(features).arrow_schema.field("answers").type)
        elif not split.startswith("test"):
            raise InputError(
                f"{location} has no answers: it cannot serve as {split}; to predict it, name it --test_file"
            )
        raw = make_dataset(columns, datasets.Features(features))
        return self._without_misplaced_answers(raw, location) if split == "train" else raw

    def _without_misplaced_answers(self, raw: datasets.Dataset, location: str) -> datasets.Dataset:
        """Drop the rows whose first answer is not at its answer_start, as the original code does."""
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
        first = [(raw[row]["context"], raw[row]["answers"]) for row in bad]
        why = explain_misplaced((context, a["text"][0], a["answer_start"][0]) for context, a in first)
        if not good:
            raise InputError(f"{location}: no answer stands in its context at its answer_start (ids {ids} …){why}")
        leave_out(
            len(bad),
            f"{location}: left out {len(bad)} rows whose answer is not in the context at answer_start: {ids}{why}",
        )
        return raw.select(good)

    def check_training(self, raw: datasets.Dataset) -> None:
        if not _has_answer(raw).any():
            raise InputError(f"{self.name}, split train: no question has an answer, so that there is none to learn")

    # Description.

    def describe_targets(self, raw: datasets.Dataset) -> dict[str, Any]:
        if not self.is_labelled(raw):
            return {}
        answered = int(_has_answer(raw).sum())
        return {"classes": {"answer": answered, "no answer": len(raw) - answered}}

    def describe_features(self, raw: datasets.Dataset, features: datasets.Dataset) -> dict[str, Any]:
        """Describe the windows; count truncated questions and, in training, answers that no window holds."""
        table = features.with_format("arrow")[:]
        lengths, examples = self._lengths(table), table.column("example").to_numpy()
        truncated = np.unique(examples[table.column("num_truncated").to_numpy() > 0])
        description = {
            "windows": len(features),
            "tokens": {"mean": round(float(lengths.mean()), 1), "max": int(lengths.max())},
            "examples_in_several_windows": int((np.bincount(examples, minlength=len(raw)) > 1).sum()),
            "questions_cut_by_max_query_length": len(truncated),
        }
        if "start_positions" in table.column_names:
            answered = np.unique(examples[table.column("start_positions").to_numpy() > 0])
            description["answers_in_no_window"] = int(_has_answer(raw).sum()) - len(answered)
        return description

    def target_of(self, raw: datasets.Dataset, row: int) -> str:
        if not self.is_labelled(raw):
            return super().target_of(raw, row)
        texts = raw[row]["answers"]["text"]
        return repr(texts[0]) if texts else "no answer"

    # Features.

    def has_unanswerable(self, raw: datasets.Dataset) -> bool:
        """Return whether `raw` is SQuAD 2.0: a question has no answer or, without labels, the task says so."""
        if not self.is_labelled(raw):
            return self.unanswerable
        return not _has_answer(raw).all()

    def config_overrides(self, raw: datasets.Dataset) -> dict[str, Any]:
        return {"num_labels": 2}  # stock's head has num_labels outputs, which another task may have left

    def features(
        self, raw: datasets.Dataset, tokenizer: Any, settings: FeatureSettings, training: bool = False
    ) -> datasets.Dataset:
        """Encode one feature per window, for training with the positions of the answer.

        For prediction there are `context_first` (position of the first context token in the window) and, for every
        context token of the window, `starts` and `ends` (characters of the context) and `max_context` (whether an
        answer may begin there).
        """
        settings.check_room()
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

    def loss_sum(  # type: ignore[override]  # without classes there are no weights of them
        self, outputs: Any, targets: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Sum the mean of the start's and the end's cross-entropy, over all positions, padding too."""
        start, end = (
            F.cross_entropy(outputs[f"{name}_logits"].float(), targets[f"{name}_positions"], reduction="sum")
            for name in ("start", "end")
        )
        return (start + end) / 2

    # Predictions and scores.

    def predict(
        self,
        raw: datasets.Dataset,
        features: datasets.Dataset,
        outputs: Mapping[str, Any],
        id2label: Mapping[int, str] | None = None,
    ) -> Answers:
        """Return the best span of each example over all its windows.

        Of padded rows in `outputs` only the feature's own length is read.
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
            # Stable: of equal scores that of the earlier window comes first.
            best = sorted(spans[example], key=lambda entry: -entry[0].score)[:N_BEST_SIZE]
            texts = [context[offsets[0][at][span.start] : offsets[1][at][span.end]] for span, at in best]
            if best:
                answers.differences[example] = null_scores[example] - best[0][0].score
            answers.texts.append(texts[0] if texts else "")
            no_answer = null_logits[example] if unanswerable else None
            answers.n_best.append(n_best(texts, [span for span, _ in best], no_answer))
        return answers

    def score(self, raw: datasets.Dataset, predictions: Answers) -> dict[str, float]:
        """Score SQuAD 1.1 (exact_match, f1) or 2.0 (exact, f1, HasAns_, NoAns_ at the threshold, and best_ ones)."""
        self.require_labels(raw)
        references = [{"id": i, "answers": a} for i, a in zip(raw["id"][:], raw["answers"][:], strict=True)]
        answers = [{"id": i, "prediction_text": text} for i, text in zip(raw["id"][:], predictions.texts, strict=True)]
        if not predictions.unanswerable:
            return metric_scores("squad", None, answers, references)
        for entry, difference in zip(answers, predictions.differences.tolist(), strict=True):
            entry["no_answer_probability"] = difference
        return metric_scores("squad_v2", None, answers, references, no_answer_threshold=float(predictions.threshold))

    def example_rows(self, raw: datasets.Dataset, predictions: Answers, metric: str) -> tuple[np.ndarray, str]:
        """Return F1 or exact match of every question, of SQuAD 1.1; 2.0's depend on a threshold."""
        if predictions.unanswerable or metric not in ("f1", "exact_match"):
            return super().example_rows(raw, predictions, metric)
        scores = [
            score_v1(text, answers["text"]) for text, answers in zip(predictions.texts, raw["answers"][:], strict=True)
        ]
        return mean_rows(np.array(scores)[:, int(metric == "f1")]), "mean"

    def majority_predictions(self, known: datasets.Dataset, raw: datasets.Dataset) -> Answers:
        """Return no answer for every row."""
        return Answers([""] * len(raw), np.ones(len(raw)), [], self.has_unanswerable(raw))

    def tune(self, raw: datasets.Dataset, predictions: Answers) -> dict[str, Any]:
        """Return the null threshold of the best F1 (SQuAD 2.0)."""
        if not predictions.unanswerable:
            return {}
        threshold, f1, _, _ = self.threshold_curve(raw, predictions)
        # JSON has no infinity.
        return {"null_threshold": {"value": float(np.clip(threshold, -1e9, 1e9)), "f1": f1, "tuned_on": "validation"}}

    def apply_tuned(self, predictions: Answers, tuned: Mapping[str, Any]) -> Answers:
        """Set the threshold to `null_threshold`, 0 by default (SQuAD 2.0)."""
        return replace(predictions, threshold=tuned.get("null_threshold") or 0.0)

    def threshold_curve(
        self, raw: datasets.Dataset, predictions: Answers
    ) -> tuple[float, float, np.ndarray, np.ndarray]:
        """Compute F1 against the null threshold.

        A threshold tuned on the split it is reported for flatters it; say so, or use another split.

        Args:
            raw: a labelled split.
            predictions: `predict` on it.

        Returns:
            The threshold of the best F1, that F1 (0 to 100), and all thresholds with their F1, to plot.

        Raises:
            InputError: for an unlabelled split.
        """
        self.require_labels(raw)
        golds = [answers["text"] for answers in raw["answers"][:]]
        answered = [score_v2(text, gold)[1] for text, gold in zip(predictions.texts, golds, strict=True)]
        unanswered = [score_v2("", gold)[1] for gold in golds]
        threshold, f1, thresholds, curve = best_threshold(
            predictions.differences, np.array(answered), np.array(unanswered)
        )
        return threshold, 100 * f1, thresholds, 100 * curve

    def save_plots(self, directory: Path, raw: datasets.Dataset, predictions: Answers) -> None:
        """Draw `plot` (SQuAD 2.0)."""
        if not predictions.unanswerable:
            return
        from ..utils.plots import draw_threshold_curve  # slow to import, and selects a backend of matplotlib

        threshold, _, thresholds, curve = self.threshold_curve(raw, predictions)
        draw_threshold_curve(thresholds, curve, threshold, directory / self.plot)

    def write_predictions(
        self, directory: Path, raw: datasets.Dataset, predictions: Answers, split: str
    ) -> list[Path]:
        """Write `predictions_`, `nbest_predictions_` and, for SQuAD 2.0, `null_odds_<split>.json`.

        The official evaluation script reads the first and the last.
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
    """Find the rows with an answer, (rows,) bool."""
    texts = pc.struct_field(raw.with_format("arrow")[:].column("answers"), "text")
    return pc.list_value_length(texts).to_numpy() > 0


def _located(answers: list[dict[str, list]], contexts: list[str], location: str) -> list[dict[str, list]]:
    """Correct the text and start of every row's first answer if it is off by blanks."""
    result, moved = [], 0
    for context, answer in zip(contexts, answers, strict=True):
        if answer["text"]:
            text, start = answer["text"][0], answer["answer_start"][0]
            match = locate(context, text, start)
            if match and match != (text, start):
                moved += 1
                answer = {
                    "text": [match[0], *answer["text"][1:]],
                    "answer_start": [match[1], *answer["answer_start"][1:]],
                }
        result.append(answer)
    if moved:
        warn(f"{location}: {moved} answers were off by blanks, and are taken from where they stand in their contexts")
    return result


def squad_features(
    batch: Mapping[str, list],
    indices: list[int],
    *,
    tokenizer: Any,
    settings: FeatureSettings,
    training: bool,
) -> dict[str, list]:
    """Encode a batch for `cached_map`: one feature per window of each row's context."""
    questions = token_ids(tokenizer, batch["question"])
    contexts = _tokenize_contexts(tokenizer, batch["context"])
    cls, sep = cls_and_sep(tokenizer)
    names = ["input_ids", "token_type_ids", "example", "num_truncated"]
    names += ["start_positions", "end_positions"] if training else ["context_first", "starts", "ends", "max_context"]
    columns: dict[str, list] = {name: [] for name in names}
    for row, (index, question) in enumerate(zip(indices, questions, strict=True)):
        truncated = max(0, len(question) - settings.max_query_length)
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
            columns["num_truncated"].append(truncated)
            if training:
                inside = answer if answer is not None and begin <= answer[0] and answer[1] < end else None
                shift = first - begin
                columns["start_positions"].append(0 if inside is None else inside[0] + shift)
                columns["end_positions"].append(0 if inside is None else inside[1] + shift)
            else:
                columns["context_first"].append(first)
                columns["starts"].append(starts[begin:end])
                columns["ends"].append(ends[begin:end])
                columns["max_context"].append(best_window[begin:end] == number)
    return columns


def _tokenize_contexts(tokenizer: Any, contexts: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokenize every distinct context once: context → ids, first and last characters, each (tokens,)."""
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
    """Split a list column into one array per row, views of one buffer."""
    rows = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(chunk.value_lengths().to_numpy())
        rows += np.split(values, ends[:-1]) if len(ends) else []
    return rows


# Hyperparameters: the paper's sections 4.2 and 4.3; 384 and the stride of 128: google-research/bert.
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

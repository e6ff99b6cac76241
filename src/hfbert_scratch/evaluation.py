"""A task's data, a model for it, and what the model makes of them: batches, loss, predictions, scores.

The loss is computed here from a model's logits, summed over the targets and divided by a number the caller gives,
that of all targets of the optimizer step. So any AutoModel checkpoint learns the same from a batch however it is cut
and shared by processes.
"""

import dataclasses
import inspect
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from .model.kernels_hfbert import IGNORED_LABEL
from .model.loading import open_model
from .model.packing import PACKED_ARGUMENTS
from .tasks import (
    Answers,
    DataArguments,
    FeatureSettings,
    NerTask,
    SequenceTask,
    SquadTask,
    Task,
    collect_notes,
    get_task,
    summarize,
    summary_lines,
)
from .tasks.squad import squad_features
from .utils.errors import InputError
from .utils.files import lock, read_json, writing


# What a fine-tuned model's directory says about how to use it.
TASK_FILE = "task.json"
_TASK_FIELDS = {
    "task": (str,),
    "max_seq_length": (int,),
    "doc_stride": (int,),
    "max_query_length": (int,),
    "document_context": (bool,),
    "null_threshold": (float, int),
}

# Heads with an output for every token, where others have one for every feature.
_PER_TOKEN = ("AutoModelForTokenClassification", "AutoModelForQuestionAnswering")


class TaskData:
    """A task's raw splits and, made when asked for and then kept, their features.

    Raises InputError as `Task.load` does.
    """

    def __init__(
        self,
        task: Task,
        data: DataArguments,
        tokenizer: Any,
        settings: FeatureSettings,
        classes: list[str] | None = None,
    ):
        self.task = task
        self.tokenizer = tokenizer
        with collect_notes() as self.notes:
            self.raw = task.load(data, classes)
        default = Path(datasets.config.HF_DATASETS_CACHE) / "hfbert_features"
        self.settings = dataclasses.replace(settings, cache_dir=settings.cache_dir or str(default))
        self._features: dict[tuple[str, bool], datasets.Dataset] = {}
        self._described: dict[tuple[str, ...], tuple[dict[str, Any], list[str]]] = {}

    def features(self, split: str, training: bool = False) -> datasets.Dataset:
        """The features of a split; of several processes one makes them and the others read them."""
        if (split, training) not in self._features:
            with _alone(Path(str(self.settings.cache_dir))):
                self._features[split, training] = self.task.features(
                    self.raw[split], self.tokenizer, self.settings, training
                )
        return self._features[split, training]

    def check_training(self) -> None:
        """Raise InputError if there is nothing to learn from the training split; what is doubtful goes to `notes`."""
        with collect_notes() as notes:
            self.task.check_training(self.raw["train"])
        self.notes.warnings += notes.warnings

    def describe(self, splits: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """What the data of these splits turned into, as a record (`tasks.summarize`) and as lines to print."""
        if tuple(splits) not in self._described:
            features = {split: self.features(split, training=split == "train") for split in splits}
            summary = summarize(self.task, self.raw, features, self.tokenizer, self.notes)
            self._described[tuple(splits)] = summary, summary_lines(summary, self.settings.max_seq_length)
        return self._described[tuple(splits)]

    def examples(self, split: str, training: bool = False) -> "Examples":
        """The features of a split as arrays that batches are made of."""
        return Examples(self.task, self.features(split, training), self.tokenizer.pad_token_id)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a lock in `directory`, for there is no process group yet in which to wait for each other."""
    with writing(f"the feature cache {directory}", "name another by --cache_dir"):
        stack = ExitStack()
        stack.enter_context(lock(directory / ".lock", wait=True))
    with stack:
        yield


class Examples:
    """Features as flat arrays, of which `batch` makes padded tensors.

    lengths: (features,) tokens, of the longest choice where a feature has several; tokens: (features, choices).
    targets: the label columns, none for unlabelled features. per_token: the model has an output for every token.
    """

    def __init__(self, task: Task, features: datasets.Dataset, pad_token_id: int):
        table = features.with_format("arrow")[:]
        self.padding = {"input_ids": pad_token_id, "token_type_ids": 0, "labels": IGNORED_LABEL}
        self.per_token = task.head in _PER_TOKEN
        self.choices = 1
        self.numbers: dict[str, np.ndarray] = {}
        self.lists: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in (*task.inputs, *task.label_columns):
            if name not in table.column_names:
                continue
            column = table.column(name).combine_chunks()
            if not hasattr(column, "value_lengths"):
                self.numbers[name] = column.to_numpy(zero_copy_only=False)
                continue
            if hasattr(column.flatten(), "value_lengths"):
                self.choices = int(column.value_lengths()[0].as_py())
                column = column.flatten()
            ends = np.cumsum(column.value_lengths().to_numpy())
            self.lists[name] = (column.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], ends]))
        self.lengths = np.diff(self.lists["input_ids"][1]).reshape(-1, self.choices).max(axis=1)
        self.tokens = np.diff(self.lists["input_ids"][1]).reshape(-1, self.choices)
        self.targets = tuple(name for name in task.label_columns if name in {*self.numbers, *self.lists})

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, length: int | None = None) -> dict[str, torch.Tensor]:
        """The model's inputs for `rows`, padded to the longest of them or to `length`."""
        sequences = (rows[:, None] * self.choices + np.arange(self.choices)).ravel()
        width = int(self.lengths[rows].max()) if length is None else length
        shape = (len(rows), self.choices, width) if self.choices > 1 else (len(rows), width)
        batch = {name: torch.from_numpy(values[rows]) for name, values in self.numbers.items()}
        for name, (values, ends) in self.lists.items():
            filled = np.arange(width) < (ends[sequences + 1] - ends[sequences])[:, None]
            padded = np.full(filled.shape, self.padding[name], dtype=np.int64)
            padded[filled] = np.concatenate([values[ends[i] : ends[i + 1]] for i in sequences])
            batch[name] = torch.from_numpy(padded.reshape(shape))
            if name == "input_ids":
                batch["attention_mask"] = torch.from_numpy(filled.astype(np.int64).reshape(shape))
        return batch

    def count_targets(self, rows: np.ndarray) -> int:
        """Over how many targets the loss of `rows` is summed: labelled tokens, or else examples."""
        if "labels" not in self.lists:
            return len(rows)
        values, ends = self.lists["labels"]
        return int(sum((values[ends[i] : ends[i + 1]] != IGNORED_LABEL).sum() for i in rows))


def load_for_task(task: Task, name: str, raw: datasets.Dataset | None, seed: int = 0) -> tuple[nn.Module, list[str]]:
    """The checkpoint `name` with the task's head, and the names of the weights that are new, drawn from `seed`.

    raw: labelled data whose classes the head gets; None to take a fine-tuned checkpoint as it is.
    Raises InputError if the checkpoint cannot be opened or its encoder is not whole.
    """
    transformers.utils.logging.disable_progress_bar()
    overrides: dict[str, Any] = {} if raw is None else task.config_overrides(raw)
    if raw is not None and isinstance(task, SquadTask):
        overrides = {"num_labels": 2}  # stock's head has as many outputs as num_labels, left by another task
    torch.manual_seed(seed)
    model, new = open_model(getattr(transformers, task.head), name, overrides, new_head=raw is not None)
    if raw is None and new:
        raise InputError(
            f"--model {name} is not fine-tuned for {task.name}: it has no {new[0]}; run finetune.py first"
        )
    return model, new


def task_loss(outputs: Any, targets: Mapping[str, torch.Tensor], total: torch.Tensor | float) -> torch.Tensor:
    """The loss of a micro-batch as a share of the mean over `total` targets.

    Cross-entropy over classes, over the choices, over the tokens labelled; over all positions, padding too, for start
    and end of an answer (half each); squared error where the labels are real numbers.
    """
    if "start_positions" in targets:
        parts = [
            F.cross_entropy(outputs[f"{name}_logits"].float(), targets[f"{name}_positions"], reduction="sum")
            for name in ("start", "end")
        ]
        loss = (parts[0] + parts[1]) / 2
    else:
        logits, labels = outputs["logits"].float(), targets["labels"]
        if labels.is_floating_point():
            loss = F.mse_loss(logits.reshape(-1), labels.float(), reduction="sum")
        else:
            loss = F.cross_entropy(
                logits.reshape(-1, logits.shape[-1]),
                labels.reshape(-1),
                ignore_index=IGNORED_LABEL,
                reduction="sum",
            )
    return loss / (total.clamp(min=1) if isinstance(total, torch.Tensor) else total)


def call_model(model: nn.Module, batch: Mapping[str, Any], targets: tuple[str, ...]) -> Any:
    """The model's outputs for the inputs in `batch` that it takes."""
    unwrapped = getattr(model, "module", model)
    accepted = {*inspect.signature(unwrapped.forward).parameters, *PACKED_ARGUMENTS}
    segments = getattr(unwrapped.config, "type_vocab_size", 2) > 1
    return model(
        **{
            name: value
            for name, value in batch.items()
            if name not in targets and name in accepted and (segments or name != "token_type_ids")
        }
    )


# --------------------------------------------------------------------------------------------- prediction, evaluation


def run_model(
    accelerator: Accelerator, model: nn.Module, examples: Examples, batch_size: int
) -> tuple[dict[str, Any], float | None]:
    """The outputs for every feature, on every process, and the mean loss where there are labels.

    Outputs as `Task.predict` takes them: name → (features, classes) array, or one array per feature where there is
    an output for every token. Which sequences share a batch does not depend on the number of processes.
    """
    unwrapped = accelerator.unwrap_model(model)
    unwrapped.eval()
    # The longest first: if memory does not suffice, that is known at once.
    order = np.argsort(-examples.lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pieces = []
    with torch.no_grad(), accelerator.autocast():
        for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
            rows = batches[number]
            batch = {name: tensor.to(accelerator.device) for name, tensor in examples.batch(rows).items()}
            outputs = call_model(unwrapped, batch, examples.targets)
            targets = {name: batch[name] for name in examples.targets}
            loss = task_loss(outputs, targets, 1.0).item() if targets else 0.0
            names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
            arrays = {name: outputs[name].float().cpu().numpy() for name in names}
            pieces.append((number, arrays, loss, examples.count_targets(rows) if targets else 0))
    pieces = sorted(gather_object(pieces), key=lambda piece: piece[0])
    if [piece[0] for piece in pieces] != list(range(len(batches))):
        raise RuntimeError("the processes did not evaluate every batch exactly once")
    gathered: dict[str, list] = {name: [None] * len(examples) for name in pieces[0][1]}
    for number, arrays, _, _ in pieces:
        for name, array in arrays.items():
            for row, values in zip(batches[number], array, strict=True):
                gathered[name][row] = values[: examples.lengths[row]] if examples.per_token else values
    outputs = gathered if examples.per_token else {name: np.stack(rows) for name, rows in gathered.items()}
    count = sum(piece[3] for piece in pieces)
    return outputs, sum(piece[2] for piece in pieces) / count if count else None


def predict(accelerator: Accelerator, model: nn.Module, data: TaskData, split: str, batch_size: int = 64) -> Any:
    """The task's predictions for a split (`Task.predict`) and the mean loss; on the main process, None on others."""
    outputs, loss = run_model(accelerator, model, data.examples(split), batch_size)
    if not accelerator.is_main_process:
        return None, loss
    id2label = accelerator.unwrap_model(model).config.id2label
    return data.task.predict(data.raw[split], data.features(split), outputs, id2label), loss


def evaluate(
    accelerator: Accelerator, model: nn.Module, data: TaskData, split: str, batch_size: int = 64
) -> tuple[dict[str, float], Any]:
    """The scores of a labelled split, with `loss` where the features have targets, and `predict`'s predictions.

    The scores are the same on every process, and for every number of processes.
    """
    predictions, loss = predict(accelerator, model, data, split, batch_size)
    scores = [{}]
    if accelerator.is_main_process:
        scores = [quietly(data.task.score, data.raw[split], predictions)]
        scores[0] |= {} if loss is None else {"loss": loss}
    return broadcast_object_list(scores)[0], predictions


def quietly(score: Any, *arguments: Any) -> dict[str, float]:
    """A score without the warning that predictions are constant, which early in training they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: float(value) for name, value in score(*arguments).items() if value is not None}


def majority_baseline(task: Task, known: datasets.Dataset, raw: datasets.Dataset) -> dict[str, float]:
    """The scores on `raw` of always answering what is most frequent in `known`: a class, the mean, no entity, none."""
    predictions: Any
    if isinstance(task, SquadTask):
        predictions = Answers([""] * len(raw), np.ones(len(raw)), [], task.has_unanswerable(raw))
    elif isinstance(task, NerTask):
        predictions = [["O"] * len(words) for words in raw["tokens"][:]]
    elif isinstance(task, SequenceTask) and task.is_regression:
        predictions = [float(np.mean(known["label"][:]))] * len(raw)
    else:
        most = Counter(known["label"][:]).most_common(1)[0][0]
        predictions = [task.class_names(known)[most] if isinstance(task, SequenceTask) else most] * len(raw)
    return quietly(task.score, raw, predictions)


def write_task_file(directory: Path, data: TaskData, null_threshold: float | None) -> None:
    """Note in a model's directory which task it is for and how its inputs are made."""
    settings = dataclasses.asdict(data.settings)
    content = {
        name: settings[name] for name in ("max_seq_length", "doc_stride", "max_query_length", "document_context")
    }
    content = {"task": data.task.name} | content | {"null_threshold": null_threshold}
    (directory / TASK_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_task_file(directory: str) -> dict[str, Any]:
    """What `write_task_file` wrote; empty for a model that has no such file."""
    path = Path(directory) / TASK_FILE
    content = read_json(path, "--model") if path.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must hold a JSON object, not a {type(content).__name__}; remove it, and name the --task"
        )
    for name, kinds in _TASK_FIELDS.items():
        if content.get(name) is not None and not isinstance(content[name], kinds):
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(
                f"{path}: {name} is {content[name]!r}, but must be of type {allowed}; correct or remove it"
            )
    return content


def answer(
    model: nn.Module,
    tokenizer: Any,
    question: str,
    context: str,
    *,
    null_threshold: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Answer a question from a text with a model fine-tuned on SQuAD, whatever the text's length.

    null_threshold: of a model that may also say "" for no answer, as for SQuAD 2.0; None: it always answers. settings:
    fields of FeatureSettings. Returns `answer`, its `probability` among the best 20 and these, `n_best`.
    """
    task = get_task("squad_v2" if null_threshold is not None else "squad")
    options = FeatureSettings(**({"max_seq_length": min(384, model.config.max_position_embeddings)} | settings))
    columns = {"id": ["0"], "question": [question], "context": [context]}
    raw = datasets.Dataset.from_dict(columns)
    windows = squad_features(columns, [0], tokenizer=tokenizer, settings=options, training=False)
    features = datasets.Dataset.from_dict(windows)
    examples = Examples(task, features, tokenizer.pad_token_id)
    model.eval()
    outputs: dict[str, list] = {"start_logits": [], "end_logits": []}
    with torch.no_grad():
        for row in range(len(examples)):
            batch = {name: tensor.to(model.device) for name, tensor in examples.batch(np.array([row])).items()}
            logits = call_model(model, batch, examples.targets)
            for name, rows in outputs.items():
                rows.append(logits[name][0].float().cpu().numpy())
    answers = task.predict(raw, features, outputs)
    answers.threshold = null_threshold or 0.0
    text, n_best = answers.final()[0], answers.n_best[0]
    return {
        "answer": text,
        "probability": next((entry.probability for entry in n_best if entry.text == text), 0.0),
        "n_best": [entry._asdict() for entry in n_best],
    }

"""Run a model on a task: loss, predictions, scores.

The loss is computed here from the model's outputs, as a sum over targets, and divided by the number of targets of the
whole optimizer step. So any AutoModel checkpoint learns the same from a batch, however the batch is divided into
micro-batches and among processes.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from ..model.layout_hfbert import PACKED_ARGUMENTS
from ..model.loading import open_model
from ..tasks import FeatureSettings, Task, get_task
from ..tasks.squad import squad_features
from ..utils.errors import InputError
from .data import Examples, TaskData


def load_for_task(
    task: Task, name: str, raw: datasets.Dataset | None, seed: int = 0, bilstm: bool = False
) -> tuple[transformers.PreTrainedModel, list[str]]:
    """Open a checkpoint with the head of a task.

    Args:
        task: the task.
        name: directory, or name on the Hub.
        raw: labelled data whose classes a new head gets; None: take a fine-tuned checkpoint as it is.
        seed: seed of new weights.
        bilstm: add a bidirectional LSTM between encoder and head, if the checkpoint has none.

    Returns:
        The model, and the names of its new weights.

    Raises:
        InputError: if the checkpoint cannot be opened, its encoder is incomplete, or `raw` is None and the head new.
    """
    transformers.utils.logging.disable_progress_bar()
    overrides: dict[str, Any] = {} if raw is None else task.config_overrides(raw)
    if bilstm:
        overrides["bilstm"] = True
    torch.manual_seed(seed)
    model, new = open_model(getattr(transformers, task.head), name, overrides, new_head=raw is not None)
    if bilstm and getattr(model.base_model, "bilstm", None) is None:
        raise InputError(
            f"bilstm needs a checkpoint of this package, and {name} is a {type(model).__name__}; hfbert convert "
            "--to hfbert makes one of a stock bert"
        )
    if raw is None and new:
        raise InputError(
            f"--model {name} is not fine-tuned for {task.name}: it has no {new[0]}; run hfbert finetune first"
        )
    return model, new


def task_loss(
    task: Task,
    outputs: Any,
    targets: Mapping[str, torch.Tensor],
    total: torch.Tensor | float,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the contribution of a micro-batch to the mean loss over `total` targets.

    Args:
        task: the task, which sums the loss.
        outputs: outputs of the model.
        targets: label columns of the micro-batch.
        total: number of targets of the optimizer step.
        class_weights: (classes,) factors of the losses, for a task whose `loss_sum` takes them.

    Returns:
        A scalar; over all micro-batches of the step these add up to the mean.
    """
    weights = {} if class_weights is None else {"class_weights": class_weights}
    return task.loss_sum(outputs, targets, **weights) / (
        total.clamp(min=1) if isinstance(total, torch.Tensor) else total
    )


def call_model(model: nn.Module, batch: Mapping[str, Any], targets: tuple[str, ...]) -> Any:
    """Call the model with those inputs of a batch that it takes.

    Args:
        model: any AutoModel, wrapped or not.
        batch: inputs and targets by name.
        targets: names of the targets, which the model does not get.

    Returns:
        The outputs of the model.
    """
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


def run_model(
    accelerator: Accelerator, model: nn.Module, examples: Examples, batch_size: int
) -> tuple[dict[str, Any], float | None]:
    """Compute the outputs for every feature, on all processes together.

    The number of processes does not change which features share a batch.

    Args:
        accelerator: the processes and the precision.
        model: the model, wrapped or not.
        examples: the features.
        batch_size: features per forward pass.

    Returns:
        Name → (features, classes) array, or one array per feature where the model has an output for every token, the
        same on every process; and the mean loss, None without labels.
    """
    task, unwrapped = examples.task, accelerator.unwrap_model(model)
    unwrapped.eval()
    # The longest first: memory that does not suffice fails at once.
    order = np.argsort(-examples.lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pieces = []
    with torch.no_grad(), accelerator.autocast():
        for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
            rows = batches[number]
            batch = {name: tensor.to(accelerator.device) for name, tensor in examples.batch(rows).items()}
            outputs = call_model(unwrapped, batch, examples.targets)
            targets = {name: batch[name] for name in examples.targets}
            loss = task_loss(task, outputs, targets, 1.0).item() if targets else 0.0
            arrays = {name: outputs[name].float().cpu().numpy() for name in task.outputs}
            pieces.append((number, arrays, loss, examples.count_targets(rows) if targets else 0))
    pieces = sorted(gather_object(pieces), key=lambda piece: piece[0])
    if [piece[0] for piece in pieces] != list(range(len(batches))):
        raise RuntimeError("the processes did not evaluate every batch exactly once")
    gathered: dict[str, list] = {name: [None] * len(examples) for name in pieces[0][1]}
    for number, arrays, _, _ in pieces:
        for name, array in arrays.items():
            for row, values in zip(batches[number], array, strict=True):
                gathered[name][row] = values[: examples.lengths[row]] if task.per_token else values
    outputs = gathered if task.per_token else {name: np.stack(rows) for name, rows in gathered.items()}
    count = sum(piece[3] for piece in pieces)
    return outputs, sum(piece[2] for piece in pieces) / count if count else None


def predict(accelerator: Accelerator, model: nn.Module, data: TaskData, split: str, batch_size: int = 64) -> Any:
    """Predict a split.

    Args:
        accelerator: the processes and the precision.
        model: the model, wrapped or not.
        data: the task and its splits.
        split: name of the split.
        batch_size: features per forward pass.

    Returns:
        The task's predictions (`Task.predict`) on the main process, None on others; and the mean loss, None without
        labels.

    Raises:
        InputError: if the model does not fit the task.
    """
    outputs, loss = run_model(accelerator, model, data.examples(split), batch_size)
    if not accelerator.is_main_process:
        return None, loss
    id2label = accelerator.unwrap_model(model).config.id2label
    return data.task.predict(data.raw[split], data.features(split), outputs, id2label), loss


def evaluate(
    accelerator: Accelerator, model: nn.Module, data: TaskData, split: str, batch_size: int = 64
) -> tuple[dict[str, float], Any]:
    """Predict and score a labelled split.

    Args:
        accelerator: the processes and the precision.
        model: the model, wrapped or not.
        data: the task and its splits.
        split: name of the split.
        batch_size: features per forward pass.

    Returns:
        Metric → value, with `loss` where the features have targets, the same on every process and for every number of
        processes; and the predictions, as from `predict`.
    """
    predictions, loss = predict(accelerator, model, data, split, batch_size)
    scores: list[dict[str, float]] = [{}]
    if accelerator.is_main_process:
        scores = [without_warnings(data.task.score, data.raw[split], predictions)]
        scores[0] |= {} if loss is None else {"loss": loss}
    return broadcast_object_list(scores)[0], predictions


def without_warnings(score: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, float]:
    """Score without warnings: early in training predictions are constant, and scipy would say so every time.

    Args:
        score: returns metric → value.
        *arguments: passed on to it.

    Returns:
        Metric → value. Metrics whose value is None are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: float(value) for name, value in score(*arguments).items() if value is not None}


def majority_baseline(task: Task, known: datasets.Dataset, raw: datasets.Dataset) -> dict[str, float]:
    """Score the most frequent answer: a class, the mean, no entity, no answer.

    Args:
        task: the task.
        known: the split that shows the most frequent answer.
        raw: the labelled split to score.

    Returns:
        Metric → value.
    """
    return without_warnings(task.score, raw, task.majority_predictions(known, raw))


def answer(
    model: transformers.PreTrainedModel,
    tokenizer: Any,
    question: str,
    context: str,
    *,
    task: Task | None = None,
    null_threshold: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Answer a question from a text of any length.

    Args:
        model: a model fine-tuned on SQuAD or data in its shape.
        tokenizer: its tokenizer.
        question: the question.
        context: the text.
        task: the model's task; None: squad_v2 with a `null_threshold`, squad without.
        null_threshold: lead of the null score above which there is no answer (SQuAD 2.0); None: 0.
        **settings: fields of FeatureSettings.

    Returns:
        `answer`, its `probability` among the best 20, and these, `n_best`. The answer is "" for none.
    """
    task = task or get_task("squad" if null_threshold is None else "squad_v2")
    length = settings.setdefault("max_seq_length", min(384, model.config.max_position_embeddings))
    settings.setdefault("max_query_length", min(64, length // 2))
    options = FeatureSettings(**settings)
    options.check_room()
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
    answers = task.apply_tuned(task.predict(raw, features, outputs), {"null_threshold": null_threshold})
    text, n_best = answers.final()[0], answers.n_best[0]
    return {
        "answer": text,
        "probability": next((entry.probability for entry in n_best if entry.text == text), 0.0),
        "n_best": [entry._asdict() for entry in n_best],
    }

"""Tiny models and batches, stock twins with the same weights, and processes in which our package does not exist."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hfbert_scratch
from hfbert_scratch import HFBertConfig
from hfbert_scratch.model.layout_hfbert import pack
from hfbert_scratch.utils.isolation import run_offline, run_without_package


TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
# The code that is copied beside every checkpoint.
TRAVELLING = {f"{name}_hfbert.py" for name in ("configuration", "checks", "layout", "kernels", "modeling")}
# Dropout draws are not comparable between implementations; everything else of train mode is.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NUM_LABELS = 3

# name → (our class, stock's class, configuration beside TINY)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "base": ("HFBertModel", "BertModel", {}),
    "pretraining": ("HFBertForPreTraining", "BertForPreTraining", {}),
    "masked_lm": ("HFBertForMaskedLM", "BertForMaskedLM", {}),
    "next_sentence": ("HFBertForNextSentencePrediction", "BertForNextSentencePrediction", {}),
    "single_label": ("HFBertForSequenceClassification", "BertForSequenceClassification", {"num_labels": NUM_LABELS}),
    "multi_label": (
        "HFBertForSequenceClassification",
        "BertForSequenceClassification",
        {"num_labels": NUM_LABELS, "problem_type": "multi_label_classification"},
    ),
    "regression": ("HFBertForSequenceClassification", "BertForSequenceClassification", {"num_labels": 1}),
    "token": ("HFBertForTokenClassification", "BertForTokenClassification", {"num_labels": NUM_LABELS}),
    "multiple_choice": ("HFBertForMultipleChoice", "BertForMultipleChoice", {}),
    "question_answering": ("HFBertForQuestionAnswering", "BertForQuestionAnswering", {}),
}


PREDICTING = ("pretraining", "masked_lm")
PACKABLE = [case for case in CASES if case not in ("multiple_choice", "question_answering")]
# Heads that divide their loss by num_items_in_batch themselves, as transformers' Trainer asks of them.
NORMALIZING = [case for case, (name, _, _) in CASES.items() if getattr(hfbert_scratch, name).accepts_loss_kwargs]


def tiny_config(**overrides: Any) -> HFBertConfig:
    """A configuration small enough for a test of milliseconds."""
    return HFBertConfig(**(TINY | overrides))


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Add noise to every parameter, so that no bias is 0 and no LayerNorm weight 1 (an ignored one would not show)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def make(case: str, **overrides: Any) -> transformers.PreTrainedModel:
    """Our model of `case` with random weights, in eval mode."""
    torch.manual_seed(0)
    name, _, fields = CASES[case]
    return randomize(getattr(hfbert_scratch, name)(tiny_config(**(fields | overrides)))).eval()


def pair(case: str, **overrides: Any) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """Our model and stock's with the same weights, in eval mode."""
    ours = make(case, **overrides)
    stock_overrides = dict(overrides)
    stock_overrides.pop("sparse_prediction", None)
    if stock_overrides.pop("left_to_right", False):
        stock_overrides |= {"is_decoder": True, "use_cache": False}
    _, name, fields = CASES[case]
    stock = getattr(transformers, name)(transformers.BertConfig(**(TINY | fields | stock_overrides)))
    result = stock.load_state_dict(ours.state_dict(), strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"cls.predictions.decoder.bias"}
    stock.tie_weights()
    return ours, stock.eval()


def save_wrapped(model: transformers.PreTrainedModel, directory: Path, prefix: str = "module.") -> None:
    """Save a checkpoint whose weights have the names a wrapper of the model gives them."""
    rename_weights(model, directory, lambda weights: {prefix + name: value for name, value in weights.items()})


def rename_weights(model: transformers.PreTrainedModel, directory: Path, rename: Callable[[dict], dict]) -> None:
    """Save a checkpoint whose weights `rename` has changed."""
    model.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    save_file(rename(weights), directory / "model.safetensors", {"format": "pt"})


def batch(case: str = "base", size: int = 3, length: int = 12, seed: int = 0, labels: bool = True) -> dict[str, Any]:
    """A padded batch with two segments for `case`; the first sequence is full, the last ends in padding."""
    generator = torch.Generator().manual_seed(seed)

    def random(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    shape = (size, 4, length) if case == "multiple_choice" else (size, length)
    ids = random(TINY["vocab_size"], *shape, low=5)
    mask = torch.ones_like(ids)
    for row in range(1, size):
        mask[row, ..., length - row % (length - 1) :] = 0
    segments = (torch.arange(length) >= length // 2).long().expand(shape).clone()
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": segments * mask}
    if not labels or case == "base":
        return inputs
    if case in PREDICTING:
        chosen = (torch.rand(shape, generator=generator) < 0.3) & (mask == 1)
        chosen[:, 1] = True
        inputs["labels"] = ids.masked_fill(~chosen, -100)
    elif case == "token":
        inputs["labels"] = random(NUM_LABELS, *shape).masked_fill(mask == 0, -100)
    elif case == "multi_label":
        inputs["labels"] = random(2, size, NUM_LABELS).float()
    elif case == "regression":
        inputs["labels"] = torch.randn(size, generator=generator)
    elif case == "question_answering":
        # The last answer lies beyond the sequence: it was truncated away, and does not count.
        inputs["start_positions"] = random(length, size)
        inputs["end_positions"] = random(length, size)
        inputs["start_positions"][-1] = inputs["end_positions"][-1] = length + 5
    else:
        classes = {"next_sentence": 2, "single_label": NUM_LABELS, "multiple_choice": 4}[case]
        inputs["labels"] = random(classes, size)
    if case == "pretraining":
        inputs["next_sentence_label"] = random(2, size)
    return inputs


def static_positions(labels: torch.Tensor, width: int) -> torch.Tensor:
    """Where `labels` are, padded with position 0, which has none."""
    positions = torch.zeros(labels.shape[0], width, dtype=torch.long)
    for row, row_labels in enumerate(labels):
        found = (row_labels != -100).nonzero().squeeze(1)
        positions[row, : len(found)] = found
    return positions


def prediction_batch(case, **options):
    inputs = batch(case, **options)
    inputs["labels"][:, 0] = -100
    return inputs


def packed_batch(case: str, inputs: dict[str, Any], multiple_of: int = 1) -> dict[str, Any]:
    """A batch of `case` as one packed row; labels of floating point allow no padding at its end."""
    if case in PREDICTING or case in ("base", "token"):
        return pack(inputs, 0, multiple_of)
    return pack(inputs, 0, 1 if inputs["labels"].is_floating_point() else multiple_of, per_row=["labels"])


def tensors(outputs) -> dict[str, torch.Tensor]:
    """The tensors of a model's output by name; the parts of tuples by number."""
    flat = {}
    for name, value in outputs.items():
        if isinstance(value, tuple):
            flat |= {f"{name}.{i}": part for i, part in enumerate(value)}
        elif value is not None:
            flat[name] = value
    return flat


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every parameter by name; zeros for those the loss does not reach."""
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    """The same names, and no two tensors further apart than `tolerance`; names the ones that are."""
    assert left.keys() == right.keys()
    far = {}
    for name, tensor in left.items():
        assert tensor.shape == right[name].shape, name
        difference = (tensor - right[name]).abs().max().item() if tensor.numel() else 0.0
        if not difference <= tolerance:
            far[name] = difference
    assert not far, far


def fresh_process(
    code: str, tmp_path: Path, *, without_package: bool = True, timeout: int = 180
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new Python, offline and with an empty cache; fail with its output unless it returns 0.

    `without_package`: `import hfbert_scratch` fails there, as on the machine of someone who only has a checkpoint.
    """
    run = run_without_package if without_package else run_offline
    result = run(code, directory=tmp_path, environment={"OMP_NUM_THREADS": "1"}, timeout=timeout)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result


@contextmanager
def disk(directory: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of that size, mounted at `directory`; where none can be mounted, the test is skipped."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", directory]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)

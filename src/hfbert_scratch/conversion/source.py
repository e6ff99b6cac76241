"""The input of an export: a stock directory, our model with the same weights, and batches to compare readers on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .stock import random_batch


POOLINGS = ("mean", "cls")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Outputs of the ONNX graph by head, named as transformers.js and optimum look for them.
_OUTPUTS = {
    "BertModel": ("last_hidden_state", "pooler_output"),
    "BertForPreTraining": ("logits", "seq_relationship_logits"),
    "BertForQuestionAnswering": ("start_logits", "end_logits"),
}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportSource:
    """A checkpoint to be exported.

    Attributes:
        stock: its conversion to stock `bert`, a directory.
        architecture: stock's class name.
        model: our model with the same weights, in float32 and eval mode.
        pooling: how token vectors become a sentence vector, one of POOLINGS.
        name: the checkpoint's name for people.
        quantize: write weights of matrices and embeddings as 8-bit integers.
        web_library: the node_modules directory of the library that a web page carries with it; None for a link.
        task: task.json of a fine-tuned model, empty for others.
        notes: sentences for the user, to which a format may add.
    """

    stock: Path
    architecture: str
    model: transformers.PreTrainedModel
    pooling: str = "mean"
    name: str = ""
    quantize: bool = False
    web_library: Path | None = None
    task: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """Return two padded batches of different size and length."""
        first = random_batch(self.model.config, self.architecture)
        return [first, {name: tensor[1:, ..., : max(1, tensor.shape[-1] - 5)] for name, tensor in first.items()}]

    @torch.no_grad()
    def outputs(self, batch: dict[str, torch.Tensor]) -> Arrays:
        """Run our own forward pass; return its outputs by `output_names`."""
        tensors = self.model(**batch).to_tuple()
        return dict(zip(self.output_names, (tensor.numpy() for tensor in tensors), strict=True))

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in the model's order and as in the ONNX graph."""
        if self.architecture == "BertModel" and self.model.pooler is None:
            return ("last_hidden_state",)
        return _OUTPUTS.get(self.architecture, ("logits",))

    def largest_difference(self, run: Callable[[Arrays], Arrays]) -> float:
        """Compare `run` with our own forward pass on both batches, leaving padding out."""
        differences = []
        for batch in self.batches():
            outputs = run({name: tensor.numpy() for name, tensor in batch.items()})
            mask = batch["attention_mask"].bool()
            for name, ours in self.outputs(batch).items():
                theirs = outputs[name]
                if theirs.shape != ours.shape:
                    raise RuntimeError(f"{name} has shape {theirs.shape}; our own forward pass gives {ours.shape}")
                if ours.shape[: mask.ndim] == mask.shape:
                    theirs, ours = theirs[mask], ours[mask]
                differences.append(max_difference(theirs, ours))
        return max(differences)


def max_difference(left: np.ndarray, right: np.ndarray) -> float:
    """Return the largest absolute difference, in float64."""
    return float(np.abs(left.astype(np.float64) - right).max())

"""Pretrain on top of the training loop: options, model, batches, and evaluation against a unigram baseline."""

from .arguments import Phase, PretrainingArguments
from .batches import PretrainingBatches, full_length_inputs, held_out_batches, packed_multiple, stretches_of
from .evaluation import PretrainingEvaluation
from .model import MODEL_OPTIONS, build_model, loss_without_logits, take_from_checkpoint, weigh_next_sentence
from .words import steps_of_words


__all__ = [
    "MODEL_OPTIONS",
    "Phase",
    "PretrainingArguments",
    "PretrainingBatches",
    "PretrainingEvaluation",
    "build_model",
    "full_length_inputs",
    "held_out_batches",
    "loss_without_logits",
    "packed_multiple",
    "steps_of_words",
    "stretches_of",
    "take_from_checkpoint",
    "weigh_next_sentence",
]

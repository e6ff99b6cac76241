"""Pretrain on top of the training loop: options, model, batches, evaluation against a unigram baseline, the run."""

from .arguments import Phase, PretrainingArguments
from .batches import PretrainingBatches, full_length_inputs, held_out_batches, packed_multiple, stretches_of
from .evaluation import PretrainingEvaluation
from .model import build_model, loss_without_logits, weigh_next_sentence
from .run import estimate_pretraining, pretrain
from .words import steps_of_words


__all__ = [
    "Phase",
    "PretrainingArguments",
    "PretrainingBatches",
    "PretrainingEvaluation",
    "build_model",
    "estimate_pretraining",
    "full_length_inputs",
    "held_out_batches",
    "loss_without_logits",
    "packed_multiple",
    "pretrain",
    "steps_of_words",
    "stretches_of",
    "weigh_next_sentence",
]

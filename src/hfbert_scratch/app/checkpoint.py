"""A checkpoint opened to be tried: the model with the head it was saved with, and its tokenizer."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers

from ..evaluation import read_task_file
from ..model.configuration_hfbert import HEADS
from ..model.loading import check_directory, check_fits, drop_random_pooler, open_model, refusal, short_name
from ..model.modeling_hfbert import HFBertForMaskedLM
from ..scoring import open_language_model
from ..text.tokenizer import load_tokenizer
from ..utils.errors import InputError
from ..utils.files import split_revision


# Stock's class name → Auto class. A checkpoint names its head by ours or by stock's class.
_AUTO_CLASSES = {head.removeprefix("HF"): auto_class for auto_class, head in HEADS.items()}
_MASKED_LM = ("BertForPreTraining", "BertForMaskedLM")
_NEXT_SENTENCE = ("BertForPreTraining", "BertForNextSentencePrediction")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        name: the directory, or the name on the Hub.
        head: stock's name of the class that it was saved as.
        model: the model in eval mode and float32, on the CPU, with an attention that returns its weights.
        tokenizer: its tokenizer.
        task: task.json of a fine-tuned model, empty for others.
    """

    name: str
    head: str
    model: transformers.PreTrainedModel
    tokenizer: Any
    task: dict[str, Any]

    @property
    def title(self) -> str:
        """The name for people."""
        return short_name(self.name)

    @property
    def max_tokens(self) -> int:
        """The most tokens of an input, special ones included."""
        return min(self.model.config.max_position_embeddings, self.tokenizer.model_max_length)

    @cached_property
    def scorer(self) -> HFBertForMaskedLM:
        """The checkpoint opened for scoring, when that is first asked for."""
        return open_language_model(self.name)

    @property
    def abilities(self) -> list[str]:
        """List the functions in `answers` that the model supports, its own head's first."""
        left_to_right = getattr(self.model.config, "left_to_right", False)
        conditions = {
            "fill_mask": self.head in _MASKED_LM and not left_to_right,
            "next_sentence": self.head in _NEXT_SENTENCE,
            "classify": self.head == "BertForSequenceClassification",
            "tag_words": self.head == "BertForTokenClassification",
            "answer_question": self.head == "BertForQuestionAnswering",
            "pseudo_likelihood": self.head in _MASKED_LM and not left_to_right,
            "similarity": True,
            "attention": True,
        }
        return [name for name, holds in conditions.items() if holds]


def open_checkpoint(name: str | Path) -> Checkpoint:
    """Open a checkpoint with the head it was saved with. No code of the checkpoint runs.

    Args:
        name: the directory of one of our checkpoints or of a stock `bert` one, or its name on the Hub.

    Returns:
        The checkpoint, ready to be asked.

    Raises:
        InputError: if it cannot be opened, has another architecture than BERT's, or lacks weights of its head or a
            tokenizer.
    """
    check_directory(name)
    head = _saved_head(str(name))
    model, missing = open_model(getattr(transformers, _AUTO_CLASSES[head]), name)
    if head == "BertModel":
        missing = drop_random_pooler(model, missing)
    if missing:
        raise InputError(f"{name} has no weights for {', '.join(missing[:3])} of {head}; train that head first")
    tokenizer = load_tokenizer(name)
    check_fits(model, tokenizer, min(tokenizer.model_max_length, model.config.max_position_embeddings))
    model.set_attn_implementation("eager")  # the others do not return attention weights
    return Checkpoint(str(name), head, model.eval(), tokenizer, read_task_file(str(name)))


def _saved_head(name: str) -> str:
    source, revision = split_revision(name)
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(refusal(name, error)) from None
    architectures = config.architectures or ["no architecture"]
    head = architectures[0].removeprefix("HF")
    if head not in _AUTO_CLASSES:
        raise InputError(
            f"{name} holds {architectures[0]}, and the page shows BERT's heads only: {', '.join(_AUTO_CLASSES)}"
        )
    return head

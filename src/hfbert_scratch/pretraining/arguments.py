"""The options of a pretraining run, and its stretches of one sequence length."""

import math
from dataclasses import dataclass
from typing import Any

from ..corpus.arguments import PretrainingDataArguments
from ..training.arguments import AUTO, TrainingArguments, check_divides, largest_micro_batch
from ..training.estimate import EstimateArguments
from ..utils.arguments import argument
from ..utils.errors import InputError


# Options of a model and its values from scratch. With --model, an option that is not given is the checkpoint's.
FROM_SCRATCH: dict[str, Any] = {
    "size": "base",
    "dropout": 0.1,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "left_to_right": False,
}


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one sequence length.

    Args:
        max_seq_length: tokens of an instance, special ones included.
        batch_size: instances per optimizer step, over all processes.
        micro_batch_size: instances per forward pass; divides `batch_size`.
        last_step: optimizer steps of the run when the phase ends.
    """

    max_seq_length: int
    batch_size: int
    micro_batch_size: int
    last_step: int

    def __post_init__(self) -> None:
        check_divides(self.batch_size, self.micro_batch_size)


@dataclass(kw_only=True)
class PretrainingArguments(TrainingArguments, PretrainingDataArguments, EstimateArguments):
    """The command line."""

    corpus: list[str] = argument(
        help="directory written by hfbert corpus; several, each as DIRECTORY:WEIGHT, give every batch their shares"
    )
    mixture_temperature: float = argument(
        1.0, help="of several corpora without weights: their weights are tokens^(1/temperature)", above=0
    )
    tokenizer: str = argument(help="directory written by hfbert tokenizer; must be the corpus's")
    model: str | None = argument(
        None,
        help="checkpoint to start from, ours or stock bert: a directory, NAME or NAME@REVISION on the Hub; default: "
        "from scratch",
        group="model",
    )
    size: str | None = argument(
        None,
        help="tiny, mini, small, medium, base, large; the next four change single numbers; default: the checkpoint's, "
        "else base",
        group="model",
    )
    architecture: str = argument(
        "bert",
        help="bert, or lstm_pair: two LSTM language models, one for each direction, of hidden_size units and 2 layers "
        "by default, as ELMo's; implies left_to_right's data",
        group="model",
        choices=("bert", "lstm_pair"),
    )
    num_hidden_layers: int | None = argument(None, help="default: the size's", group="model")
    hidden_size: int | None = argument(None, help="default: the size's", group="model")
    num_attention_heads: int | None = argument(None, help="default: the size's", group="model")
    intermediate_size: int | None = argument(None, help="default: the size's", group="model")
    dropout: float | None = argument(
        None,
        help="of hidden states and attention probabilities; default: the checkpoint's, else 0.1",
        group="model",
        at_least=0,
        below=1,
    )
    initializer_range: float | None = argument(
        None, help="standard deviation of the initial weights; default: the checkpoint's, else 0.02", group="model"
    )
    sinusoidal_positions: bool = argument(
        False,
        help="start the learned position embeddings from the Transformer's sinusoids: small runs learn sooner",
        group="model",
    )
    max_position_embeddings: int | None = argument(
        None, help="longest sequence the model can ever take; default: the checkpoint's, else 512", group="model"
    )
    left_to_right: bool = argument(  # None until the checkpoint of --model is open
        None,
        help="causal attention and next-token labels (section 5.1); implies no_nsp; default: the checkpoint's, else "
        "false",
        group="segment pairs",
    )
    max_seq_length: int = argument(
        128, help="tokens in a sequence, special ones included", group="sequences and pairs", at_least=5
    )
    long_max_seq_length: int = argument(
        0,
        help="length in the last part of the run (paper: 512); 0: no such part",
        group="sequences and pairs",
        at_least=0,
    )
    long_share: float = argument(
        0.1, help="share of the steps in that part (paper: 0.1)", group="sequences and pairs", above=0, below=1
    )
    long_micro_batch_size: int = argument(
        0,
        help="its sequences per forward pass; 0: as many tokens as before, or a little fewer",
        group="sequences and pairs",
        at_least=0,
    )
    next_sentence_weight: float = argument(
        1.0,
        help="factor of NSP's loss; 0: the same segment pairs, masked LM alone learns",
        group="segment pairs",
        at_least=0,
        below=math.inf,
    )
    checkpoint_words: str = argument(
        "",
        help="word counts, as 1M,2M,10M: keep the model after so many words as revisions/chck_1M and so on, which "
        "hfbert publish can push as revisions",
        group="log, checkpoints, end",
        semantic=False,
    )
    eval_rows: int = argument(4096, help="held-out sequences per evaluation, always the same", at_least=1)
    eval_batch_size: int = argument(64, help="sequences per forward pass in evaluation", at_least=1, semantic=False)
    also_evaluate: str | None = argument(
        None,
        help="another corpus of the same tokenizer, such as one of general text: its held-out loss is measured before "
        "step 1 and with every evaluation, with a warning when it rises",
        semantic=False,
    )

    def __post_init__(self) -> None:
        if self.architecture == "lstm_pair":
            self._prepare_for_lstms()
        if not self.model:
            for name, value in FROM_SCRATCH.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        super().__post_init__()
        self.check_next_sentence()
        self.check_price()
        if self.schedule == "time" and self.long_max_seq_length:
            raise InputError(
                "schedule time has no last part of long sequences, whose first step is a share of max_steps; give "
                "long_max_seq_length 0, and continue with --model at the longer length"
            )
        longest = max(self.max_seq_length, self.long_max_seq_length)
        if not self.model and longest > int(self.max_position_embeddings or 0):
            raise InputError(
                f"max_seq_length {longest} exceeds max_position_embeddings {self.max_position_embeddings}; "
                "shorten the one or raise the other"
            )

    def check_next_sentence(self) -> None:
        """Leave out next-sentence prediction left to right; raise InputError for a weight of what is left out."""
        PretrainingDataArguments.__post_init__(self)
        if self.no_nsp and self.next_sentence_weight != 1:
            raise InputError(
                f"next_sentence_weight {self.next_sentence_weight:g} has no meaning without next-sentence prediction; "
                "leave it out, or no_nsp and left_to_right"
            )

    def _prepare_for_lstms(self) -> None:
        """Take the data of left-to-right training, and no way of training that is for attention."""
        for name in ("packing", "compile", "cuda_graphs"):
            if str(getattr(self, name)).lower() not in ("auto", "false"):
                raise InputError(f"{name} {getattr(self, name)} is not for architecture lstm_pair; leave it out")
            setattr(self, name, "false")
        if self.model:
            raise InputError("architecture lstm_pair starts from scratch; leave out model")
        self.left_to_right, self.attention = True, "eager"

    def phases(self) -> list[Phase]:
        """Return the phases of the run: one, or two with the long sequences last."""
        if not self.long_max_seq_length:
            return [Phase(self.max_seq_length, self.batch_size, self.micro_batch_size, self.max_steps)]
        border = self.max_steps - round(self.long_share * self.max_steps)
        long_micro = self.long_micro_batch_size
        if not long_micro and self.micro_batch_size == AUTO:
            long_micro = AUTO
        elif not long_micro:
            tokens = self.micro_batch_size * self.max_seq_length
            long_micro = largest_micro_batch(self.batch_size, tokens // self.long_max_seq_length)
        return [
            Phase(self.max_seq_length, self.batch_size, self.micro_batch_size, border),
            Phase(self.long_max_seq_length, self.batch_size, long_micro, self.max_steps),
        ]

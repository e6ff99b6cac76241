"""The options of a pretraining run, and its stretches of one sequence length."""

import math
from dataclasses import dataclass

from ..corpus.arguments import PretrainingDataArguments
from ..training.arguments import AUTO, TrainingArguments, check_divides
from ..training.estimate import EstimateArguments
from ..utils.arguments import argument
from ..utils.errors import InputError


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
    size: str = argument(
        "base", help="tiny, mini, small, medium, base, large; the next four change single numbers", group="model"
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
    dropout: float = argument(
        0.1, help="of hidden states and attention probabilities", group="model", at_least=0, below=1
    )
    initializer_range: float = argument(0.02, help="standard deviation of the initial weights", group="model")
    sinusoidal_positions: bool = argument(
        False,
        help="start the learned position embeddings from the Transformer's sinusoids: small runs learn sooner",
        group="model",
    )
    max_position_embeddings: int = argument(512, help="longest sequence the model can ever take", group="model")
    max_seq_length: int = argument(
        128, help="tokens in a sequence, special ones included", group="sequences and pairs", at_least=5
    )
    long_max_seq_length: int = argument(
        0, help="length in the last part of the run (paper: 512); 0: no such part", group="sequences and pairs"
    )
    long_share: float = argument(
        0.1, help="share of the steps in that part (paper: 0.1)", group="sequences and pairs", above=0, below=1
    )
    long_micro_batch_size: int = argument(
        0, help="its sequences per forward pass; 0: as many tokens as before", group="sequences and pairs"
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
    also_evaluate: str | None = argument(
        None,
        help="another corpus of the same tokenizer, such as one of general text: its held-out loss is measured before "
        "step 1 and with every evaluation, with a warning when it rises",
        semantic=False,
    )

    def __post_init__(self) -> None:
        if self.architecture == "lstm_pair":
            self._prepare_for_lstms()
        super().__post_init__()
        PretrainingDataArguments.__post_init__(self)
        if self.no_nsp and self.next_sentence_weight != 1:
            raise InputError(
                f"next_sentence_weight {self.next_sentence_weight:g} has no meaning without next-sentence prediction; "
                "leave it out, or no_nsp and left_to_right"
            )
        self.check_price()
        longest = max(self.max_seq_length, self.long_max_seq_length)
        if longest > self.max_position_embeddings:
            raise InputError(
                f"max_seq_length {longest} exceeds max_position_embeddings {self.max_position_embeddings}; "
                "shorten the one or raise the other"
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
        """One stretch of the run, or two with the long sequences last."""
        if not self.long_max_seq_length:
            return [Phase(self.max_seq_length, self.batch_size, self.micro_batch_size, self.max_steps)]
        border = self.max_steps - round(self.long_share * self.max_steps)
        long_micro = self.long_micro_batch_size
        if not long_micro and self.micro_batch_size == AUTO:
            long_micro = AUTO
        elif not long_micro:
            long_micro = max(1, self.micro_batch_size * self.max_seq_length // self.long_max_seq_length)
        return [
            Phase(self.max_seq_length, self.batch_size, self.micro_batch_size, border),
            Phase(self.long_max_seq_length, self.batch_size, long_micro, self.max_steps),
        ]

"""Options of fine-tuning, with the defaults of the task."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..tasks import DataArguments, FeatureSettings, Task
from ..training.arguments import TrainingArguments, largest_micro_batch
from ..training.estimate import EstimateArguments
from ..utils.arguments import argument
from ..utils.errors import InputError


# google-research/bert, run_classifier.py: warmup_proportion.
WARMUP_SHARE = 0.1

_FROM_TASK = "default: the task's"


@dataclass(kw_only=True)
class FinetuningArguments(TrainingArguments, DataArguments, EstimateArguments):
    """Arguments of a fine-tuning run; those that depend on the task or the data are None until `resolved`."""

    task: str = argument(
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, squad_v2, swag, conll2003, custom-…"
    )
    model: str = argument(help="checkpoint to start from: a directory or a name on the Hub, ours or another BERT")
    epochs: float | None = argument(None, help=f"passes over the training data; {_FROM_TASK}", above=0)
    max_steps: int | None = argument(None, help="optimizer steps; default: as many as the epochs have")  # type: ignore
    batch_size: int | None = argument(None, help=f"examples per optimizer step, over all processes; {_FROM_TASK}")  # type: ignore
    micro_batch_size: int | None = argument(  # type: ignore
        None,
        help="examples per forward pass, which must divide batch_size; or auto: the most that fit into memory; "
        "default: a process's share, at most 32",
    )
    learning_rate: float | None = argument(None, help=f"peak learning rate; {_FROM_TASK}")  # type: ignore
    warmup_steps: int | None = argument(None, help="steps of linear warm-up, then linear decay to 0; default: 10 %%")
    max_seq_length: int | None = argument(None, help=f"tokens in a sequence, special ones included; {_FROM_TASK}")
    doc_stride: int = argument(128, help="SQuAD: tokens between the starts of a long context's windows")
    max_query_length: int = argument(64, help="SQuAD: tokens of a question, the rest is cut off")
    document_context: bool = argument(False, help="NER: fill up every sentence with its document")
    class_weights: str | None = argument(
        None,
        help="factors of the classes' losses: auto, so that every class counts as much as the others; or a YAML or "
        "JSON file with a number for every class",
    )
    metric_for_best: str | None = argument(
        None,
        help="the reported metric by which the best step is kept; of loss the lowest; default: the task's main metric",
    )
    early_stopping: int = argument(
        0, help="end the run after so many evaluations in a row without a better one; 0: never", at_least=0
    )
    bilstm: bool = argument(
        False, help="a new bidirectional LSTM between encoder and head, as in the paper's left-to-right ablation"
    )
    compile: str = argument(
        "auto",
        help="torch.compile: layers (each layer on its own), true (the whole model) or false; auto is false, as most "
        "fine-tunings end before compiling pays off",
    )
    cuda_graphs: str = argument(
        "auto",
        help="not for fine-tuning, whose batches have too many shapes to capture: auto is false",
        choices=("auto", "false"),
    )
    group_by_length: bool = argument(True, help="put sequences of similar length together: less padding")
    eval_batch_size: int = argument(64, help="sequences per forward pass in evaluation", at_least=1, semantic=False)
    eval_every: int | None = argument(  # type: ignore
        None, help="steps between evaluations; default, and for 0: an epoch's", at_least=0
    )
    save_every: int | None = argument(  # type: ignore
        None, help="steps between checkpoints; default, and for 0: eval_every", at_least=0
    )
    keep_checkpoints: int = argument(1, help="how many of the newest to keep beside the best; 0: write none")
    log_every: int = argument(20, help="steps between log lines")
    num_proc: int = argument(1, help="processes for tokenization", semantic=False)
    cache_dir: str | None = argument(
        None, help="directory for cached features; default: in the cache of datasets", semantic=False
    )

    def __post_init__(self) -> None:
        self._spell_switches()
        self.check_price()
        # Batches have too many shapes to record graphs of, and most runs end before compiling pays off.
        self._require("cuda_graphs", self.cuda_graphs in ("auto", "false"), "false for fine-tuning")
        self.cuda_graphs = "false"
        if self.compile == "auto":
            self.compile = "false"
        decided = ("max_steps", "batch_size", "micro_batch_size", "learning_rate", "eval_every", "save_every")
        if any(getattr(self, name) is None for name in decided):
            return
        super().__post_init__()
        if self.keep_checkpoints and self.eval_every % self.save_every:  # type: ignore[operator]
            raise InputError(
                f"eval_every {self.eval_every} is not a multiple of save_every {self.save_every}; it must be, so that "
                "there is a checkpoint of the best evaluation"
            )

    def resolved(self, task: Task, rows: int) -> "FinetuningArguments":
        """Fill in the values that depend on the task and the data.

        Args:
            task: the task.
            rows: number of training features.

        Returns:
            Complete arguments.

        Raises:
            InputError: if values do not fit each other.
        """
        defaults = task.defaults
        batch_size = defaults.batch_sizes[0] if self.batch_size is None else self.batch_size
        self._require("batch_size", batch_size >= 1, "at least 1")
        epochs = defaults.epochs[0] if self.epochs is None else self.epochs
        # Batches cross the ends of epochs, as in the original code; an incomplete last batch is dropped.
        max_steps = max(1, int(rows * epochs / batch_size)) if self.max_steps is None else self.max_steps
        learning_rate = defaults.learning_rates[0] if self.learning_rate is None else self.learning_rate
        micro_batch_size = self.micro_batch_size
        if micro_batch_size is None:
            micro_batch_size = largest_micro_batch(batch_size, at_most=32)
        eval_every = self.eval_every or -(-rows // batch_size)
        return dataclasses.replace(
            self,
            epochs=epochs if self.max_steps is None else round(max_steps * batch_size / rows, 4),
            max_steps=max_steps,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            learning_rate=learning_rate,
            warmup_steps=int(WARMUP_SHARE * max_steps) if self.warmup_steps is None else self.warmup_steps,
            max_seq_length=self.feature_settings(task).max_seq_length,
            eval_every=eval_every,
            save_every=self.save_every or eval_every,
        )

    def of_one_run(self, changes: dict[str, Any]) -> "FinetuningArguments":
        """Return the arguments of one of several runs, without the options that a recipe has beside these."""
        names = {field.name for field in dataclasses.fields(FinetuningArguments)}
        return FinetuningArguments(**({name: getattr(self, name) for name in names} | changes))

    def feature_settings(self, task: Task) -> FeatureSettings:
        """Return the settings of the features, with the task's defaults."""
        return FeatureSettings(
            max_seq_length=task.defaults.max_seq_length if self.max_seq_length is None else self.max_seq_length,
            doc_stride=self.doc_stride,
            max_query_length=self.max_query_length,
            document_context=self.document_context,
            num_proc=self.num_proc,
            cache_dir=self.cache_dir,
            in_memory=self.estimate,
        )

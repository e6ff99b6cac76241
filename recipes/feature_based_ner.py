# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""NER from a frozen BERT (paper, section 5.3, table 7): a BiLSTM over its layers, six combinations of them.

    hfbert ner-features --model runs/pretrain/model --data_dir data/conll2003 \\
        --seeds 0 1 2 3 4 --output_dir runs/feature_based

Writes one run per combination and seed into output_dir (model/, predictions/, results.json, log.jsonl), and a table
beside the paper's figures, results.json. The encoder encodes every sentence once; its layers are kept in cache_dir,
which takes 2·(layers + 1)·hidden_size bytes a word (BERT-BASE, CoNLL-2003: 6 GB) and can be deleted afterwards. Killed
at any moment, the same command continues.

Supports: CoNLL-2003 and any tagged words in its shape (--task custom-ner); any encoder that AutoModel opens; several
processes (--num_processes N).
Does not support: fine-tuning (hfbert finetune does).

Exit codes: 0 done, 2 unusable input, 5 diverged, 6 checkpoint, 7 output, 75 stopped by a signal with a checkpoint.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfbert_scratch.evaluation import TaskData
from hfbert_scratch.features.encoder import load_encoder
from hfbert_scratch.features.tagger import (
    COMBINATIONS,
    ELMO,
    FeatureTaggerConfig,
    TaggingData,
    combination_layers,
    tagging_data,
    train_tagger,
)
from hfbert_scratch.model.loading import check_directory
from hfbert_scratch.tasks import TASKS, DataArguments, FeatureSettings, get_task
from hfbert_scratch.tasks.labels import label_maps
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.training.accelerator import local_device
from hfbert_scratch.training.arguments import TrainingArguments
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import is_first_process, process_count
from hfbert_scratch.utils.errors import STOPPED, InputError, command_line
from hfbert_scratch.utils.files import write_json


@dataclass(kw_only=True)
class FeatureBasedArguments(DataArguments):
    """The command line. The paper gives neither the tagger's optimizer nor its hyperparameters."""

    model: str = argument(help="directory or Hub name of a checkpoint; its encoder stays frozen")
    output_dir: str = argument(help="directory of the runs; started again with the same command, they continue")
    task: str = argument("conll2003", help="conll2003 or custom-ner")
    combinations: list[str] = argument(
        [name for name in COMBINATIONS if name != ELMO],
        help="all of table 7 by default; elmo weights the embeddings too",
        choices=tuple(COMBINATIONS),
    )
    seeds: list[int] = argument([0], help="a restart for each; the paper averages 5")
    cache_dir: str | None = argument(None, help="directory for the frozen features; default: output_dir/cache")
    encoder_precision: str = argument("float32", help="of the frozen encoder", choices=("float32", "bfloat16"))
    max_seq_length: int = argument(128, help="tokens of a sentence; 512 with document context")
    document_context: bool = argument(False, help="fill up every sentence with its document, as the paper does")
    lstm_size: int = argument(768, help="units per direction", at_least=1)
    lstm_layers: int = argument(2, help="of the BiLSTM", at_least=1)
    dropout: float = argument(0.5, help="of the tagger", at_least=0, below=1)
    epochs: float = argument(10.0, help="passes over the training sentences", above=0)
    batch_size: int = argument(32, help="sentences per optimizer step, over all processes", at_least=1)
    micro_batch_size: int | None = argument(
        None, help="sentences per forward pass; default: a process's share", at_least=1
    )
    learning_rate: float = argument(1e-3, help="peak, after a warm-up over a tenth of the steps")
    precision: str = argument("float32", help="of the tagger: float32, bfloat16 (autocast) or auto")
    log_every: int = argument(100, help="steps between log lines")
    trackers: list[str] = argument(["tensorboard"], help="accelerate's trackers; none")

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("seeds", bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "different numbers"),
            ("combinations", bool(self.combinations), f"some of {', '.join(COMBINATIONS)}"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}")

    def training(self, combination: str, seed: int, sentences: int) -> TrainingArguments:
        """Return the arguments of one run."""
        steps = max(1, int(self.epochs * sentences / self.batch_size))
        epoch = -(-sentences // self.batch_size)
        return TrainingArguments(
            output_dir=str(Path(self.output_dir) / f"{combination}-seed{seed}"),
            max_steps=steps,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size or max(1, self.batch_size // process_count()),
            learning_rate=self.learning_rate,
            warmup_steps=steps // 10,
            weight_decay=0.0,
            precision=self.precision,
            attention="eager",  # the tagger has none
            seed=seed,
            log_every=self.log_every,
            eval_every=epoch,
            save_every=epoch,
            keep_checkpoints=1,
            trackers=self.trackers,
        )


def open_data(arguments: FeatureBasedArguments) -> tuple[TaggingData, Any, dict[str, Any]]:
    """Load the data and encode them; return them, the encoder's configuration, and the summary of the data."""
    task = get_task(arguments.task)
    if not task.tags_words:
        taggers = ", ".join(name for name, task in TASKS.items() if task.tags_words)
        raise InputError(f"--task {arguments.task} does not tag words; tasks that do are {taggers}")
    check_directory(arguments.model)
    settings = FeatureSettings(arguments.max_seq_length, document_context=arguments.document_context)
    data = TaskData(task, arguments, load_tokenizer(arguments.model), settings)
    data.check_training()
    model = load_encoder(arguments.model, local_device())
    for name in arguments.combinations:
        combination_layers(name, model.config.num_hidden_layers)
    summary, lines = data.describe(list(data.raw))
    if is_first_process():
        print("\n".join(lines), flush=True)
    cache = Path(arguments.cache_dir or Path(arguments.output_dir) / "cache")
    dtype = getattr(torch, arguments.encoder_precision)
    return tagging_data(task, data.raw, model, data.tokenizer, settings, cache, dtype), model.config, summary


@command_line
def main() -> None:
    """Encode once, train every combination from every seed, compare."""
    arguments = parse_arguments(FeatureBasedArguments, description=__doc__)
    data, encoder, summary = open_data(arguments)
    trials = [(combination, seed) for combination in arguments.combinations for seed in arguments.seeds]
    results: dict[str, list[dict[str, Any]]] = {combination: [] for combination in arguments.combinations}
    for number, (combination, seed) in enumerate(trials, start=1):
        print(f"== {combination}, seed {seed} ({number} of {len(trials)})", flush=True)
        trial = run_trial(arguments, data, encoder, combination, seed, end_training=number == len(trials))
        if trial is None:
            sys.exit(STOPPED)
        results[combination].append(trial)
    if is_first_process():
        report(arguments, data.task.main_metric, results, summary)


def run_trial(
    arguments: FeatureBasedArguments,
    data: TaggingData,
    encoder: Any,
    combination: str,
    seed: int,
    *,
    end_training: bool = True,
) -> dict[str, Any] | None:
    """Train the tagger of one combination, from one seed, on an encoder of this configuration; None when stopped."""
    names = data.task.class_names(data.raw["train"])
    config = FeatureTaggerConfig(
        feature_size=encoder.hidden_size,
        layers=combination_layers(combination, encoder.num_hidden_layers),
        weighted=COMBINATIONS[combination].weighted,
        lstm_size=arguments.lstm_size,
        lstm_layers=arguments.lstm_layers,
        dropout=arguments.dropout,
        **{name: value for name, value in label_maps(names).items() if name != "num_labels"},
    )
    training = arguments.training(combination, seed, len(data.raw["train"]))
    return train_tagger(training, config, data, end_training=end_training)


def report(
    arguments: FeatureBasedArguments, metric: str, results: dict[str, list[dict[str, Any]]], summary: dict[str, Any]
) -> None:
    """Print the table beside the paper's and write results.json."""
    table = {}
    for combination, trials in results.items():
        row: dict[str, Any] = {"paper_validation": COMBINATIONS[combination].paper_f1, "seeds": arguments.seeds}
        for split in trials[0]["scores"]:
            values = [100 * trial["scores"][split][metric] for trial in trials]
            row[split] = {
                "mean": statistics.mean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
            }
        table[combination] = row
    path = Path(arguments.output_dir) / "results.json"
    write_json(path, {"metric": metric, "model": arguments.model, "data": summary} | table)
    splits = list(next(iter(results.values()))[0]["scores"])
    print(f"{metric} in %, mean of {len(arguments.seeds)}; in brackets BERT-BASE's on validation (table 7)")
    for combination, row in table.items():
        shown = ", ".join(
            f"{split} {row[split]['mean']:.2f}" + (f" ± {row[split]['std']:.2f}" if row[split]["std"] else "")
            for split in splits
        )
        print(f"{combination:20} {shown}  ({row['paper_validation']})")
    print(f"{path}")


if __name__ == "__main__":
    main()

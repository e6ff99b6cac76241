"""An epoch of fine-tuning on sentences as long as a task's: ours against the loop of transformers' GLUE example.

    python benchmarks/finetuning_epoch.py --task mrpc --data_dir data/mrpc --rows 640

Theirs, as run_glue_no_trainer.py has it: AutoModelForSequenceClassification, batches shuffled and padded to their
longest, AdamW, a linear schedule. Ours: the batches, the loss and the optimizer of `fine_tune`. The same rows, number
of steps and precision. Without --data_dir the sentences are made up, of log-normal length.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import compare, memory_as_usual, record
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)

from hfbert_scratch import HFBertConfig, HFBertForSequenceClassification
from hfbert_scratch.evaluation import TaskData, call_model, task_loss
from hfbert_scratch.finetuning import FinetuningArguments, FinetuningBatches
from hfbert_scratch.model.attention import fastest_attention
from hfbert_scratch.model.onednn import onednn_is_faster, train_with_onednn
from hfbert_scratch.tasks import SequenceTask, get_task
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, load_tokenizer
from hfbert_scratch.training.batches import on_device
from hfbert_scratch.training.optimizers import create_optimizer
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import disable_malloc_trim
from hfbert_scratch.utils.errors import InputError, command_line


VOCAB_SIZE = 30522


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    task: str = argument("mrpc", help="a GLUE task of classes")
    data_dir: str | None = argument(None, help="its data; default: made up")
    tokenizer: str | None = argument(None, help="for --data_dir; default: of made-up words, where real ones are [UNK]")
    mean_tokens: int = argument(54, help="of made-up rows; MRPC has 54, SST-2 and CoLA 13 and 11")
    size: str = argument("mini", help="minilm (6 layers of 384), tiny, mini, small, medium, base, large")
    rows: int = argument(640, help="rows of an epoch")
    batch_size: int = argument(32, help="rows a step")
    max_seq_length: int = argument(128, help="tokens")
    precision: str = argument("bfloat16", help="bfloat16 (autocast) or float32")
    packing: bool = argument(False, help="of our side: one row of tokens in place of a padded batch")
    pairs: int = argument(3, help="timed epochs of each side")


def sequence_task(name: str) -> SequenceTask:
    """The task; raise InputError for one that has other inputs than one or two texts."""
    task = get_task(name)
    if not isinstance(task, SequenceTask):
        raise InputError(f"--task is {name!r}; it must be a task of one or two texts, such as mrpc or sst2")
    return task


def make_data(arguments: BenchmarkArguments, directory: Path) -> tuple[TaskData, FinetuningArguments]:
    """The task's data and our settings. Made-up rows are halves of a log-normal number of words that are tokens."""
    words = [f"w{number}" for number in range(len(SPECIAL_TOKENS), VOCAB_SIZE)]
    tokenizer: Any = bert_tokenizer({token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}, lowercase=True)
    if arguments.tokenizer is not None:
        tokenizer = load_tokenizer(arguments.tokenizer)
    task = sequence_task(arguments.task)
    options: dict[str, Any] = {"data_dir": arguments.data_dir}
    if arguments.data_dir is None:
        rng = np.random.default_rng(0)
        lengths = rng.lognormal(np.log(arguments.mean_tokens) - 0.06, 0.35, arguments.rows).clip(6, 500).astype(int)
        path = directory / "rows.jsonl"
        with path.open("w") as file:
            for number, length in enumerate(lengths):
                chosen = [words[word] for word in rng.integers(0, len(words), length - 2)]
                halves = np.array_split(chosen, len(task.texts))
                row = {name: " ".join(half) for name, half in zip(task.texts, halves, strict=True)}
                file.write(json.dumps(row | {"label": number % 2, "idx": number}) + "\n")
        options = {"train_file": str(path), "validation_file": str(path)}
    settings = FinetuningArguments(
        task=arguments.task,
        model="",
        output_dir=str(directory),
        max_train_samples=arguments.rows,
        max_steps=arguments.rows // arguments.batch_size,
        batch_size=arguments.batch_size,
        max_seq_length=arguments.max_seq_length,
        cache_dir=str(directory / "cache"),
        **options,
    )
    data = TaskData(task, settings, tokenizer, settings.feature_settings(task))
    return data, settings.resolved(task, len(data.raw["train"]))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """As both sides train."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def our_epoch(
    model: PreTrainedModel,
    data: TaskData,
    settings: FinetuningArguments,
    arguments: BenchmarkArguments,
    device: torch.device,
) -> Callable[[], None]:
    """What `training.train` does, without its log."""
    precision, packing, examples = arguments.precision, arguments.packing, data.examples("train", training=True)
    model.set_attn_implementation(fastest_attention(model, device, getattr(torch, precision), 0.1, packing))
    if precision == "float32" and onednn_is_faster():
        train_with_onednn(model)
    optimizer = create_optimizer("adamw", model, learning_rate=2e-5)
    accelerator = SimpleNamespace(num_processes=1, process_index=0)
    run: Any = SimpleNamespace(accelerator=accelerator, progress=SimpleNamespace(step=0), packing=packing)

    def epoch() -> None:
        model.train()
        for batch in FinetuningBatches(run, examples, settings):
            for inputs in batch.micro_batches:
                inputs = on_device(inputs, device)
                with autocast(precision, device):
                    outputs = call_model(model, inputs, examples.targets)
                    targets = {name: inputs[name] for name in examples.targets}
                    loss = task_loss(data.task, outputs, targets, batch.counts["num_items_in_batch"])
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def their_epoch(
    model: PreTrainedModel, data: TaskData, arguments: BenchmarkArguments, device: torch.device
) -> Callable[[], None]:
    """The example's loop."""
    raw = data.raw["train"]
    texts = [raw[name][:] for name in sequence_task(arguments.task).texts]
    encoded = data.tokenizer(*texts, truncation=True, max_length=data.settings.max_seq_length)
    rows: Any = [
        {name: values[row] for name, values in encoded.items()} | {"labels": label}
        for row, label in enumerate(raw["label"][:])
    ]
    loader = DataLoader(
        rows,
        batch_size=arguments.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=DataCollatorWithPadding(data.tokenizer),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 10**6)

    def epoch() -> None:
        model.train()
        for batch in loader:
            with autocast(arguments.precision, device):
                loss = model(**batch.to(device)).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    return epoch


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.size == "minilm":
        config = HFBertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    else:
        config = HFBertConfig.from_size(arguments.size)
    known = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    stock_config = BertConfig(**{name: value for name, value in config.to_dict().items() if name in known})
    # Their `to` is decorated, which hides the signature.
    ours: Any = HFBertForSequenceClassification(config)
    stock: Any = BertForSequenceClassification(stock_config)
    with tempfile.TemporaryDirectory() as directory:
        data, settings = make_data(arguments, Path(directory))
        result = compare(
            our_epoch(ours.to(device), data, settings, arguments, device),
            their_epoch(stock.to(device), data, arguments, device),
            arguments.pairs,
            warmup=1,
            before=(disable_malloc_trim, memory_as_usual),
        )
        result["tokens_per_second"] = int(data.examples("train", training=True).tokens.sum()) / result["ours_seconds"]
    source = "made-up" if arguments.data_dir is None else "its own"
    name = f"fine-tuning epoch, {arguments.size}, {arguments.precision}, {arguments.task}, {source} rows"
    record(name + (", packing" if arguments.packing else ""), result)


if __name__ == "__main__":
    main()

"""Does fine-tuning here equal a plain loop over stock transformers? Same data, hyperparameters and seeds, both ways.

    python benchmarks/finetuning_parity.py --task mrpc --model STOCK_BERT_DIR --data_dir data/mrpc --output_dir runs/p

Ours: the checkpoint converted to our classes, through `fine_tune`. Theirs: AutoModelFor… with the tokenizer's own
truncation and padding, shuffled batches, torch's AdamW, get_linear_schedule_with_warmup and clipping, as transformers'
no_trainer examples have them, and a head drawn like ours (the original code's cut normal). Both are scored at the last
step, on validation, in float32 or autocast alike. `--group_by_length false` shuffles ours the same way. Writes
parity.json and parity.md: mean ± standard deviation over the seeds, and Welch's t. A finished run is not repeated.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy.stats import ttest_ind
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)

from hfbert_scratch.conversion.stock import from_stock
from hfbert_scratch.evaluation import TaskData, majority_baseline, without_warnings
from hfbert_scratch.finetuning import FinetuningArguments, fine_tune, open_task
from hfbert_scratch.tasks import SequenceTask
from hfbert_scratch.training.accelerator import has_bfloat16
from hfbert_scratch.training.optimizers import parameter_groups
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware, versions
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import read_json, write_json


# Auto class → the collator of transformers' example for it.
COLLATORS: dict[str, Any] = {
    "AutoModelForSequenceClassification": DataCollatorWithPadding,
    "AutoModelForTokenClassification": DataCollatorForTokenClassification,
}


@dataclasses.dataclass(kw_only=True)
class ParityArguments(FinetuningArguments):
    """The command line; `model` is a stock bert checkpoint."""

    seeds: list[int] = argument([0, 1, 2], help="of both sides")
    keep_checkpoints: int = argument(0, help="none are needed")
    trackers: list[str] = argument([], help="none are needed")


@command_line
def main() -> None:
    """Run what is not there yet, compare, write."""
    arguments = parse_arguments(ParityArguments, description=__doc__)
    directory = Path(arguments.output_dir)
    ours_model = directory / "model"
    if not ours_model.is_dir():
        from_stock(arguments.model, ours_model)
    data = open_task(arguments)
    if data.task.head not in COLLATORS:
        raise InputError(f"{data.task.name} has no plain loop here; GLUE's tasks and NER have")
    resolved = arguments.resolved(data.task, len(data.raw["train"]))
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "stock": []}
    for seed in arguments.seeds:
        for side in runs:
            path = directory / f"{side}-{seed}" / "scores.json"
            if not path.is_file():
                own = dataclasses.replace(resolved, seed=seed, output_dir=str(path.parent))
                start = time.perf_counter()
                if side == "ours":
                    own = dataclasses.replace(own, model=str(ours_model), eval_every=10**9, save_every=10**9)
                    results = fine_tune(own, data, save_model=False, end_training=False)
                    if results is None:
                        raise SystemExit(75)
                    scores = results["scores"]["validation"]
                else:
                    scores = stock_run(own, data)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, scores | {"seconds": time.perf_counter() - start})
            runs[side].append(read_json(path, "scores"))
            print(f"{side}, seed {seed}: {runs[side][-1]}", flush=True)
    write_table(directory, resolved, data, runs)


def stock_run(arguments: Any, data: TaskData) -> dict[str, float]:
    """The plain loop; returns the task's scores on validation. `arguments`: as `FinetuningArguments.resolved`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    automatic = arguments.precision == "auto" and has_bfloat16(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=automatic or arguments.precision == "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    torch.manual_seed(arguments.seed)
    model = getattr(transformers, data.task.head).from_pretrained(
        arguments.model, **data.task.config_overrides(data.raw["train"])
    )
    # transformers draws a new head from an uncut normal, a seventh wider, which tells after a few hundred steps.
    std = model.config.initializer_range
    torch.nn.init.trunc_normal_(model.classifier.weight, std=std, a=-2 * std, b=2 * std)
    model.to(device).train()
    collate = COLLATORS[data.task.head](tokenizer)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, arguments.weight_decay),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, arguments.warmup_steps, arguments.max_steps)
    rows: Any = stock_features(data, "train", tokenizer)
    step = 0
    while step < arguments.max_steps:
        for batch in DataLoader(rows, batch_size=arguments.batch_size, shuffle=True, collate_fn=collate):
            with autocast:
                loss = model(**batch.to(device)).loss
            loss.backward()
            clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step == arguments.max_steps:
                break
    model.eval()
    found: list[Any] = []
    rows = stock_features(data, "validation", tokenizer)
    with torch.no_grad(), autocast:
        for batch in DataLoader(rows, batch_size=64, collate_fn=collate):
            labels = batch.pop("labels")
            logits = model(**batch.to(device)).logits.float().cpu().numpy()
            found += [
                logits[row][labels[row].numpy() != -100] if labels.dim() > 1 else logits[row]
                for row in range(len(logits))
            ]
    return without_warnings(data.task.score, data.raw["validation"], stock_predictions(data, found))


def stock_features(data: TaskData, split: str, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows as transformers' examples tokenize them."""
    raw, length = data.raw[split], data.settings.max_seq_length
    if isinstance(data.task, SequenceTask):
        texts = [raw[name][:] for name in data.task.texts]
        encoded = tokenizer(*texts, truncation=True, max_length=length)
        return [
            {name: values[row] for name, values in encoded.items()} | {"labels": label}
            for row, label in enumerate(raw["label"][:])
        ]
    rows = []
    for words, tags in zip(raw["tokens"][:], raw["ner_tags"][:], strict=True):
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length)
        places = encoded.word_ids()
        first = [place is not None and place != before for place, before in zip(places, [None, *places], strict=False)]
        labels = [tags[place] if new else -100 for place, new in zip(places, first, strict=True)]
        rows.append(dict(encoded) | {"labels": labels})
    return rows


def stock_predictions(data: TaskData, logits: list[np.ndarray]) -> Any:
    """Class names, numbers, or tags with O for words that were cut off."""
    task, raw = data.task, data.raw["validation"]
    if task.tags_words:
        names = task.class_names(raw)
        chosen = [[names[tag] for tag in row.argmax(axis=-1)] for row in logits]
        return [tags + ["O"] * (len(words) - len(tags)) for tags, words in zip(chosen, raw["tokens"][:], strict=True)]
    return task.predict(raw, None, {"logits": np.stack(logits)})


def write_table(
    directory: Path, arguments: FinetuningArguments, data: TaskData, runs: dict[str, list[dict[str, Any]]]
) -> None:
    """parity.json and parity.md."""
    metrics = [name for name in runs["stock"][0] if name != "seconds"]
    table: dict[str, Any] = {}
    for metric in metrics:
        ours, stock = ([run[metric] for run in runs[side]] for side in ("ours", "stock"))
        table[metric] = {
            side: {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
            }
            for side, values in (("ours", ours), ("stock", stock))
        }
        if len(ours) > 1 and np.ptp([*ours, *stock]) > 0:
            table[metric]["welch_p"] = float(ttest_ind(ours, stock, equal_var=False).pvalue)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = ("max_steps", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "max_seq_length", "precision")
    content = {
        "task": data.task.name,
        "metrics": table,
        "majority_baseline": majority_baseline(data.task, data.raw["train"], data.raw["validation"]),
        "seeds": len(runs["ours"]),
        "median_seconds": {side: statistics.median(run["seconds"] for run in runs[side]) for side in runs},
        "hyperparameters": {name: getattr(arguments, name) for name in names}
        | {"group_by_length": arguments.group_by_length},
        "examples": {split: len(raw) for split, raw in data.raw.items()},
        "hardware": hardware(device),
        "versions": versions(),
    }
    write_json(directory / "parity.json", content)
    lines = ["| task | metric | ours | stock | p |", "| --- | --- | --- | --- | --- |"]
    for metric, row in table.items():
        own, theirs = (
            f"{100 * row[side]['mean']:.2f}"
            + (f" ± {100 * row[side]['std']:.2f}" if row[side]["std"] is not None else "")
            for side in ("ours", "stock")
        )
        lines.append(f"| {data.task.name} | {metric} | {own} | {theirs} | {row.get('welch_p', float('nan')):.2f} |")
    (directory / "parity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

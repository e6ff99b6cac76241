# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Evaluate a fine-tuned checkpoint, predict unlabelled data with it, or ask it a question.

    hfbert evaluate --model runs/mrpc/model --data_dir data/mrpc \\
        --output_dir runs/mrpc/test
    hfbert evaluate --task sst2 --model textattack/bert-base-uncased-SST-2 \\
        --output_dir runs/sst2
    hfbert evaluate --model runs/squad/model --question "Who wrote it?" \\
        --context "Ada wrote it."

Predicts every split but train, and scores those with labels, also class by class: writes results.json and
predictions/ into output_dir. The task and the settings of its inputs come from the model's task.json, if
`hfbert finetune` wrote one. A checkpoint that calls its classes LABEL_0, LABEL_1 … may have them in any order:
--model_classes.

Supports: our checkpoints and those of other encoders (DistilBERT, ELECTRA, RoBERTa, DeBERTa, ModernBERT); one
CPU, one GPU, several processes (--num_processes N, also on CPUs), with the same predictions whatever their number.
Does not support: checkpoints whose head is new (train it with `hfbert finetune` first); questions with tokenizers
whose special tokens are not BERT's (RoBERTa).

Exit codes: 0 done, 2 unusable input, 7 output.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from hfbert_scratch.evaluation import (
    TaskData,
    answer,
    load_for_task,
    majority_baseline,
    predict,
    read_task_file,
    without_warnings,
)
from hfbert_scratch.model.attention import fastest_attention
from hfbert_scratch.model.loading import check_directory, check_fits
from hfbert_scratch.tasks import DataArguments, FeatureSettings, Task, get_task, report_lines
from hfbert_scratch.tasks.files.tables import read_text
from hfbert_scratch.text.tokenizer import load_any_tokenizer, load_tokenizer
from hfbert_scratch.training.accelerator import compute_dtype, create_accelerator, precision_name
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware, hub_commits, versions
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import write_json, writing


_FROM_MODEL = "default: the model's task.json, else"


@dataclass(kw_only=True)
class EvaluationArguments(DataArguments):
    """The command line."""

    model: str = argument(help="fine-tuned checkpoint: a directory or a name on the Hub")
    task: str | None = argument(None, help="as in hfbert finetune; default: the model's task.json")
    output_dir: str | None = argument(
        None, help="for results.json and predictions/; needed unless --question is given"
    )
    model_classes: list[str] | None = argument(
        None,
        help="names of the model's classes in the order of its outputs, where it calls them LABEL_0 …",
    )
    question: str | None = argument(None, help="answer this from --context and print it")
    context: str | None = argument(None, help="the text that holds the answer, or a file with it")
    max_seq_length: int | None = argument(None, help=f"{_FROM_MODEL} the task's")
    doc_stride: int | None = argument(None, help=f"SQuAD; {_FROM_MODEL} 128")
    max_query_length: int | None = argument(None, help=f"SQuAD; {_FROM_MODEL} 64")
    document_context: bool | None = argument(None, help=f"NER; {_FROM_MODEL} false")
    null_threshold: float | None = argument(
        None,
        help="SQuAD 2.0: answer 'no answer' if the null score leads the best span by more than this; default: the "
        "threshold in task.json, but 0 on validation, where it was tuned",
    )
    batch_size: int = argument(64, help="sequences per forward pass", at_least=1)
    precision: str = argument(
        "auto", help="bfloat16 is autocast; auto: the faster, timed on CPUs", choices=("auto", "float32", "bfloat16")
    )
    num_proc: int = argument(1, help="processes for tokenization")
    cache_dir: str | None = argument(None, help="directory for cached features; default: in the cache of datasets")

    def __post_init__(self) -> None:
        if (self.question is None) != (self.context is None):
            raise InputError("--question and --context are given together")
        if self.question is None and self.output_dir is None:
            raise InputError("--output_dir is needed (or --question and --context)")

    def settings(self, task_config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the inputs: options of the command line, else entries of task.json."""
        names = ("max_seq_length", "doc_stride", "max_query_length", "document_context")
        options = {name: getattr(self, name) for name in names}
        values = {name: task_config.get(name) if value is None else value for name, value in options.items()}
        return {name: value for name, value in values.items() if value is not None}

    def tuned(self, task_config: dict[str, Any]) -> dict[str, Any]:
        """Return the values for `Task.apply_tuned`: options of the command line, else entries of task.json."""
        return task_config if self.null_threshold is None else {"null_threshold": self.null_threshold}


@command_line
def main() -> None:
    """Parse, then answer or evaluate."""
    arguments = parse_arguments(EvaluationArguments, description=__doc__)
    check_directory(arguments.model)
    task_config = read_task_file(arguments.model)
    name = arguments.task or task_config.get("task") or ("squad" if arguments.question else None)
    if name is None:
        raise InputError(f"--model {arguments.model} does not say what it was fine-tuned for; name it with --task")
    task = get_task(name)
    if arguments.question is not None:
        if not task.answers_questions:
            raise InputError(f"--question needs a model fine-tuned on squad or squad_v2, not {task.name}")
        ask(arguments, task, task_config)
        return
    tokenizer = load_any_tokenizer(arguments.model)
    model, _ = load_for_task(task, arguments.model, None)
    settings = FeatureSettings(
        **({"max_seq_length": task.defaults.max_seq_length} | arguments.settings(task_config)),
        num_proc=arguments.num_proc,
        cache_dir=arguments.cache_dir,
    )
    check_fits(model, tokenizer, settings.max_seq_length)
    if arguments.model_classes:
        name_classes(model, arguments.model_classes)
    labels: Any = model.config.id2label
    data = TaskData(task, arguments, tokenizer, settings, [labels[number] for number in sorted(labels)])
    accelerator = create_accelerator(arguments.precision)
    set_attention(model, accelerator)
    results = evaluate_splits(arguments, accelerator, model.to(accelerator.device), data, task_config)
    accelerator.print(json.dumps(results["scores"], indent=1))
    accelerator.end_training()


def name_classes(model: PreTrainedModel, names: list[str]) -> None:
    """Name the outputs of the model; raise InputError unless every output gets a name of its own."""
    outputs = model.config.num_labels
    if len(set(names)) != outputs or len(names) != outputs:
        raise InputError(f"--model_classes {' '.join(names)}: the model has {outputs} classes; name each of them once")
    model.config.id2label = dict(enumerate(names))


def set_attention(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Select the attention that is fastest without gradients."""
    model.set_attn_implementation(fastest_attention(model, accelerator.device, compute_dtype(accelerator), 0.0))


def evaluate_splits(
    arguments: EvaluationArguments,
    accelerator: Accelerator,
    model: nn.Module,
    data: TaskData,
    task_config: dict[str, Any],
) -> dict[str, Any]:
    """Predict every split but train, score those with labels, and write the files."""
    task, directory = data.task, Path(str(arguments.output_dir))
    splits = [split for split in data.raw if split != "train"]
    if not splits:
        raise InputError(
            f"there is only a train split of {task.name}; name others with --validation_file, --test_file"
        )
    summary, lines = data.describe(splits)
    accelerator.print("\n".join(lines))
    results: dict[str, Any] = {
        "task": task.name,
        "model": arguments.model,
        "scores": {},
        "majority_baseline": {},
        "report": {},
        "data": summary,
        "examples": {split: len(data.raw[split]) for split in splits},
        "processes": accelerator.num_processes,
        "precision": precision_name(compute_dtype(accelerator)),
        "hardware": hardware(accelerator.device),
        "versions": versions(),
        "from_hub": hub_commits(),
    }
    for split in splits:
        raw = data.raw[split]
        predictions, _ = predict(accelerator, model, data, split, arguments.batch_size)
        if not accelerator.is_main_process:
            continue
        # The model's values were tuned on validation, whose scores they would flatter.
        predictions = task.apply_tuned(predictions, arguments.tuned({} if split == "validation" else task_config))
        if task.is_labelled(raw):
            results["scores"][split] = without_warnings(task.score, raw, predictions)
            results["majority_baseline"][split] = majority_baseline(task, data.raw.get("train", raw), raw)
            results["report"][split] = task.report(raw, predictions)
            print(scores_line(task, split, results["scores"][split], results["majority_baseline"][split]))
            for line in report_lines(results["report"][split]):
                print(line)
        with writing(directory):
            task.write_predictions(directory / "predictions", raw, predictions, split)
    if accelerator.is_main_process:
        write_json(directory / "results.json", results)
    return results


def scores_line(task: Task, split: str, scores: dict[str, float], baseline: dict[str, float]) -> str:
    """Describe each score of a split beside the most frequent answer's."""
    parts = [
        f"{task.metric_label(name)} {value:.4f}" + (f" ({baseline[name]:.4f})" if name in baseline else "")
        for name, value in scores.items()
    ]
    return f"{split}: {', '.join(parts)}; in brackets the most frequent answer"


def is_file(text: str) -> bool:
    """Return whether `text` is the path of a file; a text too long for a path is not."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def ask(arguments: EvaluationArguments, task: Task, task_config: dict[str, Any]) -> None:
    """Print the answer to --question and its probability."""
    context = str(arguments.context)
    if is_file(context):
        context = read_text(Path(context))
    model, _ = load_for_task(task, arguments.model, None)
    reply = answer(
        model,
        load_tokenizer(arguments.model),
        str(arguments.question),
        context,
        # A threshold on the command line makes "no answer" possible, whatever the task.
        task=task if arguments.null_threshold is None else None,
        null_threshold=arguments.tuned(task_config).get("null_threshold"),
        **arguments.settings(task_config),
    )
    print(json.dumps({"answer": reply["answer"], "probability": round(reply["probability"], 4)}, ensure_ascii=False))


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Fine-tune a checkpoint on a task of the paper, or on your own data in the shape of one.

    hfbert finetune --task mrpc --model runs/base/model --output_dir runs/mrpc
    hfbert finetune --task squad --model bert-base-uncased \\
        --data_dir data/squad --output_dir runs/squad
    hfbert finetune --num_processes 4 --task all-glue --model … --output_dir …

Prints and records a summary of the data, and writes into output_dir: model/ (the step that is best on validation;
opens with pipeline("text-classification") or the task's Auto class), results.json (scores, also class by class),
predictions/, curves.png, confusion.png (classes), precision_recall.png (several labels) or threshold.png (SQuAD 2.0),
record.json, log.jsonl, checkpoints/.
all-glue runs GLUE's nine tasks one after another into output_dir/<task>, with data from data_dir/<task> if data_dir is
given, and adds results.json with the paper's average and the leaderboard's score and, if all eleven test sets are
there, submission.zip. Killed at any moment, the same command continues.

Tasks: cola sst2 mrpc stsb qqp mnli qnli rte wnli, all-glue, squad squad_v2, swag, conll2003, and with --columns your
own: custom-classification, custom-pair, custom-regression, custom-multilabel, custom-qa, custom-ner. Hyperparameters
default to the task's.
Supports: our checkpoints and any BERT-like AutoModel checkpoint; one CPU, one GPU, several processes.
Does not support: feature-based NER (hfbert ner-features), model parallelism.

Exit codes: 0 done, 2 unusable input, 5 diverged, 6 checkpoint, 7 output, 75 stopped by a signal or --max_time with a
checkpoint.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from hfbert_scratch.evaluation import TaskData, load_for_task, predict
from hfbert_scratch.finetuning import FinetuningArguments, estimate_fine_tuning, fine_tune, open_task
from hfbert_scratch.tasks import (
    SUBMISSION_FILES,
    find_task_directory,
    get_task,
    glue_average,
    glue_leaderboard_score,
    write_submission,
)
from hfbert_scratch.text.tokenizer import load_tokenizer
from hfbert_scratch.training.accelerator import create_accelerator
from hfbert_scratch.training.estimate import describe_estimate, total
from hfbert_scratch.utils.arguments import parse_arguments
from hfbert_scratch.utils.environment import is_first_process
from hfbert_scratch.utils.errors import STOPPED, InputError, command_line
from hfbert_scratch.utils.files import write_json


GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
# Trained task → task with only a test set, predicted with the same model.
DIAGNOSTICS = {"mnli": "ax"}


@command_line
def main() -> None:
    """Parse and run."""
    arguments = parse_arguments(FinetuningArguments, description=__doc__)
    if arguments.estimate:
        estimate(arguments)
        return
    results = all_glue(arguments) if arguments.task == "all-glue" else fine_tune(arguments)
    if results is None:
        sys.exit(STOPPED)


def estimate(arguments: FinetuningArguments) -> None:
    """Estimate the run, or GLUE's nine, on this machine."""
    settings = glue_settings(arguments) if arguments.task == "all-glue" else {arguments.task: arguments}
    data = {name: open_task(own) for name, own in settings.items()}
    *_, last = settings
    estimates = [estimate_fine_tuning(own, data[name], end_training=name == last) for name, own in settings.items()]
    if is_first_process():
        print(describe_estimate(total(estimates), arguments.price))


def glue_settings(arguments: FinetuningArguments) -> dict[str, FinetuningArguments]:
    """Return the arguments of GLUE's nine runs."""
    if arguments.train_file or arguments.validation_file or arguments.test_file or arguments.dataset:
        raise InputError("all-glue takes its nine tasks' files from --data_dir or the Hub; name no single file")
    return {
        name: dataclasses.replace(
            arguments,
            task=name,
            output_dir=str(Path(arguments.output_dir) / name),
            data_dir=find_task_directory(arguments.data_dir, name),
        )
        for name in GLUE
    }


def all_glue(arguments: FinetuningArguments) -> dict[str, Any] | None:
    """Fine-tune on GLUE's tasks, then write averages and submission; return None when a signal stopped it."""
    settings = glue_settings(arguments)
    # Open all before the first one trains: a missing file should not come up after nine hours.
    data = {name: open_task(own) for name, own in settings.items()}
    scores: dict[str, dict[str, float]] = {}
    predictions: dict[str, Any] = {}
    for name in GLUE:
        results = fine_tune(settings[name], data[name], end_training=name == GLUE[-1])
        if results is None:
            return None
        for split, entry in results["scores"].items():
            if split.startswith("validation"):
                scores[name + split.removeprefix("validation")] = entry
        for split, split_predictions in results["predictions"].items():
            if split.startswith("test"):
                predictions[name + split.removeprefix("test")] = split_predictions
        if name in DIAGNOSTICS:
            predictions |= predict_test(DIAGNOSTICS[name], arguments, Path(settings[name].output_dir) / "model")
    return summarize(Path(arguments.output_dir), scores, predictions)


def predict_test(name: str, arguments: FinetuningArguments, model: Path) -> dict[str, Any]:
    """Predict the test set of a task with the model of another, if its data are there."""
    task = get_task(name)
    directory = find_task_directory(arguments.data_dir, task.name, required=False)
    if arguments.data_dir and not directory:
        return {}
    accelerator = create_accelerator(arguments.precision)
    accelerator.wait_for_everyone()  # until the main process has written the model
    source = dataclasses.replace(arguments, data_dir=directory)
    data = TaskData(task, source, load_tokenizer(model), arguments.feature_settings(task))
    network, _ = load_for_task(task, str(model), None)
    predictions, _ = predict(accelerator, network.to(accelerator.device), data, "test", arguments.eval_batch_size)
    if accelerator.is_main_process:
        task.write_predictions(
            Path(arguments.output_dir) / name / "predictions", data.raw["test"], predictions, "test"
        )
    return {name: predictions}


def summarize(directory: Path, scores: dict[str, dict[str, float]], predictions: dict[str, Any]) -> dict[str, Any]:
    """Write results.json with the averages, and submission.zip if every test set was predicted."""
    results: dict[str, Any] = {"scores": scores}
    for name, average in (("paper_average", glue_average), ("leaderboard_score", glue_leaderboard_score)):
        try:
            results[name] = 100 * average(scores)
        except InputError as error:
            results[name] = None
            results[f"no_{name}"] = str(error)
    if not is_first_process():
        return results
    missing = [name for name, (task, _) in SUBMISSION_FILES.items() if task not in predictions]
    if not missing:
        results["submission"] = str(write_submission(directory / "submission.zip", predictions))
    write_json(directory / "results.json", results)
    for name in ("paper_average", "leaderboard_score"):
        value = results[name]
        print(f"{name}: {results[f'no_{name}'] if value is None else f'{value:.1f}'}")
    reason = f"none, for there is no test data of {', '.join(missing)}"
    print(f"submission.zip: {reason if missing else results['submission']}")
    return results


if __name__ == "__main__":
    main()

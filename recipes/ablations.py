# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Run the paper's argument: tables 5 to 8, figure 5 and the compared systems, with paired seeds and intervals.

    hfbert ablations --table 5 --budget cpu --corpus runs/corpus \\
        --tokenizer runs/tokenizer --data_dir data --output_dir runs/table5
    hfbert ablations --num_processes 8 --table 8 --budget gpu …

pretrains every arm of the table from every seed, chooses its learning rates on a seed that is not reported, trains it
on the tasks, and compares: paired differences with 95 % intervals over seeds and examples, the paper's beside them,
and a verdict, decided or undecided. Leaves in output_dir: results.json, results.md, differences.png, scores.png, and
a directory for each arm and seed. Arms share their seeds' initial weights, documents, masks, dropout and fine-tuning
order wherever their difference leaves them alone.

data_dir has a directory for each task (mrpc or glue_mrpc, squad, conll2003 …). Several processes have runs of their
own, each on its own GPU where there are GPUs; on two CPU cores two processes get most done (--num_processes 2). Killed
at any moment, the same command goes on: finished runs are kept, a pretraining continues, a fine-tuning starts again.
With more --seeds it adds their runs. --estimate says beforehand what all of it takes.

Supports: MLM + NSP, the same pairs without NSP's loss, contiguous text, left-to-right, with a BiLSTM on top; sizes;
features; masking mixes; two LSTM language models as ELMo's.
Does not support: one run on several GPUs (hfbert pretrain does).

Exit codes: 0 done, 2 unusable input, 5 an arm diverged (the report has the others), 6 another table's directory,
7 output, 75 stopped by a signal.
"""

import dataclasses
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feature_based_ner import FeatureBasedArguments, open_data
from feature_based_ner import run_trial as run_features
from pretrain import PretrainingArguments, build_model, estimate_pretraining, run_pretraining

from hfbert_scratch import HFBertConfig
from hfbert_scratch.ablations.arms import BUDGETS, COLUMNS, SELECTION_SEED, TABLES, Arm, Budget, Column, Table
from hfbert_scratch.ablations.jobs import Job, results_of, run_jobs
from hfbert_scratch.ablations.report import RULE, Evidence, pretraining_directory, task_directory, write_report
from hfbert_scratch.corpus.bigrams import bigram_baseline
from hfbert_scratch.corpus.dataset import Corpus
from hfbert_scratch.evaluation import TaskData, majority_baseline
from hfbert_scratch.features.tagger import FeatureTagger, combination_layers, predict_tags
from hfbert_scratch.finetuning import FinetuningArguments, estimate_fine_tuning, fine_tune
from hfbert_scratch.pretraining import held_out_batches
from hfbert_scratch.tasks import find_task_directory, get_task
from hfbert_scratch.text.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from hfbert_scratch.training.accelerator import best_device
from hfbert_scratch.training.arguments import NEVER
from hfbert_scratch.training.distributed import leave_the_launchers_group
from hfbert_scratch.training.estimate import Estimate, EstimateArguments, describe_estimate, total
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.directories import claim_directory
from hfbert_scratch.utils.environment import hardware, is_first_process, process_count, versions
from hfbert_scratch.utils.errors import STOPPED, DivergenceError, InputError, command_line
from hfbert_scratch.utils.files import lock, read_json


@dataclass(kw_only=True)
class AblationArguments(EstimateArguments):
    """The command line."""

    table: str = argument(help="what to run", choices=tuple(TABLES))
    budget: str = argument(
        "cpu",
        help="cpu: hours of two cores; gpu: minutes of a data-centre GPU; full: the paper's; rehearsal: a minute, to "
        "see that everything is there",
        choices=tuple(BUDGETS),
    )
    corpus: str = argument(help="directory written by hfbert corpus")
    tokenizer: str = argument(help="directory written by hfbert tokenizer; must be the corpus's")
    data_dir: str = argument(help="directory with a directory for each task")
    output_dir: str = argument(help="directory of the runs; started again with the same command, it continues")
    tasks: list[str] = argument([], help="columns of the report; default: the budget's", choices=tuple(COLUMNS))
    seeds: list[int] = argument([], help="default: the budget's; two at least", at_least=0)
    learning_rates: list[float] = argument([], help="of fine-tuning, to choose from; default: the budget's", above=0)
    steps: int | None = argument(None, help="of every pretraining; default: the budget's", at_least=1)
    size: str | None = argument(None, help="tiny, mini, small, medium, base, large; default: the budget's")
    max_train_samples: int | None = argument(None, help="of every task; default: the budget's", at_least=1)
    precision: str | None = argument(
        None, help="of all runs; default: float32 on CPUs, else bfloat16", choices=("float32", "bfloat16")
    )

    def __post_init__(self) -> None:
        self.check_price()
        if self.seeds and (len(set(self.seeds)) < max(2, len(self.seeds)) or SELECTION_SEED in self.seeds):
            raise InputError(
                f"seeds are {self.seeds}; they must be two different numbers or more, without {SELECTION_SEED}, on "
                "which the learning rates are chosen"
            )

        # Not left to each run: what a process times to be faster may differ from arm to arm.
        if self.precision is None:
            self.precision = "float32" if best_device().type == "cpu" else "bfloat16"

    def resolved_budget(self) -> Budget:
        """Return the budget with the options of the command line."""
        budget = BUDGETS[self.budget]
        pretraining, finetuning, features = dict(budget.pretraining), dict(budget.finetuning), dict(budget.features)
        if self.size is not None:
            for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
                pretraining.pop(name, None)
            pretraining["size"] = self.size
        if self.steps is not None:
            pretraining["max_steps"] = self.steps
            for name in ("warmup_steps", "eval_every", "save_every", "log_every"):
                pretraining[name] = min(pretraining[name], self.steps)
        if self.max_train_samples is not None:
            finetuning["max_train_samples"] = features["max_train_samples"] = self.max_train_samples
        return dataclasses.replace(
            budget,
            pretraining=pretraining,
            finetuning=finetuning,
            features=features,
            learning_rates=tuple(self.learning_rates) or budget.learning_rates,
            seeds=tuple(self.seeds) or budget.seeds,
        )


@command_line
def main() -> None:
    """Open everything, print the rule, run the open jobs, judge."""
    arguments = parse_arguments(AblationArguments, description=__doc__)
    is_first, processes = is_first_process(), process_count()
    leave_the_launchers_group()
    budget = arguments.resolved_budget()
    table = TABLES[arguments.table](budget)
    experiment = Experiment(arguments, budget, table)
    if arguments.estimate:
        estimate, note = experiment.estimate(processes)
        if is_first:
            print(f"{note}\n{describe_estimate(estimate, arguments.price)}".lstrip())
        return
    claim_directory(experiment.root, experiment.settings, "runs")
    jobs = experiment.jobs()
    print(f"{table.title}. The paper: {table.claim}.\n{RULE}")
    print(f"{len(table.arms)} arms, seeds {', '.join(map(str, budget.seeds))}, {len(jobs)} runs", flush=True)
    if not run_jobs(jobs, experiment.root):
        sys.exit(STOPPED)
    experiment.report()


def combination_of(arm: Arm, column: Column) -> str | None:
    """Return the layers that an arm's tagger reads for a column; None for fine-tuning."""
    return (arm.combination if get_task(column.task).tags_words else None) or column.combination


class Experiment:
    """The runs of a table in a directory.

    Args:
        arguments: the command line.
        budget: with the options of the command line.
        table: the arms.

    Raises:
        InputError: for a corpus of another tokenizer, or a task without data: before the first run.
    """

    def __init__(self, arguments: AblationArguments, budget: Budget, table: Table):
        self.arguments, self.budget, self.table = arguments, budget, table
        self.root = Path(arguments.output_dir)
        self.tokenizer = load_tokenizer(arguments.tokenizer)
        longest = self.pretraining(table.arms[0], 0).max_seq_length
        self.corpus = Corpus.open(arguments.corpus, self.tokenizer, longest)
        names = arguments.tasks or ([name for name in budget.columns if name in table.columns] or list(table.columns))
        self.columns = [COLUMNS[name] for name in names]
        self.data = {column.task: self.open_task(column.task) for column in self.columns}
        for column in self.columns:
            self.data[column.task].check_comparable(column.metric)
            for arm in table.arms:
                if combination := combination_of(arm, column):
                    combination_layers(combination, self.num_layers(arm))  # refuses models with too few
        self.settings = {
            "table": arguments.table,
            "pretraining": dict(budget.pretraining),
            "finetuning": dict(budget.finetuning),
            "features": dict(budget.features),
            "learning_rates": budget.learning_rates,
            "precision": arguments.precision,
            "corpus": self.corpus.manifest["identity"],
            "tokenizer": tokenizer_hash(self.tokenizer),
            "data": {task: data.raw["train"]._fingerprint for task, data in self.data.items()},
        }

    def num_layers(self, arm: Arm) -> int:
        """Return the number of layers of an arm's encoder."""
        arguments = self.pretraining(self.table.arm(arm.pretrained_as or arm.name), 0)
        return arguments.num_hidden_layers or HFBertConfig.from_size(arguments.size).num_hidden_layers

    def open_task(self, name: str) -> TaskData:
        """Load the data of a task."""
        task = get_task(name)
        arguments = self.finetuning(name, 0, 1e-4, "unused", "unused")
        data = TaskData(task, arguments, self.tokenizer, arguments.feature_settings(task))
        data.check_training()
        return data

    def pretraining(self, arm: Arm, seed: int) -> PretrainingArguments:
        """Return the arguments of an arm's pretraining."""
        options = dict(self.budget.pretraining) | dict(arm.pretraining)
        points = [other.checkpoint for other in self.table.arms]
        if min(points) < 1:  # checkpoints along the way are used, so all are kept
            options |= {"save_every": round(min(points) * options["max_steps"]), "keep_checkpoints": len(points)}
        else:
            options["keep_checkpoints"] = 1
        return PretrainingArguments(
            **options,
            corpus=[self.arguments.corpus],
            tokenizer=self.arguments.tokenizer,
            output_dir=str(pretraining_directory(self.root, arm, seed)),
            precision=str(self.arguments.precision),
            onednn="false",
            trackers=["none"],
            seed=seed,
        )

    def finetuning(
        self, task: str, seed: int, learning_rate: float, model: str, output_dir: str, **options: Any
    ) -> FinetuningArguments:
        """Return the arguments of a fine-tuning, scored at its last step."""
        return FinetuningArguments(
            **(dict(self.budget.finetuning) | options),
            task=task,
            data_dir=self.task_data(task),
            model=model,
            output_dir=output_dir,
            learning_rate=learning_rate,
            precision=str(self.arguments.precision),
            onednn="false",
            trackers=["none"],
            seed=seed,
            keep_checkpoints=0,
            log_every=NEVER,
            eval_every=NEVER,
            save_every=NEVER,
        )

    def task_data(self, task: str) -> str:
        """Find the directory of a task's data; refuse a data_dir without it."""
        root = self.arguments.data_dir
        others = {"squad": "squad_v1", "conll2003": "ner"}
        found = find_task_directory(root, task, required=False)
        if found is None and task in others:
            found = find_task_directory(root, others[task], required=False)
        if found is None:
            raise InputError(f"--data_dir {root} has no directory {task} or glue_{task}; name --tasks that it has")
        return found

    def jobs(self) -> list[Job]:
        """List all runs: pretraining, then the choice of learning rates, then the reported runs."""
        first: dict[Path, Job] = {}
        choices, reported = [], {}
        for arm in self.table.arms:
            for seed in self.budget.seeds:
                where = pretraining_directory(self.root, arm, seed)
                source = self.table.arm(arm.pretrained_as or arm.name)
                first.setdefault(where, Job(where, (), lambda a=source, s=seed: self.run_pretraining(a, s)))
            for column in self.columns:
                rates = [] if combination_of(arm, column) else self.rate_jobs(arm, column.task)
                choices += [job for job in rates if job.directory not in {other.directory for other in choices}]
                for seed in self.budget.seeds:
                    where = task_directory(self.root, arm, seed, column)
                    needs = (
                        pretraining_directory(self.root, arm, seed),
                        *(job.directory for job in rates),
                    )
                    run = lambda a=arm, c=column, s=seed, r=rates: self.run_task(a, c, s, r)  # noqa: E731
                    reported.setdefault(where, Job(where, needs, run))
        return [*first.values(), *choices, *reported.values()]

    def rate_jobs(self, arm: Arm, task: str) -> list[Job]:
        """List the runs that choose an arm's learning rate on a task; none where there is no choice."""
        rates, seed = arm.learning_rates or self.budget.learning_rates, self.budget.seeds[0]
        if len(rates) == 1:
            return []
        root = self.root / arm.name / "rates"
        needs = (pretraining_directory(self.root, arm, seed),)
        return [
            Job(
                root / f"{task}-lr{rate:g}",
                needs,
                lambda r=rate, w=root / f"{task}-lr{rate:g}": self.run_finetuning(arm, task, SELECTION_SEED, r, w),
            )
            for rate in rates
        ]

    def run_pretraining(self, arm: Arm, seed: int) -> dict[str, Any] | None:
        """Pretrain, and score token counts on the same held-out predictions."""
        arguments = self.pretraining(arm, seed)
        if not run_pretraining(arguments, end_training=False):
            return None
        record = read_json(Path(arguments.output_dir) / "record.json", "pretraining")
        batches = held_out_batches(
            self.corpus.split("validation"),
            self.tokenizer,
            arguments,
            arguments.phases()[-1].max_seq_length,
            64,
            arguments.eval_rows,
        )
        documents = self.corpus.split("train")
        bigrams = bigram_baseline(documents, batches, len(self.tokenizer), arguments.left_to_right)
        results = record["results"]
        return {
            "loss": results["eval_masked_lm_loss"],
            "accuracy": results["eval_masked_lm_accuracy"],
            "next_sentence_accuracy": results.get("eval_next_sentence_accuracy"),
            "unigram": {name: record["baseline"][name] for name in ("loss", "accuracy")},
            "bigram": bigrams,
            "parameters": record["derived"]["parameters"],
            "steps": record["steps"],
            "tokens": record["tokens"],
        }

    def run_task(self, arm: Arm, column: Column, seed: int, rates: list[Job]) -> dict[str, Any] | None:
        """Fine-tune at the chosen learning rate, or train a tagger on features."""
        directory = task_directory(self.root, arm, seed, column)
        if combination_of(arm, column):
            return self.run_features(arm, column, seed, directory)
        candidates = arm.learning_rates or self.budget.learning_rates
        chosen = candidates[0]
        if rates:
            scores = [results_of(job.directory) for job in rates]
            name = get_task(column.task).main_metric
            best = max(range(len(rates)), key=lambda number: scores[number].get("scores", {}).get(name, float("-inf")))
            chosen = candidates[best]
        return self.run_finetuning(arm, column.task, seed, chosen, directory)

    def checkpoint(self, arm: Arm, seed: int) -> Path:
        """Return the checkpoint an arm starts from."""
        directory = pretraining_directory(self.root, arm, seed)
        if arm.checkpoint == 1:
            return directory / "model"
        arguments = self.pretraining(arm, seed)
        return directory / "checkpoints" / f"step-{round(arm.checkpoint * arguments.max_steps)}"

    def run_finetuning(
        self, arm: Arm, task: str, seed: int, learning_rate: float, directory: Path
    ) -> dict[str, Any] | None:
        """Fine-tune, and keep the scores and every example's numbers for them."""
        data = self.data[task]
        # Learning rates are chosen on another seed of fine-tuning, from the first seed's pretraining.
        start = self.checkpoint(arm, self.budget.seeds[0] if seed == SELECTION_SEED else seed)
        run = directory / "run"
        shutil.rmtree(run, ignore_errors=True)  # of a start that was killed
        arguments = self.finetuning(task, seed, learning_rate, str(start), str(run), **arm.finetuning)
        results = fine_tune(arguments, data, save_model=False, end_training=False)
        if results is None:
            return None
        columns = self.column_results(task, data, results["predictions"]["validation"], directory)
        return {
            "scores": results["scores"]["validation"],
            "learning_rate": learning_rate,
            "columns": columns,
            "steps": results["steps"],
        }

    def run_features(self, arm: Arm, column: Column, seed: int, directory: Path) -> dict[str, Any] | None:
        """Train a BiLSTM on the frozen encoder's layers."""
        combination = str(combination_of(arm, column))
        arguments = FeatureBasedArguments(
            **self.budget.features,
            model=str(self.checkpoint(arm, seed)),
            output_dir=str(directory / "run"),
            task=column.task,
            data_dir=self.task_data(column.task),
            combinations=[combination],
            seeds=[seed],
            trackers=["none"],
        )
        data, encoder, _ = open_data(arguments)
        if run_features(arguments, data, encoder, combination, seed, end_training=False) is None:
            return None
        run = directory / "run" / f"{combination}-seed{seed}"
        tagger = FeatureTagger.from_pretrained(run / "model").to(best_device())
        predictions = predict_tags(tagger, data, "validation")
        columns = self.column_results(column.task, data, predictions, directory)
        shutil.rmtree(directory / "run" / "cache", ignore_errors=True)
        return {"learning_rate": arguments.learning_rate, "columns": columns, "combination": combination}

    def estimate(self, processes: int) -> tuple[Estimate, str]:
        """Time steps of every kind of run, and add up all runs, `processes` at a time.

        Returns:
            The estimate, and a note on the runs that it leaves out.
        """
        pretrainings: dict[str, Estimate] = {}
        fine_tunings: dict[tuple[Any, ...], Estimate] = {}
        estimates: list[Estimate] = []
        taggers = 0
        with tempfile.TemporaryDirectory() as directory:
            for arm in self.table.arms:
                source = self.table.arm(arm.pretrained_as or arm.name)
                arguments = self.pretraining(source, self.budget.seeds[0])
                if source.name not in pretrainings:
                    pretrainings[source.name] = estimate_pretraining(arguments, end_training=False)
                    estimates += [pretrainings[source.name]] * len(self.budget.seeds)
                start = Path(directory) / source.name
                if not start.exists():  # an untrained model takes as long
                    build_model(arguments, self.tokenizer, print).save_pretrained(start)
                    save_tokenizer(self.tokenizer, start)
                fine_tuned = [column for column in self.columns if not combination_of(arm, column)]
                taggers += (len(self.columns) - len(fine_tuned)) * len(self.budget.seeds)
                for task in dict.fromkeys(column.task for column in fine_tuned):
                    kind = (task, *sorted(arm.finetuning.items()), pretrainings[source.name].model_bytes)
                    if kind not in fine_tunings:
                        own = self.finetuning(task, 0, 1e-4, str(start), str(self.root), **arm.finetuning)
                        timed = estimate_fine_tuning(own, self.data[task], save_model=False, end_training=False)
                        fine_tunings[kind] = dataclasses.replace(timed, model_bytes=0, cache_bytes=0)
                    runs = len(self.rate_jobs(arm, task)) + len(self.budget.seeds)
                    estimates += [fine_tunings[kind]] * runs
        timed_steps = sum(timed.timed_steps for timed in (*pretrainings.values(), *fine_tunings.values()))
        note = f"not counted: {taggers} taggers on features" if taggers else ""
        summed = total(estimates, parallel=min(processes, len(estimates)))
        return dataclasses.replace(summed, timed_steps=timed_steps), note

    def column_results(self, task: str, data: Any, predictions: Any, directory: Path) -> dict[str, Any]:
        """Score the columns of a task and write every example's numbers."""
        raw, columns = data.raw["validation"], {}
        majority = majority_baseline(data.task, data.raw["train"], raw)
        scores = data.task.score(raw, predictions)
        for column in self.columns:
            if column.task == task:
                rows, function = data.task.example_rows(raw, predictions, column.metric)
                np.save(directory / f"{column.name}.npy", rows)
                scale = data.task.score_scale / 100
                columns[column.name] = {
                    "score": scale * scores[column.metric],
                    "majority": scale * majority[column.metric],
                    "function": function,
                }
        return columns

    def report(self) -> None:
        """Judge, write and print; raise DivergenceError if an arm diverged."""
        evidence = Evidence(self.root, self.table, self.columns, self.budget.seeds)
        facts = {"hardware": hardware(best_device()), "versions": versions()}
        with lock(self.root / ".report", wait=True):
            text = write_report(evidence, self.settings, facts)
        files = ("results.json", "results.md", "differences.png", "scores.png")
        print(f"\n{text}\n{self.root}: {', '.join(file for file in files if (self.root / file).is_file())}")
        if diverged := evidence.diverged():
            raise DivergenceError(
                f"{len(diverged)} runs diverged, the first {diverged[0]}; all others are finished and judged. "
                "Start again in another output_dir with --learning_rates lower, or a longer warm-up"
            )


if __name__ == "__main__":
    main()

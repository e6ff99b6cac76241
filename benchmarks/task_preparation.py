"""Rows of a task to features: MNLI's pairs and SQuAD's windows, one core, against the example scripts' way.

    python benchmarks/task_preparation.py --task mnli [--data_dir DIR]

The other side does what transformers' run_glue.py and run_qa.py do: `map` with the fast tokenizer, truncation, for
SQuAD windows from return_overflowing_tokens and a loop that finds the answers' tokens; no padding. By default the data
are generated, as many rows as the task's train split has; the other side takes a part, its time scaled. The time of a
second run, in which our features come from the cache, is reported too.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from generated_text import TextGenerator
from harness import record
from one_core import compare_with_part, use_one_core

from hfbert_scratch.tasks import FeatureSettings, get_task
from hfbert_scratch.tasks.files.data import DataArguments
from hfbert_scratch.text.tokenizer import load_tokenizer, train_wordpiece
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.errors import InputError, command_line


# Rows of the train splits (GLUE's and SQuAD's papers), the scripts' and the paper's sequence lengths.
ROWS = {"mnli": 392_702, "squad": 87_599}
LENGTHS = {"mnli": 128, "squad": 384}
_STRIDE = 128
# SQuAD asks 4.6 questions a paragraph of five sentences.
_QUESTIONS = 5


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The command line."""

    task: str = argument("mnli", help="mnli or squad")
    data_dir: str = argument("", help="directory with the task's train split; default: generated rows")
    tokenizer: str = argument("", help="directory of a tokenizer; default: one trained on generated text")
    rows: int = argument(0, help="rows to generate; 0: as many as the train split has")
    theirs_share: float = argument(0.05, help="part of the rows the other side prepares")
    pairs: int = argument(3, help="timings of each side")

    def __post_init__(self) -> None:
        if self.task not in ROWS:
            raise InputError(f"task is {self.task!r}; it must be one of {', '.join(ROWS)}")


def generated_mnli(rows: int) -> Iterator[dict[str, Any]]:
    """Pairs as long as MNLI's."""
    generator = TextGenerator()
    premises, hypotheses = generator.sentences(rows, words=17), generator.sentences(rows, words=9, spread=0.4)
    for number, (premise, hypothesis) in enumerate(zip(premises, hypotheses, strict=True)):
        yield {"premise": premise, "hypothesis": hypothesis, "label": number % 3}


def generated_squad(rows: int) -> Iterator[dict[str, Any]]:
    """Questions about paragraphs of some 120 words; the answers are words from the middle of a sentence."""
    generator = TextGenerator()
    questions = generator.sentences(rows, words=10, spread=0.3)
    for first in range(0, rows, _QUESTIONS):
        sentences = generator.sentences(_QUESTIONS, words=22)
        context = " ".join(sentences)
        for number in range(first, min(first + _QUESTIONS, rows)):
            sentence = sentences[number - first]
            answer = " ".join(sentence.rstrip(".").split()[1:4])
            answers = {"text": [answer], "answer_start": [context.index(sentence) + sentence.index(answer)]}
            row = {"id": str(number), "title": "", "context": context, "question": questions[number]}
            yield row | {"answers": answers}


def glue_way(rows: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
    """Tokenization as in run_glue.py."""

    def preprocess(batch: dict[str, list]) -> Any:
        return tokenizer(batch["premise"], batch["hypothesis"], max_length=LENGTHS["mnli"], truncation=True)

    return rows.map(preprocess, batched=True, load_from_cache_file=False)


def question_answering_way(rows: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
    """Windows and answer positions as in run_qa.py."""

    def preprocess(batch: dict[str, list]) -> Any:
        encoded = tokenizer(
            [question.lstrip() for question in batch["question"]],
            batch["context"],
            truncation="only_second",
            max_length=LENGTHS["squad"],
            stride=_STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        encoded["start_positions"], encoded["end_positions"] = [], []
        examples, offsets_of = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        for window, (example, offsets) in enumerate(zip(examples, offsets_of, strict=True)):
            answers = batch["answers"][example]
            begin = answers["answer_start"][0]
            end = begin + len(answers["text"][0])
            segments = encoded.sequence_ids(window)
            first = segments.index(1)
            last = len(segments) - 1 - segments[::-1].index(1)
            if offsets[first][0] > begin or offsets[last][1] < end:
                first = last = 0
            else:
                while first < len(offsets) and offsets[first][0] <= begin:
                    first += 1
                while offsets[last][1] >= end:
                    last -= 1
                first, last = first - 1, last + 1
            encoded["start_positions"].append(first)
            encoded["end_positions"].append(last)
        return encoded

    return rows.map(preprocess, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Two splits of the same rows, since a task wants one to validate on."""
    path.mkdir()
    with open(path / "train.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@command_line
def main() -> None:
    """Compare and record."""
    arguments = parse_arguments(BenchmarkArguments, description=__doc__)
    use_one_core()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if not arguments.data_dir:
            make = {"mnli": generated_mnli, "squad": generated_squad}[arguments.task]
            write_rows(directory / "data", make(arguments.rows or ROWS[arguments.task]))
        if arguments.tokenizer:
            tokenizer = load_tokenizer(arguments.tokenizer)
        else:
            tokenizer = train_wordpiece(TextGenerator().sentences(40_000), vocab_size=30_522)
        task = get_task(arguments.task)
        raw = task.load(DataArguments(data_dir=arguments.data_dir or str(directory / "data")))["train"]
        part = raw.select(range(max(1, int(len(raw) * arguments.theirs_share))))
        runs = iter(range(arguments.pairs + 1))

        def prepare(run: int) -> datasets.Dataset:
            settings = FeatureSettings(
                max_seq_length=LENGTHS[arguments.task], doc_stride=_STRIDE, cache_dir=str(directory / f"cache-{run}")
            )
            return task.features(raw, tokenizer, settings, training=True)

        theirs = glue_way if arguments.task == "mnli" else question_answering_way
        result = compare_with_part(
            lambda: prepare(next(runs)), lambda: theirs(part, tokenizer), arguments.pairs, len(raw) / len(part)
        )
        start = time.perf_counter()
        features = prepare(0)
        result |= {
            "second_run_seconds": time.perf_counter() - start,
            "rows": len(raw),
            "features": len(features),
            "rows_per_second": len(raw) / result["ours_seconds"],
            "theirs_rows_per_second": len(raw) / result["theirs_seconds"],
        }
        kind = "own data" if arguments.data_dir else "generated data"
    record(f"task preparation, {arguments.task}, {kind}, against the example script's way", result)


if __name__ == "__main__":
    main()

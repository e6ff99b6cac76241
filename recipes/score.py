# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Score sentences with a language model, without training: minimal pairs (BLiMP), or the sentences of a file.

    hfbert score --model runs/pretrain/model --pairs data/blimp/*.jsonl \\
        --output_dir runs/blimp
    hfbert score --model runs/pretrain/model --text sentences.txt \\
        --output_dir runs/scores

A masked language model scores a sentence by masking one token at a time (pll), or the rest of its word as well
(within_word_l2r); a left-to-right model by the probability of each token after the ones before it. Of a minimal pair
the acceptable sentence must score higher; a tie is wrong.

--pairs: .jsonl with sentence_good and sentence_bad, grouped by UID, or else by file. Leaves results.json (the accuracy
of each group, and their mean) and scores/<file>.jsonl in output_dir. --text: one sentence a line. Killed at any
moment, the same command continues with the file it was at.

Supports: our checkpoints and stock bert's, with their masked-LM head; CPU or one GPU; float32 and bfloat16.
Does not support: other architectures; several processes (give each its own files and output_dir).

Exit codes: 0 done, 2 unusable input, 6 another scoring's directory, 7 output.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfbert_scratch.scoring import (
    METHODS,
    MinimalPair,
    SentenceScore,
    judge_pairs,
    open_language_model,
    read_minimal_pairs,
    resolve_method,
    score_sentences,
    summarize_pairs,
)
from hfbert_scratch.text.streams import read_lines
from hfbert_scratch.text.tokenizer import load_tokenizer, tokenizer_hash
from hfbert_scratch.training.accelerator import best_device
from hfbert_scratch.training.hardware.throughput import clock
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.directories import claim_directory
from hfbert_scratch.utils.environment import hardware, hub_commits, versions
from hfbert_scratch.utils.errors import InputError, command_line
from hfbert_scratch.utils.files import write_json, write_text, writing


@dataclass(kw_only=True)
class ScoringArguments:
    """The command line."""

    model: str = argument(help="directory or Hub name of a pretrained checkpoint")
    pairs: list[str] = argument([], help="files of minimal pairs, .jsonl as BLiMP's")
    text: str | None = argument(None, help="in place of --pairs: a file with one sentence a line")
    output_dir: str = argument(help="directory of the scores; started again with the same command, it continues")
    method: str | None = argument(
        None, help="how a masked model scores; default: pll, and left-to-right models by probability", choices=METHODS
    )
    precision: str = argument("float32", help="to compute in", choices=("float32", "bfloat16"))
    batch_tokens: int | None = argument(
        None, help="tokens in a forward pass; default: 2048 on a CPU, 16384 on a GPU", at_least=1
    )
    log_every: float = argument(10.0, help="seconds between progress lines", at_least=0)

    def __post_init__(self) -> None:
        if bool(self.pairs) == (self.text is not None):
            raise InputError("give either --pairs or --text")
        names = [Path(name).stem for name in self.pairs]
        if len(set(names)) < len(names):
            raise InputError("--pairs names two files of one name; their scores would overwrite each other")


class Progress:
    """Print how far the scoring is, every few seconds."""

    def __init__(self, total: int, done: int, every: float):
        self.total, self.before, self.done, self.every = total, done, done, every
        self.start = self.last = time.monotonic()

    def count(self, scores: Iterable[SentenceScore]) -> Iterator[SentenceScore]:
        """Pass on scores and count them."""
        for score in scores:
            self.done += 1
            now = time.monotonic()
            if now - self.last >= self.every or self.done == self.total:
                self.last = now
                rate = (self.done - self.before) / max(now - self.start, 1e-9)
                left = clock((self.total - self.done) / rate)
                print(f"{self.done}/{self.total} sentences, {rate:.0f} sentences/s, eta {left}", flush=True)
            yield score


@command_line
def main() -> None:
    """Read everything, open the model, score file by file."""
    arguments = parse_arguments(ScoringArguments, description=__doc__)
    pairs = {Path(name).stem: read_minimal_pairs(Path(name)) for name in arguments.pairs}
    sentences = read_sentences(Path(arguments.text)) if arguments.text else []
    tokenizer = load_tokenizer(arguments.model)
    device = best_device()
    model = open_language_model(arguments.model, device, getattr(torch, arguments.precision))
    method = resolve_method(model, arguments.method)
    directory = Path(arguments.output_dir)
    settings = dataclasses.asdict(arguments) | {"method": method, "tokenizer": tokenizer_hash(tokenizer)}
    for name in ("output_dir", "log_every", "batch_tokens"):
        del settings[name]
    claim_directory(directory, settings, "scores")

    def score(texts: Iterable[str]) -> Iterator[SentenceScore]:
        return score_sentences(model, tokenizer, texts, method=arguments.method, batch_tokens=arguments.batch_tokens)

    results: dict[str, Any] = {
        "model": arguments.model,
        "method": method,
        "precision": arguments.precision,
        "hardware": hardware(device),
        "versions": versions(),
        "from_hub": hub_commits(),
    }
    if arguments.text:
        progress = Progress(len(sentences), 0, arguments.log_every)
        rows = describe_scores(sentences, list(progress.count(score(sentences))), tokenizer)
        write_rows(directory / "scores" / f"{Path(arguments.text).stem}.jsonl", rows)
        results |= {"sentences": len(rows), "perplexity": perplexity(rows)}
    else:
        results |= evaluate_pairs(arguments, directory, pairs, score)
    write_json(directory / "results.json", results)
    print(f"{directory}: results.json, scores/")


def read_sentences(path: Path) -> list[str]:
    """Read a file of one sentence a line; refuse one without any."""
    if not path.is_file():
        raise InputError(f"--text {path}: no such file")
    sentences = [line.strip() for _, line in read_lines(path, None) if line.strip()]
    if not sentences:
        raise InputError(f"--text {path} holds no sentence")
    return sentences


def evaluate_pairs(
    arguments: ScoringArguments, directory: Path, pairs: dict[str, list[MinimalPair]], score: Any
) -> dict[str, Any]:
    """Score the files that have no scores yet; return the summary of all of them and print it."""
    files = {name: directory / "scores" / f"{name}.jsonl" for name in pairs}
    finished = {name for name, path in files.items() if path.is_file()}
    sizes = {name: 2 * len(own) for name, own in pairs.items()}
    progress = Progress(sum(sizes.values()), sum(sizes[name] for name in finished), arguments.log_every)
    for name, own in pairs.items():
        if name not in finished:
            texts = itertools.chain.from_iterable((pair.good, pair.bad) for pair in own)
            try:
                scores = list(progress.count(score(texts)))
            except InputError as error:
                raise InputError(f"{name}: {error} (sentences are counted good, bad, good, bad …)") from None
            write_rows(files[name], judge_pairs(own, scores))
    by_file = {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in files.items()
    }
    summary = summarize_pairs(itertools.chain.from_iterable(by_file.values()))
    for name, group in summary["groups"].items():
        ties = f", {group['ties']} ties" if group["ties"] else ""
        print(f"{100 * group['accuracy']:5.1f} %  {name} ({group['pairs']} pairs{ties})")
    print(f"{100 * summary['accuracy']:5.1f} %  mean of {len(summary['groups'])} groups; chance is 50 %")
    return summary | {"files": {name: summarize_pairs(rows)["accuracy_of_pairs"] for name, rows in by_file.items()}}


def describe_scores(sentences: list[str], scores: list[SentenceScore], tokenizer: Any) -> list[dict[str, Any]]:
    """Return a row for each sentence: its score and its tokens' scores."""
    return [
        {"sentence": sentence, "score": score.total}
        | {"tokens": tokenizer.convert_ids_to_tokens(score.input_ids.tolist())}
        | {"log_probabilities": [round(float(value), 5) for value in score.log_probabilities]}
        for sentence, score in zip(sentences, scores, strict=True)
    ]


def perplexity(rows: list[dict[str, Any]]) -> float:
    """Return exp(−mean log-probability of a token): of a masked model the pseudo-perplexity."""
    tokens = sum(len(row["tokens"]) for row in rows)
    return math.exp(-sum(row["score"] for row in rows) / tokens)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()

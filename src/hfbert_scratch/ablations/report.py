"""Judge the arms of a table by their finished runs: gates, paired differences, verdicts, Markdown and pictures."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.bootstrap import CONFIDENCE, ExampleScores, PairedDifference, paired_bootstrap
from ..utils.files import write_json, write_text
from ..utils.plots import draw_arms, draw_bands, draw_differences
from ..utils.quantities import mean_and_deviation
from .arms import Arm, Column, Table
from .jobs import results_of


RULE = f"""Decision rule, fixed before the first run:
1. Gates. An arm is compared only if each of its pretrainings has a lower held-out loss than counts of single tokens,
   and is more accurate than counts of neighbouring tokens are on the same predictions; and on a task only if its mean
   score there is above that of the most frequent answer.
2. Two arms differ on a task if the {CONFIDENCE:.0%} interval of their paired difference, by a bootstrap over seeds and
   examples, excludes 0; on the whole, if that of the mean difference over the tasks does. Nothing is corrected for the
   number of comparisons: of twenty that are undecided in truth, one will seem decided.
3. Otherwise the comparison is undecided, and the number of seeds that would decide it is estimated from the parts of
   the variance: seeds lessen the one, only more examples the other.
Learning rates were chosen on a seed that is not reported. Scores are of the last step on the validation data."""


def pretraining_directory(root: Path, arm: Arm, seed: int) -> Path:
    """Return the directory of an arm's pretraining, which may be another arm's."""
    return root / (arm.pretrained_as or arm.name) / f"seed{seed}" / "pretraining"


def task_directory(root: Path, arm: Arm, seed: int, column: Column) -> Path:
    """Return the directory of an arm's run on the task of a column; columns of one task share it."""
    return root / arm.name / f"seed{seed}" / (f"{column.task}_features" if column.combination else column.task)


class Evidence:
    """The finished runs of a table.

    Args:
        root: the directory of all runs.
        table: its arms.
        columns: the columns that were run.
        seeds: the reported ones.
    """

    def __init__(self, root: Path, table: Table, columns: Sequence[Column], seeds: Sequence[int]):
        self.root, self.table, self.columns, self.seeds = root, table, list(columns), list(seeds)
        self.pretrainings = {
            arm.name: [results_of(pretraining_directory(root, arm, seed)) for seed in seeds] for arm in table.arms
        }
        self.runs = {
            (arm.name, column.name): [results_of(task_directory(root, arm, seed, column)) for seed in seeds]
            for arm in table.arms
            for column in columns
        }

    def diverged(self) -> list[str]:
        """Return the runs that diverged, with their reasons."""
        names = {
            f"{arm}, seed {seed}{place}": run["diverged"]
            for place, runs in (
                (" (pretraining)", {(arm, ""): runs for arm, runs in self.pretrainings.items()}),
                ("", self.runs),
            )
            for (arm, column), own in runs.items()
            for seed, run in zip(self.seeds, own, strict=True)
            if "diverged" in run
        }
        return [f"{name}: {reason}" for name, reason in names.items()]

    def scores(self, arm: str, column: Column) -> list[float]:
        """Return the score of every seed that did not diverge, in per cent."""
        return [100 * run["columns"][column.name]["score"] for run in self.runs[arm, column.name] if "columns" in run]

    def examples(self, arm: Arm, column: Column) -> ExampleScores:
        """Return the examples' rows of all seeds."""
        directories = [task_directory(self.root, arm, seed, column) for seed in self.seeds]
        rows = np.stack([np.load(directory / f"{column.name}.npy") for directory in directories])
        return ExampleScores(rows, self.runs[arm.name, column.name][0]["columns"][column.name]["function"])

    def failed_gates(self, arm: Arm, column: Column) -> list[str]:
        """Say why an arm must not be compared on a column; empty if it may."""
        reasons = []
        for seed, run in zip(self.seeds, self.pretrainings[arm.name], strict=True):
            if "diverged" in run:
                reasons.append(f"{arm.name} diverged in pretraining with seed {seed}")
                continue
            start, counts = f"{arm.name}, seed {seed}: held-out", run["unigram"]["loss"]
            if not run["loss"] < counts:
                reasons.append(f"{start} loss {run['loss']:.3f}, counts of single tokens {counts:.3f}")
            accuracy, counts = 100 * run["accuracy"], 100 * run["bigram"]["accuracy"]
            if not accuracy > counts:
                reasons.append(f"{start} accuracy {accuracy:.1f} %, counts of neighbouring tokens {counts:.1f} %")
        runs = self.runs[arm.name, column.name]
        lost = [seed for seed, run in zip(self.seeds, runs, strict=True) if "diverged" in run]
        if lost:
            reasons.append(f"{arm.name} diverged on {column.name} with seed {', '.join(map(str, lost))}")
        else:
            mean = statistics.fmean(self.scores(arm.name, column))
            majority = 100 * runs[0]["columns"][column.name]["majority"]
            if not mean > majority:
                reasons.append(f"{arm.name} on {column.name}: {mean:.1f}, the most frequent answer {majority:.1f}")
        return reasons

    def all_failed_gates(self) -> list[str]:
        """Return the reasons of all arms and columns, each once."""
        reasons = [reason for arm in self.table.arms for c in self.columns for reason in self.failed_gates(arm, c)]
        return list(dict.fromkeys(reasons))

    def compare(self, ours: Arm, theirs: Arm) -> list[dict[str, Any]]:
        """Compare two arms on every column, and on the mean of those whose gates they pass."""
        rows, passed = [], []
        for column in self.columns:
            failed = [arm.name for arm in (ours, theirs) if self.failed_gates(arm, column)]
            row: dict[str, Any] = {"arm": ours.name, "against": theirs.name, "column": column.name}
            row["paper"] = None
            if column.name in ours.paper and column.name in theirs.paper:
                row["paper"] = round(ours.paper[column.name] - theirs.paper[column.name], 2)
            if failed:
                row["verdict"] = f"not compared: {' and '.join(failed)} did not pass the gates"
            else:
                pair = (self.examples(ours, column), self.examples(theirs, column))
                passed.append((pair, row["paper"]))
                row |= _judged(paired_bootstrap([pair]))
            rows.append(row)
        if len(passed) > 1:
            papers = [paper for _, paper in passed]
            known = None not in papers
            rows.append(
                {"arm": ours.name, "against": theirs.name, "column": f"mean of {len(passed)}"}
                | {"paper": round(statistics.fmean(papers), 2) if known else None}
                | _judged(paired_bootstrap([pair for pair, _ in passed]))
            )
        return rows


def _judged(result: PairedDifference) -> dict[str, Any]:
    """Return a difference in points, its interval and the verdict."""
    if result.is_decided:
        verdict = f"decided: {'higher' if result.difference > 0 else 'lower'}"
    elif result.more_seeds is None:
        verdict = "undecided: too few examples for so small a difference, whatever the seeds"
    else:
        # The interval may touch 0 although the formula, which knows no draws, would just exclude it.
        seeds = max(result.more_seeds, 1)
        verdict = f"undecided: about {seeds} more {'seed' if seeds == 1 else 'seeds'}"
    points = {"difference": result.difference, "low": result.low, "high": result.high}
    return {name: round(100 * value, 3) for name, value in points.items()} | {
        "verdict": verdict,
        "more_seeds": result.more_seeds,
        "seeds": result.seeds,
    }


def write_report(evidence: Evidence, settings: dict[str, Any], facts: dict[str, Any]) -> str:
    """Write results.json, results.md and the pictures into the directory of the runs.

    Args:
        evidence: the finished runs.
        settings: of the runs.
        facts: further entries of results.json: hardware, versions.

    Returns:
        The Markdown.
    """
    table, root = evidence.table, evidence.root
    comparisons = [row for ours, theirs in table.pairs for row in evidence.compare(table.arm(ours), table.arm(theirs))]
    arms = {arm.name: _describe(evidence, arm) for arm in table.arms}
    text = markdown(evidence, comparisons)
    write_json(
        root / "results.json",
        {"title": table.title, "claim": table.claim, "rule": RULE, "settings": settings, "seeds": evidence.seeds}
        | facts
        | {"arms": arms, "comparisons": comparisons}
        | {"failed_gates": evidence.all_failed_gates(), "diverged": evidence.diverged()},
    )
    write_text(root / "results.md", text)
    _draw(evidence, comparisons)
    return text


def _describe(evidence: Evidence, arm: Arm) -> dict[str, Any]:
    columns = {}
    for column in evidence.columns:
        scores, runs = evidence.scores(arm.name, column), evidence.runs[arm.name, column.name]
        columns[column.name] = {
            "mean": statistics.fmean(scores) if scores else None,
            "std": statistics.stdev(scores) if len(scores) > 1 else None,
            "scores": scores,
            "majority": next((100 * r["columns"][column.name]["majority"] for r in runs if "columns" in r), None),
            "learning_rate": next((run["learning_rate"] for run in runs if "columns" in run), None),
            "paper": arm.paper.get(column.name),
        }
    return {"label": arm.label, "pretraining": evidence.pretrainings[arm.name], "columns": columns}


def markdown(evidence: Evidence, comparisons: Sequence[dict[str, Any]]) -> str:
    """Format the table of scores and the table of differences, each beside the paper's."""
    table, columns = evidence.table, evidence.columns
    lines = [
        f"## {table.title}",
        "",
        f"The paper: {table.claim}. Here: mean ± standard deviation over {len(evidence.seeds)} seeds on validation "
        "data; in brackets the paper's figure.",
        "",
        "| arm | held-out loss (perplexity) | " + " | ".join(column.name for column in columns) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for arm in table.arms:
        losses = [run["loss"] for run in evidence.pretrainings[arm.name] if "loss" in run]
        loss = f"{statistics.fmean(losses):.3f} ({np.exp(statistics.fmean(losses)):.1f})" if losses else "–"
        cells = [_cell(evidence.scores(arm.name, column), arm.paper.get(column.name)) for column in columns]
        lines.append(f"| {arm.label} | {loss} | {' | '.join(cells)} |")
    lines += [
        "",
        "| difference | on | points (95 % interval) | the paper's | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in comparisons:
        points = "–"
        if "difference" in row:
            points = f"{row['difference']:+.2f} ({row['low']:+.2f} … {row['high']:+.2f})"
        paper = "–" if row["paper"] is None else f"{row['paper']:+.1f}"
        lines.append(f"| {row['arm']} − {row['against']} | {row['column']} | {points} | {paper} | {row['verdict']} |")
    for heading, reasons in (("Gates", evidence.all_failed_gates()), ("Diverged", evidence.diverged())):
        if reasons:
            lines += ["", f"{heading}:", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(scores: Sequence[float], paper: float | None) -> str:
    if not scores:
        return "–"
    return mean_and_deviation(scores) + (f" ({paper:.1f})" if paper is not None else "")


def _draw(evidence: Evidence, comparisons: Sequence[dict[str, Any]]) -> None:
    root, table = evidence.root, evidence.table
    drawn = [
        row | {"label": f"{row['arm']} − {row['against']}, {row['column']}"}
        for row in comparisons
        if "difference" in row
    ]
    if drawn:
        draw_differences(drawn, root / "differences.png")
    if table.picture == "bars":
        scores = {c.name: {arm.label: evidence.scores(arm.name, c) for arm in table.arms} for c in evidence.columns}
        draw_arms(scores, root / "scores.png")
        return
    by_size = table.picture == "sizes"
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for column in evidence.columns:
        lines: dict[str, dict[float, list[float]]] = {}
        for arm in table.arms:
            run = next((run for run in evidence.pretrainings[arm.name] if "steps" in run), None)
            reached = evidence.scores(arm.name, column)
            if run is not None and reached:
                label = "ours" if by_size else arm.label.split(",")[0]
                place = run["parameters"] / 1e6 if by_size else round(arm.checkpoint * run["steps"])
                lines.setdefault(label, {})[place] = reached
        if lines:
            panels[column.name] = lines
    if panels:
        draw_bands(panels, "million parameters" if by_size else "steps of pretraining", root / "scores.png")

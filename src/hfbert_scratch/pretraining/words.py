"""Checkpoints at word counts: the steps after which a run has seen so many words."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..corpus.mixture import Mixture
from ..utils.errors import InputError
from .arguments import Phase


def word_count(text: str) -> int:
    """Return the number of words that "10M", "500k" or "20000" names; raise InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text)
    if match is None or not float(match[1]):
        raise InputError(f"checkpoint_words has {text!r}; write word counts as 1M, 500k or 20000")
    return round(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]])


def steps_of_words(counts: Sequence[str], phases: Sequence[Phase], mixture: Mixture, tokenizer: Any) -> dict[int, str]:
    """Find the optimizer steps after which a run has seen given numbers of words.

    A word is a token that begins one and has a letter or a digit. How many words a step has is the average over the
    corpora, so that the steps are known before the run and are the same for every seed.

    Args:
        counts: as `word_count` reads them.
        phases: of the run.
        mixture: its corpora.
        tokenizer: of the corpora.

    Returns:
        Step → count, as it was given.

    Raises:
        InputError: for a count beyond the run, or two that fall on one step.
    """
    if not counts:
        return {}
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    begins = [p not in special and not p.startswith("##") and any(map(str.isalnum, p)) for p in pieces]
    tokens = mixture.split("train").token_counts(len(tokenizer))
    share = tokens[np.array(begins)].sum() / max(1, tokens.sum())
    steps: dict[int, str] = {}
    for count in counts:
        left, step = float(word_count(count)), 0
        for phase in phases:
            # Three special tokens in a pair; contiguous text has two, a difference of less than a hundredth.
            length = mixture.mean_length(phase.max_seq_length) - 3
            a_step = phase.batch_size * max(1.0, length) * share
            here = min(phase.last_step - step, math.ceil(left / a_step))
            step, left = step + here, left - here * a_step
        if left > 0:
            seen = (word_count(count) - left) / 1e6
            raise InputError(f"checkpoint_words has {count}, and the run sees {seen:.2f}M words; leave it out")
        if step in steps:
            raise InputError(f"checkpoint_words {steps[step]} and {count} fall on one step, {step}; leave one out")
        steps[step] = count
    return steps

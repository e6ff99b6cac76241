# /// script
# requires-python = ">=3.11"
# dependencies = ["hfbert-scratch==0.1.0"]
# ///
"""Pretrain a BERT on a corpus: masked LM and next sentence prediction, from scratch or from a checkpoint.

    hfbert pretrain --config tiny --corpus runs/corpus --tokenizer runs/tokenizer \\
        --output_dir runs/pretrain

leaves in output_dir: model/ (opens with AutoModelForPreTraining, …ForMaskedLM and every other Auto class, with or
without this package), checkpoints/, log.jsonl, record.json, curves.png and the trackers' files. Killed at any moment,
the same command continues and ends with the same weights (on GPUs within rounding).

Supports: one CPU, one GPU, several processes and hosts, FSDP2 (recipes/accelerate, also on CPUs);
sequence lengths 128 then 512 in one run (--long_max_seq_length) or two (--model); more pretraining of a finished BERT
on a domain (--config continue --model … --also_evaluate …); AdamW and LAMB; the paper's ablations: no NSP, NSP pairs
without NSP's loss, left-to-right, other masking mixes, other sizes; LSTM language models as ELMo's (--architecture
lstm_pair), which open with this package only.
Does not support: FSDP1; FSDP2 with --compile true; model parallelism; precision below bfloat16.

Exit codes: 0 done, 2 unusable input, 5 diverged, 6 checkpoint, 7 output, 75 stopped by a signal or --max_time with a
checkpoint. `hfbert pretrain` passes them on from its processes; other launchers return 1 for all but 0: then read
`status` in record.json: "stopped", or unchanged after an error.
"""

import sys
from pathlib import Path

from hfbert_scratch.pretraining import PretrainingArguments, estimate_pretraining, pretrain
from hfbert_scratch.training.estimate import describe_estimate
from hfbert_scratch.utils.arguments import parse_arguments
from hfbert_scratch.utils.environment import is_first_process
from hfbert_scratch.utils.errors import STOPPED, command_line


CONFIGS = Path(__file__).parent / "configs"


@command_line
def main() -> None:
    """Parse, and run or estimate."""
    arguments = parse_arguments(PretrainingArguments, configs=CONFIGS, description=__doc__)
    if arguments.estimate:
        estimate = estimate_pretraining(arguments)
        if is_first_process():
            print(describe_estimate(estimate, arguments.price))
    elif not pretrain(arguments):
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()

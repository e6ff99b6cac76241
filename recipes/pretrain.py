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
checkpoint. `hfbert pretrain` passes them on from its processes; other launchers return 1 for all but 0, and
record.json then says "stopped" or nothing new.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from hfbert_scratch.corpus.mixture import Mixture
from hfbert_scratch.pretraining import (
    Phase,
    PretrainingArguments,
    PretrainingBatches,
    PretrainingEvaluation,
    build_model,
    full_length_inputs,
    loss_without_logits,
    steps_of_words,
    stretches_of,
    weigh_next_sentence,
)
from hfbert_scratch.text.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from hfbert_scratch.training.arguments import AUTO
from hfbert_scratch.training.batches import local_micro_batches
from hfbert_scratch.training.estimate import Estimate, Rehearsal, describe_estimate, time_steps
from hfbert_scratch.training.hardware.throughput import clock, model_flops_per_token
from hfbert_scratch.training.loop import evaluate_between_steps, prepare, train
from hfbert_scratch.training.micro_batches import fit_micro_batch_size
from hfbert_scratch.training.run import Run
from hfbert_scratch.utils.arguments import parse_arguments
from hfbert_scratch.utils.environment import hardware
from hfbert_scratch.utils.errors import STOPPED, command_line
from hfbert_scratch.utils.plots import LiveCurves, draw_curves
from hfbert_scratch.utils.quantities import count_text


AnyRun = TypeVar("AnyRun", bound=Run)
CONFIGS = Path(__file__).parent / "configs"
# Batches of each process on which --estimate times an evaluation.
TIMED_BATCHES = 8


def flops_per_token(arguments: PretrainingArguments, model: Any, mean_length: float) -> float:
    """Return the useful FLOPs of a token in training."""
    if arguments.architecture == "lstm_pair":
        return model.flops_per_token()
    return model_flops_per_token(model.config, mean_length, _predicted_share(arguments))


def derived_quantities(arguments: PretrainingArguments, run: Run, model: Any, mixture: Mixture) -> dict[str, Any]:
    """Derive quantities from the arguments before the first step: sizes, totals, FLOPs, device."""
    tokens_per_step = arguments.batch_size * mixture.mean_length(arguments.max_seq_length)
    flops = flops_per_token(arguments, model, arguments.max_seq_length)
    peak, source = run.peak
    totals: dict[str, Any] = {}
    if arguments.schedule == "steps":  # a schedule by time has as many steps as the time holds
        tokens = tokens_per_step * arguments.max_steps
        totals = {
            "total_tokens": round(tokens),
            "epochs": epochs_of(mixture, tokens),
            "total_flops": flops * tokens,
            "seconds_at_peak": round(flops * tokens / peak / run.accelerator.num_processes, 1),
        }
    return totals | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_step": round(tokens_per_step),
        "model_flops_per_token": round(flops),
        "peak_flops": peak,
        "peak_source": source,
        "device": hardware(run.device),
        "precision": run.precision,
        "attention": model.config._attn_implementation,
    }


def epochs_of(mixture: Mixture, tokens: float) -> float | dict[str, float]:
    """Return the passes over the corpus in so many tokens; of several corpora, by name."""
    epochs = mixture.epochs(tokens)
    return epochs if len(epochs) > 1 else next(iter(epochs.values()))


def _predicted_share(arguments: PretrainingArguments) -> float:
    return 1.0 if arguments.left_to_right else arguments.masked_lm_prob


@command_line
def main() -> None:
    """Parse, open, run."""
    if not run_pretraining(parse_arguments(PretrainingArguments, configs=CONFIGS, description=__doc__)):
        sys.exit(STOPPED)


def run_pretraining(arguments: PretrainingArguments, *, end_training: bool = True) -> bool:
    """Open corpus and tokenizer, and run or estimate; returns False when a signal or --max_time stopped it.

    Args:
        arguments: the command line.
        end_training: no other run follows in these processes.
    """
    return _with_inputs(Rehearsal if arguments.estimate else Run, arguments, end_training)[1]


def estimate_pretraining(arguments: PretrainingArguments, *, end_training: bool = True) -> Estimate:
    """Time steps of a run on this machine, with the arguments of `run_pretraining`, and write nothing."""
    return _with_inputs(Rehearsal, arguments, end_training)[0].estimate


def _with_inputs(kind: type[AnyRun], arguments: PretrainingArguments, end_training: bool) -> tuple[AnyRun, bool]:
    """Open corpus and tokenizer, and pretrain in a run of this kind; return it, and whether it is done."""
    tokenizer = load_tokenizer(arguments.tokenizer)
    longest = max(phase.max_seq_length for phase in arguments.phases())
    mixture = Mixture.open(arguments.corpus, tokenizer, longest, arguments.mixture_temperature)
    # A run belongs to the content of its inputs; where they lie may change.
    fingerprint = {"corpus": mixture.identity, "tokenizer": tokenizer_hash(tokenizer)}
    other = None
    if arguments.also_evaluate:
        other = Mixture.open([arguments.also_evaluate], tokenizer, arguments.phases()[-1].max_seq_length)
    with kind(arguments, fingerprint, end_training=end_training) as run:
        for corpus in mixture.corpora if arguments.whole_word else ():
            if note := corpus.whole_word_note(tokenizer):
                run.print(f"warning: {note}")
        return run, pretrain(run, arguments, mixture, tokenizer, other)


def pretrain(
    run: Run, arguments: PretrainingArguments, mixture: Mixture, tokenizer: Any, other: Mixture | None = None
) -> bool:
    """Build, train, save and record; returns whether the run got to its end. `other`: a corpus to evaluate as well."""
    phases = arguments.phases()
    documents = mixture.split("train")
    for phase in phases:  # options out of range are refused before anything is written
        arguments.mixed_sampler(documents, phase.max_seq_length)
        arguments.collator(tokenizer, phase.max_seq_length)
        if phase.micro_batch_size != AUTO:
            local_micro_batches(run.accelerator, phase.batch_size, phase.micro_batch_size)
    counts = [count.strip() for count in arguments.checkpoint_words.split(",") if count.strip()]
    revisions = {step: f"chck_{count}" for step, count in steps_of_words(counts, phases, mixture, tokenizer).items()}
    model = build_model(arguments, tokenizer, run.print)
    forward = loss_without_logits
    if arguments.next_sentence_weight != 1:
        forward = weigh_next_sentence(model, arguments.next_sentence_weight)
    model, optimizer, _ = prepare(run, model)
    unwrapped = run.accelerator.unwrap_model(model)
    evaluation = open_evaluation(run, arguments, mixture, tokenizer)
    also = None if other is None else open_evaluation(run, arguments, other, tokenizer)
    phases = fit_micro_batches(run, model, arguments, tokenizer, evaluation, forward)
    batches = PretrainingBatches(run, documents, tokenizer, phases, arguments, run.progress)
    run.best_by = ("eval_masked_lm_loss", min)
    derived = derived_quantities(arguments, run, unwrapped, mixture)
    describe(run, derived, evaluation.baseline)
    run.start_trackers()
    run.bar.show(score=evaluation.short({}))

    def save_extra(directory: Path) -> None:
        save_tokenizer(tokenizer, directory)

    how: dict[str, Any] = {
        "evaluate": lambda: evaluate(run, model, mixture, evaluation, also),
        "save_extra": save_extra,
        "flops_per_token": lambda length: flops_per_token(arguments, unwrapped, length),
        "forward": forward,
    }
    if isinstance(run, Rehearsal):
        evaluations = evaluation.times_longer(TIMED_BATCHES) * -(-arguments.max_steps // arguments.eval_every)
        how |= {
            "evaluate": lambda: evaluate(run, model, mixture, evaluation, also, TIMED_BATCHES),
            "evaluations": evaluations,
            "start_seconds": run.stopping.seconds(),
        }
        stretches = stretches_of(run, documents, tokenizer, phases, arguments)
        run.estimate = time_steps(run, model, optimizer, stretches, **how)
        if arguments.estimate:
            run.print(describe_estimate(run.estimate, arguments.price))
        return True
    if also is not None and not run.progress.step:
        run.log(evaluate_between_steps(model, how["evaluate"]))  # before anything is learnt, or forgotten
    curves = LiveCurves(lambda: draw_curves(run.history, evaluation.baseline, run.directory / "curves.png"))
    done = train(run, model, optimizer, batches, revisions=revisions, draw=curves, **how)
    if done:
        run.save_model(model, save_extra)
    if run.is_main:
        curves.draw()
    record(run, done, derived, evaluation, mixture, revisions)
    return done


def open_evaluation(
    run: Run, arguments: PretrainingArguments, mixture: Mixture, tokenizer: Any
) -> PretrainingEvaluation:
    """Make the evaluation on a mixture's held-out documents, at the length of the run's last phase."""
    return PretrainingEvaluation(
        run,
        mixture.split("train"),
        mixture.split("validation"),
        tokenizer,
        arguments,
        max_seq_length=arguments.phases()[-1].max_seq_length,
        batch_size=64,
        max_rows=arguments.eval_rows,
    )


def evaluate(
    run: Run,
    model: Any,
    mixture: Mixture,
    evaluation: PretrainingEvaluation,
    also: PretrainingEvaluation | None,
    batches: int | None = None,
) -> dict[str, float]:
    """Evaluate, on a second corpus too if there is one, and print; return the metrics of all.

    `batches`: on so many batches of each process; None: on all.
    """
    metrics = evaluation(model, batches)
    run.print(evaluation.describe(metrics))
    if len(mixture.names) > 1:
        run.print(f"epochs so far: {describe_epochs(mixture.epochs(run.progress.tokens))}")
    run.bar.show(score=evaluation.short(metrics))
    if evaluation.is_past_plateau(metrics) and not any(map(evaluation.is_past_plateau, run.history)):
        run.print("the unigram plateau is left: the model uses context")
    if also is not None:
        metrics |= {name.replace("eval_", "also_"): value for name, value in also(model, batches).items()}
        run.print(also.forgetting(run.history, metrics))
    return metrics


def fit_micro_batches(
    run: Run,
    model: Any,
    arguments: PretrainingArguments,
    tokenizer: Any,
    evaluation: PretrainingEvaluation,
    forward: Callable[[Any, dict[str, Any], dict[str, torch.Tensor]], Any],
) -> list[Phase]:
    """Find and record the largest micro-batch of each phase that has none; return all phases."""
    for phase in arguments.phases():
        if phase.micro_batch_size != AUTO:
            continue
        size = fit_micro_batch_size(
            run,
            model,
            phase.batch_size,
            lambda size, length=phase.max_seq_length: full_length_inputs(run, arguments, tokenizer, length, size),
            forward,
            lambda: evaluation(model, batches=1),
            f"sequences of {phase.max_seq_length} tokens",
        )
        name = f"{'long_' * (phase.max_seq_length == arguments.long_max_seq_length)}micro_batch_size"
        setattr(arguments, name, size)
        run.choose_micro_batch_size(size, name)
    return arguments.phases()


def record(
    run: Run,
    done: bool,
    derived: dict[str, Any],
    evaluation: PretrainingEvaluation,
    mixture: Mixture,
    revisions: dict[int, str],
) -> None:
    """Write record.json, and list the run's files."""
    results = next((entry for entry in reversed(run.history) if "eval_masked_lm_loss" in entry), {})
    before = next((entry for entry in run.history if "also_masked_lm_loss" in entry), None)
    if before is not None:  # both texts, before the first step
        results = results | {"before": {name: value for name, value in before.items() if name.endswith("_loss")}}
    past = next((entry["step"] for entry in run.history if evaluation.is_past_plateau(entry)), None)
    run.write_record(
        status="done" if done else "stopped",
        derived=derived,
        baseline=evaluation.baseline,
        revisions={name: step for step, name in revisions.items()},
        results=results | {"plateau_left_at_step": past, "best_step": run.best_step},
        corpus=mixture.describe(),
    )
    left = "model/" if done else "a checkpoint to continue from"
    left = f", {left}" if done or run.arguments.keep_checkpoints else ""
    run.print(f"{run.directory}: record.json, curves.png{left}")


def describe_epochs(epochs: dict[str, float]) -> str:
    """Name every corpus of a mixture with the passes over it."""
    return ", ".join(f"{name} {passes:g}" for name, passes in epochs.items())


def describe(run: Run, derived: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Print the derived quantities before the first step."""
    total = f"as many steps as {run.arguments.max_time:g} minutes hold"
    peak = f"peak {derived['peak_flops'] / 1e12:.2f} TFLOP/s ({derived['peak_source']})"
    if "total_tokens" in derived:
        epochs = derived["epochs"]
        epochs = f"epochs {describe_epochs(epochs)}" if isinstance(epochs, dict) else f"{epochs} epochs"
        total = f"{count_text(derived['total_tokens'])} tokens in all = {epochs}"
        peak = f"{derived['total_flops']:.2e} FLOPs, {clock(derived['seconds_at_peak'])} at the {peak}"
    run.print(
        f"{count_text(derived['parameters'], 2)} parameters, {derived['tokens_per_step']} tokens a step, {total}\n"
        f"{derived['device']}, {run.accelerator.num_processes} process(es), precision {run.settings['precision']}, "
        f"attention {derived['attention']}\n"
        f"{peak}\n"
        f"what token counts alone reach on the {baseline['rows']} held-out sequences: "
        f"MLM loss {baseline['loss']:.3f}, accuracy {100 * baseline['accuracy']:.1f} %"
    )


if __name__ == "__main__":
    main()

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

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError

from hfbert_scratch import HFBertConfig, HFBertForMaskedLM, HFBertForPreTraining
from hfbert_scratch.corpus.arguments import PretrainingDataArguments
from hfbert_scratch.corpus.mixture import Mixture
from hfbert_scratch.lstm import LSTMPairConfig, LSTMPairForPreTraining
from hfbert_scratch.model.loading import check_fits, check_memory, open_model
from hfbert_scratch.pretraining import (
    Phase,
    PretrainingBatches,
    PretrainingEvaluation,
    full_length_inputs,
    loss_without_logits,
    set_sinusoidal_positions,
    steps_of_words,
    stretches_of,
    weigh_next_sentence,
)
from hfbert_scratch.text.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from hfbert_scratch.training.arguments import AUTO, TrainingArguments
from hfbert_scratch.training.batches import local_micro_batches
from hfbert_scratch.training.estimate import Estimate, EstimateArguments, Rehearsal, describe_estimate, time_steps
from hfbert_scratch.training.loop import evaluate_between_steps, prepare, train
from hfbert_scratch.training.memory import fit_micro_batch_size
from hfbert_scratch.training.run import Run
from hfbert_scratch.training.throughput import clock, model_flops_per_token
from hfbert_scratch.utils.arguments import argument, parse_arguments
from hfbert_scratch.utils.environment import hardware
from hfbert_scratch.utils.errors import STOPPED, InputError, command_line, one_line
from hfbert_scratch.utils.plots import LiveCurves, draw_curves
from hfbert_scratch.utils.quantities import count_text


AnyRun = TypeVar("AnyRun", bound=Run)
CONFIGS = Path(__file__).parent / "configs"
# Batches of each process on which --estimate times an evaluation.
TIMED_BATCHES = 8


@dataclass(kw_only=True)
class PretrainingArguments(TrainingArguments, PretrainingDataArguments, EstimateArguments):
    """The command line."""

    corpus: list[str] = argument(
        help="directory written by hfbert corpus; several, each as DIRECTORY:WEIGHT, give every batch their shares"
    )
    mixture_temperature: float = argument(
        1.0, help="of several corpora without weights: their weights are tokens^(1/temperature)", above=0
    )
    tokenizer: str = argument(help="directory written by hfbert tokenizer; must be the corpus's")
    model: str | None = argument(
        None,
        help="checkpoint to start from, ours or stock bert: a directory, NAME or NAME@REVISION on the Hub; default: "
        "from scratch",
        group="model",
    )
    size: str = argument(
        "base", help="tiny, mini, small, medium, base, large; the next four change single numbers", group="model"
    )
    architecture: str = argument(
        "bert",
        help="bert, or lstm_pair: two LSTM language models, one for each direction, of hidden_size units and 2 layers "
        "by default, as ELMo's; implies left_to_right's data",
        group="model",
        choices=("bert", "lstm_pair"),
    )
    num_hidden_layers: int | None = argument(None, help="default: the size's", group="model")
    hidden_size: int | None = argument(None, help="default: the size's", group="model")
    num_attention_heads: int | None = argument(None, help="default: the size's", group="model")
    intermediate_size: int | None = argument(None, help="default: the size's", group="model")
    dropout: float = argument(
        0.1, help="of hidden states and attention probabilities", group="model", at_least=0, below=1
    )
    initializer_range: float = argument(0.02, help="standard deviation of the initial weights", group="model")
    sinusoidal_positions: bool = argument(
        False,
        help="start the learned position embeddings from the Transformer's sinusoids: small runs learn sooner",
        group="model",
    )
    max_position_embeddings: int = argument(512, help="longest sequence the model can ever take", group="model")
    max_seq_length: int = argument(
        128, help="tokens in a sequence, special ones included", group="sequences and pairs", at_least=5
    )
    long_max_seq_length: int = argument(
        0, help="length in the last part of the run (paper: 512); 0: no such part", group="sequences and pairs"
    )
    long_share: float = argument(
        0.1, help="share of the steps in that part (paper: 0.1)", group="sequences and pairs", above=0, below=1
    )
    long_micro_batch_size: int = argument(
        0, help="its sequences per forward pass; 0: as many tokens as before", group="sequences and pairs"
    )
    next_sentence_weight: float = argument(
        1.0,
        help="factor of NSP's loss; 0: the same segment pairs, masked LM alone learns",
        group="segment pairs",
        at_least=0,
        below=math.inf,
    )
    checkpoint_words: str = argument(
        "",
        help="word counts, as 1M,2M,10M: keep the model after so many words as revisions/chck_1M and so on, which "
        "hfbert publish can push as revisions",
        group="log, checkpoints, end",
    )
    eval_rows: int = argument(4096, help="held-out sequences per evaluation, always the same", at_least=1)
    also_evaluate: str | None = argument(
        None,
        help="another corpus of the same tokenizer, such as one of general text: its held-out loss is measured before "
        "step 1 and with every evaluation, with a warning when it rises",
    )

    def __post_init__(self) -> None:
        if self.architecture == "lstm_pair":
            self._prepare_for_lstms()
        super().__post_init__()
        PretrainingDataArguments.__post_init__(self)
        if self.no_nsp and self.next_sentence_weight != 1:
            raise InputError(
                f"next_sentence_weight {self.next_sentence_weight:g} has no meaning without next-sentence prediction; "
                "leave it out, or no_nsp and left_to_right"
            )
        self.check_price()
        longest = max(self.max_seq_length, self.long_max_seq_length)
        if longest > self.max_position_embeddings:
            raise InputError(
                f"max_seq_length {longest} exceeds max_position_embeddings {self.max_position_embeddings}; "
                "shorten the one or raise the other"
            )

    def _prepare_for_lstms(self) -> None:
        """Take the data of left-to-right training, and no way of training that is for attention."""
        for name in ("packing", "compile", "cuda_graphs"):
            if str(getattr(self, name)).lower() not in ("auto", "false"):
                raise InputError(f"{name} {getattr(self, name)} is not for architecture lstm_pair; leave it out")
            setattr(self, name, "false")
        if self.model:
            raise InputError("architecture lstm_pair starts from scratch; leave out model")
        self.left_to_right, self.attention = True, "eager"

    def phases(self) -> list[Phase]:
        """One stretch of the run, or two with the long sequences last."""
        if not self.long_max_seq_length:
            return [Phase(self.max_seq_length, self.batch_size, self.micro_batch_size, self.max_steps)]
        border = self.max_steps - round(self.long_share * self.max_steps)
        long_micro = self.long_micro_batch_size
        if not long_micro and self.micro_batch_size == AUTO:
            long_micro = AUTO
        elif not long_micro:
            long_micro = max(1, self.micro_batch_size * self.max_seq_length // self.long_max_seq_length)
        return [
            Phase(self.max_seq_length, self.batch_size, self.micro_batch_size, border),
            Phase(self.long_max_seq_length, self.batch_size, long_micro, self.max_steps),
        ]


def build_model(
    arguments: PretrainingArguments, tokenizer: Any, say: Callable[[str], None]
) -> HFBertForPreTraining | HFBertForMaskedLM | LSTMPairForPreTraining:
    """Open `--model`, naming the weights it lacks, or initialise a model from the seed."""
    model_class = HFBertForMaskedLM if arguments.no_nsp else HFBertForPreTraining
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), arguments.dropout)
    try:
        torch.manual_seed(arguments.seed)
        if arguments.model:
            overrides = {"left_to_right": arguments.left_to_right} | dropout
            model, new = open_model(model_class, arguments.model, overrides, new_head=False)
            check_fits(model, tokenizer, max(phase.max_seq_length for phase in arguments.phases()))
            load_tokenizer(arguments.tokenizer, model=arguments.model)  # compares the two vocabularies
            if new:
                say(f"warning: {arguments.model} has no {', '.join(new)}; they start from random numbers")
            if any("seq_relationship" in name for name in new):
                say("warning: --no_nsp true trains masked LM alone, as the checkpoint was perhaps trained")
            return model
        if arguments.architecture == "lstm_pair":
            return build_lstms(arguments, tokenizer)
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        overrides = {name: value for name in names if (value := getattr(arguments, name)) is not None}
        if "hidden_size" in overrides:
            overrides = {"intermediate_size": 4 * overrides["hidden_size"]} | overrides
        config = HFBertConfig.from_size(
            arguments.size,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=arguments.initializer_range,
            max_position_embeddings=arguments.max_position_embeddings,
            left_to_right=arguments.left_to_right,
            **dropout,
            **overrides,
        )
        with torch.device("meta"):
            check_memory(model_class(config), "this size")
        # Ablations are paired: without next-sentence prediction the other weights start the same.
        model: Any = HFBertForPreTraining(config)
        if arguments.no_nsp:
            whole, model = model, HFBertForMaskedLM(config)
            model.load_state_dict(whole.state_dict(), strict=False)
        if arguments.sinusoidal_positions:
            set_sinusoidal_positions(model, 2 * arguments.initializer_range)
        return model
    except InputError:
        raise
    except (ValueError, OSError, StrictDataclassError) as error:
        raise InputError(f"no such model can be made: {one_line(error)}") from error


def build_lstms(arguments: PretrainingArguments, tokenizer: Any) -> LSTMPairForPreTraining:
    """Initialise the two LSTM language models."""
    config = LSTMPairConfig(
        vocab_size=len(tokenizer),
        lstm_size=arguments.hidden_size or HFBertConfig.from_size(arguments.size).hidden_size,
        num_hidden_layers=arguments.num_hidden_layers or 2,
        hidden_dropout_prob=arguments.dropout,
        initializer_range=arguments.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        check_memory(LSTMPairForPreTraining(config), "this size")
    return LSTMPairForPreTraining(config)


def flops_per_token(arguments: PretrainingArguments, model: Any, mean_length: float) -> float:
    """Return the useful FLOPs of a token in training."""
    if arguments.architecture == "lstm_pair":
        return model.flops_per_token()
    return model_flops_per_token(model.config, mean_length, _predicted_share(arguments))


def derived_quantities(arguments: PretrainingArguments, run: Run, model: Any, mixture: Mixture) -> dict[str, Any]:
    """Compute what follows from the arguments before the first step: sizes, totals, FLOPs, device."""
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


def run_pretraining(arguments: PretrainingArguments, *, last: bool = True) -> bool:
    """Open corpus and tokenizer, and run or estimate; returns False when a signal or --max_time stopped it.

    Args:
        arguments: the command line.
        last: no other run follows in these processes.
    """
    return _with_inputs(Rehearsal if arguments.estimate else Run, arguments, last)[1]


def estimate_pretraining(arguments: PretrainingArguments, *, last: bool = True) -> Estimate:
    """Time steps of a run on this machine, and write nothing; the arguments are those of `run_pretraining`."""
    return _with_inputs(Rehearsal, arguments, last)[0].estimate


def _with_inputs(kind: type[AnyRun], arguments: PretrainingArguments, last: bool) -> tuple[AnyRun, bool]:
    """Open corpus and tokenizer, and make a run of this kind; returns it, and what `pretrain` returned."""
    tokenizer = load_tokenizer(arguments.tokenizer)
    longest = max(phase.max_seq_length for phase in arguments.phases())
    mixture = Mixture.open(arguments.corpus, tokenizer, longest, arguments.mixture_temperature)
    # A run belongs to the content of its inputs; where they lie may change.
    fingerprint = {"corpus": mixture.identity, "tokenizer": tokenizer_hash(tokenizer)}
    other = None
    if arguments.also_evaluate:
        other = Mixture.open([arguments.also_evaluate], tokenizer, arguments.phases()[-1].max_seq_length)
    with kind(arguments, fingerprint, last=last) as run:
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
    """Write record.json, and print what the run leaves."""
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
    """Print what is about to happen."""
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

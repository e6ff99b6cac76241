"""A pretraining run: open, train, evaluate, record; or say beforehand what it would take."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..corpus.mixture import Mixture
from ..text.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from ..training.arguments import AUTO
from ..training.batches import local_micro_batches
from ..training.estimate import Estimate, Rehearsal, time_steps
from ..training.hardware.throughput import clock, model_flops_per_token
from ..training.loop import evaluate_between_steps, prepare, train
from ..training.micro_batches import fit_micro_batch_size
from ..training.run import Run
from ..utils.environment import hardware
from ..utils.plots import LiveCurves, draw_curves
from ..utils.quantities import count_text
from .arguments import PretrainingArguments
from .batches import PretrainingBatches, full_length_inputs, stretches_of
from .evaluation import PretrainingEvaluation
from .model import MODEL_OPTIONS, build_model, loss_without_logits, take_from_checkpoint, weigh_next_sentence
from .words import steps_of_words


# Batches of each process on which an evaluation is timed.
_TIMED_BATCHES = 8


def pretrain(arguments: PretrainingArguments, *, end_training: bool = True) -> bool:
    """Pretrain a model, and write everything to output_dir.

    Args:
        arguments: corpus, tokenizer, model, hyperparameters, output_dir.
        end_training: no run follows in these processes.

    Returns:
        True at the end of the run. False when a signal or max_time ended it, which the same call then continues.

    Raises:
        InputError: for an unusable corpus, tokenizer or checkpoint, or options that do not fit them.
        CheckpointError: if output_dir holds a run that is not this one.
        DivergenceError: if the loss is no longer finite.
        OutputError: if output_dir cannot be written.
    """
    inputs = _Inputs.open(arguments)
    with Run(arguments, inputs.fingerprint, end_training=end_training) as run:
        return _Pretraining(run, arguments, inputs).train()


def estimate_pretraining(arguments: PretrainingArguments, *, end_training: bool = True) -> Estimate:
    """Time some steps of a pretraining run and a part of an evaluation, and write nothing.

    Args:
        arguments, end_training: as for `pretrain`.

    Returns:
        What the run would take on this machine.

    Raises:
        InputError: for an unusable corpus, tokenizer or checkpoint, or options that do not fit them.
    """
    inputs = _Inputs.open(arguments)
    with Rehearsal(arguments, inputs.fingerprint, end_training=end_training) as run:
        return _Pretraining(run, arguments, inputs).estimate(run)


@dataclass(frozen=True)
class _Inputs:
    """A run's tokenizer, the corpora it trains on, and, with also_evaluate, a second text to evaluate."""

    tokenizer: Any
    mixture: Mixture
    other: Mixture | None

    @classmethod
    def open(cls, arguments: PretrainingArguments) -> "_Inputs":
        tokenizer = load_tokenizer(arguments.tokenizer)
        lengths = [phase.max_seq_length for phase in arguments.phases()]
        mixture = Mixture.open(arguments.corpus, tokenizer, max(lengths), arguments.mixture_temperature)
        other = None
        if arguments.also_evaluate:
            other = Mixture.open([arguments.also_evaluate], tokenizer, lengths[-1])
        return cls(tokenizer, mixture, other)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The content of the inputs, to which a run belongs; where they lie may change."""
        return {"corpus": self.mixture.identity, "tokenizer": tokenizer_hash(self.tokenizer)}


class _Pretraining:
    """One run: training a model on a mixture of corpora, evaluated against token counts."""

    def __init__(self, run: Run, arguments: PretrainingArguments, inputs: _Inputs):
        self.run, self.arguments = run, arguments
        self.tokenizer, self.mixture = inputs.tokenizer, inputs.mixture
        self.documents = self.mixture.split("train")
        for corpus in self.mixture.corpora if arguments.whole_word else ():
            if note := corpus.whole_word_note(self.tokenizer):
                run.print(f"warning: {note}")
        if arguments.model:
            run.settings |= take_from_checkpoint(arguments, run.recorded)
        self._check_phases()
        self.revisions = self._revisions()
        model = build_model(arguments, self.tokenizer, run.print)
        self.forward = loss_without_logits
        if arguments.next_sentence_weight != 1:
            self.forward = weigh_next_sentence(model, arguments.next_sentence_weight)
        # A corpus without held-out documents is refused before anything is written, too.
        self.evaluation = self._open_evaluation(self.mixture)
        self.also = None if inputs.other is None else self._open_evaluation(inputs.other)
        self.model, self.optimizer, _ = prepare(run, model)
        self.unwrapped: Any = run.accelerator.unwrap_model(self.model)
        self._fit_micro_batches()
        run.best_by = ("eval_masked_lm_loss", min)
        self.derived = self._derived_quantities()
        run.print(self._plan())

    def train(self) -> bool:
        """Train to the end, or to a signal, and record; return whether the end was reached."""
        run = self.run
        batches = PretrainingBatches(
            run, self.documents, self.tokenizer, self.arguments.phases(), self.arguments, run.progress
        )
        run.start_trackers()
        run.bar.show(score=self.evaluation.short({}))
        if self.also is not None and not run.progress.step:
            run.log(evaluate_between_steps(self.model, self._evaluate))  # before anything is learnt, or forgotten
        curves = LiveCurves(self._draw_curves)
        done = train(
            run,
            self.model,
            self.optimizer,
            batches,
            evaluate=self._evaluate,
            revisions=self.revisions,
            draw=curves,
            **self._how(),
        )
        if done:
            run.save_model(self.model, self._save_extra)
        if run.is_main:
            curves.draw()
        self._record(done)
        return done

    def estimate(self, run: Rehearsal) -> Estimate:
        """Time some steps of every phase and a part of an evaluation."""
        evaluations = -(-self.arguments.max_steps // self.arguments.eval_every)
        return time_steps(
            run,
            self.model,
            self.optimizer,
            stretches_of(run, self.documents, self.tokenizer, self.arguments.phases(), self.arguments),
            evaluate=lambda: self._evaluate(_TIMED_BATCHES),
            evaluations=self.evaluation.times_longer(_TIMED_BATCHES) * evaluations,
            start_seconds=run.stopping.seconds_since_launch(),
            **self._how(),
        )

    def _how(self) -> dict[str, Any]:
        """The options of `train` that say how a step is made."""
        return {
            "save_extra": self._save_extra,
            "flops_per_token": self._flops_per_token,
            "forward": self.forward,
        }

    def _check_phases(self) -> None:
        """Refuse options out of range before anything is written."""
        for phase in self.arguments.phases():
            self.arguments.mixed_sampler(self.documents, phase.max_seq_length)
            self.arguments.collator(self.tokenizer, phase.max_seq_length)
            if phase.micro_batch_size != AUTO:
                local_micro_batches(self.run.accelerator, phase.batch_size, phase.micro_batch_size)

    def _revisions(self) -> dict[int, str]:
        """Return the names of the models to keep along the way, by step."""
        counts = [count.strip() for count in self.arguments.checkpoint_words.split(",") if count.strip()]
        steps = steps_of_words(counts, self.arguments.phases(), self.mixture, self.tokenizer)
        return {step: f"chck_{count}" for step, count in steps.items()}

    def _open_evaluation(self, mixture: Mixture) -> PretrainingEvaluation:
        """Make the evaluation on a mixture's held-out documents, at the length of the run's last phase."""
        return PretrainingEvaluation(
            self.run,
            mixture.split("train"),
            mixture.split("validation"),
            self.tokenizer,
            self.arguments,
            max_seq_length=self.arguments.phases()[-1].max_seq_length,
            batch_size=self.arguments.eval_batch_size,
            max_rows=self.arguments.eval_rows,
        )

    def _fit_micro_batches(self) -> None:
        """Find and record the largest micro-batch of each phase that has none."""
        a, run = self.arguments, self.run
        for name, phase in zip(("micro_batch_size", "long_micro_batch_size"), a.phases(), strict=False):
            if phase.micro_batch_size != AUTO:
                continue
            length = phase.max_seq_length
            size = fit_micro_batch_size(
                run,
                self.model,
                phase.batch_size,
                partial(full_length_inputs, run, a, self.tokenizer, length),
                self.forward,
                lambda: self.evaluation(self.model, batches=1),
                f"sequences of {length} tokens",
            )
            setattr(a, name, size)
            run.choose_micro_batch_size(size, name)

    def _flops_per_token(self, mean_length: float) -> float:
        """Return the useful FLOPs of a token in training."""
        if self.arguments.architecture == "lstm_pair":
            return self.unwrapped.flops_per_token()
        predicted_share = 1.0 if self.arguments.left_to_right else self.arguments.masked_lm_prob
        return model_flops_per_token(self.unwrapped.config, mean_length, predicted_share)

    def _derived_quantities(self) -> dict[str, Any]:
        """Derive quantities from the arguments before the first step: sizes, totals, FLOPs, device.

        Those of a step and of a token are means over the phases.
        """
        a, run = self.arguments, self.run
        tokens, flops, first_step = 0.0, 0.0, 0
        for phase in a.phases():
            mean_length = self.mixture.mean_length(phase.max_seq_length)
            phase_tokens = (phase.last_step - first_step) * phase.batch_size * mean_length
            tokens += phase_tokens
            flops += phase_tokens * self._flops_per_token(phase.max_seq_length)
            first_step = phase.last_step
        peak, source = run.peak
        totals: dict[str, Any] = {}
        if a.schedule == "steps":  # a schedule by time has as many steps as the time holds
            epochs = self.mixture.epochs(tokens)
            totals = {
                "total_tokens": round(tokens),
                "epochs": epochs if len(epochs) > 1 else next(iter(epochs.values())),
                "total_flops": flops,
                "seconds_at_peak": round(flops / peak / run.accelerator.num_processes, 1),
            }
        return totals | {
            "parameters": sum(parameter.numel() for parameter in self.unwrapped.parameters()),
            "tokens_per_step": round(tokens / a.max_steps),
            "model_flops_per_token": round(flops / tokens),
            "peak_flops": peak,
            "peak_source": source,
            "device": hardware(run.device),
            "precision": run.precision,
            "attention": self.unwrapped.config._attn_implementation,
        }

    def _plan(self) -> str:
        """Describe the derived quantities, and what token counts reach."""
        run, derived, baseline = self.run, self.derived, self.evaluation.baseline
        total = f"as many steps as {self.arguments.max_time:g} minutes hold"
        peak = f"peak {derived['peak_flops'] / 1e12:.2f} TFLOP/s ({derived['peak_source']})"
        if "total_tokens" in derived:
            epochs = derived["epochs"]
            epochs = f"epochs {_by_corpus(epochs)}" if isinstance(epochs, dict) else f"{epochs} epochs"
            total = f"{count_text(derived['total_tokens'])} tokens in all = {epochs}"
            peak = f"{derived['total_flops']:.2e} FLOPs, {clock(derived['seconds_at_peak'])} at the {peak}"
        return (
            f"{count_text(derived['parameters'], 2)} parameters, {derived['tokens_per_step']} tokens a step, {total}\n"
            f"{derived['device']}, {run.accelerator.num_processes} process(es), "
            f"precision {run.settings['precision']}, attention {derived['attention']}\n"
            f"{peak}\n"
            f"what token counts alone reach on the {baseline['rows']} held-out sequences: "
            f"MLM loss {baseline['loss']:.3f}, accuracy {100 * baseline['accuracy']:.1f} %"
        )

    def _evaluate(self, batches: int | None = None) -> dict[str, float]:
        """Evaluate, on a second corpus too if there is one, and print; return the metrics of all.

        `batches`: number of batches to evaluate on each process. None: all.
        """
        run, evaluation = self.run, self.evaluation
        metrics = evaluation(self.model, batches)
        run.print(evaluation.describe(metrics))
        if len(self.mixture.names) > 1:
            run.print(f"epochs so far: {_by_corpus(self.mixture.epochs(run.progress.tokens))}")
        run.bar.show(score=evaluation.short(metrics))
        if evaluation.is_past_plateau(metrics) and not any(map(evaluation.is_past_plateau, run.history)):
            run.print("the unigram plateau is left: the model uses context")
        if self.also is not None:
            other = self.also(self.model, batches)
            metrics |= {name.replace("eval_", "also_"): value for name, value in other.items()}
            run.print(self.also.forgetting(run.history, metrics))
        return metrics

    def _draw_curves(self) -> None:
        draw_curves(self.run.history, self.evaluation.baseline, self.run.directory / "curves.png")

    def _save_extra(self, directory: Path) -> None:
        save_tokenizer(self.tokenizer, directory)

    def _record(self, done: bool) -> None:
        """Write record.json, and list the run's files."""
        run, evaluation = self.run, self.evaluation
        results: dict[str, Any] = next((e for e in reversed(run.history) if "eval_masked_lm_loss" in e), {})
        before = next((entry for entry in run.history if "also_masked_lm_loss" in entry), None)
        if before is not None:  # both texts, before the first step
            results = results | {"before": {name: value for name, value in before.items() if name.endswith("_loss")}}
        past = next((entry["step"] for entry in run.history if evaluation.is_past_plateau(entry)), None)
        run.write_record(
            status="done" if done else "stopped",
            # Not what a run of 0.1.0 recorded of options that had no effect; a run that goes on is compared with that.
            settings=run.settings | {name: getattr(self.arguments, name) for name in MODEL_OPTIONS},
            derived=self.derived,
            baseline=evaluation.baseline,
            revisions={name: step for step, name in self.revisions.items()},
            results=results | {"plateau_left_at_step": past, "best_step": run.best_step},
            corpus=self.mixture.describe(),
        )
        left = "model/" if done else "a checkpoint to continue from"
        left = f", {left}" if done or self.arguments.keep_checkpoints else ""
        run.print(f"{run.directory}: record.json, curves.png{left}")


def _by_corpus(epochs: dict[str, float]) -> str:
    """Name every corpus of a mixture with the passes over it."""
    return ", ".join(f"{name} {passes:g}" for name, passes in epochs.items())

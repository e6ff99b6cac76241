"""Pretraining on top of the training loop: batches of a run, and evaluation against a unigram baseline."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .corpus.arguments import PretrainingDataArguments
from .corpus.masking import collate
from .corpus.mixture import MixedCursor, MixedSampler, Mixture, parts_of
from .corpus.segment_pairs import Cursor, Instances
from .model.kernels_hfbert import IGNORED_LABEL
from .model.layout_hfbert import pack
from .training.accelerator import sum_dtype
from .training.arguments import check_divides
from .training.batches import StepBatch, local_micro_batches
from .training.estimate import Stretch
from .training.run import Progress, Run
from .utils.errors import InputError


# A rise of the held-out loss on other text that is worth a warning, in nats: 5 % more perplexity.
FORGETTING = 0.05


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one sequence length.

    Args:
        max_seq_length: tokens of an instance, special ones included.
        batch_size: instances per optimizer step, over all processes.
        micro_batch_size: instances per forward pass; divides `batch_size`.
        last_step: optimizer steps of the run when the phase ends.
    """

    max_seq_length: int
    batch_size: int
    micro_batch_size: int
    last_step: int

    def __post_init__(self) -> None:
        check_divides(self.batch_size, self.micro_batch_size)


class PretrainingBatches:
    """Iterate over the optimizer steps of a run from `progress` on, through its phases.

    A batch is a function of the seed and the step. Every process samples the same global batches (spans, 40 bytes per
    instance) and gathers the token ids of its own micro-batches, a contiguous part of the global batch.

    Args:
        run: its device and options decide shapes, packing and the local micro-batches.
        documents: the train split of a corpus or a mixture.
        tokenizer: the corpus's.
        phases: in order.
        arguments: options of pairs and masks.
        progress: the steps done so far, and the cursor of a resumed run.

    Raises:
        InputError: if the processes cannot share a phase's micro-batches evenly.
    """

    def __init__(
        self,
        run: Run,
        documents: Any,
        tokenizer: Any,
        phases: list[Phase],
        arguments: PretrainingDataArguments,
        progress: Progress,
    ):
        self.phases = phases
        self.progress = progress
        # Shapes independent of the data suit devices that run ahead of the host, and compiled graphs. A CPU gains
        # nothing from them and would compute the padded predictions.
        self.static_shapes = run.device.type != "cpu" or bool(run.compile)
        self.pin = run.device.type == "cuda"
        self.packing = run.packing
        self.pad_token_id = tokenizer.pad_token_id
        self.samplers = [arguments.mixed_sampler(documents, phase.max_seq_length) for phase in phases]
        self.collators = [arguments.collator(tokenizer, phase.max_seq_length) for phase in phases]
        self.own = [local_micro_batches(run.accelerator, phase.batch_size, phase.micro_batch_size) for phase in phases]

    def __iter__(self) -> Iterator[StepBatch]:
        step, saved = self.progress.step, self.progress.cursor
        for number, phase in enumerate(self.phases):
            if step >= phase.last_step:
                continue
            start = saved["cursor"] if saved and saved["phase"] == number else None
            for instances, cursor in self._stream(number, start):
                yield self._step_batch(number, instances, cursor)
                step += 1
                if step == phase.last_step:
                    break

    def _stream(self, number: int, saved: list[Any] | None) -> Iterator[tuple[Instances, Cursor | MixedCursor]]:
        sampler, batch_size = self.samplers[number], self.phases[number].batch_size
        if isinstance(sampler, MixedSampler):
            return sampler.batches(batch_size, MixedCursor.restore(saved) if saved else None)
        return sampler.batches(batch_size, Cursor(*saved) if saved else None)

    def _step_batch(self, number: int, instances: Instances, cursor: Cursor | MixedCursor) -> StepBatch:
        phase, sampler, collator = self.phases[number], self.samplers[number], self.collators[number]
        first, share = self.own[number]
        own = instances[first * phase.micro_batch_size : (first + share) * phase.micro_batch_size]
        batch, lengths = collate(sampler, collator, own)
        if not self.static_shapes:
            batch.pop("masked_positions", None)
        counts = {"num_items_in_batch": int((batch["labels"] != IGNORED_LABEL).sum())}
        if "next_sentence_label" in batch:
            counts["num_sequences_in_batch"] = len(own)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
        splits = {name: tensor.split(phase.micro_batch_size) for name, tensor in tensors.items()}
        micro_batches = [{name: parts[index] for name, parts in splits.items()} for index in range(share)]
        if self.packing:
            shape = (phase.micro_batch_size, phase.max_seq_length)
            multiple_of = packed_multiple(*shape) if self.static_shapes else 1
            micro_batches = [pack(inputs, self.pad_token_id, multiple_of) for inputs in micro_batches]
        if self.pin:
            micro_batches = [pinned(inputs) for inputs in micro_batches]
        return StepBatch(
            micro_batches=micro_batches,
            start=first,
            counts=counts,
            num_tokens=int(lengths.sum()),
            squared_lengths=int((lengths.astype(np.int64) ** 2).sum()),
            cursor={"phase": number, "cursor": list(cursor)},
            examples={"epoch": instances.epoch.copy(), "index": instances.index.copy()},
        )


def stretches_of(
    run: Run, documents: Any, tokenizer: Any, phases: list[Phase], arguments: PretrainingDataArguments
) -> list[Stretch]:
    """Return the phases of the run as parts to time; the arguments are those of `PretrainingBatches`."""
    stretches, first = [], 0
    for phase in phases:
        batches = PretrainingBatches(run, documents, tokenizer, [phase], arguments, Progress(step=first))
        stretches.append(Stretch(first, phase.last_step - first, batches))
        first = phase.last_step
    return stretches


def loss_without_logits(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
    """Return a pretraining model's outputs without the logits, which training does not read."""
    return model(**inputs, **totals, skip_logits=True)


def weigh_next_sentence(model: Any, weight: float) -> Callable[..., Any]:
    """Return a forward for `train` whose loss is the masked-LM loss + `weight` · the next-sentence loss.

    With weight 0 the pooler and the next-sentence head are frozen as well: without a gradient they would still decay.
    The next-sentence loss is computed and reported with any weight.

    Args:
        model: a HFBertForPreTraining, not yet wrapped.
        weight: at least 0.
    """
    if weight == 0:
        model.bert.pooler.requires_grad_(False)
        model.cls.seq_relationship.requires_grad_(False)

    def forward(model: nn.Module, inputs: dict[str, Any], totals: dict[str, torch.Tensor]) -> Any:
        outputs = loss_without_logits(model, inputs, totals)
        outputs.loss = outputs.masked_lm_loss
        if weight:
            outputs.loss = outputs.loss + weight * outputs.next_sentence_loss
        return outputs

    return forward


@torch.no_grad()
def set_sinusoidal_positions(model: Any, scale: float) -> None:
    """Start the learned positions from `scale`·sin and `scale`·cos (Vaswani et al. 2017, section 3.5).

    A fixed offset is then a linear map from the first step on, so heads that look at neighbours form soon; otherwise
    small runs spend most of their steps on the unigram plateau.

    Args:
        model: a pretraining model of this package.
        scale: of the sinusoids.
    """
    table = model.bert.embeddings.position_embeddings.weight
    positions, width = table.shape
    angles = torch.arange(positions)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    table.copy_(scale * torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width])


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


def packed_multiple(rows: int, max_seq_length: int) -> int:
    """Return the multiple to round packed rows up to, so that their shapes are few: 1/32 of the padded batch's tokens.

    Half of a multiple is padding on average; a run with many sequences per batch sees two or three shapes.
    """
    return -(-rows * max_seq_length // 32)


def pinned(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copy tensors to pinned memory, from which a GPU copies without blocking the host."""
    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def full_length_inputs(
    run: Run, arguments: PretrainingDataArguments, tokenizer: Any, max_seq_length: int, size: int
) -> dict[str, Any]:
    """Make a micro-batch of `size` instances without padding, for measuring what one takes."""
    ids = np.full((size, max_seq_length), tokenizer.unk_token_id, dtype=np.int64)
    rows: dict[str, np.ndarray] = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "lengths": np.full(size, max_seq_length, dtype=np.int32),
        "epoch": np.zeros(size, dtype=np.int64),
        "index": np.arange(size, dtype=np.int64),
    }
    if not arguments.no_nsp:
        rows["next_sentence_label"] = np.zeros(size, dtype=np.int64)
    batch = arguments.collator(tokenizer, max_seq_length)(rows)
    if run.device.type == "cpu" and not run.compile:
        batch.pop("masked_positions", None)
    tensors: dict[str, Any] = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
    return pack(tensors, tokenizer.pad_token_id) if run.packing else tensors


def held_out_batches(
    documents: Any,
    tokenizer: Any,
    arguments: PretrainingDataArguments,
    max_seq_length: int,
    batch_size: int,
    max_rows: int,
) -> list[dict[str, np.ndarray]]:
    """Make the batches of held-out documents on which runs are compared: they do not depend on a run's seed.

    Args:
        documents: the validation split.
        tokenizer: the corpus's.
        arguments: options of pairs and masks; the seed is fixed to 0.
        max_seq_length: tokens of an instance.
        batch_size: instances of a batch.
        max_rows: most instances of all batches.
    """
    sampler = arguments.sampler(documents, max_seq_length, seed=0)
    collator = arguments.collator(tokenizer, max_seq_length, seed=0)
    batches: list[dict[str, np.ndarray]] = []
    rows = 0
    for instances, _ in sampler.batches(batch_size, epochs=1):
        instances = instances[: max_rows - rows]
        batch, _ = collate(sampler, collator, instances)
        batch.pop("masked_positions", None)
        batches.append(batch)
        rows += len(instances)
        if rows >= max_rows:
            break
    return batches


class PretrainingEvaluation:
    """Evaluate MLM and NSP on held-out documents, with the same instances and masks every time.

    `baseline` is the result of the training text's token counts on the same positions: the loss of predicting by
    frequency, and the accuracy of always answering the most frequent token. A model that uses context beats both.

    Args:
        run: its accelerator shares the batches among the processes.
        train_documents: the train split, for the baseline.
        documents: the validation split; of a mixture, every corpus has its share of the instances.
        tokenizer: the corpus's.
        arguments: options of pairs and masks; the seed is fixed to 0.
        max_seq_length: tokens of an instance.
        batch_size: instances per forward pass.
        max_rows: most instances to evaluate.
    """

    def __init__(
        self,
        run: Run,
        train_documents: Any,
        documents: Any,
        tokenizer: Any,
        arguments: PretrainingDataArguments,
        *,
        max_seq_length: int,
        batch_size: int,
        max_rows: int,
    ):
        self.run = run
        # Of a mixture, every corpus has its share of the rows.
        self.sources: list[str] = []
        self.batches: list[dict[str, torch.Tensor]] = []
        self._source_of_batch: list[int] = []
        rows = 0
        for number, (source, part, share) in enumerate(parts_of(documents)):
            most = max(1, round(share * max_rows))
            batches = held_out_batches(part, tokenizer, arguments, max_seq_length, batch_size, most)
            self.sources.append(source)
            self.batches += [
                {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
                for batch in batches
            ]
            self._source_of_batch += [number] * len(batches)
            rows += sum(len(batch["labels"]) for batch in batches)
        self.baseline = self._unigram_baseline(train_documents, len(tokenizer)) | {"rows": rows}

    def __call__(self, model: nn.Module, batches: int | None = None) -> dict[str, float]:
        """Evaluate `model`.

        Args:
            model: wrapped or not.
            batches: on so many batches of each process; None: on all.

        Returns:
            `eval_masked_lm_loss` (nats), `eval_perplexity`, `eval_masked_lm_accuracy`, and with next-sentence
            prediction `eval_next_sentence_loss` and `eval_next_sentence_accuracy`. For a mixture also
            `eval_masked_lm_loss_NAME` of every corpus.
        """
        accelerator = self.run.accelerator
        unwrapped = accelerator.unwrap_model(model)
        unwrapped.eval()
        sums = torch.zeros((len(self.sources), 6), dtype=sum_dtype(self.run.device), device=self.run.device)
        own = range(accelerator.process_index, len(self.batches), accelerator.num_processes)[:batches]
        with torch.no_grad(), accelerator.autocast():
            for place in own:
                inputs = {name: tensor.to(self.run.device) for name, tensor in self.batches[place].items()}
                sums[self._source_of_batch[place]] += self._sums(unwrapped, inputs)
        sums = accelerator.reduce(sums, reduction="sum")
        loss, right, count, pair_loss, pairs_right, pairs = sums.sum(0).tolist()
        metrics = {
            "eval_masked_lm_loss": loss / count,
            "eval_perplexity": math.exp(min(loss / count, 700.0)),
            "eval_masked_lm_accuracy": right / count,
        }
        if pairs:
            metrics["eval_next_sentence_loss"] = pair_loss / pairs
            metrics["eval_next_sentence_accuracy"] = pairs_right / pairs
        if len(self.sources) > 1:
            for name, (loss, _, count, *_) in zip(self.sources, sums.tolist(), strict=True):
                if count:
                    metrics[f"eval_masked_lm_loss_{name}"] = loss / count
        return metrics

    def times_longer(self, batches: int) -> float:
        """Return how many times longer the whole takes than an evaluation of `batches` batches on each process."""
        return max(1.0, len(self.batches) / (batches * self.run.accelerator.num_processes))

    def is_past_plateau(self, metrics: dict[str, float]) -> bool:
        """Tell whether the model clearly beats token counts: twice their accuracy, and half a nat less loss."""
        return (
            metrics.get("eval_masked_lm_accuracy", 0.0) >= 2 * self.baseline["accuracy"]
            and metrics["eval_masked_lm_loss"] <= self.baseline["loss"] - 0.5
        )

    def describe(self, metrics: dict[str, float]) -> str:
        """Describe the metrics beside the unigram baseline in one line."""
        times = metrics["eval_masked_lm_accuracy"] / max(self.baseline["accuracy"], 1e-9)
        text = (
            f"held-out: MLM loss {metrics['eval_masked_lm_loss']:.3f} (unigram {self.baseline['loss']:.3f}), "
            f"accuracy {100 * metrics['eval_masked_lm_accuracy']:.1f} % = {times:.1f} × unigram"
        )
        if "eval_next_sentence_accuracy" in metrics:
            text += f", NSP accuracy {100 * metrics['eval_next_sentence_accuracy']:.1f} %"
        keys = {name: f"eval_masked_lm_loss_{name}" for name in self.sources}
        parts = [f"{name} {metrics[key]:.3f}" for name, key in keys.items() if key in metrics]
        return text + (f"; MLM loss on {', '.join(parts)}" if parts else "")

    def short(self, metrics: dict[str, float]) -> str:
        """Describe the accuracy beside the unigram baseline in three words; `metrics` may be empty."""
        accuracy = metrics.get("eval_masked_lm_accuracy")
        shown = "?" if accuracy is None else f"{100 * accuracy:.1f} %"
        return f"accuracy {shown} (unigram {100 * self.baseline['accuracy']:.1f} %)"

    def forgetting(self, history: list[dict[str, Any]], now: dict[str, float]) -> str:
        """Compare another corpus's evaluation with the one before step 1.

        Args:
            history: the log so far.
            now: metrics of `also`.

        Returns:
            A line of text, a warning if the loss rose by more than FORGETTING.
        """
        loss = now["also_masked_lm_loss"]
        before = next((entry["also_masked_lm_loss"] for entry in history if "also_masked_lm_loss" in entry), loss)
        text = f"also evaluated: MLM loss {loss:.3f} (unigram {self.baseline['loss']:.3f}), {before:.3f} before step 1"
        if loss - before > FORGETTING:
            text += (
                f"\nwarning: the model forgets: on the text of --also_evaluate its loss rose by {loss - before:.3f} "
                "nats; lower the learning rate or the steps, or add some of that text to the corpus"
            )
        return text

    def _sums(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")
        next_sentence_label = batch.pop("next_sentence_label", None)
        predicted = (labels != IGNORED_LABEL).flatten().nonzero().squeeze(1)
        outputs = model.base_model(**batch, read_positions=predicted)
        # Only predicted positions pass the head: a dense head would compute vocab_size logits for every token.
        logits = model.cls.predictions(outputs.last_hidden_state).float()
        sums = [*_loss_and_right(logits, labels.flatten()[predicted])]
        if next_sentence_label is None:
            sums += [sums[0].new_zeros(())] * 3
        else:
            sums += _loss_and_right(model.cls.seq_relationship(outputs.pooler_output).float(), next_sentence_label)
        return torch.stack(sums)

    def _unigram_baseline(self, documents: Any, vocab_size: int) -> dict[str, float]:
        counts = documents.token_counts(vocab_size) + 1.0  # add-one smoothing: a held-out token may be new
        targets = np.concatenate([batch["labels"][batch["labels"] != IGNORED_LABEL].numpy() for batch in self.batches])
        return {
            "loss": float(-np.log(counts / counts.sum())[targets].mean()),
            "accuracy": float((targets == counts.argmax()).mean()),
            "most_frequent_token": int(counts.argmax()),
        }


def _loss_and_right(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    dtype = sum_dtype(logits.device)
    loss = F.cross_entropy(logits, targets, reduction="sum").to(dtype)
    right = (logits.argmax(-1) == targets).sum().to(dtype)
    return [loss, right, right.new_tensor(len(targets))]

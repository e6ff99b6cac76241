"""Evaluation of a pretraining run against a unigram baseline."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..corpus.arguments import PretrainingDataArguments
from ..corpus.mixture import parts_of
from ..model.kernels_hfbert import IGNORED_LABEL
from ..training.accelerator import sum_dtype
from ..training.run import Run
from .batches import held_out_batches


# A rise of the held-out loss on other text that is worth a warning, in nats: 5 % more perplexity.
FORGETTING = 0.05


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
            batches: number of batches to evaluate on each process. None: all.

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
        """Tell whether the model clearly beats token counts: twice their accuracy, and half a nat less loss.

        False for metrics of training, in which there are none of these.
        """
        return (
            "eval_masked_lm_loss" in metrics
            and metrics["eval_masked_lm_accuracy"] >= 2 * self.baseline["accuracy"]
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

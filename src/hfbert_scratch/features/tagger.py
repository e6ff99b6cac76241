"""The paper's feature-based approach to NER (section 5.3, table 7): a BiLSTM over the layers of a frozen encoder.

The encoder sees every sentence once; the vectors of its words, from all layers, lie on disk and are mapped into
memory from there by every combination of layers and every restart.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_model
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from ..model.kernels_hfbert import IGNORED_LABEL
from ..model.modeling_hfbert import cross_entropy
from ..tasks import FeatureSettings, NerTask
from ..tasks.ner import OUTSIDE
from ..training.loop import StepBatch, own_micro_batches, prepare, train
from ..training.run import Run, TrainingArguments
from ..utils.errors import InputError
from ..utils.files import lock, read_json, write_json, writing
from .encoder import EncoderInput, encode_inputs, weights_hash


@dataclass(frozen=True)
class Combination:
    """Which layers, and how they become one vector per word; paper_f1: BERT-BASE on CoNLL-2003 dev (table 7)."""

    layers: tuple[int, ...] | None  # None: all but the embeddings
    weighted: bool
    paper_f1: float


COMBINATIONS = {
    "embeddings": Combination((0,), False, 91.0),
    "second_to_last": Combination((-2,), False, 95.6),
    "last": Combination((-1,), False, 94.9),
    "weighted_last_four": Combination((-4, -3, -2, -1), True, 95.9),
    "concat_last_four": Combination((-4, -3, -2, -1), False, 96.1),
    "weighted_all": Combination(None, True, 95.5),
}
# Sentences per forward pass of the tagger in evaluation.
_EVAL_BATCH = 64


def combination_layers(name: str, num_hidden_layers: int) -> list[int]:
    """The indices into the hidden states, 0 … num_hidden_layers, of a combination of that name.

    Raises InputError for an unknown one, and for one that needs more layers than there are.
    """
    if name not in COMBINATIONS:
        raise InputError(f"unknown combination {name!r}; there are {', '.join(COMBINATIONS)}")
    layers = COMBINATIONS[name].layers
    if layers is None:
        return list(range(1, num_hidden_layers + 1))
    # The embeddings are not one of the last four layers.
    if -min(layers) > num_hidden_layers:
        raise InputError(f"{name} needs {-min(layers)} layers, this model has {num_hidden_layers}")
    return [layer % (num_hidden_layers + 1) for layer in layers]


# -------------------------------------------------------------------------------------------------- vectors on disk


@dataclass(frozen=True)
class WordVectors:
    """The vectors of the words of a split, from every layer, mapped into memory.

    layers: per hidden state, (words, hidden_size) float16. offsets: (sentences + 1,), where each sentence's words
    begin. known: (words,) bool; a word without a piece, or cut off, has zeros for a vector.
    """

    layers: list[np.ndarray]
    offsets: np.ndarray
    known: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """The number of words of each sentence."""
        return np.diff(self.offsets)

    def take(self, sentences: np.ndarray, layers: Sequence[int]) -> torch.Tensor:
        """(sentences, most words, layers, hidden_size) float32, padded with zeros."""
        lengths = self.lengths[sentences]
        shape = (len(sentences), int(lengths.max()), len(layers), self.layers[0].shape[1])
        taken = np.zeros(shape, dtype=np.float32)
        for row, (sentence, length) in enumerate(zip(sentences, lengths, strict=True)):
            start = self.offsets[sentence]
            for place, layer in enumerate(layers):
                taken[row, :length, place] = self.layers[layer][start : start + length]
        return torch.from_numpy(taken)


def cached_word_vectors(
    model: nn.Module,
    features: datasets.Dataset,
    cache_dir: Path,
    *,
    batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = print,
) -> WordVectors:
    """The vectors of the first piece of every word in `features` (of `NerTask.features`), from disk if they are there.

    The key is the model's weights, the features (data, tokenizer, settings) and `dtype`, which the encoder computes
    in. They are kept as float16, whose error, 5e-4 of a value, is below bfloat16's; several processes may ask at once.

    Raises OutputError if the cache cannot be written, InputError if a value exceeds float16.
    """
    key = hashlib.sha256(f"{weights_hash(model)} {features._fingerprint} {dtype}".encode()).hexdigest()[:24]
    directory = cache_dir / key
    positions = [np.asarray(row, dtype=np.int64) for row in features["positions"][:]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in positions])]).astype(np.int64)
    known = np.concatenate([np.zeros(0, dtype=np.int64), *positions]) >= 0
    count = model.config.num_hidden_layers + 1
    with writing(f"the feature cache {cache_dir}", "name another"), lock(cache_dir / f".{key}.lock", wait=True):
        if not directory.is_dir():
            size = count * len(known) * model.config.hidden_size * 2
            say(f"{len(known)} words through the frozen encoder, once: {size / 1e9:.2f} GB in {directory}")
            temporary = cache_dir / f".{key}.writing"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            rows = _word_rows(features, positions)
            encoded = encode_inputs(model, rows, layers=range(count), batch_tokens=batch_tokens, dtype=dtype)
            _write_layers(temporary, encoded, positions, count, (len(known), model.config.hidden_size))
            os.replace(temporary, directory)
    layers = [np.load(directory / f"layer-{layer:02d}.npy", mmap_mode="r") for layer in range(count)]
    return WordVectors(layers, offsets, known)


def _word_rows(features: datasets.Dataset, positions: list[np.ndarray]) -> Iterator[EncoderInput]:
    columns = features.select_columns(["input_ids", "token_type_ids"]).with_format("numpy")
    for row, wanted in zip(columns, positions, strict=True):
        yield EncoderInput(row["input_ids"], row["token_type_ids"], wanted[wanted >= 0])


def _write_layers(
    directory: Path,
    encoded: Iterator[tuple[EncoderInput, np.ndarray]],
    positions: list[np.ndarray],
    count: int,
    shape: tuple[int, int],
) -> None:
    """layer-NN.npy for each layer, written from front to back: on a full disk a memory map would end the process."""
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with ExitStack() as stack:
        files = [stack.enter_context((directory / f"layer-{layer:02d}.npy").open("wb")) for layer in range(count)]
        for file in files:
            np.lib.format.write_array_header_1_0(file, header)
        for wanted, (_, vectors) in zip(positions, encoded, strict=True):
            words = np.zeros((count, len(wanted), shape[1]), dtype="<f2")
            with np.errstate(over="ignore"):
                words[:, wanted >= 0] = vectors
            if not np.isfinite(words).all():
                layer = int(np.argmin(np.isfinite(words).all(axis=(1, 2))))
                raise InputError(
                    f"layer {layer} of this model has values beyond float16; its features are no use here"
                )
            for file, layer_words in zip(files, words, strict=True):
                file.write(layer_words.tobytes())


# ---------------------------------------------------------------------------------------------------------- the tagger


class FeatureTaggerConfig(PreTrainedConfig):
    """A BiLSTM tagger over given vectors of `feature_size` from `layers` of an encoder, weighted or concatenated.

    lstm_size: units per direction (the paper says "two-layer 768-dimensional BiLSTM", no more). dropout: on what goes
    into each LSTM layer and into the classifier; the paper names none, 0.5 is that of ELMo's taggers.
    """

    model_type = "hfbert_feature_tagger"

    feature_size: int = 768
    layers: list[int] | None = None
    weighted: bool = False
    lstm_size: int = 768
    lstm_layers: int = 2
    dropout: float | int = 0.5


class FeatureTagger(PreTrainedModel):
    """(weighted sum or concatenation of layers) → BiLSTM → Linear: the tag of every word."""

    config: FeatureTaggerConfig
    config_class = FeatureTaggerConfig
    base_model_prefix = ""

    def __init__(self, config: FeatureTaggerConfig):
        super().__init__(config)
        layers = len(config.layers)
        # The paper does not say how the sum is weighted: softmax-normalised scalars, from equal shares on.
        self.layer_scores = nn.Parameter(torch.zeros(layers)) if config.weighted else None
        width = config.feature_size * (1 if config.weighted else layers)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.lstm_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            width, config.lstm_size, config.lstm_layers, batch_first=True, bidirectional=True, dropout=between
        )
        self.classifier = nn.Linear(2 * config.lstm_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep PyTorch's initialisation, which is made for LSTMs."""

    @property
    def layer_weights(self) -> torch.Tensor | None:
        """The share of each layer, (layers,), adding up to 1; None for a concatenation."""
        return None if self.layer_scores is None else self.layer_scores.softmax(0)

    def forward(
        self,
        vectors: torch.Tensor,
        lengths: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> TokenClassifierOutput:
        """Tag sentences.

        vectors: (sentences, words, layers, feature_size), padded behind the `lengths` (sentences,) words, at least
        one each. labels: (sentences, words), -100 where there is none; the loss is their summed cross-entropy over
        num_items_in_batch, or its mean. Returns loss and logits (sentences, words, num_labels).
        """
        if self.layer_scores is None:
            inputs = vectors.flatten(2)
        else:
            inputs = torch.einsum("swlf,l->swf", vectors, self.layer_weights.to(vectors.dtype))
        # Packed, so that the backward direction begins at the last word and not in the padding.
        packed = pack_padded_sequence(self.dropout(inputs), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=vectors.shape[1])
        logits = self.classifier(self.dropout(states))
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits)


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class TaggingData:
    """The splits of a task with the vectors of their words."""

    task: NerTask
    raw: dict[str, datasets.Dataset]
    vectors: dict[str, WordVectors]
    identity: str  # what the vectors were made from

    def labels(self, split: str) -> np.ndarray:
        """(words of the split,), -100 for words without a vector."""
        tags = [np.asarray(row, dtype=np.int64) for row in self.raw[split]["ner_tags"][:]]
        return np.where(self.vectors[split].known, np.concatenate(tags), IGNORED_LABEL)


def tagging_data(
    task: NerTask,
    raw: dict[str, datasets.Dataset],
    model: nn.Module,
    tokenizer: Any,
    settings: FeatureSettings,
    cache_dir: Path,
    dtype: torch.dtype = torch.float32,
) -> TaggingData:
    """The splits `raw` with their words' vectors, from the cache or through the frozen encoder `model`.

    Raises InputError for a sequence length that the model does not take, else as `cached_word_vectors`.
    """
    longest = getattr(model.config, "max_position_embeddings", settings.max_seq_length)
    if settings.max_seq_length > longest:
        raise InputError(f"max_seq_length is {settings.max_seq_length}; this model takes at most {longest}")
    settings = dataclasses.replace(settings, cache_dir=str(cache_dir / "tokens"))
    with writing(f"the feature cache {cache_dir}", "name another"), lock(cache_dir / ".tokens.lock", wait=True):
        features = {split: task.features(rows, tokenizer, settings) for split, rows in raw.items()}
    vectors = {split: cached_word_vectors(model, rows, cache_dir, dtype=dtype) for split, rows in features.items()}
    identity = " ".join([weights_hash(model)[:16], str(dtype), *(rows._fingerprint for rows in features.values())])
    return TaggingData(task, raw, vectors, identity)


class TaggingBatches:
    """The batches of a run from its progress on: one permutation of the sentences after the other, cut into batches.

    Raises InputError when the processes cannot share a batch's micro-batches evenly.
    """

    def __init__(self, run: Run, data: TaggingData, layers: Sequence[int]):
        self.run, self.layers = run, list(layers)
        self.vectors, self.labels = data.vectors["train"], data.labels("train")
        self.sentences = np.flatnonzero(self.vectors.lengths)
        self.first, self.share = own_micro_batches(run, run.arguments.batch_size, run.arguments.micro_batch_size)

    def __iter__(self) -> Iterator[StepBatch]:
        arguments, rows = self.run.arguments, len(self.sentences)
        for step in range(self.run.progress.step, arguments.max_steps):
            places = np.arange(step * arguments.batch_size, (step + 1) * arguments.batch_size)
            chosen = np.empty_like(places)
            for epoch in np.unique(places // rows):
                order = np.random.default_rng([arguments.seed, epoch]).permutation(self.sentences)
                within = places // rows == epoch
                chosen[within] = order[places[within] % rows]
            yield self._step_batch(chosen)

    def _step_batch(self, sentences: np.ndarray) -> StepBatch:
        parts = sentences.reshape(-1, self.run.arguments.micro_batch_size)[self.first : self.first + self.share]
        batches = [tagger_inputs(self.vectors, part, self.layers, self.labels) for part in parts]
        lengths = self.vectors.lengths[parts]
        targets = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches)
        return StepBatch(
            micro_batches=batches,
            first=self.first,
            counts={"num_items_in_batch": targets},
            num_tokens=int(lengths.sum()),
            squared_lengths=int((lengths**2).sum()),
            cursor=None,
            examples={"sentence": sentences},
        )


def tagger_inputs(
    vectors: WordVectors, sentences: np.ndarray, layers: Sequence[int], labels: np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    """FeatureTagger's inputs for `sentences`, with `labels` (words of the split,) padded alike."""
    lengths = vectors.lengths[sentences]
    inputs = {"vectors": vectors.take(sentences, layers), "lengths": torch.from_numpy(lengths)}
    if labels is not None:
        padded = np.full((len(sentences), int(lengths.max())), IGNORED_LABEL, dtype=np.int64)
        for row, (sentence, length) in enumerate(zip(sentences, lengths, strict=True)):
            start = vectors.offsets[sentence]
            padded[row, :length] = labels[start : start + length]
        inputs["labels"] = torch.from_numpy(padded)
    return inputs


def predict_tags(tagger: FeatureTagger, data: TaggingData, split: str) -> list[list[str]]:
    """A tag for every word of every sentence of `split`; O for words without a vector."""
    vectors, layers = data.vectors[split], tagger.config.layers
    names = data.task.class_names(data.raw[split])
    chosen = np.zeros(len(vectors.known), dtype=np.int64)
    by_length = np.argsort(vectors.lengths, kind="stable")
    by_length = by_length[vectors.lengths[by_length] > 0]
    training = tagger.training
    tagger.eval()
    with torch.inference_mode():
        for begin in range(0, len(by_length), _EVAL_BATCH):
            sentences = by_length[begin : begin + _EVAL_BATCH]
            inputs = tagger_inputs(vectors, sentences, layers)
            logits = tagger(**{name: tensor.to(tagger.device) for name, tensor in inputs.items()}).logits
            for sentence, tags in zip(sentences, logits.argmax(-1).cpu().numpy(), strict=True):
                start, end = vectors.offsets[sentence : sentence + 2]
                chosen[start:end] = tags[: end - start]
    tagger.train(training)
    tags = [names[tag] if known else OUTSIDE for tag, known in zip(chosen.tolist(), vectors.known, strict=True)]
    return [tags[start:end] for start, end in zip(vectors.offsets, vectors.offsets[1:], strict=False)]


def train_tagger(
    arguments: TrainingArguments, config: FeatureTaggerConfig, data: TaggingData, *, last: bool = True
) -> dict[str, Any] | None:
    """Train a tagger, keep the step that is best on validation, and leave model/, predictions/ and results.json.

    Called again, a run that was stopped continues and one that is done returns its results. last: no other run
    follows in these processes. Returns the results, or None when a signal ended the run.

    Raises InputError when output_dir holds the results of something else, and what `train` raises.
    """
    shape = ("feature_size", "layers", "weighted", "lstm_size", "lstm_layers", "dropout", "id2label")
    settings = {"features": data.identity, "tagger": {name: getattr(config, name) for name in shape}}
    # A BiLSTM over padded words: none of what suits BERT on a GPU.
    arguments = dataclasses.replace(arguments, packing="false", compile="false", cuda_graphs="false")
    with Run(arguments, settings, last=last) as run:
        finished = run.directory / "results.json"
        if finished.is_file():
            results = read_json(finished, "the results of an earlier run")
            if results.get("settings") != run.settings:
                raise InputError(f"{finished} was made with other settings; use those, or another output_dir")
            return results
        torch.manual_seed(arguments.seed)
        model, optimizer, _ = prepare(run, FeatureTagger(config))
        tagger = run.accelerator.unwrap_model(model)
        weights = sum(parameter.numel() for parameter in tagger.parameters())
        run.best_by = (f"eval_{data.task.main_metric}", max)

        def evaluate() -> dict[str, float]:
            # By every process for itself: so small a model is done before its predictions would be gathered.
            scores = data.task.score(data.raw["validation"], predict_tags(tagger, data, "validation"))
            metrics = {f"eval_{name}": value for name, value in scores.items()}
            run.say(f"validation: {' '.join(f'{name} {value:.4f}' for name, value in scores.items())}")
            return metrics

        run.start_trackers()
        done = train(
            run,
            model,
            optimizer,
            TaggingBatches(run, data, config.layers),
            evaluate=evaluate,
            save_extra=lambda directory: None,
            flops_per_token=lambda length: 6 * weights,
        )
        if not done:
            run.write_record(status="stopped")
            return None
        if run.best_step != run.progress.step:
            load_model(tagger, run.checkpoints / f"step-{run.best_step}" / "model.safetensors")
        return _results(run, tagger, data)


def _results(run: Run, tagger: FeatureTagger, data: TaggingData) -> dict[str, Any]:
    """Score and write what the best step gives, then drop the checkpoints."""
    scores = {}
    for split in [split for split in data.raw if split != "train"]:
        predictions = predict_tags(tagger, data, split)
        if data.task.is_labelled(data.raw[split]):
            scores[split] = data.task.score(data.raw[split], predictions)
        if run.is_main:
            data.task.write_predictions(run.directory / "predictions", data.raw[split], predictions, split)
    shares = tagger.layer_weights
    results = {
        "scores": scores,
        "best_step": run.best_step,
        "steps": run.progress.step,
        "layer_weights": None if shares is None else dict(zip(tagger.config.layers, shares.tolist(), strict=True)),
        "settings": run.settings,
        "arguments": dataclasses.asdict(run.arguments),
        "seconds": round(run.progress.seconds, 1),
    }
    results = json.loads(json.dumps(results))
    if run.is_main:
        tagger.save_pretrained(run.directory / "model")
        write_json(run.directory / "results.json", results)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    run.write_record(status="done", results=scores)
    return results

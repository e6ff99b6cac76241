"""The paper's feature-based approach to NER (section 5.3, table 7): a BiLSTM over the layers of a frozen encoder."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from safetensors.torch import load_model
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from ..model.configuration_hfbert import IGNORED_LABEL
from ..model.inference import eval_mode
from ..model.kernels_hfbert import cross_entropy
from ..tasks import FeatureSettings, Task
from ..tasks.ner import OUTSIDE
from ..training.arguments import TrainingArguments
from ..training.batches import StepBatch, local_micro_batches
from ..training.loop import prepare, train
from ..training.run import Run
from ..utils.errors import InputError
from ..utils.files import lock, read_json, write_json, writing
from .encoder import weights_hash
from .word_vectors import WordVectors, cached_word_vectors


@dataclass(frozen=True)
class Combination:
    """A combination of layers into one vector per word (paper, table 7)."""

    layers: tuple[int, ...] | None  # None: all but the embeddings, and for ELMO those too
    weighted: bool  # summed, not concatenated
    paper_f1: float  # BERT-BASE on CoNLL-2003 dev


ELMO = "elmo"
COMBINATIONS = {
    "embeddings": Combination((0,), False, 91.0),
    "second_to_last": Combination((-2,), False, 95.6),
    "last": Combination((-1,), False, 94.9),
    "weighted_last_four": Combination((-4, -3, -2, -1), True, 95.9),
    "concat_last_four": Combination((-4, -3, -2, -1), False, 96.1),
    "weighted_all": Combination(None, True, 95.5),
    # Beside table 7: embeddings and all layers by learned weights, as ELMo combines its own; the figure is ELMo's.
    ELMO: Combination(None, True, 95.7),
}
# Sentences per forward pass of the tagger in evaluation.
_EVAL_BATCH = 64


def combination_layers(name: str, num_hidden_layers: int) -> list[int]:
    """Return the layers of a combination.

    Args:
        name: one of COMBINATIONS.
        num_hidden_layers: layers of the encoder.

    Returns:
        Indices into the hidden states, 0 … num_hidden_layers.

    Raises:
        InputError: for an unknown combination, and for one that needs more layers than there are.
    """
    if name not in COMBINATIONS:
        raise InputError(f"unknown combination {name!r}; there are {', '.join(COMBINATIONS)}")
    layers = COMBINATIONS[name].layers
    if layers is None:
        return list(range(0 if name == ELMO else 1, num_hidden_layers + 1))
    # The embeddings do not count among the last four layers.
    if -min(layers) > num_hidden_layers:
        raise InputError(f"{name} needs {-min(layers)} layers, this model has {num_hidden_layers}")
    return [layer % (num_hidden_layers + 1) for layer in layers]


class FeatureTaggerConfig(PreTrainedConfig):
    """Configuration of a BiLSTM tagger over vectors from the layers of an encoder.

    Args:
        feature_size: size of a layer's vector.
        layers: indices into the hidden states of the encoder.
        weighted: sum the layers, not concatenate them.
        lstm_size: units per direction (the paper says only "two-layer 768-dimensional BiLSTM").
        lstm_layers: layers of the BiLSTM.
        dropout: on the input of every LSTM layer and of the classifier; not in the paper, 0.5 as in ELMo's taggers.
    """

    model_type = "hfbert_feature_tagger"

    feature_size: int = 768
    layers: list[int] | None = None
    weighted: bool = False
    lstm_size: int = 768
    lstm_layers: int = 2
    dropout: float | int = 0.5


def _layers(config: FeatureTaggerConfig) -> list[int]:
    """The layers of a tagger, which has some; None is the default only because a configuration needs one."""
    return cast(list[int], config.layers)


class FeatureTagger(PreTrainedModel):
    """Tag every word: (weighted sum or concatenation of layers) → BiLSTM → Linear."""

    config: FeatureTaggerConfig
    config_class = FeatureTaggerConfig
    base_model_prefix = ""

    def __init__(self, config: FeatureTaggerConfig):
        super().__init__(config)
        layers = len(_layers(config))
        # The weights of the sum are not in the paper: softmax-normalised scalars here, equal at first.
        self.layer_scores = nn.Parameter(torch.zeros(layers)) if config.weighted else None
        width = config.feature_size * (1 if config.weighted else layers)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.lstm_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            width, config.lstm_size, config.lstm_layers, batch_first=True, bidirectional=True, dropout=between
        )
        self.classifier = nn.Linear(2 * config.lstm_size, cast(int, config.num_labels))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep PyTorch's initialisation, made for LSTMs."""

    @property
    def layer_weights(self) -> torch.Tensor | None:
        """Return the weight of every layer, (layers,), with the sum 1; None for a concatenation."""
        return None if self.layer_scores is None else self.layer_scores.softmax(0)

    def forward(
        self,
        vectors: torch.Tensor,
        lengths: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> TokenClassifierOutput:
        """Tag sentences.

        Args:
            vectors: (sentences, words, layers, feature_size), padded at the end.
            lengths: (sentences,) words, at least 1.
            labels: (sentences, words), -100 where there is none.
            num_items_in_batch: divisor of the summed cross-entropy; None: the number of labels.

        Returns:
            loss (None without labels) and logits (sentences, words, num_labels).
        """
        weights = self.layer_weights
        if weights is None:
            inputs = vectors.flatten(2)
        else:
            inputs = torch.einsum("swlf,l->swf", vectors, weights.to(vectors.dtype))
        # Packed, so that the backward direction starts at the last word, not in the padding.
        packed = pack_padded_sequence(self.dropout(inputs), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=vectors.shape[1])
        logits = self.classifier(self.dropout(states))
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits)


@dataclass(frozen=True)
class TaggingData:
    """The splits of a task that tags words, with the vectors of the words."""

    task: Task
    raw: dict[str, datasets.Dataset]
    vectors: dict[str, WordVectors]
    identity: str  # of the encoder, its precision, and the features

    def labels(self, split: str) -> np.ndarray:
        """Return the tags' ids, (words of the split,), -100 for words without a vector."""
        tags = [np.asarray(row, dtype=np.int64) for row in self.raw[split][self.task.label_column][:]]
        return np.where(self.vectors[split].known, np.concatenate(tags), IGNORED_LABEL)


def tagging_data(
    task: Task,
    raw: dict[str, datasets.Dataset],
    model: PreTrainedModel,
    tokenizer: Any,
    settings: FeatureSettings,
    cache_dir: Path,
    dtype: torch.dtype = torch.float32,
) -> TaggingData:
    """Encode the words of all splits, or read their vectors from the cache.

    Args:
        task: a task that tags words (`Task.tags_words`).
        raw: its splits.
        model: the frozen encoder.
        tokenizer: the encoder's.
        settings: settings of the features.
        cache_dir: directory of features and vectors.
        dtype: the encoder's precision.

    Returns:
        The splits and their vectors.

    Raises:
        InputError: if the task does not tag words, max_seq_length is too long for the model, or a value exceeds
            float16.
        OutputError: if the cache cannot be written.
    """
    if not task.tags_words:
        raise InputError(f"{task.name} does not tag words")
    longest = getattr(model.config, "max_position_embeddings", settings.max_seq_length)
    if settings.max_seq_length > longest:
        raise InputError(f"max_seq_length is {settings.max_seq_length}; this model takes at most {longest}")
    settings = dataclasses.replace(settings, cache_dir=str(cache_dir / "tokens"))
    with writing(f"the feature cache {cache_dir}", "name another"), lock(cache_dir / ".tokens.lock", wait=True):
        features = {split: task.features(rows, tokenizer, settings) for split, rows in raw.items()}
    model_hash = weights_hash(model)
    vectors = {
        split: cached_word_vectors(model, rows, cache_dir, model_hash=model_hash, dtype=dtype)
        for split, rows in features.items()
    }
    identity = " ".join([model_hash[:16], str(dtype), *(rows._fingerprint for rows in features.values())])
    return TaggingData(task, raw, vectors, identity)


class TaggingBatches:
    """The batches of a run, from its current step on: permutations of the sentences, divided into batches.

    Raises:
        InputError: if the processes cannot divide the micro-batches of a batch evenly.
    """

    def __init__(self, run: Run, data: TaggingData, layers: Sequence[int]):
        self.run, self.layers = run, list(layers)
        self.vectors, self.labels = data.vectors["train"], data.labels("train")
        self.sentences = np.flatnonzero(self.vectors.lengths)
        self.start, self.count = local_micro_batches(
            run.accelerator, run.arguments.batch_size, run.arguments.micro_batch_size
        )

    def __iter__(self) -> Iterator[StepBatch]:
        arguments, rows = self.run.arguments, len(self.sentences)
        for step in range(self.run.progress.step, arguments.max_steps):
            places = np.arange(step * arguments.batch_size, (step + 1) * arguments.batch_size)
            sentences = np.empty_like(places)
            for epoch in np.unique(places // rows):
                order = np.random.default_rng([arguments.seed, epoch]).permutation(self.sentences)
                within = places // rows == epoch
                sentences[within] = order[places[within] % rows]
            yield self._step_batch(sentences)

    def _step_batch(self, sentences: np.ndarray) -> StepBatch:
        parts = sentences.reshape(-1, self.run.arguments.micro_batch_size)[self.start : self.start + self.count]
        batches = [tagger_inputs(self.vectors, part, self.layers, self.labels) for part in parts]
        lengths = self.vectors.lengths[parts]
        targets = sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches)
        return StepBatch(
            micro_batches=batches,
            start=self.start,
            counts={"num_items_in_batch": targets},
            num_tokens=int(lengths.sum()),
            squared_lengths=int((lengths**2).sum()),
            cursor=None,
            examples={"sentence": sentences},
        )


def tagger_inputs(
    vectors: WordVectors, sentences: np.ndarray, layers: Sequence[int], labels: np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    """Make FeatureTagger's inputs for some sentences.

    Args:
        vectors: the words of a split.
        sentences: (n,) numbers of the sentences, at least one.
        layers: indices into the hidden states.
        labels: (words of the split,) ids of the tags. None: inputs without labels.

    Returns:
        `vectors` (n, most words, layers, hidden_size), `lengths` (n,), and with labels `labels` (n, most words), -100
        in the padding.
    """
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
    """Predict a tag for every word of a split; O for words without a vector.

    Args:
        tagger: the tagger.
        data: the splits with their vectors.
        split: name of the split.

    Returns:
        The tags of every sentence.
    """
    vectors, layers = data.vectors[split], _layers(tagger.config)
    names = data.task.class_names(data.raw[split])
    tag_ids = np.zeros(len(vectors.known), dtype=np.int64)
    by_length = np.argsort(vectors.lengths, kind="stable")
    by_length = by_length[vectors.lengths[by_length] > 0]
    with eval_mode(tagger):
        for begin in range(0, len(by_length), _EVAL_BATCH):
            sentences = by_length[begin : begin + _EVAL_BATCH]
            inputs = tagger_inputs(vectors, sentences, layers)
            logits = tagger(**{name: tensor.to(tagger.device) for name, tensor in inputs.items()}).logits
            for sentence, padded_ids in zip(sentences, logits.argmax(-1).cpu().numpy(), strict=True):
                start, end = vectors.offsets[sentence : sentence + 2]
                tag_ids[start:end] = padded_ids[: end - start]
    tags = [names[tag] if known else OUTSIDE for tag, known in zip(tag_ids.tolist(), vectors.known, strict=True)]
    return [tags[start:end] for start, end in zip(vectors.offsets, vectors.offsets[1:], strict=False)]


def train_tagger(
    arguments: TrainingArguments, config: FeatureTaggerConfig, data: TaggingData, *, end_training: bool = True
) -> dict[str, Any] | None:
    """Train a tagger, keep the step that is best on validation, and write model/, predictions/ and results.json.

    Called again, a stopped run continues, and a finished one returns its results.

    Args:
        arguments: output_dir and the optimizer.
        config: the tagger's.
        data: the splits with their vectors.
        end_training: no run follows in these processes.

    Returns:
        The content of results.json, or None when a signal ended the run.

    Raises:
        InputError: if output_dir holds the results of another run.
        DivergenceError: if the loss is no longer finite.
        OutputError: if output_dir cannot be written.
    """
    shape = ("feature_size", "layers", "weighted", "lstm_size", "lstm_layers", "dropout", "id2label")
    fingerprint = {"features": data.identity, "tagger": {name: getattr(config, name) for name in shape}}
    # A BiLSTM over padded words has no use for these.
    arguments = dataclasses.replace(arguments, packing="false", compile="false", cuda_graphs="false")
    with Run(arguments, fingerprint, end_training=end_training) as run:
        if (results := _finished_results(run)) is not None:
            return results
        tagger = _train(run, config, data)
        if tagger is None:
            run.write_record(status="stopped")
            return None
        if run.best_step != run.progress.step:
            load_model(tagger, run.checkpoints / f"step-{run.best_step}" / "model.safetensors")
        return _score_and_write(run, tagger, data)


def _finished_results(run: Run) -> dict[str, Any] | None:
    """Read the results of a finished run; return None if it is not finished."""
    path = run.directory / "results.json"
    if not path.is_file():
        return None
    results = read_json(path, "the results of an earlier run")
    if results.get("settings") != run.settings:
        raise InputError(f"{path} was made with other settings; use those, or another output_dir")
    return results


def _train(run: Run, config: FeatureTaggerConfig, data: TaggingData) -> FeatureTagger | None:
    """Train to the end and return the tagger of the last step, or None when a signal ended the run."""
    torch.manual_seed(run.arguments.seed)
    model, optimizer, _ = prepare(run, FeatureTagger(config))
    tagger = run.accelerator.unwrap_model(model)
    weights = sum(parameter.numel() for parameter in tagger.parameters())
    run.best_by = (f"eval_{data.task.main_metric}", max)

    def evaluate() -> dict[str, float]:
        # Every process predicts everything: gathering would take longer than so small a model.
        scores = data.task.score(data.raw["validation"], predict_tags(tagger, data, "validation"))
        run.print(f"validation: {' '.join(f'{name} {value:.4f}' for name, value in scores.items())}")
        return {f"eval_{name}": value for name, value in scores.items()}

    run.start_trackers()
    done = train(
        run,
        model,
        optimizer,
        TaggingBatches(run, data, _layers(config)),
        evaluate=evaluate,
        save_extra=lambda directory: None,
        flops_per_token=lambda length: 6 * weights,
    )
    return tagger if done else None


def _score_and_write(run: Run, tagger: FeatureTagger, data: TaggingData) -> dict[str, Any]:
    """Score and write the predictions of the best step, then delete the checkpoints."""
    scores = {}
    for split in [split for split in data.raw if split != "train"]:
        predictions = predict_tags(tagger, data, split)
        if data.task.is_labelled(data.raw[split]):
            scores[split] = data.task.score(data.raw[split], predictions)
        if run.is_main:
            data.task.write_predictions(run.directory / "predictions", data.raw[split], predictions, split)
    weights = tagger.layer_weights
    results = {
        "scores": scores,
        "best_step": run.best_step,
        "steps": run.progress.step,
        "layer_weights": None if weights is None else dict(zip(_layers(tagger.config), weights.tolist(), strict=True)),
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

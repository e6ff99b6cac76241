"""Metric of named entity recognition: micro-averaged F1 over entities, as in the CoNLL-2003 shared task."""

import warnings

import datasets
import evaluate
import seqeval.scheme
from seqeval.metrics import accuracy_score, classification_report
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from hfbert_scratch.utils.errors import InputError


# BILOU's and BMES's prefixes of an entity's last word, its inner words and one-word entities; seqeval knows IOBES.
_IOBES = {"L": "E", "U": "S", "M": "I"}
SCHEMES = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES")


def to_iobes(tag):
    """Translate a tag to IOBES's prefixes; a tag without a prefix is read as one with I-."""
    prefix, dash, kind = tag.partition("-")
    if tag == "O" or (dash and kind and prefix in ("B", "I", "E", "S")):
        return tag
    if dash and kind and prefix in _IOBES:
        return f"{_IOBES[prefix]}-{kind}"
    return f"I-{tag}"


class Ner(evaluate.Metric):
    """`compute(predictions=[["B-PER", "O", …], …], references=[…])`, one list of tags per sentence.

    Tags are read as conlleval reads them: an I- after O or after another type begins an entity, and no entity crosses
    sentences. BILOU and BMES are read as IOBES, a tag without a prefix as one with I-.

    Args:
        predictions: a list of tags for each sentence.
        references: a list of tags for each sentence.
        mode: "strict" counts only entities in the notation of `scheme`; in IOB2 an I- without its B- is none.
        scheme: one of SCHEMES, for strict mode.
        per_type: add `types`: precision, recall, f1 and support of every type.

    Returns:
        precision, recall and f1 of entities and the accuracy of tags, 0 to 1. An entity is right if its type and both
        ends are. Without any entity the first three are 0.

    Raises:
        InputError: if a sentence and its reference differ in length, for an unknown mode or scheme, and in strict
            mode for a tag outside the scheme.
    """

    def _info(self):
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references, mode=None, scheme="IOB2", per_type=False):
        if mode not in (None, "strict") or scheme not in SCHEMES:
            raise InputError(f"mode {mode!r}, scheme {scheme!r}: mode must be None or 'strict', scheme {SCHEMES}")
        predictions, references = list(predictions), list(references)
        for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            if len(prediction) != len(reference):
                raise InputError(f"sentence {number} has {len(reference)} tags but {len(prediction)} predictions")
        if not any(references):
            raise InputError("no sentence has a word to score")
        iobes = {
            tag: to_iobes(tag) for tag in {tag for side in (predictions, references) for tags in side for tag in tags}
        }
        gold, predicted = ([[iobes[tag] for tag in tags] for tags in side] for side in (references, predictions))
        with warnings.catch_warnings():
            # seqeval warns of missing classes; the docstring above states their scores.
            warnings.simplefilter("ignore")
            accuracy = {"accuracy": float(accuracy_score(references, predictions))}
            if mode is None and not per_type:
                scores = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
                return dict(zip(("precision", "recall", "f1"), map(float, scores[:3]), strict=True)) | accuracy
            options = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme)} if mode else {}
            try:
                report = classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
            except ValueError as error:
                raise InputError(f"the tags are not those of {scheme}: {error}") from None
        rows = {name: _scores(entry) for name, entry in report.items()}
        scores = {name: value for name, value in rows["micro avg"].items() if name != "support"} | accuracy
        if per_type:
            scores["types"] = {name: row for name, row in rows.items() if not name.endswith(" avg")}
        return scores


def _scores(entry):
    return {
        "precision": float(entry["precision"]),
        "recall": float(entry["recall"]),
        "f1": float(entry["f1-score"]),
        "support": int(entry["support"]),
    }

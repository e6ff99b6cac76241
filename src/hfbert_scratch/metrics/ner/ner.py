"""The metric of named entity recognition: micro-averaged F1 over entities, as in the CoNLL-2003 shared task."""

import warnings

import datasets
import evaluate
import seqeval.scheme
from seqeval.metrics import accuracy_score, classification_report
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from hfbert_scratch.utils.errors import InputError


# The last of an entity and an entity of one word, as BILOU and BMES write them; seqeval knows IOBES.
_IOBES = {"L": "E", "U": "S", "M": "I"}
SCHEMES = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES")


def to_iobes(tag):
    """A tag with one of IOBES's prefixes; without a prefix it names the type of an entity's word, as I- does."""
    prefix, dash, kind = tag.partition("-")
    if tag == "O" or (dash and kind and prefix in ("B", "I", "E", "S")):
        return tag
    if dash and kind and prefix in _IOBES:
        return f"{_IOBES[prefix]}-{kind}"
    return f"I-{tag}"


class Ner(evaluate.Metric):
    """`compute(predictions=[["B-PER", "O", …], …], references=[…])`, one list of tags per sentence.

    Returns precision, recall and f1 of entities (an entity is right if its type and both ends are) and the accuracy
    of tags, 0 to 1. Read as conlleval does: an I- after O or after another type begins an entity; none crosses
    sentences. mode="strict" counts only entities written as `scheme` (IOB2) says: there an I- without its B- is none.
    BILOU and BMES are read as IOBES; a tag without a prefix as one with I-. Without any entity the three are 0.
    per_type=True adds `types`: precision, recall, f1 and support of every type.

    Raises InputError when a sentence has another number of tags than its reference, for an unknown mode or scheme, and
    in strict mode for a tag the scheme does not have.
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
        for number, (predicted, reference) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(reference):
                raise InputError(f"sentence {number} has {len(reference)} tags but {len(predicted)} predictions")
        if not any(references):
            raise InputError("no sentence has a word to score")
        known = {
            tag: to_iobes(tag) for tag in {tag for side in (predictions, references) for tags in side for tag in tags}
        }
        gold, made = ([[known[tag] for tag in tags] for tags in side] for side in (references, predictions))
        with warnings.catch_warnings():
            # seqeval warns where a class is missing; what it then returns is what is documented here.
            warnings.simplefilter("ignore")
            accuracy = {"accuracy": float(accuracy_score(references, predictions))}
            if mode is None and not per_type:
                figures = precision_recall_fscore_support(gold, made, average="micro", zero_division=0)
                return dict(zip(("precision", "recall", "f1"), map(float, figures[:3]), strict=True)) | accuracy
            options = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme)} if mode else {}
            try:
                report = classification_report(gold, made, output_dict=True, zero_division=0, **options)
            except ValueError as error:
                raise InputError(f"the tags are not those of {scheme}: {error}") from None
        figures = {name: _figures(entry) for name, entry in report.items()}
        scores = {name: value for name, value in figures["micro avg"].items() if name != "support"} | accuracy
        if per_type:
            scores["types"] = {name: entry for name, entry in figures.items() if not name.endswith(" avg")}
        return scores


def _figures(entry):
    return {
        "precision": float(entry["precision"]),
        "recall": float(entry["recall"]),
        "f1": float(entry["f1-score"]),
        "support": int(entry["support"]),
    }

"""The metric of named entity recognition: micro-averaged F1 over entities, as in the CoNLL-2003 shared task."""

import warnings

import datasets
import evaluate
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

from hfbert_scratch.errors import InputError


class Ner(evaluate.Metric):
    """`compute(predictions=[["B-PER", "O", …], …], references=[…])`, one list of tags per sentence.

    Returns precision, recall and f1 of entities (an entity is right if its type and both ends are) and the accuracy
    of tags, 0 to 1. Read as conlleval does: an I- after O or after another type begins an entity; none crosses
    sentences. Without any entity the three are 0. Raises InputError when a sentence has another number of tags than
    its reference.
    """

    def _info(self):
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references):
        predictions, references = list(predictions), list(references)
        for number, (predicted, reference) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(reference):
                raise InputError(f"sentence {number} has {len(reference)} tags but {len(predicted)} predictions")
        if not any(references):
            raise InputError("no sentence has a word to score")
        with warnings.catch_warnings():
            # seqeval warns where a class is missing; what it then returns is what is documented here.
            warnings.simplefilter("ignore")
            scores = {
                "precision": precision_score(references, predictions, zero_division=0),
                "recall": recall_score(references, predictions, zero_division=0),
                "f1": f1_score(references, predictions, zero_division=0),
                "accuracy": accuracy_score(references, predictions),
            }
        return {name: float(value) for name, value in scores.items()}

"""Metrics of GLUE (Wang et al. 2018, arXiv:1804.07461) and its diagnostic set AX."""

import warnings

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support

from hfbert_scratch.utils.errors import InputError


def _accuracy(references, predictions):
    return {"accuracy": float(accuracy_score(references, predictions))}


def _accuracy_and_f1(references, predictions):
    f1 = f1_score(references, predictions, pos_label=1, average="binary", zero_division=0.0)
    return _accuracy(references, predictions) | {"f1": float(f1)}


def _matthews(references, predictions):
    if len(np.unique(references)) < 2 or len(np.unique(predictions)) < 2:
        warnings.warn("all labels or all predictions are the same class; its correlation counts as 0", stacklevel=2)
        return {"matthews_correlation": 0.0}
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def _correlations(references, predictions):
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        warnings.warn("all labels or all predictions are the same number; their correlation counts as 0", stacklevel=2)
        return {"pearson": 0.0, "spearmanr": 0.0}
    return {
        "pearson": float(pearsonr(predictions, references).statistic),
        "spearmanr": float(spearmanr(predictions, references).statistic),
    }


def _classification(references, predictions):
    f1 = f1_score(references, predictions, average="macro", zero_division=0.0)
    return _accuracy(references, predictions) | {"f1": float(f1)} | _matthews(references, predictions)


def _per_class(references, predictions, count):
    columns = precision_recall_fscore_support(references, predictions, labels=range(count), zero_division=0.0)
    return [
        {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for precision, recall, f1, support in zip(*columns, strict=True)
    ]


_CONFIGS = {
    "cola": _matthews,
    "sst2": _accuracy,
    "mrpc": _accuracy_and_f1,
    "stsb": _correlations,
    "qqp": _accuracy_and_f1,
    "mnli": _accuracy,
    "mnli_matched": _accuracy,
    "mnli_mismatched": _accuracy,
    "qnli": _accuracy,
    "rte": _accuracy,
    "wnli": _accuracy,
    "ax": _matthews,  # R3, the three-class Matthews correlation
    "classification": _classification,  # any other data: accuracy, macro-F1, Matthews correlation
    "regression": _correlations,
}


class Glue(evaluate.Metric):
    """`compute(predictions=…, references=…)` of class ids, for stsb and regression of numbers.

    Args:
        predictions: [n] class ids or numbers.
        references: [n] class ids or numbers.
        per_class: the number of classes whose scores are added.

    Returns:
        For cola and ax matthews_correlation; for mrpc and qqp accuracy and f1 of class 1; for stsb and regression
        pearson and spearmanr; for classification accuracy, f1 (macro) and matthews_correlation; for the others
        accuracy. The correlation of a constant input is 0, with a warning. With per_class=N, `classes` lists
        precision, recall, f1 and support of the classes 0 … N − 1.

    Raises:
        InputError: for ids that are negative (no label) or fractional, and for NaN.
    """

    def _info(self):
        if self.config_name not in _CONFIGS:
            raise InputError(f"the glue metric has no configuration {self.config_name!r}; use {', '.join(_CONFIGS)}")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__ or "",
            # Class ids are float64 too: to fit an integer feature, evaluate would silently drop the fraction.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references, per_class=0):
        # evaluate's own numpy format converts to float32.
        predictions, references = np.array(predictions, dtype=np.float64), np.array(references, dtype=np.float64)
        for name, values in (("predictions", predictions), ("references", references)):
            self._check(name, values)
        if _CONFIGS[self.config_name] is not _correlations:
            predictions, references = predictions.astype(np.int64), references.astype(np.int64)
        scores = _CONFIGS[self.config_name](references, predictions)
        if per_class:
            scores["classes"] = _per_class(references, predictions, per_class)
        return scores

    def _check(self, name, values):
        if not len(values):
            raise InputError(f"{name} are empty; there is nothing to score")
        finite = np.isfinite(values)
        if not finite.all():
            raise InputError(f"{name}[{int(np.argmin(finite))}] is not a finite number")
        if _CONFIGS[self.config_name] is _correlations:
            return
        usable = (values >= 0) & (values == np.floor(values))
        if not usable.all():
            at = int(np.argmin(usable))
            raise InputError(f"{name}[{at}] is {values[at]:g}; {self.config_name} needs class ids, 0 or more")

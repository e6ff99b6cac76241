"""Metric of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250)."""

import warnings

import datasets
import evaluate

from hfbert_scratch.metrics.squad_scoring import score_v1
from hfbert_scratch.utils.errors import InputError


class Squad(evaluate.Metric):
    """`compute(predictions=[{"id", "prediction_text"}], references=[{"id", "answers": {"text": [], "answer_start": []}}])`

    Args:
        predictions: [{"id", "prediction_text"}, …].
        references: [{"id", "answers": {"text": […], "answer_start": […]}}, …]; paired with the predictions by id.

    Returns:
        exact_match and f1, 0 to 100, over all references. A reference without a prediction, or with prediction_text
        None, counts as 0.

    Raises:
        InputError: for a reference without any answer.
    """  # noqa: E501

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
                    "references": {
                        "id": datasets.Value("string"),
                        "answers": {
                            "text": datasets.List(datasets.Value("string")),
                            "answer_start": datasets.List(datasets.Value("int32")),
                        },
                    },
                }
            ),
        )

    def _compute(self, predictions, references):
        if not references:
            raise InputError("there are no references to score")
        texts = {entry["id"]: entry["prediction_text"] for entry in predictions}
        exact = f1 = 0.0
        missing = 0
        for reference in references:
            golds = reference["answers"]["text"]
            if not golds:
                raise InputError(f"reference {reference['id']} has no answer; that is SQuAD 2.0: use squad_v2")
            text = texts.get(reference["id"])
            if text is None:
                missing += 1
                continue
            scores = score_v1(text, golds)
            exact, f1 = exact + scores[0], f1 + scores[1]
        if missing:
            warnings.warn(f"{missing} of {len(references)} questions have no prediction and count as 0", stacklevel=2)
        return {"exact_match": 100 * exact / len(references), "f1": 100 * f1 / len(references)}

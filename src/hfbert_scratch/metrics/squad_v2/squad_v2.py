"""Metric of SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822)."""

import datasets
import evaluate
import numpy as np

from hfbert_scratch.metrics.squad_scoring import best_threshold, score_v2
from hfbert_scratch.utils.errors import InputError


class SquadV2(evaluate.Metric):
    """`compute(predictions=[{"id", "prediction_text", "no_answer_probability"}], references=[{"id", "answers"}])`

    Args:
        predictions: [{"id", "prediction_text", "no_answer_probability"}, …]; no_answer_probability is any number that
            grows with the belief that there is no answer.
        references: [{"id", "answers"}, …]; paired with the predictions by id.
        no_answer_threshold: predictions with a larger no_answer_probability count as "".

    Returns:
        exact, f1 and total, over all questions and over those with (HasAns_) and without (NoAns_) an answer; scores
        are 0 to 100. And best_exact, best_exact_thresh, best_f1 and best_f1_thresh: the best score of any threshold
        (−inf: answer nothing), meaningful only if prediction_text is the best answer that is not "". A reference
        without a prediction, or with prediction_text None, counts as 0.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": {
                        "id": datasets.Value("string"),
                        "prediction_text": datasets.Value("string"),
                        "no_answer_probability": datasets.Value("float64"),
                    },
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

    def _compute(self, predictions, references, no_answer_threshold=1.0):
        if not references:
            raise InputError("there are no references to score")
        by_id = {entry["id"]: entry for entry in predictions}
        golds = [reference["answers"]["text"] for reference in references]
        entries = [by_id.get(reference["id"], {}) for reference in references]
        texts = [entry.get("prediction_text") for entry in entries]
        has_prediction = np.array([text is not None for text in texts])
        difference = np.array([entry.get("no_answer_probability", np.inf) for entry in entries], dtype=np.float64)
        answered = np.array([score_v2(text or "", gold) for text, gold in zip(texts, golds, strict=True)])
        unanswered = np.array([score_v2("", gold) for gold in golds]) * has_prediction[:, None]
        answered = answered * has_prediction[:, None]

        final = np.where((difference > no_answer_threshold)[:, None], unanswered, answered)
        has_answer = np.array([bool(gold) for gold in golds])
        result = _means("", final)
        for prefix, mask in (("HasAns_", has_answer), ("NoAns_", ~has_answer)):
            if mask.any():
                result |= _means(prefix, final[mask])
        for column, name in enumerate(("exact", "f1")):
            threshold, score, _, _ = best_threshold(difference, answered[:, column], unanswered[:, column])
            result |= {f"best_{name}": 100 * score, f"best_{name}_thresh": threshold}
        return result


def _means(prefix, scores):
    # Summed in order like the official script, so that published scores are reproduced to the last digit.
    exact, f1 = (100 * sum(column) / len(scores) for column in scores.T.tolist())
    return {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(scores)}

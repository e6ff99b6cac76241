"""The metric of SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822)."""

import datasets
import evaluate
import numpy as np

from hfbert_scratch.metrics.squad_scoring import best_threshold, score_v2


class SquadV2(evaluate.Metric):
    """`compute(predictions=[{"id", "prediction_text", "no_answer_probability"}], references=[{"id", "answers"}])`

    no_answer_probability is any number that grows with the belief that there is no answer; where it is above
    `no_answer_threshold` (default 1.0) the prediction counts as "". Returns exact, f1, total, the same for the
    questions with (HasAns_) and without (NoAns_) an answer, and best_exact, best_exact_thresh, best_f1,
    best_f1_thresh: the best that a threshold can reach (−inf: answer nothing), which means something only when
    prediction_text is the best answer that is not "". Scores are 0 to 100, paired by id; a reference without a
    prediction, or with prediction_text None, counts as 0.
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
        by_id = {entry["id"]: entry for entry in predictions}
        golds = [reference["answers"]["text"] for reference in references]
        found = [by_id.get(reference["id"], {}) for reference in references]
        texts = [entry.get("prediction_text") for entry in found]
        given = np.array([text is not None for text in texts])
        difference = np.array([entry.get("no_answer_probability", np.inf) for entry in found], dtype=np.float64)
        answered = np.array([score_v2(text or "", gold) for text, gold in zip(texts, golds, strict=True)])
        unanswered = np.array([score_v2("", gold) for gold in golds]) * given[:, None]
        answered = answered * given[:, None]

        final = np.where((difference > no_answer_threshold)[:, None], unanswered, answered)
        has_answer = np.array([bool(gold) for gold in golds])
        result = _means("", final)
        for prefix, chosen in (("HasAns_", has_answer), ("NoAns_", ~has_answer)):
            if chosen.any():
                result |= _means(prefix, final[chosen])
        for column, name in enumerate(("exact", "f1")):
            threshold, score, _, _ = best_threshold(difference, answered[:, column], unanswered[:, column])
            result |= {f"best_{name}": 100 * score, f"best_{name}_thresh": threshold}
        return result


def _means(prefix, scores):
    # Summed one after another like the official script, so that published figures come out to the last digit.
    exact, f1 = (100 * sum(column) / len(scores) for column in scores.T.tolist())
    return {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(scores)}

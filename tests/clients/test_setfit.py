"""SetFit: a few labelled sentences on our encoder."""

import pytest
from corpus_helpers import words
from datasets import Dataset


setfit = pytest.importorskip("setfit")


def test_train_and_predict(exported, tmp_path, passed):
    model = setfit.SetFitModel.from_pretrained(str(exported("sentence-transformers").directory))
    left, right = words(40)[:20], words(40)[20:]
    texts = [
        *(f"{a} {b}" for a, b in zip(left, left[1:], strict=False)),
        *(f"{a} {b}" for a, b in zip(right, right[1:], strict=False)),
    ]
    labels = [0] * 19 + [1] * 19
    arguments = setfit.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=20, batch_size=8, report_to="none"
    )
    trainer = setfit.Trainer(model, arguments, Dataset.from_dict({"text": texts, "label": labels}))
    trainer.train()
    accuracy = float((model.predict(texts, as_numpy=True) == labels).mean())
    assert accuracy > 0.8
    model.save_pretrained(str(tmp_path / "saved"))
    again = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"))
    assert (again.predict(texts, as_numpy=True) == model.predict(texts, as_numpy=True)).all()
    passed(
        f"SetFit {setfit.__version__}", "20 steps, predict, save, reload", f"accuracy {accuracy:.2f} on its 38 texts"
    )

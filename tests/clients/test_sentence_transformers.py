"""sentence-transformers: encode from our checkpoint and from the export, train, and come back to us."""

import pytest
import torch
from corpus_helpers import words
from datasets import Dataset

from hfbert_scratch.conversion.stock import from_stock


sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402


CLIENT = f"sentence-transformers {sentence_transformers.__version__}"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encode_the_export(pooling, exported, features, sentences, agrees):
    model = SentenceTransformer(str(exported("sentence-transformers", pooling=pooling).directory), device="cpu")
    assert model.max_seq_length == 64
    agrees(CLIENT, f"encode, {pooling}", zip(model.encode(sentences), features(pooling), strict=True), 1e-5)


def test_encode_our_own_checkpoint(checkpoint, features, sentences, agrees):
    model = SentenceTransformer(str(checkpoint()[0]), device="cpu", trust_remote_code=True)
    agrees(CLIENT, "encode our checkpoint", zip(model.encode(sentences), features("mean"), strict=True), 1e-5)


@torch.no_grad()
def test_cross_encoder(exported, checkpoint, tokenizer, sentences, agrees):
    reader = CrossEncoder(str(exported("sentence-transformers", "regression").directory), device="cpu")
    pairs = list(zip(sentences, sentences[1:], strict=False))
    _, model = checkpoint("regression")
    batch = tokenizer(pairs, padding=True, truncation=True, max_length=64, return_tensors="pt")
    ours = model(**batch).logits.sigmoid().flatten()
    agrees(CLIENT, "CrossEncoder", [(reader.predict(pairs), ours)], 1e-5)


def test_train_save_and_come_back(exported, tokenizer, tmp_path, passed):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    vocabulary = words(64)
    data = Dataset.from_dict({"anchor": vocabulary, "positive": [f"{word}, {word}!" for word in vocabulary]})
    model = SentenceTransformer(str(exported("sentence-transformers").directory), device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tmp_path / "run",
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(model, arguments, data, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0], losses
    model.save_pretrained(str(tmp_path / "trained"))
    back = from_stock(tmp_path / "trained", tmp_path / "ours")
    assert back.architecture == "HFBertModel" and back.largest_difference == 0.0
    passed(CLIENT, "20 training steps, saved, converted back", f"loss {losses[0]:.2f} → {losses[-1]:.2f}; 0.0")

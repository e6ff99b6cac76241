"""transformers' own pipelines and Trainer, accelerate's big-model loading: what needs no further package."""

import pytest
import torch
import transformers
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from datasets import Dataset
from helpers import batch


VERSION = f"transformers {transformers.__version__}"


def test_feature_extraction(checkpoint, features, sentences, agrees):
    extract = transformers.pipeline("feature-extraction", model=str(checkpoint()[0]), device="cpu")
    theirs = [extract(text, return_tensors=True)[0] for text in sentences]
    agrees(VERSION, "pipeline feature-extraction", zip(theirs, features(), strict=True), 1e-5)


@torch.no_grad()
def test_fill_mask(checkpoint, tokenizer, agrees):
    directory, model = checkpoint()
    fill = transformers.pipeline("fill-mask", model=str(directory), device="cpu")
    actual = fill("kala [MASK] fidu", top_k=5)
    inputs = tokenizer("kala [MASK] fidu", return_tensors="pt")
    position = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    best = model(**inputs).prediction_logits[0, position].softmax(0).topk(5)
    assert [guess["token"] for guess in actual] == best.indices.tolist()
    agrees(VERSION, "pipeline fill-mask", [([guess["score"] for guess in actual], best.values)], 1e-6)


@torch.no_grad()
def test_text_classification(checkpoint, tokenizer, sentences, agrees):
    directory, model = checkpoint("single_label")
    classify = transformers.pipeline("text-classification", model=str(directory), device="cpu", top_k=None)
    pairs = []
    for text in sentences:
        scores = {entry["label"]: entry["score"] for entry in classify([text])[0]}
        ours = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0)
        pairs.append(([scores[f"LABEL_{number}"] for number in range(3)], ours))
    agrees(VERSION, "pipeline text-classification", pairs, 1e-6)


@torch.no_grad()
def test_token_classification(checkpoint, tokenizer, sentences, agrees):
    directory, model = checkpoint("token")
    tag = transformers.pipeline("token-classification", model=str(directory), device="cpu", ignore_labels=[])
    pairs = []
    for text in sentences:
        best = model(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1].softmax(-1).max(-1)
        actual = tag(text)
        assert [entry["entity"] for entry in actual] == [f"LABEL_{index}" for index in best.indices]
        pairs.append(([entry["score"] for entry in actual], best.values))
    agrees(VERSION, "pipeline token-classification", pairs, 1e-6)


def test_trainer(checkpoint, tmp_path, passed):
    directory, _ = checkpoint("single_label")
    rows = batch("single_label", size=32)
    data = Dataset.from_dict({name: tensor.tolist() for name, tensor in rows.items()})

    def train(steps, **options):
        transformers.set_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
        arguments = transformers.TrainingArguments(
            output_dir=tmp_path / "run",
            max_steps=steps,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            save_steps=5,
            logging_steps=5,
            report_to="none",
            use_cpu=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
        trainer.train(**options)
        return trainer

    whole = train(10)
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    resumed = train(10, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    for (name, left), right in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right), name
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-10")
    assert all(
        torch.equal(left, right) for left, right in zip(saved.parameters(), whole.model.parameters(), strict=True)
    )
    passed(VERSION, "Trainer: train, save, resume", f"loss {losses[0]:.2f} → {losses[-1]:.2f}; resumed bit-identical")


PLACES = {
    "all in memory": {"": "cpu"},
    "layers on disk": {
        "bert.embeddings": "cpu",
        "bert.encoder.layer.0": "disk",
        "bert.encoder.layer.1": "disk",
        "bert.pooler": "cpu",
        "cls": "cpu",
    },
}


@pytest.mark.parametrize("places", PLACES)
@torch.no_grad()
def test_big_model_loading(places, checkpoint, tmp_path, agrees):
    directory, model = checkpoint()
    with init_empty_weights():
        empty = transformers.AutoModelForPreTraining.from_config(model.config)
    empty.tie_weights()
    options = {"device_map": PLACES[places], "offload_folder": str(tmp_path)}
    dispatched = load_checkpoint_and_dispatch(empty, str(directory / "model.safetensors"), **options).eval()
    loaded = transformers.AutoModelForPreTraining.from_pretrained(directory, **options).eval()
    inputs = batch("pretraining", labels=False)
    ours = model(**inputs).to_tuple()
    pairs = [pair for other in (dispatched, loaded) for pair in zip(other(**inputs).to_tuple(), ours, strict=True)]
    agrees("accelerate", f"dispatch and device_map, {places}", pairs, 0.0)

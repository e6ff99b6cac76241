"""transformers.js on Node: tokens, features and fill-mask from our ONNX directory."""

import json

import torch


def test_features(exported, features, tokenizer, sentences, run_node, agrees):
    actual = run_node("transformersjs.mjs", exported("onnx", "base").directory, json.dumps(sentences))
    for text, result in zip(sentences, actual["features"], strict=True):
        assert result["ids"] == tokenizer(text)["input_ids"], text
    theirs = [torch.tensor(result["vectors"]) for result in actual["features"]]
    agrees(
        f"transformers.js {actual['version']}",
        "features, token ids",
        zip(theirs, features(case="base"), strict=True),
        1e-5,
    )


@torch.no_grad()
def test_fill_mask(exported, checkpoint, tokenizer, run_node, agrees):
    directory, model = checkpoint("pretraining")
    text = "kala [MASK] fidu"
    actual = run_node("transformersjs.mjs", exported("onnx", "pretraining").directory, "[]", text)
    inputs = tokenizer(text, return_tensors="pt")
    position = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = model(**inputs).prediction_logits[0, position].softmax(0).topk(5)
    assert [guess["token"] for guess in actual] == best.indices.tolist()
    agrees("transformers.js", "fill-mask", [([guess["score"] for guess in actual], best.values)], 1e-5)

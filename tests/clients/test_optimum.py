"""optimum-onnx, which needs transformers 4: its own ONNX export of our stock directory."""

import json

import torch


def test_features(exported, features, tokenizer, sentences, run_transformers4, tmp_path, agrees):
    rows = [tokenizer(text)["input_ids"] for text in sentences]
    actual = run_transformers4("optimum_export.py", exported("stock", "base").directory, tmp_path, json.dumps(rows))
    theirs = [torch.tensor(row) for row in actual["features"]]
    versions = ", ".join(f"{name} {version}" for name, version in actual["versions"].items())
    agrees(f"optimum-onnx ({versions})", "features", zip(theirs, features(case="base"), strict=True), 1e-5)

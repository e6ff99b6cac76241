"""llama.cpp through node-llama-cpp: tokens and embeddings from our GGUF file, pooled as it says."""

import json

import numpy as np
import pytest


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings(pooling, exported, features, tokenizer, sentences, run_node, agrees):
    actual = run_node(
        "llama_cpp.mjs", exported("gguf", pooling=pooling).directory / "model.gguf", json.dumps(sentences)
    )
    for text, result in zip(sentences, actual, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert result["ids"] in (ids, ids[1:-1]), (text, tokenizer.convert_ids_to_tokens(result["ids"]))
    theirs = [np.array(result["vector"]) / np.linalg.norm(result["vector"]) for result in actual]
    # llama.cpp computes GELU by the tanh formula, from a table in half precision.
    agrees(
        "node-llama-cpp", f"embeddings, {pooling}", zip(theirs, features(pooling, normalize=True), strict=True), 1e-3
    )

"""fastembed: our ONNX directory as a custom model."""

import pytest


fastembed = pytest.importorskip("fastembed")
from fastembed.common.model_description import ModelSource, PoolingType  # noqa: E402


def test_a_custom_model(exported, features, sentences, agrees):
    fastembed.TextEmbedding.add_custom_model(
        model="hfbert/test",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="hfbert/test"),
        dim=32,
        model_file="onnx/model.onnx",
    )
    directory = str(exported("onnx", "base").directory)
    model = fastembed.TextEmbedding("hfbert/test", specific_model_path=directory)
    theirs = list(model.embed(sentences))
    ours = features("mean", case="base", normalize=True)
    agrees(f"fastembed {fastembed.__version__}", "embeddings, mean", zip(theirs, ours, strict=True), 1e-5)

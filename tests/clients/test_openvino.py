"""OpenVINO: the exported model on new shapes, in float32 and in what it takes by default."""

import pytest
import torch
from helpers import batch


openvino = pytest.importorskip("openvino")


@pytest.mark.parametrize(("hints", "tolerance"), [({"INFERENCE_PRECISION_HINT": "f32"}, 1e-4), ({}, 0.1)])
@torch.no_grad()
def test_features(hints, tolerance, exported, checkpoint, agrees):
    _, model = checkpoint("base")
    path = exported("openvino", "base").directory / "openvino_model.xml"
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    pairs = []
    for size, length in ((1, 9), (7, 50)):
        inputs = batch(size=size, length=length)
        actual = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["last_hidden_state"]
        mask = inputs["attention_mask"].bool()
        pairs.append((actual[mask.numpy()], model(**inputs).last_hidden_state[mask]))
    precision = "float32" if hints else "default precision"
    agrees(f"OpenVINO {openvino.__version__.split('-')[0]}", f"features, {precision}", pairs, tolerance)

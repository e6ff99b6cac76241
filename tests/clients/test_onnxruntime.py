"""ONNX Runtime: every head, on a batch and a length that the export has not seen."""

import numpy as np
import pytest
import torch
from helpers import CASES, batch


onnxruntime = pytest.importorskip("onnxruntime")
HEADS = [case for case in CASES if case not in ("multi_label", "regression")]


@pytest.mark.parametrize("case", HEADS)
@torch.no_grad()
def test_every_head(case, exported, checkpoint, agrees):
    _, model = checkpoint(case)
    session = onnxruntime.InferenceSession(
        exported("onnx", case).directory / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [part.name for part in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    pairs = []
    for size, length in ((1, 1), (1, 9), (7, 50)):
        inputs = batch(case, size=size, length=max(2, length), labels=False)
        inputs = {name: tensor[..., :length] for name, tensor in inputs.items()}
        actual = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        ours = [part.numpy() for part in model(**inputs).to_tuple()]
        mask = inputs["attention_mask"].numpy().astype(bool)
        for theirs, part in zip(actual, ours, strict=True):
            real = mask if part.shape[: mask.ndim] == mask.shape else np.ones(len(part), dtype=bool)
            pairs.append((theirs[real], part[real]))
    agrees(f"ONNX Runtime {onnxruntime.__version__}", CASES[case][0], pairs, 1e-4)

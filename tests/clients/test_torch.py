"""PyTorch's own ways out: torch.export and dynamic int8."""

import pytest
import torch
from helpers import batch


def _differences(client, ran, other, model, tolerance, agrees):
    pairs = []
    for size, length in ((3, 12), (2, 31), (7, 50)):
        inputs = batch(size=size, length=length)
        mask = inputs["attention_mask"].bool()
        pairs.append((other(**inputs)[0][mask], model(**inputs)[0][mask]))
    agrees(client, ran, pairs, tolerance)


@torch.no_grad()
def test_torch_export(checkpoint, tmp_path, agrees):
    _, model = checkpoint("base")
    dynamic = dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)
    inputs = batch()
    program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, dynamic))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    _differences(
        f"torch.export {torch.__version__}", "exported, saved, loaded; new shapes", loaded, model, 1e-5, agrees
    )


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_dynamic_int8(checkpoint, agrees):
    _, model = checkpoint("base")
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert "DynamicQuantizedLinear" in repr(quantized)
    _differences(f"torch {torch.__version__}", "dynamic int8", quantized, model, 0.2, agrees)

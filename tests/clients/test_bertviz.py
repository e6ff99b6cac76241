"""bertviz: the attention maps it draws are ours."""

import pytest
import torch
import transformers


bertviz = pytest.importorskip("bertviz")


@torch.no_grad()
def test_head_view(checkpoint, tokenizer, passed):
    directory, _ = checkpoint("base")
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", output_attentions=True)
    inputs = tokenizer("kala mose fidu", return_tensors="pt")
    attentions = model(**inputs).attentions
    page = bertviz.head_view(attentions, tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), html_action="return")
    assert len(attentions) == 2 and "[CLS]" in page.data
    first = f"{attentions[0][0, 0, 0, 0].item():.6f}"[:6]
    assert first in page.data
    passed("bertviz 1.4", "head_view", "attention maps of all layers drawn")

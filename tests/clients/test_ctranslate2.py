"""CTranslate2: features and pooler of our export; and its own converter on our stock directory."""

import numpy as np
import pytest
import torch


ctranslate2 = pytest.importorskip("ctranslate2")


@torch.no_grad()
def test_features(exported, checkpoint, features, tokenizer, sentences, agrees):
    encoder = ctranslate2.Encoder(str(exported("ctranslate2").directory), device="cpu")
    actual = [encoder.forward_batch([tokenizer(text)["input_ids"]]) for text in sentences]
    theirs = [np.array(result.last_hidden_state)[0] for result in actual]
    pooled = [np.array(result.pooler_output)[0] for result in actual]
    ours = [*features(), *features("pooler")]
    agrees(f"CTranslate2 {ctranslate2.__version__}", "features, pooler", zip(theirs + pooled, ours, strict=True), 1e-4)


def test_its_own_converter_takes_the_stock_directory(exported, features, tokenizer, sentences, tmp_path, agrees):
    converter = ctranslate2.converters.TransformersConverter(str(exported("stock").directory))
    encoder = ctranslate2.Encoder(converter.convert(str(tmp_path / "out")), device="cpu")
    actual = [encoder.forward_batch([tokenizer(text)["input_ids"]]) for text in sentences]
    theirs = [np.array(result.last_hidden_state)[0] for result in actual]
    agrees("CTranslate2's converter", "features of the stock export", zip(theirs, features(), strict=True), 1e-4)

"""CTranslate2, by its own converter from the stock directory."""

from pathlib import Path

import numpy as np

from ...utils.errors import InputError
from ..source import Arrays, ExportSource
from ..tokenizer_files import TOKENIZER_FILES


def write(source: ExportSource, directory: Path) -> float:
    """Convert the encoder, run it in CTranslate2, and return the largest difference from our own forward pass."""
    import ctranslate2

    activation = source.model.config.hidden_act
    if activation not in ctranslate2.converters.transformers._SUPPORTED_ACTIVATIONS:
        raise InputError(f"ctranslate2 does not know the activation {activation!r}; choose onnx or stock")
    present = [name for name in TOKENIZER_FILES if (source.stock / name).is_file()]
    converter = ctranslate2.converters.TransformersConverter(str(source.stock), copy_files=present)
    converter.convert(str(directory), force=True)
    encoder = ctranslate2.Encoder(str(directory), device="cpu", compute_type="float32")

    def run(batch: Arrays) -> Arrays:
        lengths = batch["attention_mask"].sum(axis=1).astype(np.int32)
        outputs = encoder.forward_batch(
            ctranslate2.StorageView.from_array(batch["input_ids"].astype(np.int32)),
            ctranslate2.StorageView.from_array(lengths),
            token_type_ids=batch["token_type_ids"].tolist(),
        )
        return {name: np.array(getattr(outputs, name)) for name in source.output_names}

    return source.largest_difference(run)

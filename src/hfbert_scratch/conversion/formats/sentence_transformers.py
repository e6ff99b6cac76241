"""sentence-transformers: a SentenceTransformer of encoder and pooling, or a classifier for CrossEncoder."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...features.encoder import encode
from ...text.tokenizer import load_tokenizer
from ...utils.files import write_json
from ..source import ExportSource, max_difference


def write(source: ExportSource, directory: Path) -> float:
    """Write the stock directory and its pooling, encode eight texts, and return the largest difference.

    A classifier's directory stays as it is, for CrossEncoder. The keys are the first versions' keys, which all later
    versions and text-embeddings-inference read.
    """
    shutil.copytree(source.stock, directory, dirs_exist_ok=True)
    config = source.model.config
    if source.architecture == "BertForSequenceClassification":
        return _verify_cross_encoder(source, directory)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{module}"}
        for number, (path, module) in enumerate(modules)
    ]
    write_json(directory / "modules.json", entries)
    # The tokenizer lower-cases by itself.
    limits = {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}
    write_json(directory / "sentence_bert_config.json", limits)
    write_json(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})
    pooling = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens")}
    pooling["pooling_mode_mean_tokens" if source.pooling == "mean" else "pooling_mode_cls_token"] = True
    (directory / "1_Pooling").mkdir()
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size} | pooling)

    from sentence_transformers import SentenceTransformer

    texts, tokenizer = _texts(directory)
    encoded = encode(source.model, tokenizer, texts, pooling=source.pooling)
    ours = np.stack([features.vectors[0] for features in encoded])
    theirs = SentenceTransformer(str(directory), device="cpu").encode(texts, convert_to_numpy=True)
    return max_difference(theirs, ours)


@torch.no_grad()
def _verify_cross_encoder(source: ExportSource, directory: Path) -> float:
    """Return the largest difference of the logits of text pairs between CrossEncoder and our model."""
    from sentence_transformers import CrossEncoder

    texts, tokenizer = _texts(directory)
    pairs = list(zip(texts, reversed(texts), strict=True))
    limit = source.model.config.max_position_embeddings
    batch = tokenizer(pairs, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    reader = CrossEncoder(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    theirs = reader.predict(pairs, activation_fn=nn.Identity(), convert_to_numpy=True)
    return max_difference(theirs.reshape(len(pairs), -1), source.model(**batch).logits.numpy())


def _texts(directory: Path) -> tuple[list[str], Any]:
    """Return eight texts of 1 to 22 words from the vocabulary of the tokenizer in `directory`, and the tokenizer."""
    tokenizer = load_tokenizer(directory)
    special = set(tokenizer.all_special_tokens)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [token for token, _ in vocabulary if token not in special and not token.startswith("##")]
    indices = torch.randint(len(words), (8, 22), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(words[index] for index in row[: 1 + 3 * number]) for number, row in enumerate(indices)]
    return texts, tokenizer

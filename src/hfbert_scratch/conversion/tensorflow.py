"""Write the original's checkpoints (bert_config.json, vocab.txt, TensorFlow's bert_model.ckpt) as stock directories.

TensorFlow reads its own format and is imported nowhere else (`pip install "hfbert-scratch[tensorflow]"`). The only
reader without TensorFlow, tensorflow-checkpoint-reader, was last changed in February 2023 and requires protobuf below
3.19, which rules out tensorboard and onnx.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ..utils.errors import InputError, one_line
from ..utils.files import read_json
from .checkpoint import pretraining_architecture
from .tokenizer_files import copy_existing


CONFIG_FILE = "bert_config.json"
_INDEX = ".index"
# Variables of optimizers and loss scaling: Adam's moments, the step.
_TRAINING_STATE = re.compile(r"(^|/)(adam_[mv]|global_step|beta[12]_power|loss_scale|good_steps|lamb_[mv])$")
# Differences between google-research/bert's variable names and stock's, applied in this order.
_RENAMED = (
    (re.compile(r"/layer_(\d+)/"), r"/layer/\1/"),
    (re.compile(r"^cls/squad/output_"), "qa_outputs/"),
    (re.compile(r"^output_(weights|bias)$"), r"classifier/\1"),
    (re.compile(r"^cls/predictions/output_bias$"), "cls/predictions/bias"),
    (re.compile(r"^cls/seq_relationship/output_"), "cls/seq_relationship/"),
    (re.compile(r"^(bert/embeddings/\w+_embeddings)$"), r"\1/weight"),
    (re.compile(r"/weights$"), "/weight"),
)
_OURS = re.compile(r"^(bert|cls|classifier|qa_outputs)\.")


def is_tensorflow_checkpoint(directory: str | Path) -> bool:
    """Return True if `directory` holds the original's files and no stock config.json."""
    path = Path(directory)
    return (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file() and any(path.glob(f"*{_INDEX}"))


def write_as_stock(source: str | Path, target: Path) -> list[str]:
    """Write the original's checkpoint `source` as a stock checkpoint.

    Dense layers' weights are transposed; Adam's moments and the step are left out. The variables decide the head:
    pretraining, one of its two objectives, run_classifier.py's, run_squad.py's, or none.

    Args:
        source: directory of bert_config.json, vocab.txt and one bert_model.ckpt.
        target: an existing directory.

    Returns:
        Sentences about variables that were not read.

    Raises:
        InputError: if TensorFlow is not installed, or if the files are damaged, hold several checkpoints or are not
            the original BERT's.
    """
    directory = Path(source)
    config = read_json(directory / CONFIG_FILE, "the model's configuration")
    if not isinstance(config, dict):
        raise InputError(f"{directory / CONFIG_FILE} must hold a JSON object, not a {type(config).__name__}")
    tensors, unknown = {}, []
    for variable, value in read_variables(_prefix(directory)).items():
        if _TRAINING_STATE.search(variable):
            continue
        name = stock_name(variable)
        if not _OURS.match(name):
            unknown.append(variable)
            continue
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value.T if variable.endswith("/kernel") else value))
    if not any(name.startswith("bert.") for name in tensors):
        raise InputError(f"{directory} holds no variables of the original BERT (bert/embeddings/word_embeddings, …)")
    config = config | {"model_type": "bert", "architectures": [_architecture(tensors)]}
    if "classifier.weight" in tensors:
        labels = range(len(tensors["classifier.weight"]))
        config |= {"id2label": {label: f"LABEL_{label}" for label in labels}}
        config |= {"label2id": {f"LABEL_{label}": label for label in labels}}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    copy_existing(directory, target, "vocab.txt", "tokenizer_config.json")
    return [f"no part of BERT, so not read: {', '.join(sorted(unknown))}"] if unknown else []


def stock_name(variable: str) -> str:
    """Translate a variable name of the original to stock's; kernels become weights, which are their transposes."""
    name = re.sub(r"/kernel$", "/weight", variable)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name.replace("/", ".")


def _architecture(tensors: dict[str, Any]) -> str:
    for part, name in (("classifier.", "BertForSequenceClassification"), ("qa_outputs.", "BertForQuestionAnswering")):
        if any(key.startswith(part) for key in tensors):
            return name
    return pretraining_architecture(tensors)


def _prefix(directory: Path) -> Path:
    """Return the checkpoint's path without endings, as TensorFlow expects it."""
    indices = sorted(directory.glob(f"*{_INDEX}"))
    if len(indices) > 1:
        names = ", ".join(path.name.removesuffix(_INDEX) for path in indices)
        raise InputError(f"{directory} holds several checkpoints ({names}); leave one, with {CONFIG_FILE}")
    prefix = indices[0].with_name(indices[0].name.removesuffix(_INDEX))
    if not any(directory.glob(f"{prefix.name}.data-*")):
        raise InputError(f"{directory} has {indices[0].name} but no {prefix.name}.data-… with the numbers")
    return prefix


def read_variables(prefix: Path) -> dict[str, np.ndarray]:
    """Read all variables of a TensorFlow checkpoint. Raises InputError if it is damaged or TensorFlow is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow
    except ImportError:
        raise InputError(
            f'reading {prefix} takes TensorFlow: pip install "hfbert-scratch[tensorflow]", or tensorflow-cpu'
        ) from None
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}
    except (tensorflow.errors.OpError, RuntimeError, ValueError) as error:
        raise InputError(f"{prefix} is truncated or damaged ({one_line(error)})") from None

"""The tokenizer's files beside a converted model, completed for every reader."""

import json
import math
import re
import shutil
from pathlib import Path

from ..text.tokenizer import SPECIAL_TOKENS, write_vocabulary
from ..utils.files import read_json


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_existing(source: Path, target: Path, *names: str) -> None:
    """Copy the files of the directory `source` that exist under `names`."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def has_tokenizer(directory: Path) -> bool:
    """Return True if a file in `directory` holds a vocabulary."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt"))


def copy_tokenizer(source: Path, target: Path, max_seq_length: int) -> list[str]:
    """Copy the tokenizer in `source` and complete it; return notes.

    Args:
        source: directory of a checkpoint, with or without a tokenizer.
        target: directory of the converted checkpoint.
        max_seq_length: the most tokens that the model takes.

    Returns:
        Sentences about a missing tokenizer or a guessed setting.
    """
    copy_existing(source, target, *TOKENIZER_FILES)
    if not has_tokenizer(target):
        return ["there is no tokenizer beside the model; put its files into the directory"]
    completed, notes = _complete_config(target, max_seq_length)
    _write_vocabulary(target)
    path = target / "special_tokens_map.json"
    if not path.is_file():
        roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
        tokens = {role: completed.get(role, token) for role, token in roles.items()}
        path.write_text(json.dumps(tokens, indent=2) + "\n", encoding="utf-8")
    return notes


def _complete_config(directory: Path, max_seq_length: int) -> tuple[dict, list[str]]:
    """Add the class and the length limit, which old tokenizers leave to the model, to tokenizer_config.json.

    Where only vocab.txt exists and no file says whether text is lower-cased, the vocabulary decides: text is
    lower-cased unless an entry other than [CLS] and the like has an upper-case letter.
    """
    path = directory / "tokenizer_config.json"
    stated = read_json(path, "the tokenizer's configuration") if path.is_file() else {}
    limit = min(stated.get("model_max_length") or math.inf, max_seq_length)
    completed = {"tokenizer_class": "BertTokenizer"} | stated | {"model_max_length": limit}
    notes = []
    if not (directory / "tokenizer.json").is_file() and "do_lower_case" not in stated:
        words = (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()
        cased = any(word != word.lower() for word in words if not re.fullmatch(r"\[\w+\]", word))
        completed["do_lower_case"] = not cased
        notes.append(f"do_lower_case={not cased}: the vocabulary has {'' if cased else 'no '}upper-case letters")
    if completed != stated:
        path.write_text(json.dumps(completed, indent=2) + "\n", encoding="utf-8")
    return completed, notes


def _write_vocabulary(directory: Path) -> None:
    """Write vocab.txt from tokenizer.json where it is missing."""
    serialized = directory / "tokenizer.json"
    if not serialized.is_file() or (directory / "vocab.txt").is_file():
        return
    content = read_json(serialized, "the tokenizer")
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        write_vocabulary(model["vocab"], directory)

"""Small data for the tests of tasks."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfbert_scratch.tasks import FeatureSettings


def write_jsonl(path: Path, rows: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tsv(path: Path, rows: Iterable[Iterable[Any]], bom: bool = False) -> Path:
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    path.write_text("\ufeff" * bom + text, encoding="utf-8")
    return path


def settings(tmp_path: Path, max_seq_length: int = 64, **options: Any) -> FeatureSettings:
    return FeatureSettings(max_seq_length, cache_dir=str(tmp_path / "features"), **options)

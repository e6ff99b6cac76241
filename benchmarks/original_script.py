"""The original `create_pretraining_data.py`, run as it is from the user's copy, without TensorFlow.

The script needs TensorFlow for its flags, for opening files and for writing TFRecords. Stand-ins do the first two;
records are built and thrown away, so that what is timed is the script's own Python. Nothing of it is part of this
repository: `--original` names the file, and `tokenization.py` must lie beside it, as in google-research/bert or in the
PyPI package bert-tensorflow.
"""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from hfbert_scratch.utils.errors import InputError


class OriginalScript:
    """The functions of the script in `path`, and its tokenizer for the vocabulary file `vocabulary`."""

    def __init__(self, path: str, vocabulary: Path, lowercase: bool) -> None:
        directory = Path(path).parent
        for file in (Path(path), directory / "tokenization.py"):
            if not file.is_file():
                raise InputError(f"--original {path}: there is no {file}")
        tensorflow = _tensorflow()
        absl, six, package = ModuleType("absl"), ModuleType("six"), ModuleType("bert")
        absl.flags = tensorflow.flags  # type: ignore[attr-defined]
        six.PY3, six.PY2 = True, False  # type: ignore[attr-defined]
        compatible = {"tensorflow": tensorflow, "tensorflow.compat": tensorflow, "tensorflow.compat.v1": tensorflow}
        sys.modules |= compatible | {"absl": absl, "absl.flags": absl.flags, "six": six, "bert": package}
        tokenization = _load("tokenization", directory / "tokenization.py")
        package.tokenization = sys.modules["bert.tokenization"] = tokenization  # type: ignore[attr-defined]
        self._script = _load("create_pretraining_data", Path(path))
        self._tokenizer = tokenization.FullTokenizer(str(vocabulary), do_lower_case=lowercase)

    def instances(self, text: Path, dupe_factor: int, max_seq_length: int = 128, predictions: int = 20) -> list[Any]:
        """From the text to training instances in memory, with the script's defaults."""
        return self._script.create_training_instances(
            [str(text)], self._tokenizer, max_seq_length, dupe_factor, 0.1, 0.15, predictions, random.Random(12345)
        )

    def write(self, instances: list[Any], max_seq_length: int = 128, predictions: int = 20) -> None:
        """The script's way from instances to records, which are not written."""
        self._script.write_instance_to_example_files(
            instances, self._tokenizer, max_seq_length, predictions, ["nowhere"]
        )


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Flags(SimpleNamespace):
    """Flags with their defaults."""

    def __init__(self) -> None:
        super().__init__(FLAGS=SimpleNamespace())
        for kind in ("string", "bool", "integer", "float"):
            setattr(self, f"DEFINE_{kind}", lambda name, default, _: setattr(self.FLAGS, name, default))


class _Message:
    """A protocol buffer that keeps nothing."""

    value: tuple[()] = ()

    def __init__(self, **_: Any) -> None: ...

    def __getattr__(self, name: str) -> "_Message":
        return self

    def SerializeToString(self) -> bytes:  # noqa: N802 - the name the script calls
        return b""


def _tensorflow() -> Any:
    module = ModuleType("tensorflow")
    files = SimpleNamespace(GFile=lambda name, mode: open(name, mode, encoding="utf-8"))  # noqa: SIM115
    writer = SimpleNamespace(write=lambda record: None, close=lambda: None)
    names = ("Example", "Features", "Feature", "Int64List", "FloatList")
    vars(module).update(
        flags=_Flags(),
        gfile=files,
        io=SimpleNamespace(gfile=files),
        logging=SimpleNamespace(info=lambda *_: None),
        python_io=SimpleNamespace(TFRecordWriter=lambda name: writer),
        train=SimpleNamespace(**dict.fromkeys(names, _Message)),
        compat=SimpleNamespace(v1=module),
    )
    return module

"""NVIDIA's LDDL (the PyPI package lddl, or github.com/NVIDIA/LDDL), run as it is from the user's copy, without Dask.

Of its `lddl/dask/bert/pretrain.py` the functions from text to segment pairs are called, in one process and with its
defaults: sentences by NLTK, which must be installed, their tokens, pairs without masks, rows of text in one Parquet
file. Stand-ins take the place of Dask's bags, whose shuffling would only add to it. NLTK's model for English is a
download; its splitter without a model does the same work.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfbert_scratch.utils.errors import InputError


class LDDLFunctions:
    """The functions of the file `path`, lddl/dask/bert/pretrain.py of a copy, with a fast tokenizer."""

    def __init__(self, path: str, tokenizer: Any) -> None:
        if not Path(path).is_file():
            raise InputError(f"--lddl {path}: there is no such file")
        try:
            from nltk.tokenize.punkt import PunktSentenceTokenizer
        except ImportError as error:
            raise InputError(f"--lddl needs NLTK ({error}): pip install nltk") from error
        names = ["dask", "dask.bag", "dask.distributed", "lddl", "lddl.utils", "lddl.download", "lddl.download.utils"]
        names += ["lddl.dask", "lddl.dask.readers", "lddl.dask.bert", "lddl.dask.bert.binning"]
        sys.modules |= {name: _Anything(name) for name in names}
        # A document begins with its name there, up to a blank.
        sys.modules["lddl.dask.readers"].split_id_text = lambda text: text.split(" ", 1)  # type: ignore[attr-defined]
        spec = importlib.util.spec_from_file_location("lddl.dask.bert.pretrain", path)
        if spec is None or spec.loader is None:
            raise InputError(f"--lddl {path} is not a Python file")
        self._functions = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._functions)
        tokenize = SimpleNamespace(sent_tokenize=PunktSentenceTokenizer().tokenize)
        self._functions.nltk = SimpleNamespace(tokenize=tokenize)  # type: ignore[attr-defined]
        self._tokenizer = tokenizer

    def write(self, documents: Iterable[list[str]], output: Path) -> None:
        """From documents, lists of sentences, to segment pairs on disk."""
        texts = _Bag(f"{number} " + " ".join(sentences) for number, sentences in enumerate(documents))
        made = tuple(self._functions._get_documents(texts, self._tokenizer))
        pairs = [
            pair for number in range(len(made)) for pair in self._functions.create_pairs_from_document(made, number)
        ]
        pq.write_table(pa.Table.from_pylist(pairs), output)


class _Bag:
    """As much of a Dask bag as is used."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def map(self, function: Callable[[Any], Any]) -> "_Bag":
        return _Bag(map(function, self))

    def filter(self, function: Callable[[Any], Any]) -> "_Bag":
        return _Bag(filter(function, self))


class _Anything(ModuleType):
    """A module that has whatever is imported from it."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

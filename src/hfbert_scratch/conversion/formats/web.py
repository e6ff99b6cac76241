"""A folder for any static web server: a page that runs the model in the browser by transformers.js.

index.html beside model/ (the ONNX export) and, on request, library/ (transformers.js and ONNX Runtime's WebAssembly).
"""

import json
import shutil
from html import escape
from pathlib import Path

from ...utils.errors import InputError
from ...utils.files import read_json, write_text
from ..source import ExportSource
from . import onnx


# The version that the browser tests run (tests/clients/test_browser.py); the page loads it from a network of mirrors.
LIBRARY_VERSION = "4.3.1"
_LIBRARY_URL = f"https://cdn.jsdelivr.net/npm/@huggingface/transformers@{LIBRARY_VERSION}"
# Of a node_modules directory: what a page without a GPU needs, all of it within the two packages.
_LIBRARY = "@huggingface/transformers/dist/transformers.min.js"
_RUNTIME = tuple(f"onnxruntime-web/dist/ort-wasm-simd-threaded.{kind}" for kind in ("mjs", "wasm"))
_TEMPLATE = Path(__file__).with_name("web_page.html")
# Stock's class name → what the page asks for.
TASKS = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
}


def write(source: ExportSource, directory: Path) -> float:
    """Write the page with its model; return the largest difference of the ONNX graph from our own forward pass."""
    (directory / "model").mkdir()
    difference = onnx.write(source, directory / "model")
    library = f"{_LIBRARY_URL}/dist/transformers.min.js"
    if source.web_library is not None:
        library = copy_library(source.web_library, directory / "library")
    config = source.model.config
    settings = {
        "task": TASKS[source.architecture],
        "library": library,
        "runtime": "./library/" if source.web_library is not None else None,
        "title": source.name,
        "maxTokens": config.max_position_embeddings,
        "regression": config.num_labels == 1,
        "multiLabel": config.problem_type == "multi_label_classification",
        "nullThreshold": source.task.get("null_threshold"),
    }
    write_text(directory / "index.html", page(settings))
    return difference


def page(settings: dict[str, object]) -> str:
    """Return the page's HTML with its settings in it."""
    embedded = json.dumps(settings, ensure_ascii=False).replace("<", "\\u003c")  # no tag ends the script
    text = _TEMPLATE.read_text(encoding="utf-8")
    return text.replace("{{title}}", escape(str(settings["title"]))).replace("{{settings}}", embedded)


def copy_library(modules: Path, target: Path) -> str:
    """Copy transformers.js and its runtime from a node_modules directory.

    Args:
        modules: the directory that `npm install @huggingface/transformers` made.
        target: the directory to write.

    Returns:
        The address of the library for the page.

    Raises:
        InputError: if a file is missing, or if the library is of another major version than the page's.
    """
    missing = [name for name in (_LIBRARY, *_RUNTIME) if not (modules / name).is_file()]
    if missing:
        raise InputError(
            f"--web_library {modules} has no {missing[0]}; name the node_modules directory of "
            f"`npm install @huggingface/transformers@{LIBRARY_VERSION}`"
        )
    package = read_json(modules / "@huggingface/transformers/package.json", "the library's package")
    version = str(package.get("version"))
    if version.split(".")[0] != LIBRARY_VERSION.split(".")[0]:
        raise InputError(
            f"--web_library {modules} holds transformers.js {version}, and the page is for {LIBRARY_VERSION}: "
            f"npm install @huggingface/transformers@{LIBRARY_VERSION}"
        )
    target.mkdir()
    for name in (_LIBRARY, *_RUNTIME):
        shutil.copyfile(modules / name, target / Path(name).name)
    return f"./library/{Path(_LIBRARY).name}"

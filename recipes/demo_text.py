"""English text that every Python installation carries: the language's help topics and the docstrings of its packages.

Sources are parsed, never imported or run. One document per help topic and per module; nothing is downloaded.
"""

import ast
import hashlib
import inspect
import json
import multiprocessing
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics


# Lines that are not prose: doctests, directives, tables, parameter lists ("name : type"), rules, signatures.
_NOT_PROSE = re.compile(
    r"^\s*(>>>|\.\.\.|\.\. |[-=~^*+|#]{3,}|\||:\w+|@|\$ |[\w.*, ]+ ?: ?[\w\[{(`'\"]+|\w+\(.*\)\s*$)"
)
_MARKUP = re.compile(
    r":\w+(?::\w+)?:`~?([^`<]*?)(?:\s*<[^`]*>)?`|``([^`]*)``|`([^`<]+)`_*|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*"
)
_SENTENCE_END = re.compile(r"[.!?:;]$")


def documents() -> Iterator[str]:
    """Yield documents: paragraphs of English prose, one a line. Each has at least two paragraphs of 40 characters.

    Modules come in an order shuffled by a hash of their path, so that any beginning of it is a fair sample.
    """
    seen: set[bytes] = set()
    for topic in topics.topics.values():
        yield from _as_document(_paragraphs([topic]), seen)
    files = sorted(_source_files(), key=lambda path: _digest(path.as_posix()))
    with multiprocessing.get_context("spawn").Pool(min(4, os.cpu_count() or 1)) as pool:
        for paragraphs in pool.imap(_module_paragraphs, files, chunksize=32):
            yield from _as_document(paragraphs, seen)


def write_documents(path: Path, limit: int) -> tuple[int, int]:
    """Write documents to the JSON Lines file `path` until `limit` characters; returns (documents, characters)."""
    count = characters = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents():
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count, characters = count + 1, characters + len(text)
            if characters >= limit:
                break
    return count, characters


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _source_files() -> Iterator[Path]:
    for name in ("stdlib", "purelib", "platlib"):
        root = Path(sysconfig.get_path(name))
        for path in root.rglob("*.py"):
            inside = path.relative_to(root).parts
            if not (name == "stdlib" and "site-packages" in inside) and not {"test", "tests"} & set(inside):
                yield path.resolve()


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return []
    return [doc for node in _definitions(tree) if (doc := ast.get_docstring(node))]


def _definitions(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator:
    """The node and the classes and functions directly in its body, recursively: far fewer nodes than ast.walk."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child)


def _module_paragraphs(path: Path) -> list[str]:
    return _paragraphs(_docstrings(path))


def _paragraphs(texts: list[str]) -> list[str]:
    paragraphs = []
    for text in texts:
        for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            prose = " ".join(line.strip() for line in block.splitlines() if not _NOT_PROSE.match(line))
            prose = " ".join(_MARKUP.sub(lambda match: next(filter(None, match.groups()), ""), prose).split())
            if _is_prose(prose):
                paragraphs.append(prose)
    return paragraphs


def _as_document(paragraphs: list[str], seen: set[bytes]) -> Iterator[str]:
    """The paragraphs that no earlier document had, if they are enough for a document."""
    new = [paragraph for paragraph in dict.fromkeys(paragraphs) if _digest(paragraph) not in seen]
    seen.update(map(_digest, new))
    if len(new) >= 2:
        yield "\n".join(new)


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < 40 or not _SENTENCE_END.search(paragraph):
        return False
    letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in paragraph)
    return letters / len(paragraph) > 0.9 and sum(word.islower() for word in paragraph.split()) >= 6

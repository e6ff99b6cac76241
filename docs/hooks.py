"""Hooks of mkdocs: pages from files outside docs/, and links to files of the repository.

Links are written as GitHub follows them; here they lead to the file's page, if it has one.
"""

import os
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[1]
# Page of the site → file of the repository that has its text.
BORROWED = {"commands.md": "recipes/README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
# A link whose text has no brackets of its own.
_WHOLE_LINK = re.compile(r"(?<!!)\[([^\[\]]*)" + _LINK.pattern)


def on_files(files: Any, config: Any) -> Any:
    """Add the borrowed pages."""
    for name, source in BORROWED.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to borrowed files and modules at their pages, and other links out of docs/ at the repository."""
    name = page.file.src_uri
    source = BORROWED.get(name, f"docs/{name}")
    return _WHOLE_LINK.sub(partial(_rewrite, name=name, source=source, repository=config.repo_url), markdown)


def _rewrite(match: re.Match[str], *, name: str, source: str, repository: str | None) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        raise PluginError(f"{source}: a link to {target}, which is not in the repository")
    page = _page_of(path)
    if page is not None:
        return f"[{text}]({posixpath.relpath(page, posixpath.dirname(name) or os.curdir)}{anchor})"
    return f"[{text}]({repository.rstrip('/')}/blob/main/{path}{anchor})" if repository else text


def _page_of(path: str) -> str | None:
    """Find the page that has a file's text, or that documents a module."""
    borrowed = {source: page for page, source in BORROWED.items()}
    if path in borrowed:
        return borrowed[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("src/hfbert_scratch/") and path.endswith(".py"):
        module = path.removeprefix("src/").removesuffix(".py")
        return f"reference/{module.replace('__init__', 'index')}.md"
    return None

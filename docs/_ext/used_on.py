"""A Sphinx extension that lists, for each public name, the pages whose code imports it.

The code of the pages is parsed, not run. Only imports under the public path count.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

#: The folders whose pages are listed, in reading order.
_FOLDERS = ("start", "tutorials", "how-to", "concepts", "examples", "")

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: [^\n]* -->\n+```python\n.*?^```", re.DOTALL | re.MULTILINE)


def imported_names(code: str) -> set[str]:
    """Return the dotted names that Python code imports from this library."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finetunelib"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def names_on_pages(source: Path) -> dict[str, list[str]]:
    """Return, for each public name, the pages that import it, without file extensions."""
    codes: dict[str, str] = {}
    for page in source.rglob("*.md"):
        name = page.relative_to(source).with_suffix("").as_posix()
        if not name.startswith(("_", "api/")) and name != "index":
            text = _NOT_RUN.sub("", page.read_text(encoding="utf-8"))
            codes[name] = "\n".join(match[1] for match in _BLOCK.finditer(text))
    for script in (source / "_tutorials").glob("*.py"):
        codes[f"tutorials/{script.stem}"] = script.read_text(encoding="utf-8")
    pages: dict[str, list[str]] = defaultdict(list)
    for page_name in sorted(codes, key=_position):
        for name in imported_names(codes[page_name]):
            pages[name].append(page_name)
    return pages


def _position(page: str) -> tuple[int, str]:
    folder = page.rpartition("/")[0]
    return (_FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS), page)


def _read_pages(app: Sphinx) -> None:
    app.env.finetunelib_used_on = names_on_pages(Path(app.srcdir))  # type: ignore[attr-defined]


def _add_list(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """Append the list to the docstring of a class or function."""
    pages = app.env.finetunelib_used_on.get(name)  # type: ignore[attr-defined]
    lines: list[str] = rest[-1]
    if what in ("class", "function") and pages:
        links = ", ".join(f":doc:`/{page}`" for page in pages)
        lines += ["", ".. container:: used-on", "", f"   Used on: {links}.", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx."""
    app.connect("builder-inited", _read_pages)
    app.connect("autodoc-process-docstring", _add_list)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""A Sphinx extension that links [source] of a public name to the file that defines it.

The `__module__` of a public object is the sub-package that users import it from, not the private
module that defines it.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2] / "src"


@cache
def module_of(public_module: str, name: str) -> str | None:
    """Return the name of the module that defines a public class or function, or `None`.

    Args:
        public_module: The module that users import it from, such as `finetunelib.training`.
        name: The name of the class or function, such as `History`.

    Returns:
        A name such as `finetunelib.training._history`.
    """
    path = ROOT.joinpath(*public_module.split("."))
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
        if name in _defined_in(file):
            return ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return None


@cache
def _defined_in(file: Path) -> frozenset[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef))


def _follow(app: Sphinx, modname: str, attribute: str) -> str | None:  # noqa: ARG001 - Sphinx passes it
    return module_of(modname, attribute.partition(".")[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx."""
    app.connect("viewcode-follow-imported", _follow)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""A Sphinx extension: where the source of a public name really stands, for its [source] link.

Public objects carry the sub-package that users import them from as their module, and not the
private file that holds them.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2] / "src"


@cache
def module_of(public_module: str, name: str) -> str | None:
    """Return the module whose file defines a public class or function, or `None`.

    Args:
        public_module: Where users import it from, such as `finetunelib.training`.
        name: Such as `History`.

    Returns:
        Such as `finetunelib.training._history`.
    """
    place = ROOT.joinpath(*public_module.split("."))
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        if name in _defined_in(file):
            return ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return None


@cache
def _defined_in(file: Path) -> frozenset[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef))


def _follow(app: Sphinx, modname: str, attribute: str) -> str | None:  # noqa: ARG001 - its form
    return module_of(modname, attribute.partition(".")[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx."""
    app.connect("viewcode-follow-imported", _follow)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

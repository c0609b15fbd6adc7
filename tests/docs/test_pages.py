"""The pages of docs/ against the code that they describe."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

API = Path(__file__).parents[2] / "docs" / "api"


@pytest.mark.parametrize("page", sorted(API.glob("*.md")), ids=lambda page: page.stem)
def test_api_page_shows_every_public_name(page: Path) -> None:
    """A sub-package's page documents what its `__all__` lists, and nothing else."""
    text = page.read_text(encoding="utf-8")
    package = text.splitlines()[0].removeprefix("# ")
    public = set(importlib.import_module(package).__all__) - {"__version__"}
    if f"automodule:: {package}" in text:
        return  # The page shows the module as a whole.
    shown = re.findall(rf"auto\w+:: {re.escape(package)}\.(\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(public)


def test_every_sub_package_has_a_page() -> None:
    """No public sub-package is missing from the documentation."""
    source = Path(__file__).parents[2] / "src" / "finetunelib"
    packages = {folder.parent.name for folder in source.glob("*/__init__.py")}
    assert packages <= {page.stem for page in API.glob("*.md")}

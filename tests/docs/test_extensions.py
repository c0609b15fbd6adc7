"""The extensions in docs/_ext, which list the pages that use a name and link to source files."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from support_pages import DOCS

pytest.importorskip("sphinx")
sys.path.insert(0, str(DOCS / "_ext"))

real_sources = importlib.import_module("real_sources")
used_on = importlib.import_module("used_on")


@pytest.mark.parametrize(
    ("package", "name", "module"),
    [
        ("finetunelib", "Trainer", "finetunelib.training._trainer"),
        ("finetunelib.training", "History", "finetunelib.training._history"),
        ("finetunelib.errors", "HeadError", "finetunelib.errors"),
    ],
)
def test_a_source_link_leads_to_the_file_that_defines_a_name(
    package: str, name: str, module: str
) -> None:
    """A public name has its sub-package as module; the link finds the private file."""
    assert real_sources.module_of(package, name) == module


def test_a_name_that_does_not_exist_has_no_source() -> None:
    """No link is created for it."""
    assert real_sources.module_of("finetunelib.training", "Nothing") is None


def test_pages_are_listed_under_the_names_that_they_import(tmp_path: Path) -> None:
    """Tutorials and pages are listed in reading order, without code that is not run."""
    block = "```python\nfrom finetunelib{} import {}\n```\n"
    (tmp_path / "_tutorials").mkdir()
    (tmp_path / "_tutorials" / "one.py").write_text("from finetunelib import Trainer\n")
    (tmp_path / "how-to").mkdir()
    page = block.format("", "Trainer") + "<!-- not run: why -->\n" + block.format(".data", "x")
    (tmp_path / "how-to" / "two.md").write_text(page)
    assert used_on.names_on_pages(tmp_path) == {
        "finetunelib.Trainer": ["tutorials/one", "how-to/two"]
    }

"""The page on the architecture: its pictures and its paths agree with the source."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

from support_pages import DOCS, ROOT

sys.path.insert(0, str(DOCS / "_scripts"))

architecture = importlib.import_module("architecture")

PAGE = (DOCS / "contributing" / "architecture.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "finetunelib"

#: Paths in backticks, such as `export/_verification/` and `errors.py`.
PATHS = sorted(set(re.findall(r"`([\w/]+(?:/|\.py))`", PAGE)))


@pytest.mark.parametrize("name", architecture.pictures())
def test_a_picture_is_what_its_script_draws(name: str) -> None:
    """The committed file is current; run docs/_scripts/architecture.py if it is not."""
    assert (DOCS / "_static" / name).read_text(encoding="utf-8") == architecture.pictures()[name]
    assert f":file: ../_static/{name}" in PAGE


def test_the_picture_shows_every_layer_of_the_contract() -> None:
    """Each module that the import contract orders is in the picture, from the top down."""
    picture = architecture.layers_picture()
    names = [name for row in architecture.layers() for name in row]
    found = [re.search(rf"\b{name}\b", picture) for name in names]
    positions = [match.start() for match in found if match]
    assert len(positions) == len(names) > 10
    packages = [picture.index(f">{name}<") for name in names if not name.startswith("_")]
    assert packages == sorted(packages)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_the_page_exists(path: str) -> None:
    """Each path is relative to the package, or to the repository if it starts with a top folder."""
    base = ROOT if path.startswith(("src/", "tests/")) else SOURCE
    assert (base / path).is_dir() if path.endswith("/") else (base / path).is_file()


def test_the_page_answers_where_to_start() -> None:
    """The paths that a newcomer asks for are among those that are checked."""
    assert {
        "finetuning/_heads/find.py",
        "training/_optimization/step.py",
        "export/_verification/",
        "training/_checkpointing/",
        "visualization/_netron/",
    } <= set(PATHS)

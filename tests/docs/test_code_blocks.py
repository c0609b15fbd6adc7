"""Every Python block in the README and on the pages of docs/ runs and has an effect."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

from support_pages import ROOT, Watched, blocks_of, idle_names, name_of, pages, tutorials

#: Languages of blocks that are not run. A comment above Python that is not run gives the reason.
NOT_PYTHON = {"console", "text", "toml"}
DIRECTIVES = {
    "{toctree}",
    "{include}",
    "{eval-rst}",
    "{glossary}",
    "{container}",
    "{image}",
    "{literalinclude}",
    "{raw}",
}

WITH_PYTHON = [p for p in pages() if "```python" in p.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft calls it
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is pasted from top to bottom raises no error, and every line runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")  # Opens no browser.
    watched, entered = Watched(), set[int]()
    names: dict[str, object] = {"__name__": "page", "__entered__": entered.add}
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.language != "python" or block.reason:
            continue
        # Leading blank lines give a traceback the line numbers of the page.
        tree = ast.parse("\n" * (block.line - 1) + block.text, str(page))
        exec(compile(watched.visit(tree), str(page), "exec"), names)
    never = sorted(watched.bodies - entered)
    assert not never, f"The code below these lines of {name_of(page)} never runs: {never}."


@pytest.mark.slow
@pytest.mark.parametrize("script", tutorials(), ids=name_of)
def test_a_tutorial_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tutorial also runs as a program, in an empty folder."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    try:
        runpy.run_path(str(script))
    finally:
        pyplot.close("all")


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_every_block_does_something(page: Path) -> None:
    """Each block calls something, or defines what the page uses."""
    blocks = [b for b in blocks_of(page.read_text(encoding="utf-8")) if b.language == "python"]
    run = [block for block in blocks if not block.reason]
    idle = [run[number].line for number in idle_names([ast.parse(b.text) for b in run])]
    assert not idle, f"The blocks at these lines do nothing: {idle}."


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    """A block is Python that runs, Python with a reason, or in a language that is not run."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^[ \t>]+(```|:::)", text, re.MULTILINE), (
        "An indented block would not be found."
    )
    for block in blocks_of(text):
        if block.language == "python":
            ast.parse(block.text)  # Code that is not run must still parse.
            continue
        known = block.language in NOT_PYTHON or block.language.partition(" ")[0] in DIRECTIVES
        assert known, f"Line {block.line}: a block in the language {block.language!r}."
        assert not block.reason, f"Line {block.line}: only Python needs a reason not to run."


def test_a_block_that_does_nothing_is_noticed() -> None:
    """The check distinguishes idle blocks from useful ones."""
    sources = ["import os", "def f():\n    print()", "x = 1", "print(x)", "y = 2"]
    assert list(idle_names([ast.parse(source) for source in sources])) == [0, 1, 4]


def test_a_body_that_never_runs_is_noticed() -> None:
    """The check records which functions and conditions were entered."""
    watched, entered = Watched(), set[int]()
    source = "def f():\n    pass\ndef g():\n    if False:\n        pass\ng()"
    exec(compile(watched.visit(ast.parse(source)), "", "exec"), {"__entered__": entered.add})
    assert watched.bodies - entered == {1, 4}


def test_the_pages_are_found() -> None:
    """The tests above have pages to check."""
    assert ROOT / "README.md" in WITH_PYTHON
    assert len(WITH_PYTHON) > 10

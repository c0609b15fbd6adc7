"""The pages of docs/ agree with the code that they describe and with each other."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from support_pages import DOCS, ROOT, blocks_of, name_of, pages, tutorials

API = DOCS / "api"

#: Pages without a link to the next page.
WITHOUT_NEXT = {"README.md", "README.zh-CN.md"}


def test_the_reference_is_in_the_order_of_the_layers() -> None:
    """The API pages are listed from the lowest layer to the highest, with the errors last."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"layers = \[\n(.*?)\n\]", contract, re.DOTALL)
    assert layers is not None
    rows = [re.findall(r"\w+", line) for line in reversed(layers[1].splitlines())]
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    shown = re.findall(r"^api/(\w+)$", index, re.MULTILINE)
    assert (shown[0], shown[-1]) == ("finetunelib", "errors")
    layer_of = {name: number for number, names in enumerate(rows) for name in names}
    order = [layer_of[name] for name in shown[1:-1]]
    assert order == sorted(order)
    assert sorted(shown) == sorted(page.stem for page in API.glob("*.md"))


@pytest.mark.parametrize("page", sorted(API.glob("*.md")), ids=lambda page: page.stem)
def test_api_page_shows_every_public_name(page: Path) -> None:
    """The page of a sub-package documents the names in its `__all__` and no others."""
    text = page.read_text(encoding="utf-8")
    package = text.splitlines()[0].removeprefix("# ")
    public = set(importlib.import_module(package).__all__) - {"__version__"}
    if f"automodule:: {package}" in text:
        return  # The page shows the module as a whole.
    shown = re.findall(rf"auto\w+:: {re.escape(package)}\.(\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(public)


def test_every_sub_package_has_a_page() -> None:
    """No public sub-package is missing from the documentation."""
    source = ROOT / "src" / "finetunelib"
    packages = {folder.parent.name for folder in source.glob("[!_]*/__init__.py")}
    assert packages <= {page.stem for page in API.glob("*.md")}


def _public() -> Iterator[tuple[str, object]]:
    """Yield every public class and function."""
    for page in sorted(API.glob("*.md")):
        package = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        module = importlib.import_module(package)
        for name in sorted(set(module.__all__) - {"__version__"}):
            yield f"{package}.{name}", getattr(module, name)


def _methods() -> Iterator[tuple[str, object]]:
    """Yield the public methods of the public classes."""
    for name, value in TOP.items():
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            plain = getattr(function, "__func__", function)
            if not method.startswith("_") and inspect.isfunction(plain):
                yield f"{name}.{method}", plain


TOP = dict(_public())
METHODS = dict(_methods())
PUBLIC = TOP | METHODS


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name: str) -> None:
    """A docstring starts with a sentence and names each exception that it lists."""
    text = inspect.getdoc(PUBLIC[name])
    assert text, f"{name} has no docstring."
    assert text.splitlines()[0].endswith("."), "The first line is a sentence."
    assert "Raises:" not in text or re.search(r"Raises:\n {4}\w+: ", text)


@pytest.mark.parametrize("name", TOP)
def test_a_public_function_or_class_has_an_example(name: str) -> None:
    """Each has an example that runs, or refers to one.

    Exceptions do not need one. A value that only the library creates lists its attributes instead.
    """
    value = TOP[name]
    if inspect.isclass(value) and issubclass(value, BaseException):
        return
    text = inspect.getdoc(value) or ""
    if is_dataclass(value) and "Attributes:" in text and "Example:" not in text:
        return
    assert "Example:" in text
    assert ">>>" in text or re.search(r"See `\w+`", text)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_documented(name: str) -> None:
    """`Args` lists the parameters of a function or class in their order."""
    value = PUBLIC[name]
    if inspect.isclass(value) and (issubclass(value, BaseException) or _takes_nothing(value)):
        return
    text = inspect.getdoc(value) or ""
    described = _names_in(text, "Args") or _names_in(text, "Attributes")
    if not described:
        # A short method may explain it in its sentence, and a class the context of its hooks.
        assert name in METHODS or not _parameters(value)
        return
    parameters = _parameters(value)
    if _names_in(text, "Args"):
        assert described == parameters
    else:
        assert set(parameters) <= set(described)


def _takes_nothing(value: type) -> bool:
    """Return whether only the library creates objects of a class."""
    text = inspect.getdoc(value) or ""
    return bool(re.search(r"(?:made|created|returned) by `|as `", text, re.IGNORECASE))


def _parameters(value: object) -> list[str]:
    assert callable(value)
    try:
        found = inspect.signature(value).parameters
    except ValueError:
        return []
    return [name for name in found if name not in ("self", "cls", "args", "kwargs")]


def _names_in(text: str, section: str) -> list[str]:
    """Return the names that a section of a Google docstring lists."""
    match = re.search(rf"^{section}:\n((?: {{4}}.*\n?|\n)+)", text, re.MULTILINE)
    return re.findall(r"^ {4}\*{0,2}(\w+): ", match[1], re.MULTILINE) if match else []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_a_page_ends_with_where_to_go_next(page: Path) -> None:
    """The last paragraph of a page links to the next page; only a toctree may follow it."""
    if page.name in WITHOUT_NEXT:
        return
    text = re.sub(r"```\{toctree\}.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    last = text.strip().split("\n\n")[-1]
    assert last.startswith(("Next: ", "下一步")), f"{name_of(page)} ends with: {last[:80]}"
    assert re.search(r"\{(doc|func|class)\}`|\]\(", last)


@pytest.mark.parametrize("script", tutorials(), ids=name_of)
def test_a_tutorial_ends_with_where_to_go_next(script: Path) -> None:
    """A tutorial starts with its title and ends with a link to the next page."""
    text = script.read_text(encoding="utf-8")
    last = text.strip().split("\n# %%\n")[-1]
    assert re.search(r"\*\*Next\*\*: :doc:`", last)
    title = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert set(title[1]) == {"="}


def test_the_tutorials_have_an_order() -> None:
    """Every script is in the list."""
    source = (DOCS / "_ext" / "tutorial_order.py").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"(\w+\.py)"', source)) == [script.name for script in tutorials()]


def test_the_start_page_is_the_same_in_both_languages() -> None:
    """Both pages have the same commands, the same code and as many sections."""
    english, chinese = (
        (DOCS / "start" / name).read_text(encoding="utf-8")
        for name in ("quickstart.md", "quickstart.zh-CN.md")
    )
    assert blocks_without_lines(english) == blocks_without_lines(chinese)
    assert english.count("\n## ") == chinese.count("\n## ")


def blocks_without_lines(text: str) -> list[tuple[str, str]]:
    """Return the blocks of a page without their line numbers."""
    return [(block.language, block.text) for block in blocks_of(text)]

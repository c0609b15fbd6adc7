"""The size of folders, modules, functions and field lists, without docstrings."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from release_version import ROOT

SOURCE = ROOT / "src" / "finetunelib"
MODULES = sorted(SOURCE.rglob("*.py"))

MODULES_PER_FOLDER = 15
LINES_PER_MODULE = 300
MEDIAN_LINES = 150
LINES_PER_FUNCTION = 60
FIELDS = 12

#: The exceptions: public signatures, a public table row, and a module that is nine lines too long.
ALLOWED = {
    "export/_export.py:export_onnx",
    "finetuning/_weights/suggestions.py",
    "training/_trainer.py:Trainer.__init__",
    "visualization/_summary/rows.py:SummaryRow",
}


def name_of(module: Path) -> str:
    """Return the path of a module in the package."""
    return module.relative_to(SOURCE).as_posix()


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def definitions(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Yield the functions and classes of a module with their qualified names."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, parent = stack.pop()
        for node in ast.iter_child_nodes(parent):
            name = prefix
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{node.name}".strip(".")
                yield name, node
            stack.append((name, node))


def is_dataclass(node: ast.ClassDef) -> bool:
    """Return whether a class has the decorator `dataclass`."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def size_of(module: Path) -> int:
    """Return the number of lines of a module without docstrings."""
    text = module.read_text()
    return len(text.splitlines()) - len(docstring_lines(ast.parse(text)))


def test_folders_have_few_modules() -> None:
    """Larger folders are divided by subject."""
    counts = Counter(name_of(module.parent) for module in MODULES if module.name != "__init__.py")
    assert {folder: n for folder, n in counts.items() if n > MODULES_PER_FOLDER} == {}


def test_modules_are_short() -> None:
    """A module has one subject."""
    sizes = {name_of(module): size_of(module) for module in MODULES}
    long = {name: size for name, size in sizes.items() if size > LINES_PER_MODULE}
    assert {name: size for name, size in long.items() if name not in ALLOWED} == {}


def test_the_median_module_is_short() -> None:
    """Counted with docstrings, and without the modules that only re-export names."""
    sizes = [
        len(module.read_text().splitlines()) for module in MODULES if module.name != "__init__.py"
    ]
    assert statistics.median(sizes) <= MEDIAN_LINES


def test_functions_are_short() -> None:
    """A function does one thing."""
    long = {}
    for module in MODULES:
        tree = ast.parse(module.read_text())
        documentation = docstring_lines(tree)
        for name, node in definitions(tree):
            lines = set(range(node.lineno, (node.end_lineno or node.lineno) + 1)) - documentation
            place = f"{name_of(module)}:{name}"
            if not isinstance(node, ast.ClassDef) and len(lines) > LINES_PER_FUNCTION:
                long[place] = len(lines)
    assert {place: size for place, size in long.items() if place not in ALLOWED} == {}


def test_classes_have_few_fields() -> None:
    """The limit applies to dataclass fields and to constructor arguments."""
    many = {}
    for module in MODULES:
        for name, node in definitions(ast.parse(module.read_text())):
            if isinstance(node, ast.ClassDef) and is_dataclass(node):
                count = sum(isinstance(entry, ast.AnnAssign) for entry in node.body)
            elif not isinstance(node, ast.ClassDef) and node.name == "__init__":
                count = len(node.args.args) - 1 + len(node.args.kwonlyargs)
            else:
                continue
            if count > FIELDS:
                many[f"{name_of(module)}:{name}"] = count
    assert {place: size for place, size in many.items() if place not in ALLOWED} == {}


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "manager"])
def test_no_module_has_a_generic_name(word: str) -> None:
    """Names such as `utils` do not say what a module contains."""
    assert [name_of(module) for module in MODULES if word in module.stem] == []

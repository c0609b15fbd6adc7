"""The pages of the documentation and their code blocks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<fence>`{3,}|:{3,})(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: The text after the fence, such as `python` or `{toctree}`.
        text: The content of the block.
        line: The number of its first line on the page.
        reason: Why it is not run, from a comment `<!-- not run: ... -->` above it, or empty.
    """

    language: str
    text: str
    line: int
    reason: str


def pages() -> list[Path]:
    """Return the READMEs and all hand-written Markdown pages in docs/."""
    generated = {DOCS / "tutorials", DOCS / "_build"}
    readmes = sorted(ROOT.glob("README*.md"))
    found = sorted(DOCS.rglob("*.md"))
    return readmes + [page for page in found if generated.isdisjoint(page.parents)]


def tutorials() -> list[Path]:
    """Return the scripts that become pages."""
    return sorted((DOCS / "_tutorials").glob("*.py"))


def name_of(page: Path) -> str:
    """Return the name of a page in test ids."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    return [
        Block(
            match["language"].strip(),
            match["text"],
            text.count("\n", 0, match.start("text")) + 1,
            match["reason"] or "",
        )
        for match in _FENCE.finditer(text)
    ]


def prose_of(text: str) -> str:
    """Return a page without fenced blocks and code in backticks."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def idle_names(blocks: list[ast.Module]) -> Iterator[int]:
    """Yield the numbers of blocks that have no effect.

    A block has an effect if it calls, checks or changes something outside of functions and classes,
    or if it defines or imports a name that a later block uses.
    """
    used = [{node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} for tree in blocks]
    for number, tree in enumerate(blocks):
        acts = any(
            isinstance(node, ast.Call | ast.Assert | ast.Raise | ast.With | ast.Delete)
            for statement in tree.body
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
            for node in ast.walk(statement)
        )
        later = set().union(*used[number + 1 :])
        if not acts and not _defined(tree) & later:
            yield number


def _defined(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            names |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return names


class Watched(ast.NodeTransformer):
    """Makes each body of code on a page report when it is entered.

    Attributes:
        bodies: The first lines of the bodies of functions, loops and conditions.
    """

    def __init__(self) -> None:
        self.bodies: set[int] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Report when a function is entered."""
        return self._watch(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        """Report when a loop is entered."""
        return self._watch(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        """Report when a condition is true."""
        return self._watch(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        """Report when an exception is handled."""
        return self._watch(node)

    def _watch(self, node: ast.FunctionDef | ast.For | ast.If | ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        self.bodies.add(node.lineno)
        call = ast.parse(f"__entered__({node.lineno})").body[0]
        for part in ast.walk(call):
            ast.copy_location(part, node)
        node.body.insert(0, call)
        return node

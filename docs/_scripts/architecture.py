"""Draw the pictures of docs/contributing/architecture.md: the layers and the path of the data.

The layers are read from the import contract in pyproject.toml, and the folders from src/. Run this
script after a change to either. It writes docs/_static/architecture-*.svg:

    python docs/_scripts/architecture.py

A test compares the files with what this script draws.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "finetunelib"
STATIC = ROOT / "docs" / "_static"

#: Both pictures are so narrow that their text stays readable on a phone.
WIDTH = 480
MARGIN = 6
GAP = 10

#: The page's own colors if the picture is part of a page, otherwise those after the comma.
STYLE = """
.arch text { font: 14px var(--font-stack, system-ui, sans-serif); text-anchor: middle;
  fill: var(--color-foreground-primary, #1f2328); }
.arch .arch-path { font: 12px var(--font-stack--monospace, monospace);
  fill: var(--color-foreground-secondary, #57606a); }
.arch .arch-name { font: 600 14px var(--font-stack--monospace, monospace); }
.arch .arch-note { font-size: 12px; fill: var(--color-foreground-secondary, #57606a); }
.arch .arch-start { text-anchor: start; }
.arch .arch-end { text-anchor: end; }
.arch rect { stroke-width: 1.5; stroke: var(--color-background-border, #d0d7de);
  fill: var(--color-background-secondary, #f6f8fa); }
.arch .arch-code { stroke: var(--color-brand-primary, #0b5cad); }
.arch path { fill: none; stroke-width: 1.5; stroke: var(--color-foreground-muted, #6e7781); }
.arch marker path { fill: var(--color-foreground-muted, #6e7781); stroke: none; }
"""

#: The head of an arrow.
HEAD = (
    '<defs><marker id="arch-head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker></defs>'
)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with lines of text in it.

    Attributes:
        lines: Pairs of a class of `STYLE` and a text, from top to bottom.
        code: Whether it is a part of the library, and not data or a file.
    """

    x: int
    y: int
    width: int
    height: int
    lines: tuple[tuple[str, str], ...]
    code: bool = True

    def svg(self) -> Iterator[str]:
        """Yield the elements."""
        kind = ' class="arch-code"' if self.code else ""
        yield (
            f'<rect{kind} x="{self.x}" y="{self.y}" width="{self.width}" '
            f'height="{self.height}" rx="5"/>'
        )
        first = self.y + self.height / 2 - 9 * (len(self.lines) - 1) + 5
        for number, (style, text) in enumerate(self.lines):
            yield label(self.x + self.width / 2, first + 18 * number, text, style)


def main() -> None:
    """Write both pictures."""
    for name, text in pictures().items():
        (STATIC / name).write_text(text, encoding="utf-8")


def pictures() -> dict[str, str]:
    """Return the text of each file in docs/_static, by its name."""
    return {"architecture-layers.svg": layers_picture(), "architecture-data.svg": data_picture()}


def layers() -> list[list[str]]:
    """Return the modules of each layer, from the top down, as the import contract lists them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    rows = next(c["layers"] for c in contracts if c.get("containers") == ["finetunelib"])
    # Parentheses mark a module that may be missing.
    names = [[name.strip(" ()") for name in row.split("|")] for row in rows]
    return [[name for name in row if _exists(name)] for row in names]


def layers_picture() -> str:
    """Return the picture of the layers."""
    boxes, y = [], MARGIN
    for row in [["finetunelib"], *layers()]:
        private = row[0].startswith("_")
        cells = [_wrapped(row)] if private else [_package(name) for name in row]
        height = 18 * max(len(lines) for lines in cells) + 16
        width = (WIDTH - 2 * MARGIN - GAP * (len(cells) - 1)) // len(cells)
        boxes += [
            Box(MARGIN + number * (width + GAP), y, width, height, lines, code=not private)
            for number, lines in enumerate(cells)
        ]
        y += height + GAP
    title = "The layers of finetunelib. Each imports only from the layers below it."
    return _svg(title, y - GAP + MARGIN, (line for box in boxes for line in box.svg()))


def data_picture() -> str:
    """Return the picture of the data's path, from tensors and a weights file to Netron."""
    left, right, half = MARGIN, WIDTH // 2 + GAP, WIDTH // 2 - GAP - MARGIN
    whole = WIDTH - 2 * MARGIN
    boxes = [
        Box(left, 6, half, 44, (("", "tensors, Dataset, DataLoader"),), code=False),
        Box(right, 6, half, 44, (("", "nn.Module, weights file"),), code=False),
        Box(left, 86, half, 52, _step("batches", "data/")),
        Box(right, 86, half, 52, _step("load_weights", "finetuning/_weights/")),
        Box(right, 174, half, 70, _step(
            "freeze_and_replace_head", "finetuning/_heads/", "finetuning/_freezing/")),
        Box(left, 280, whole, 88, _step(
            "Trainer.fit", "training/_loop/", "training/_tasks/ training/_optimization/",
            "training/_measuring/ training/_callbacks/")),
        Box(left, 404, half, 52, _step("checkpoints", "training/_checkpointing/")),
        Box(right, 404, half, 52, (("", "trained model"),), code=False),
        Box(left, 492, half, 44, (("", "checkpoint folder"),), code=False),
        Box(right, 492, half, 70, _step(
            "export_onnx", "export/_tracing/", "export/_verification/")),
        Box(right, 598, half, 44, (("", "model.onnx"),), code=False),
        Box(right, 678, half, 52, _step("visualize", "visualization/_netron/")),
        Box(right, 766, half, 44, (("", "Netron in the browser"),), code=False),
    ]  # fmt: skip
    in_left, in_right = left + half // 2, right + half // 2
    arrows = [
        arrow(in_left, 50, 86),
        arrow(in_right, 50, 86),
        arrow(in_left, 138, 280),
        arrow(in_right, 138, 174),
        arrow(in_right, 244, 280),
        arrow(in_left, 368, 404, both=True),
        arrow(in_right, 368, 404),
        arrow(in_left, 456, 492, both=True),
        arrow(in_right, 456, 492),
        arrow(in_right, 562, 598),
        arrow(in_right, 642, 678),
        arrow(in_right, 730, 766),
        label(in_right - 8, 161, "model", "arch-note arch-end"),
        label(in_left + 8, 212, "inputs, targets", "arch-note arch-start"),
        label(in_right - 8, 266, "model with a new head", "arch-note arch-end"),
        label(in_left + 8, 390, "save, resume", "arch-note arch-start"),
        label(in_right - 8, 584, "kept if it matches", "arch-note arch-end"),
    ]
    title = (
        "The path of the data: batches and a model go through Trainer.fit, which saves "
        "checkpoints. export_onnx compares the file with the trained model. Netron shows the file."
    )
    return _svg(title, 816, [HEAD, *arrows, *(line for box in boxes for line in box.svg())])


def arrow(x: int, start: int, end: int, *, both: bool = False) -> str:
    """Return a vertical arrow, with a head at its end or at both ends."""
    heads = ' marker-end="url(#arch-head)"' + (' marker-start="url(#arch-head)"' if both else "")
    first = start + 4 if both else start
    return f'<path d="M{x} {first}V{end - 4}"{heads}/>'


def label(x: float, y: float, text: str, style: str = "") -> str:
    """Return a line of text."""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _step(name: str, *paths: str) -> tuple[tuple[str, str], ...]:
    """Return the lines of a box for a part of the library.

    Raises:
        FileNotFoundError: If one of the folders is not in src/finetunelib.
    """
    for path in " ".join(paths).split():
        if not (SOURCE / path).is_dir():
            raise FileNotFoundError(f"{SOURCE / path} is not a folder; correct the picture.")
    return (("arch-name", name), *(("arch-path", path) for path in paths))


def _package(name: str) -> tuple[tuple[str, str], ...]:
    """Return the lines of a box for a public module: its name, and the folders inside it."""
    folders = sorted(folder.parent.name for folder in (SOURCE / name).glob("_*/__init__.py"))
    return (("arch-name", name), *(_wrapped(folders) if folders else ()))


def _wrapped(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return lines of names for a box, with as many names in a line as fit."""
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > 52:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".strip()
    return tuple(("arch-path", line) for line in lines)


def _exists(name: str) -> bool:
    return (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()


def _svg(title: str, height: int, elements: Iterable[str]) -> str:
    """Return a complete picture."""
    opening = (
        f'<svg class="arch" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([opening, f"<style>{STYLE}</style>", *elements, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()

"""The table of the comparison in the READMEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from _parts.paired import HAND, OURS

#: The file that the figures come from, as the READMEs name it.
FILE = "benchmarks/results/peers.json"

#: Each line: part, row, key, and the texts in English and Chinese.
LINES = (
    ("steps", "tiny_bare", "ratio", "a step, tiny model", "一步，极小模型"),
    ("steps", "tiny_metric", "ratio", "a step, tiny, accuracy", "一步，极小模型，准确率"),
    ("steps", "tiny_bar", "ratio", "a step, tiny, accuracy, bar", "一步，极小模型，准确率和进度条"),
    ("steps", "mlp_bare", "ratio", "a step, MLP", "一步，MLP"),
    ("steps", "mlp_metric", "ratio", "a step, MLP, accuracy", "一步，MLP，准确率"),
    ("steps", "mlp_bar", "ratio", "a step, MLP, accuracy, bar", "一步，MLP，准确率和进度条"),
    ("epoch", "arrays", "to_hand", "an epoch of MNIST, arrays", "MNIST 一个轮次，数组"),
    ("dataset", "dataset", "to_hand", "an epoch of MNIST, dataset", "MNIST 一个轮次，数据集"),
    ("head", "mlp", "to_hand", "a new head, MLP", "新的分类头，MLP"),
    ("head", "resnet18", "to_hand", "a new head, ResNet-18", "新的分类头，ResNet-18"),
    ("inference", "evaluate", "to_hand", "evaluate", "评估"),
    ("inference", "predict", "to_hand", "predict", "预测"),
    ("checkpoint", "save", "to_hand", "save a checkpoint", "保存检查点"),
    ("checkpoint", "restore", "to_hand", "restore a checkpoint", "恢复检查点"),
    ("imports", "import", "to_torch", "import (`import torch` = 1)", "导入（`import torch` = 1）"),
)


@dataclass(frozen=True, slots=True)
class Texts:
    """The words of one language.

    Attributes:
        column: The position of its texts in `LINES`.
        first: The heading of the first column.
        hand: The heading of the hand-written loop.
        missed: The sentence before the lines in which another trainer was faster.
        separator: What separates these lines.
        end: The end of a sentence.
        all_won: The sentence if there are none.
    """

    column: int
    first: str
    hand: str
    missed: str
    separator: str
    end: str
    all_won: str


ENGLISH = Texts(
    3,
    "processor time, hand-written loop = 1",
    "by hand, again",
    "Another trainer was faster in: ",
    "; ",
    ".",
    "No other trainer was faster in any line.",
)
CHINESE = Texts(
    4,
    "处理器时间，手写循环 = 1",
    "再次手写",
    "另有训练器更快的行：",
    "；",
    "。",
    "没有任何一行有其他训练器更快。",
)


#: What encloses the table in a README.
BEGIN, END = "<!-- peers -->\n", "\n<!-- end of peers -->"


def replaced(page: str, result: Mapping[str, Any], texts: Texts) -> str:
    """Return a page with a new table.

    Raises:
        ValueError: If the page has no place for it.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"The page must contain {BEGIN!r} and {END!r}.")
    return f"{before}{BEGIN}\n{table(result, texts)}\n{END}{after}"


def table(result: Mapping[str, Any], texts: Texts) -> str:
    """Return the table with marked figures, and the sentence about lines that are missed."""
    measured = [line for line in LINES if line[1] in result.get(line[0], {}).get("rows", {})]
    names = [
        name
        for name in ("hand_again", OURS, *_others(result, measured))
        if any(name in _row(result, line) for line in measured)
    ]
    headings = [texts.first, *(texts.hand if name == "hand_again" else name for name in names)]
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for line in measured:
        cells = [_cell(result, line, name) for name in names]
        lines.append(f"| {line[texts.column]} | {' | '.join(cells)} |")
    lost = [_lost(result, line) for line in measured]
    found = [
        f"{line[texts.column]} ({', '.join(others)})"
        for line, others in zip(measured, lost, strict=True)
        if others
    ]
    sentence = texts.missed + texts.separator.join(found) + texts.end if found else texts.all_won
    return "\n".join([*lines, "", sentence])


def _others(result: Mapping[str, Any], lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the names of the other trainers, in the order in which they were measured."""
    found: dict[str, None] = {}
    for line in lines:
        found.update(dict.fromkeys(_row(result, line)))
    return [name for name in found if name not in (HAND, OURS, "hand_again")]


def _row(result: Mapping[str, Any], line: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = result[line[0]]["rows"][line[1]]
    return row


def _cell(result: Mapping[str, Any], line: tuple[str, ...], name: str) -> str:
    part, row, key, *_ = line
    value = _row(result, line).get(name, {}).get(key)
    if value is None:
        return "-"
    return f"{value:.2f}<!-- figure: {FILE}:{part}.rows.{row}.{name}.{key} -->"


def _lost(result: Mapping[str, Any], line: tuple[str, ...]) -> list[str]:
    """Return the other trainers that were faster than this library in a line."""
    row, key = _row(result, line), line[2]
    ours = row.get(OURS, {}).get(key)
    others = _others(result, [line])
    return [name for name in others if ours is not None and row[name].get(key, float("inf")) < ours]

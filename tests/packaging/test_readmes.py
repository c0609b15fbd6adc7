"""The two READMEs: equal content, and the numbers that the benchmarks printed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from release_version import ROOT

from _parts import table

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def result(name: str) -> dict[str, Any]:
    """Return the result of a benchmark, for its last size if it has several."""
    text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
    content = json.loads(text)
    last: dict[str, Any] = content[-1] if isinstance(content, list) else content
    return last


def numbers() -> list[str]:
    """Return the numbers of the benchmarks in both READMEs."""
    tutorial, overhead = result("tutorial"), result("step_overhead")
    imports, checkpoint = result("import_time"), result("checkpoint")
    export = result("export")["models"]["resnet50"]
    return [
        f"{tutorial['example_seconds']:.1f}",
        f"{tutorial['tutorial_seconds']:.1f}",
        f"{tutorial['ratio']}",
        f"{imports['finetunelib_seconds']}",
        f"{imports['share']}",
        f"{overhead['tiny_metric_ratio']}",
        f"{overhead['mlp_metric_ratio']}",
        f"{result('fit_memory')['ratio']}",
        f"{checkpoint['megabytes']:,} MB",
        f"{checkpoint['ratio']['checkpoint_to_torch_save']}",
        f"{export['ratio']}",
    ]


@pytest.mark.parametrize("figure", numbers())
def test_number_of_a_benchmark_is_in_both(figure: str) -> None:
    """A new result changes both texts."""
    number = rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)"
    assert re.search(number, ENGLISH)
    assert re.search(number, CHINESE)


@pytest.mark.parametrize(
    ("page", "texts"),
    [(ENGLISH, table.ENGLISH), (CHINESE, table.CHINESE)],
    ids=["English", "Chinese"],
)
def test_the_table_of_trainers_is_that_of_the_result(page: str, texts: table.Texts) -> None:
    """`python benchmarks/peers.py --table` would change nothing."""
    assert table.table(result("peers"), texts) in page
    assert table.replaced(page, result("peers"), texts) == page


def code(text: str) -> list[str]:
    """Return the blocks of a page, without the comments in them."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r" *#.*", "", block) for block in blocks]


def test_code_is_the_same_in_both() -> None:
    """Only the comments are translated."""
    assert code(ENGLISH)
    assert code(ENGLISH) == code(CHINESE)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^#+ |^- |^\|",
        r"[\w-]+/[\w-]+#\d+",
        r"\]\((?!README)[^)]+\)",
        r"`(?:tests|benchmarks|make|--?\w)[^`]*`",
        r"<br>`[^`]*`",
    ],
    ids=["sections, points and rows", "threads", "links", "commands and files", "command lines"],
)
def test_both_have_the_same(pattern: str) -> None:
    """Both have the same items in the same order."""
    found = [re.findall(pattern, text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert found[0]
    assert found[0] == found[1]


def test_every_link_leads_to_a_file() -> None:
    """Files that the README names exist."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", ENGLISH + CHINESE)
    files = re.findall(r"`((?:tests|benchmarks)/[^`]+)`", ENGLISH)
    assert [name for name in [*links, *files] if not (ROOT / name).exists()] == []

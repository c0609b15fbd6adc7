"""The Chinese pages use one form of address and one term for each thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support_pages import DOCS, ROOT, name_of

START = DOCS / "start" / "quickstart.zh-CN.md"
PAGES = [ROOT / "README.zh-CN.md", START]

#: Chinese terms from the table at the end of the Start page.
TERMS = [
    term
    for row in re.findall(r"^\| [a-z][^|]* \| ([^|]*) \|$", START.read_text("utf-8"), re.MULTILINE)
    for term in row.split("、")
]

#: Other translations of these terms, and the other form of address.
VARIANTS = [
    *("您", "输出层", "输出头", "骨干", "缓存区", "存档", "断点", "周期", "批量大小", "随机状态"),
    *("度量", "验证文件", "续训", "训练轮", "优化程序"),
]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_uses_no_other_translation(page: Path) -> None:
    """Neither page contains a variant of a term in the table."""
    text = page.read_text(encoding="utf-8")
    assert [variant for variant in VARIANTS if variant in text] == []


def test_the_table_lists_terms_that_the_pages_use() -> None:
    """Each term in the table is used on at least one page, outside of the table."""
    text = "".join(
        re.sub(r"(?s)### 术语.*?下一步", "", page.read_text(encoding="utf-8")) for page in PAGES
    )
    assert len(TERMS) > 20
    assert [term for term in TERMS if term not in text] == []

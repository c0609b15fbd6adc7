"""The result of `diagnose`: findings as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from finetunelib._escapes import escaped
from finetunelib._html import html_table
from finetunelib._public import public
from finetunelib._tables import WIDTH, wrapped
from finetunelib.training._diagnosis.finding import Finding

_HEADINGS = ("level", "code", "sure", "finding")

_GAP = "  "


@public("finetunelib.training")
@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of `diagnose`, errors first.

    `print(diagnosis)` prints a table. Iterating yields the findings.

    Attributes:
        findings: The findings that were not ignored.
        examined: What was examined, one sentence each.

    Example:
        >>> from finetunelib.training import Diagnosis, Finding
        >>> finding = Finding("labels-of-one-class", "certain", "All labels are 3.", "Shuffle.")
        >>> diagnosis = Diagnosis((finding,), ("Examined one batch.",))
        >>> diagnosis
        Diagnosis(1 finding: labels-of-one-class)
        >>> diagnosis.ok
        False
        >>> print(diagnosis)
        level    code                 sure     finding
        warning  labels-of-one-class  certain  All labels are 3. Shuffle.
        Examined one batch.
    """

    findings: tuple[Finding, ...]
    examined: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found. This does not prove that the model learns."""
        return not self.findings

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __repr__(self) -> str:
        if self.ok:
            return "Diagnosis(ok)"
        codes = ", ".join(finding.code for finding in self)
        return f"Diagnosis({len(self)} finding{'s' if len(self) > 1 else ''}: {codes})"

    def __str__(self) -> str:
        notes = [line for note in self.examined for line in wrapped(note)]
        return "\n".join([*(["No findings."] if self.ok else self._table()), *notes])

    def _repr_html_(self) -> str:
        title = "No findings." if self.ok else ""
        return html_table(
            _HEADINGS,
            [(*_cells(f), f"{f.problem} {f.advice}") for f in self],
            title=title,
            notes=self.examined,
            wide=("finding",),
        )

    def _table(self) -> list[str]:
        """Return the lines of a table whose last column is broken into lines."""
        rows = [_HEADINGS[:3], *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        indent = sum(widths) + len(_GAP) * len(widths)
        lines: list[str] = []
        texts = [_HEADINGS[3], *(f"{f.problem} {f.advice}" for f in self)]
        for cells, text in zip(rows, texts, strict=True):
            start = "".join(f"{c.ljust(w)}{_GAP}" for c, w in zip(cells, widths, strict=True))
            parts = textwrap.wrap(escaped(text), WIDTH - indent, break_on_hyphens=False)
            lines += [
                (" " * indent if number else start) + part for number, part in enumerate(parts)
            ]
        return lines


def _cells(finding: Finding) -> tuple[str, str, str]:
    return finding.level, finding.code, finding.certainty

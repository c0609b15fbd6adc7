"""HTML tables, and the objects that notebooks show as one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from finetunelib._html import Row, html_table
from finetunelib.export import Comparison, ExportReport, TensorInfo, Verification
from finetunelib.finetuning import Certificate, Head, LoadReport
from finetunelib.training import History
from support_html import Shown, read, selectors_of

HOSTILE = "<script>alert(1)</script>&\x1b[2J"
ESCAPED = "<script>alert(1)</script>&\\x1b[2J"


@dataclass(frozen=True, slots=True)
class Page:
    """A given HTML."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def load_report(name: str) -> LoadReport:
    """Return a report in which each list contains one name."""
    return LoadReport(
        Path(f"{name}.safetensors"),
        loaded=("a.weight",),
        missing=(name,),
        unexpected=("b",),
        wrong_shape={"c": ((2,), (3, 4))},
        wrong_dtype={"d": (torch.float32, torch.int64)},
        cast={"e": (torch.float32, torch.bfloat16)},
        suggestions=("Pass `rename=`.",),
    )


def export_report(name: str) -> ExportReport:
    """Return the report of a verified file."""
    verification = Verification(
        "verified", (1, 2), 1e-3, (Comparison("y", 2, 1e-7, 2.0, 5e-8, 1.0, None),), samples=3
    )
    return ExportReport(
        Path("folder", f"{name}.onnx"),
        1_600_000,
        20,
        (TensorInfo(name, "float32", ("batch", 4)),),
        (TensorInfo("y", "int64", ()),),
        verification,
        notes=("A number.",),
        size_checks=("length <= 40",),
    )


def history(*names: str, rows: int = 2) -> History:
    """Return a history of several epochs with a certificate."""
    values = [dict.fromkeys(names, 0.5 / epoch) for epoch in range(1, rows + 1)]
    found = History([{"epoch": number, **row} for number, row in enumerate(values, 1)])
    found.certificate = Certificate({"a": "0"})
    return found


def shown(name: str) -> dict[str, Shown]:
    """Return an object of each class, with a name from a file or a model in it."""
    layer = nn.Linear(512, 10)
    return {
        "History": history(name),
        "ExportReport": export_report(name),
        "LoadReport": load_report(name),
        "Certificate": Certificate({name: "0", "b": "0"}, (name,), (name, name, name, name)),
        "Head": Head(name, layer, 512, 10, f"its name, {name}"),
    }


def test_table_with_all_parts() -> None:
    """Cells, a title above, notes below with code, columns, badges, and rows of three kinds."""
    table = html_table(
        ("Part", "Size", "State"),
        [("all", "10", "ok"), Row(("weight", "4", "new"), "failed", depth=2, prefix="layer.")],
        title="A title",
        notes=["Pass `a=1`.", "Or not."],
        numeric=("Size",),
        code=("Part",),
        badges={"State": ("new",), "Part": ("weights",)},
    )
    reader = read(Page(table))
    assert reader.rows == [
        ["Part", "Size", "State"],
        ["all", "10", "ok"],
        ["layer.weight", "4", "new"],
    ]
    assert reader.paragraphs == ["A title", "Pass a=1.", "Or not."]
    assert "<code>a=1</code>" in table
    assert table.count('class="number"') == 3
    assert (
        '<tr class="failed"><th scope="row" style="text-align: left; padding-left: 2.6em">' in table
    )
    assert "<code><span>layer.</span>weight</code>" in table
    assert table.count('<span class="badge">new</span>') == 1


def test_style_applies_only_to_tables_and_has_precedence() -> None:
    """Every CSS selector starts with the class of the table, three times."""
    selectors = selectors_of(html_table(("A",), []))
    assert len(selectors) > 10
    assert all(selector.startswith(".finetunelib-table" * 3) for selector in selectors)


@pytest.mark.parametrize("kind", shown(""))
def test_names_are_escaped_and_reprs_are_short(kind: str) -> None:
    """Markup and control characters are shown as text; a repr is a line of less than 100."""
    item = shown(HOSTILE)[kind]
    reader = read(item)
    assert reader.tags <= {"style", "div", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    everything = "\n".join([*reader.paragraphs, *(cell for row in reader.rows for cell in row)])
    assert ESCAPED in everything
    assert "\x1b" not in item._repr_html_()
    for name in (HOSTILE, "backbone.layer.0.weight\n" * 50):
        text = repr(shown(name)[kind])
        assert text.startswith(f"{kind}(")
        assert len(text) < 100
        assert text.isprintable()
        assert max(map(len, str(shown("a.weight")[kind]).splitlines())) <= 100


def test_history() -> None:
    """The columns and cells of the printed table, and the certificate."""
    reader = read(history("train_loss", "val_loss"))
    assert reader.rows == [
        ["epoch", "train_loss", "val_loss"],
        ["1", "0.5000", "0.5000"],
        ["2", "0.2500", "0.2500"],
    ]
    assert reader.paragraphs == ["1 of 1 frozen tensor is bit for bit what it was before training."]
    assert read(History()).paragraphs == ["History (0 epochs)"]
    by_step = History([{"epoch": n // 7, "a" * 50: 1.0, "b" * 50: 1.0} for n in range(12345)])
    assert len(repr(by_step)) < 100
    assert read(History([{"epoch": 1, "loss": math.nan}, {"epoch": 2}])).rows[1:] == [
        ["1", "nan"],
        ["2", "-"],
    ]


def test_long_history_shows_its_first_and_last_rows() -> None:
    """What is left out is counted."""
    reader = read(history("loss", rows=1060))
    epochs = [row[0] for row in reader.rows]
    assert epochs == ["epoch", *"12345", "\u2026", *map(str, range(1006, 1061))]
    assert reader.paragraphs[0] == "1,000 rows are not shown: history.rows contains all of them."


def test_export_report() -> None:
    """Inputs and outputs, the verification, and the commands as code."""
    report = export_report("x")
    reader = read(report)
    assert reader.rows[1:] == [
        ["input", "x", "float32", "[batch, 4]"],
        ["output", "y", "int64", "[]"],
    ]
    first, *notes = reader.paragraphs
    assert first.endswith("x.onnx (1.6 MB, opset 20)")
    assert notes[:2] == ["A number.", "The graph checks that length <= 40."]
    assert notes[2].startswith("Verified with ONNX Runtime on 3 samples")
    assert notes[3:] == [f"View: {report.view_command}", f"Summary: {report.summary_command}"]
    assert "Not verified" in read(replace(report, verification=None)).paragraphs[3]


def test_load_report() -> None:
    """A row for each kind of difference, and the advice."""
    reader = read(load_report("f"))
    assert [row[:2] for row in reader.rows[1:]] == [
        ["Loaded", "1"],
        ["Missing in the file", "1"],
        ["Not in the model", "1"],
        ["Different shape", "1"],
        ["Incompatible dtype", "1"],
        ["Rounded to the model's dtype", "1"],
    ]
    assert reader.rows[4][2] == "c (file [2], model [3, 4])"
    assert reader.paragraphs[0] == "1 of 4 tensors loaded from f.safetensors."
    assert reader.paragraphs[-1] == "Pass rename=."


def test_certificate_marks_what_moved() -> None:
    """Tensors that changed although frozen are a marked row."""
    certificate = Certificate({"a": "0", "b": "0"}, ("a",), ("c",))
    assert read(certificate).rows[1:] == [
        ["Unchanged", "2", "a, b"],
        ["Unchanged since they were loaded", "1", "a"],
        ["Changed although frozen", "1", "c"],
    ]
    assert certificate._repr_html_().count('<tr class="failed">') == 1
    assert '<tr class="failed">' not in Certificate({"a": "0"})._repr_html_()


def test_head() -> None:
    """One row; a model that is a single layer has no name."""
    head = Head("", nn.Linear(512, 10), 512, 10, "following the data")
    assert read(head).rows[1] == ["(model)", "Linear", "512", "10", "following the data"]

"""The assumptions of the exporter about sizes are recorded, tested and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sympy  # type: ignore[import-untyped]
from torch import Tensor
from torch.export import Dim
from torch.utils._sympy.functions import Mod

from finetunelib import export_onnx
from finetunelib.errors import ExportError, ExportMismatchError
from finetunelib.export import load_onnx_metadata
from finetunelib.export._tracing.assumptions import violations
from finetunelib.export._tracing.conditions import axis_symbol
from support_models import Function, samples

_BATCH, _LENGTH = axis_symbol("batch"), axis_symbol("length")


def _first_sixteen(x: Tensor) -> Tensor:
    return (x[:, :16] if x.shape[1] > 16 else x).mean(1)


def _table(x: Tensor) -> Tensor:
    if x.shape[1] > 16:
        raise ValueError("at most 16 steps")
    return x.mean(1)


@pytest.mark.parametrize(
    ("condition", "lengths"),
    [
        (sympy.Le(_LENGTH, 16), [17, 24]),
        (sympy.Ge(_LENGTH, 5), [4, 1]),
        (sympy.Ne(_LENGTH, 9), [9]),
        (sympy.Eq(Mod(_LENGTH, 4), 0), [11, 1, 13]),
        (sympy.Lt(_BATCH, _LENGTH), [2, 1]),
    ],
)
def test_sizes_that_violate_a_condition_are_found_near_and_far(
    condition: Any, lengths: list[int]
) -> None:
    """Sizes below and above that of the example are found."""
    found = violations(condition, {"batch": 2, "length": 12})
    assert [sizes["length"] for sizes in found if sizes["batch"] == 2] == lengths


@pytest.mark.slow
def test_a_branch_on_a_size_is_refused_with_the_axis(tmp_path: Path) -> None:
    """The error names the axis and the size, and says how to declare a range."""
    steps: Any = [{1: "length"}]
    with pytest.raises(ExportMismatchError, match=r"size 17 of the axis `length`.*Dim\('length'"):
        export_onnx(
            Function(_first_sixteen), tmp_path / "m.onnx", samples(2, 12, 4), dynamic_shapes=steps
        )


@pytest.mark.slow
def test_a_declared_range_that_contains_a_branch_is_refused(tmp_path: Path) -> None:
    """The error names both limits and is raised before anything is written."""
    steps: Any = [{1: Dim("length", min=2, max=64)}]
    with pytest.raises(ExportError, match=r"`length`.*64.*16"):
        export_onnx(
            Function(_first_sixteen), tmp_path / "m.onnx", samples(2, 12, 4), dynamic_shapes=steps
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_declared_range_within_a_branch_is_reported(tmp_path: Path) -> None:
    """The report and the metadata of the file contain the range as a limit."""
    steps: Any = [{1: Dim("length", min=2, max=16)}]
    report = export_onnx(
        Function(_first_sixteen), tmp_path / "m.onnx", samples(2, 12, 4), dynamic_shapes=steps
    )
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert report.verification.limits == {"length": (2, 16)}
    stored = load_onnx_metadata(report.path)["verification"]
    assert stored is not None
    assert stored["limits"] == {"length": [2, 16]}


@pytest.mark.slow
def test_a_limit_of_the_model_itself_is_reported(tmp_path: Path) -> None:
    """A model that refuses longer inputs is verified, and the limit is reported."""
    report = export_onnx(
        Function(_table), tmp_path / "m.onnx", samples(2, 12, 4), dynamic_shapes=[{1: "length"}]
    )
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert report.verification.limits["length"][1] == 16
    assert "to 16" in str(report.verification)

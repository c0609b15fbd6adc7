"""What an export's report says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from finetunelib.export import Comparison, ExportReport, TensorInfo, Verification
from finetunelib.export._report import tensor_infos

_INPUT = TensorInfo("inputs", "float32", ("batch", 4))
_OUTPUT = TensorInfo("output", "float16", ("batch", 3))


def _comparison(error: float) -> Comparison:
    return Comparison("output", 2, error * 2.0, 2.0, error, 1.0, None)


_VERIFIED = Verification("verified", (1, 2), 1e-3, (_comparison(1e-7),))
_INCONCLUSIVE = Verification("inconclusive", (1, 2), 1e-3, (_comparison(0.0),))


def _report(*, size: int = 3400, verification: Verification | None = _VERIFIED) -> ExportReport:
    return ExportReport(Path("folder/mlp.onnx"), size, 20, (_INPUT,), (_OUTPUT,), verification)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (3400, "3.4 kB"),
        (999_900, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (1_593_210, "1.6 MB"),
        (1_900_000_000, "1.9 GB"),
    ],
)
def test_the_size_has_a_unit_that_fits(size: int, text: str) -> None:
    """A small file's size reads as kilobytes and a large one's as megabytes."""
    assert f"({text}," in str(_report(size=size))


def test_the_file_and_the_version_of_its_operators_come_first() -> None:
    """The first line names the file and the opset."""
    first = str(_report()).splitlines()[0]
    assert first.startswith(str(Path("folder/mlp.onnx")))
    assert "opset 20" in first


def test_inputs_and_outputs_have_a_line_each() -> None:
    """Every tensor is shown with its name, type and shape."""
    lines = [line.split() for line in str(_report()).splitlines()]
    assert ["input", "inputs:", "float32[batch,", "4]"] in lines
    assert ["output", "output:", "float16[batch,", "3]"] in lines


def test_the_comparison_is_in_the_report() -> None:
    """One line is what the verification says."""
    assert str(_VERIFIED) in str(_report()).splitlines()


def test_a_file_that_was_not_compared_says_so() -> None:
    """Without a verification the report does not read as if there had been one."""
    text = str(_report(verification=None))
    assert "Not verified" in text
    assert "Verified" not in text


def test_a_verification_names_sizes_error_and_tolerance() -> None:
    """The sentence holds the numbers that it rests on."""
    text = str(_VERIFIED)
    assert "1, 2" in text
    assert "1.0e-07" in text
    assert "1e-03" in text


def test_the_worst_of_several_outputs_is_named() -> None:
    """Of several outputs the largest error counts."""
    outputs = (_comparison(1e-6), _comparison(1e-4))
    assert "1.0e-04" in str(Verification("verified", (1,), 1e-3, outputs))


def test_an_inconclusive_verification_says_what_to_do() -> None:
    """It points to the argument that helps, and does not read as a success."""
    text = str(_INCONCLUSIVE)
    assert "`sample_inputs=`" in text
    assert "Verified" not in text


def test_a_tensor_reads_as_name_type_and_shape() -> None:
    """A tensor without dimensions is shown with empty brackets."""
    assert str(_INPUT) == "inputs: float32[batch, 4]"
    assert str(TensorInfo("loss", "float32", ())) == "loss: float32[]"


def test_a_report_cannot_be_changed() -> None:
    """A report is a value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        _report().size = 0  # type: ignore[misc]


def test_tensors_of_a_graph_are_read_with_dynamic_and_fixed_sizes() -> None:
    """Names stand for dynamic sizes and numbers for fixed ones."""
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 5]),
        helper.make_tensor_value_info("loss", TensorProto.DOUBLE, []),
    ]
    assert tensor_infos(values) == (
        TensorInfo("tokens", "int64", ("batch", 5)),
        TensorInfo("loss", "float64", ()),
    )

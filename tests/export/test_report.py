"""The text of an export report."""

from __future__ import annotations

import dataclasses
import shlex
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
def test_the_size_has_a_suitable_unit(size: int, text: str) -> None:
    """Small sizes are shown in kB, and large sizes in MB or GB."""
    assert f"({text}," in str(_report(size=size))


def test_the_file_and_the_opset_come_first() -> None:
    """The first line names the file and the opset."""
    first = str(_report()).splitlines()[0]
    assert first.startswith(str(Path("folder/mlp.onnx")))
    assert "opset 20" in first


def test_inputs_and_outputs_have_a_line_each() -> None:
    """Each tensor is shown with its name, type and shape."""
    lines = [line.split() for line in str(_report()).splitlines()]
    assert ["input", "inputs:", "float32[batch,", "4]"] in lines
    assert ["output", "output:", "float16[batch,", "3]"] in lines


def test_the_report_contains_the_verification() -> None:
    """It is printed on lines of its own, of at most 100 characters like all prose."""
    text = str(_report())
    assert f"\n{_VERIFIED}\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_report_without_verification_says_so() -> None:
    """Without verification the report says "Not verified"."""
    text = str(_report(verification=None))
    assert "Not verified" in text
    assert "Verified" not in text


def test_a_verification_names_sizes_error_and_tolerance() -> None:
    """The text contains the batch sizes, the error and the tolerance."""
    text = str(_VERIFIED)
    assert "1, 2" in text
    assert "1.0e-07" in text
    assert "1e-03" in text


def test_the_largest_error_of_several_outputs_is_shown() -> None:
    """If there are several outputs, the largest error is shown."""
    outputs = (_comparison(1e-6), _comparison(1e-4))
    assert "1.0e-04" in str(Verification("verified", (1,), 1e-3, outputs))


def test_an_inconclusive_verification_says_what_to_do() -> None:
    """It names the argument that helps, and does not say "Verified"."""
    text = str(_INCONCLUSIVE)
    assert "`sample_inputs=`" in text
    assert "Verified" not in text


def test_a_tensor_is_shown_with_name_type_and_shape() -> None:
    """A tensor without dimensions is shown with empty brackets."""
    assert str(_INPUT) == "inputs: float32[batch, 4]"
    assert str(TensorInfo("loss", "float32", ())) == "loss: float32[]"


def test_a_report_cannot_be_changed() -> None:
    """Reports are frozen dataclasses."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        _report().size = 0  # type: ignore[misc]


def test_tensors_of_a_graph_are_read_with_dynamic_and_fixed_sizes() -> None:
    """Dynamic sizes are names, and fixed sizes are numbers."""
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 5]),
        helper.make_tensor_value_info("loss", TensorProto.DOUBLE, []),
    ]
    assert tensor_infos(values) == (
        TensorInfo("tokens", "int64", ("batch", 5)),
        TensorInfo("loss", "float64", ()),
    )


def test_commands_take_any_path() -> None:
    """A path is one word of the shell, is not an option, and has no control characters."""
    plain, dash, odd = (
        dataclasses.replace(_report(), path=Path(name)).view_command
        for name in ("it's.onnx", "-a.onnx", "a\x1b[%.onnx")
    )
    assert shlex.split(plain) == ["python", "-m", "finetunelib", "view", "it's.onnx"]
    assert shlex.split(dash)[-1] == "./-a.onnx"
    assert odd.endswith("view \"$(printf %b 'a\\0033\\0133\\0045.onnx')\"")
    assert "\x1b" not in str(dataclasses.replace(_report(), path=Path("a\x1b.onnx")))


def test_repr_is_short() -> None:
    """It has less than 100 characters, whatever the path."""
    report = dataclasses.replace(_report(), path=Path("folder" * 50, "name" * 50))
    assert repr(_report()) == "ExportReport('mlp.onnx', 3.4 kB, verified)"
    assert len(repr(report)) < 100

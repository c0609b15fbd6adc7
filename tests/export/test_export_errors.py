"""Errors of `export_onnx`, which leave no files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp, export_onnx
from finetunelib.errors import (
    ExportError,
    ExportMismatchError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
    PathNotWritableError,
)
from finetunelib.export import verify_onnx
from support_models import Branching, Deceiving, Difference, Function, linear, samples, seeded
from support_onnx import run


@pytest.mark.slow
def test_a_file_that_the_runtime_cannot_run_is_not_kept(tmp_path: Path) -> None:
    """The error says how to keep a file without verification."""
    model = linear().bfloat16()
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "bfloat16.onnx", samples(2, 4).bfloat16())
    assert "Gemm" in str(caught.value)
    assert "`verify=False`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_unsupported_opset_is_an_error(tmp_path: Path) -> None:
    """The exporter would use another opset; the error names the requested one."""
    model = linear()
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "o.onnx", samples(2, 4), opset_version=99)
    assert "99" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_the_model_is_an_error(tmp_path: Path) -> None:
    """The message names the output, the difference and the tolerance."""
    with pytest.raises(ExportMismatchError) as caught:
        export_onnx(seeded(Deceiving), tmp_path / "model.onnx", samples(2, 4), tolerance=0.002)
    assert "`output`" in str(caught.value)
    assert "0.5 " in str(caught.value)
    assert "0.002" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "former"),
    [
        pytest.param(Branching, ExportError, b"former", id="exporter fails, previous file"),
        pytest.param(Deceiving, ExportMismatchError, b"former", id="file differs, previous file"),
        pytest.param(Deceiving, ExportMismatchError, None, id="file differs, no previous file"),
    ],
)
def test_a_failure_leaves_the_folder_unchanged(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    error: type[ExportError],
    former: bytes | None,
) -> None:
    """No file is added, and a previous file is unchanged."""
    path = tmp_path / "model.onnx"
    if former is not None:
        path.write_bytes(former)
    with pytest.raises(error):
        export_onnx(seeded(make), path, samples(2, 4))
    left = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert left == ({} if former is None else {"model.onnx": former})


def test_a_batch_that_the_model_fixes_is_an_error(tmp_path: Path) -> None:
    """A batch size that the forward contains as a constant is found in the graph."""
    model = Function(lambda x: x.reshape(2, -1) + 1)
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "baked.onnx", samples(2, 4))
    assert "fixed to 2" in str(caught.value)
    assert "`dynamic_batch=False`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_output_without_a_batch_axis_is_reported(tmp_path: Path) -> None:
    """A constant output is not an error. The verification names it."""
    table = samples(3, 4)
    report = export_onnx(Function(lambda x: (x + 1, table * 2)), tmp_path / "t.onnx", samples(2, 4))
    assert report.outputs[1].shape == (3, 4)
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert report.verification.constant_outputs == ("output_1",)


@pytest.mark.slow
def test_an_invalid_graph_is_an_error(tmp_path: Path) -> None:
    """An input and an output must not have the same name, even with `verify=False`."""
    model = linear()
    names = ["same"]
    with pytest.raises(ExportError) as caught:
        export_onnx(
            model,
            tmp_path / "same.onnx",
            samples(2, 4),
            input_names=names,
            output_names=names,
            verify=False,
        )
    assert "same" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_path_under_a_file_is_an_error(tmp_path: Path) -> None:
    """The error names the parent, and is raised before the model is traced."""
    parent = tmp_path / "parent"
    parent.write_bytes(b"")
    with pytest.raises(PathNotWritableError) as caught:
        export_onnx(nn.Linear(4, 3), parent / "model.onnx", samples(2, 4))
    assert f"`{parent}`" in str(caught.value)


def test_a_path_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    """The error names the folder, and is raised before the model is traced."""
    with pytest.raises(PathNotWritableError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path, samples(2, 4))
    assert f"`{tmp_path}`" in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "model", "model.onnx.txt"])
def test_another_file_extension_is_an_error(tmp_path: Path, name: str) -> None:
    """The error names the path, which must end in `.onnx`."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / name, samples(2, 4))
    assert name in str(caught.value)


def test_a_model_on_the_meta_device_is_an_error(tmp_path: Path) -> None:
    """The error is raised before the model is traced."""
    with pytest.raises(ExportError) as caught:
        export_onnx(nn.Linear(4, 3, device="meta"), tmp_path / "m.onnx", samples(2, 4))
    assert "meta" in str(caught.value)


def test_a_model_that_is_not_a_module_is_an_error(tmp_path: Path) -> None:
    """The error names the type."""
    with pytest.raises(InvalidTypeError) as caught:
        export_onnx(len, tmp_path / "model.onnx", samples(2, 4))  # type: ignore[arg-type]
    assert "builtin_function_or_method" in str(caught.value)


@pytest.mark.parametrize("model", [nn.Linear(4, 3), build_mlp(4, [], 3)], ids=["torch", "own"])
def test_an_example_of_a_wrong_shape_is_an_error(tmp_path: Path, model: nn.Module) -> None:
    """The error contains the shape of the example."""
    with pytest.raises(InvalidInputError) as caught:
        export_onnx(model, tmp_path / "model.onnx", samples(2, 5))
    assert "(2, 5)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_example_of_too_many_inputs_is_an_error(tmp_path: Path) -> None:
    """The error names the argument and its shapes."""
    with pytest.raises(InvalidInputError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", (samples(2, 4), samples(2, 6)))
    assert "`example_input`" in str(caught.value)
    assert "(2, 6)" in str(caught.value)


@pytest.mark.parametrize("example", [None, 3, "text", [[1.0]], (), {}, {"x": None}])
def test_an_example_that_is_not_a_tensor_is_an_error(tmp_path: Path, example: object) -> None:
    """The error names the argument and its type."""
    with pytest.raises(InvalidTypeError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", example)  # type: ignore[arg-type]
    assert "`example_input`" in str(caught.value)
    assert type(example).__name__ in str(caught.value)


def test_samples_of_a_wrong_shape_are_an_error(tmp_path: Path) -> None:
    """The error names the argument and the shape."""
    with pytest.raises(InvalidInputError) as caught:
        export_onnx(
            nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), sample_inputs=samples(2, 5)
        )
    assert "`sample_inputs`" in str(caught.value)
    assert "(2, 5)" in str(caught.value)


def test_samples_of_another_number_of_inputs_are_an_error(tmp_path: Path) -> None:
    """The error contains the number of inputs of the samples and of the example."""

    class Optional(nn.Module):
        def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
            return left if right is None else left + right

    pair = (samples(2, 4), samples(2, 4))
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(Optional(), tmp_path / "m.onnx", samples(2, 4), sample_inputs=pair)
    assert "`sample_inputs` has 2" in str(caught.value)
    assert "has 1" in str(caught.value)


@pytest.mark.parametrize("output", ["text", None, 3.0, ()])
def test_outputs_that_are_not_tensors_are_an_error(tmp_path: Path, output: object) -> None:
    """The error names the type of the output."""
    with pytest.raises(InvalidTypeError) as caught:
        export_onnx(Function(lambda x: output), tmp_path / "model.onnx", samples(2, 4))
    assert type(output).__name__ in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_wrong_number_of_input_names_is_an_error(tmp_path: Path, names: list[str]) -> None:
    """The error names the argument and both numbers."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), input_names=names)
    assert f"`input_names` has {len(names)}" in str(caught.value)
    assert "has 1 inputs" in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_wrong_number_of_output_names_is_an_error(tmp_path: Path, names: list[str]) -> None:
    """The error names the argument and both numbers."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), output_names=names)
    assert f"`output_names` has {len(names)}" in str(caught.value)
    assert "has 1" in str(caught.value)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, float("nan")])
def test_a_tolerance_that_is_not_positive_is_an_error(tmp_path: Path, tolerance: float) -> None:
    """The tolerance must be above 0, and the error contains the value."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), tolerance=tolerance)
    assert str(tolerance) in str(caught.value)


@pytest.mark.slow
def test_a_file_that_differs_is_kept_on_request(tmp_path: Path) -> None:
    """It is written to a separate folder, which the error names, and not to the path."""
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportMismatchError, match=r"model\.mismatch"):
        export_onnx(seeded(Deceiving), path, samples(2, 4), keep_mismatch=True)
    assert not path.exists()
    kept = tmp_path / "model.mismatch" / "model.onnx"
    assert run(kept, samples(3, 4))[0].shape == (3, 3)


@pytest.mark.slow
def test_a_mismatch_names_the_node_and_the_module(tmp_path: Path) -> None:
    """They are in the message and in the attributes of the error."""
    with pytest.raises(ExportMismatchError) as caught:
        verify_a_changed_head(tmp_path)
    assert caught.value.node is not None
    assert caught.value.node in str(caught.value)
    assert caught.value.module == "1"


def verify_a_changed_head(folder: Path) -> None:
    """Change the bias of a model after its export, and verify the file."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    report = export_onnx(model, folder / "m.onnx", samples(2, 4))
    with torch.no_grad():
        model.get_parameter("1.bias")[0] += 1
    verify_onnx(report.path, model, [samples(5, 4)])


@pytest.mark.parametrize("names", [["a", "a"], "ab", [1, 2]])
def test_names_must_be_distinct_strings(tmp_path: Path, names: list[str]) -> None:
    """Duplicate names, a single string and numbers are refused."""
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=r"`input_names`"):
        export_onnx(
            Difference(), tmp_path / "m.onnx", (samples(2, 4), samples(2, 4)), input_names=names
        )

"""What cannot be exported, and that it leaves nothing behind."""

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
def test_what_the_runtime_cannot_run_is_not_kept(tmp_path: Path) -> None:
    """A file that cannot be compared is an error that says how to keep it."""
    model = linear().bfloat16()
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "bfloat16.onnx", samples(2, 4).bfloat16())
    assert "Gemm" in str(caught.value)
    assert "`verify=False`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_opset_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The exporter falls back in silence; here it is an error with the number, and no file."""
    model = linear()
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "o.onnx", samples(2, 4), opset_version=99)
    assert "99" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_the_model_is_an_error_with_the_numbers(tmp_path: Path) -> None:
    """The message names the output, by how much it differs, and what was allowed."""
    with pytest.raises(ExportMismatchError) as caught:
        export_onnx(seeded(Deceiving), tmp_path / "model.onnx", samples(2, 4), tolerance=0.002)
    assert "`output`" in str(caught.value)
    assert "0.5 " in str(caught.value)
    assert "0.002" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "former"),
    [
        pytest.param(Branching, ExportError, b"former", id="exporter fails, former file"),
        pytest.param(Deceiving, ExportMismatchError, b"former", id="file differs, former file"),
        pytest.param(Deceiving, ExportMismatchError, None, id="file differs, no former file"),
    ],
)
def test_a_failure_leaves_the_folder_as_it_was(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    error: type[ExportError],
    former: bytes | None,
) -> None:
    """No file appears, no temporary one stays, and a former file keeps its bytes."""
    path = tmp_path / "model.onnx"
    if former is not None:
        path.write_bytes(former)
    with pytest.raises(error):
        export_onnx(seeded(make), path, samples(2, 4))
    left = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert left == ({} if former is None else {"model.onnx": former})


def test_a_batch_that_the_model_fixes_is_an_error(tmp_path: Path) -> None:
    """A forward that writes the example's batch size down is found in the saved graph."""
    model = Function(lambda x: x.reshape(2, -1) + 1)
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "baked.onnx", samples(2, 4))
    assert "fixed to 2" in str(caught.value)
    assert "`dynamic_batch=False`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_output_without_the_batch_is_a_constant_that_is_named(tmp_path: Path) -> None:
    """A table beside the outputs need not follow the batch: the file is right without it."""
    table = samples(3, 4)
    report = export_onnx(Function(lambda x: (x + 1, table * 2)), tmp_path / "t.onnx", samples(2, 4))
    assert report.outputs[1].shape == (3, 4)
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert report.verification.constant_outputs == ("output_1",)


@pytest.mark.slow
def test_a_graph_that_onnx_refuses_is_an_error(tmp_path: Path) -> None:
    """An output with the name of the input makes no valid graph, also where nothing is compared."""
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
    """A parent that is a file is named before any work is done."""
    parent = tmp_path / "parent"
    parent.write_bytes(b"")
    with pytest.raises(PathNotWritableError) as caught:
        export_onnx(nn.Linear(4, 3), parent / "model.onnx", samples(2, 4))
    assert f"`{parent}`" in str(caught.value)


def test_a_folder_is_no_path_for_a_file(tmp_path: Path) -> None:
    """A folder is named before any work is done."""
    with pytest.raises(PathNotWritableError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path, samples(2, 4))
    assert f"`{tmp_path}`" in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "model", "model.onnx.txt"])
def test_another_ending_is_an_error(tmp_path: Path, name: str) -> None:
    """A path that does not end in `.onnx` is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / name, samples(2, 4))
    assert name in str(caught.value)


def test_a_model_without_values_is_an_error(tmp_path: Path) -> None:
    """Weights on the meta device are named before any work is done."""
    with pytest.raises(ExportError) as caught:
        export_onnx(nn.Linear(4, 3, device="meta"), tmp_path / "m.onnx", samples(2, 4))
    assert "meta" in str(caught.value)


def test_something_else_than_a_module_is_an_error(tmp_path: Path) -> None:
    """The type is named."""
    with pytest.raises(InvalidTypeError) as caught:
        export_onnx(len, tmp_path / "model.onnx", samples(2, 4))  # type: ignore[arg-type]
    assert "builtin_function_or_method" in str(caught.value)


@pytest.mark.parametrize("model", [nn.Linear(4, 3), build_mlp(4, [], 3)], ids=["torch", "own"])
def test_an_example_of_a_wrong_shape_is_an_error(tmp_path: Path, model: nn.Module) -> None:
    """The shape that the model cannot take is named."""
    with pytest.raises(InvalidInputError) as caught:
        export_onnx(model, tmp_path / "model.onnx", samples(2, 5))
    assert "(2, 5)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_example_of_too_many_inputs_is_an_error(tmp_path: Path) -> None:
    """The argument and all its shapes are named."""
    with pytest.raises(InvalidInputError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", (samples(2, 4), samples(2, 6)))
    assert "`example_input`" in str(caught.value)
    assert "(2, 6)" in str(caught.value)


@pytest.mark.parametrize("example", [None, 3, "text", [[1.0]], (), {}, {"x": None}])
def test_an_example_that_is_no_tensor_is_an_error(tmp_path: Path, example: object) -> None:
    """The argument and its type are named."""
    with pytest.raises(InvalidTypeError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", example)  # type: ignore[arg-type]
    assert "`example_input`" in str(caught.value)
    assert type(example).__name__ in str(caught.value)


def test_samples_of_a_wrong_shape_are_an_error(tmp_path: Path) -> None:
    """The argument and the shape are named, before anything is exported."""
    with pytest.raises(InvalidInputError) as caught:
        export_onnx(
            nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), sample_inputs=samples(2, 5)
        )
    assert "`sample_inputs`" in str(caught.value)
    assert "(2, 5)" in str(caught.value)


def test_samples_of_another_number_of_inputs_are_an_error(tmp_path: Path) -> None:
    """Both numbers are named."""

    class Optional(nn.Module):
        def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
            return left if right is None else left + right

    pair = (samples(2, 4), samples(2, 4))
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(Optional(), tmp_path / "m.onnx", samples(2, 4), sample_inputs=pair)
    assert "`sample_inputs` has 2" in str(caught.value)
    assert "has 1" in str(caught.value)


@pytest.mark.parametrize("output", ["text", None, 3.0, ()])
def test_outputs_that_are_no_tensors_are_an_error(tmp_path: Path, output: object) -> None:
    """The type that the model returned is named."""
    with pytest.raises(InvalidTypeError) as caught:
        export_onnx(Function(lambda x: output), tmp_path / "model.onnx", samples(2, 4))
    assert type(output).__name__ in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_wrong_number_of_input_names_is_an_error(tmp_path: Path, names: list[str]) -> None:
    """The argument, its length and the right one are named."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), input_names=names)
    assert f"`input_names` has {len(names)}" in str(caught.value)
    assert "has 1 inputs" in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_wrong_number_of_output_names_is_an_error(tmp_path: Path, names: list[str]) -> None:
    """The argument, its length and the right one are named."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), output_names=names)
    assert f"`output_names` has {len(names)}" in str(caught.value)
    assert "has 1" in str(caught.value)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, float("nan")])
def test_a_tolerance_that_nothing_meets_is_an_error(tmp_path: Path, tolerance: float) -> None:
    """The tolerance must be above 0, and the value is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 4), tolerance=tolerance)
    assert str(tolerance) in str(caught.value)


@pytest.mark.slow
def test_a_file_that_differs_is_kept_for_a_look_where_that_was_asked(tmp_path: Path) -> None:
    """In a folder beside the path, which the message names; the path itself stays free."""
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportMismatchError, match=r"model\.mismatch"):
        export_onnx(seeded(Deceiving), path, samples(2, 4), keep_mismatch=True)
    assert not path.exists()
    kept = tmp_path / "model.mismatch" / "model.onnx"
    assert run(kept, samples(3, 4))[0].shape == (3, 3)


@pytest.mark.slow
def test_a_file_that_differs_names_the_node_and_the_module(tmp_path: Path) -> None:
    """In the message and in the error's attributes."""
    with pytest.raises(ExportMismatchError) as caught:
        verify_a_changed_head(tmp_path)
    assert caught.value.node is not None
    assert caught.value.node in str(caught.value)
    assert caught.value.module == "1"


def verify_a_changed_head(folder: Path) -> None:
    """Change the bias of a model after its export, and compare."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    report = export_onnx(model, folder / "m.onnx", samples(2, 4))
    with torch.no_grad():
        model.get_parameter("1.bias")[0] += 1
    verify_onnx(report.path, model, [samples(5, 4)])


@pytest.mark.parametrize("names", [["a", "a"], "ab", [1, 2]])
def test_names_must_be_different_texts(tmp_path: Path, names: list[str]) -> None:
    """A name twice, one text for all, and numbers are refused with what they are."""
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=r"`input_names`"):
        export_onnx(
            Difference(), tmp_path / "m.onnx", (samples(2, 4), samples(2, 4)), input_names=names
        )

"""The temporary ONNX file of a module: its shapes, and the weights that are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from finetunelib.errors import ExportError, InvalidInputError, InvalidTypeError
from finetunelib.visualization._netron.temporary_onnx import (
    LEFT_OUT,
    leave_large_weights_out,
    write_temporary_onnx,
)
from support_models import Branching, Function, samples, seeded
from support_onnx import write_mlp


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def _left_out(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Return the names and shapes of the weights that are left out of a graph."""
    return {
        tensor.name: list(tensor.dims)
        for tensor in graph.initializer
        if any(entry.value == LEFT_OUT for entry in tensor.external_data)
    }


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """A graph with weights of 128, 32, 96 and 12 bytes."""
    return onnx_ir.load(write_mlp(tmp_path / "mlp.onnx", nn.Linear(4, 8), nn.Linear(8, 3)))


@pytest.mark.parametrize(
    ("largest", "left_out"),
    [
        (268, {}),
        (267, {"first.weight": [8, 4]}),
        (140, {"first.weight": [8, 4]}),
        (139, {"first.weight": [8, 4], "second.weight": [3, 8]}),
        (
            0,
            {
                "first.weight": [8, 4],
                "first.bias": [8],
                "second.weight": [3, 8],
                "second.bias": [3],
            },
        ),
    ],
)
def test_the_largest_weights_are_left_out(
    loaded: Any, largest: int, left_out: dict[str, list[int]]
) -> None:
    """The smallest weights keep their values; the others keep their names and shapes."""
    leave_large_weights_out(loaded, largest)
    assert _left_out(onnx_ir.serde.serialize_model(loaded).graph) == left_out


def test_values_of_kept_weights_are_unchanged(loaded: Any) -> None:
    """The bias of a layer whose weight is left out keeps its values."""
    before = loaded.graph.initializers["first.bias"].const_value.numpy().copy()
    leave_large_weights_out(loaded, 140)
    graph = onnx_ir.serde.serialize_model(loaded).graph
    (bias,) = [tensor for tensor in graph.initializer if tensor.name == "first.bias"]
    assert (numpy_helper.to_array(bias) == before).all()


@pytest.mark.slow
def test_module_above_two_gigabytes_has_a_small_file(tmp_path: Path) -> None:
    """A weight too large for an ONNX file is represented by its shape."""
    layer = nn.Linear(23_000, 23_500, device="meta").to_empty(
        device="cpu"
    )  # Allocated, but never written.
    with torch.no_grad():
        assert layer.weight.nbytes > 2**31
        layer.bias.zero_()
    path = tmp_path / "large.onnx"
    write_temporary_onnx(layer, None, path)
    assert path.stat().st_size < 1_000_000
    graph = _graph(path)
    assert _left_out(graph) == {"weight": [23_500, 23_000]}
    assert _shape(graph.output[0]) == ["batch", 23_500]


@pytest.mark.slow
def test_fixed_batch_size_is_kept(tmp_path: Path) -> None:
    """A batch size that the forward requires is shown as a number."""
    model = nn.Sequential(nn.Linear(4, 3), Function(lambda inputs: inputs.reshape(2, 3)))
    write_temporary_onnx(model, samples(2, 4), tmp_path / "fixed.onnx")
    assert _shape(_graph(tmp_path / "fixed.onnx").output[0]) == [2, 3]


@pytest.mark.slow
def test_input_of_module_with_structured_output_is_guessed(tmp_path: Path) -> None:
    """The module may return several outputs, and outputs without a batch dimension."""

    def forward(inputs: Tensor) -> dict[str, object]:
        return {"logits": inputs, "others": (inputs.sum(), inputs.mean(1))}

    write_temporary_onnx(
        nn.Sequential(nn.Linear(4, 3), Function(forward)), None, tmp_path / "several.onnx"
    )
    graph = _graph(tmp_path / "several.onnx")
    assert [value.name for value in graph.output] == ["output_0", "output_1", "output_2"]
    assert [_shape(value) for value in graph.output] == [["batch", 3], [], ["batch"]]


@pytest.mark.slow
def test_export_error_is_that_of_the_first_attempt(tmp_path: Path) -> None:
    """The error is that of the export with a dynamic batch, and no file is written."""
    with pytest.raises(ExportError) as caught:
        write_temporary_onnx(seeded(Branching), samples(2, 4), tmp_path / "none.onnx")
    assert "torch.onnx.export" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_example_without_tensors_is_rejected(tmp_path: Path) -> None:
    """The message contains the type of the example."""
    with pytest.raises(InvalidTypeError) as caught:
        write_temporary_onnx(nn.Linear(4, 3), (), tmp_path / "none.onnx")
    assert "tuple" in str(caught.value)


def test_module_without_layers_needs_an_example(tmp_path: Path) -> None:
    """If no input can be guessed, the message names `example_input`."""
    with pytest.raises(InvalidInputError) as caught:
        write_temporary_onnx(nn.ReLU(), None, tmp_path / "none.onnx")
    assert "`example_input=`" in str(caught.value)

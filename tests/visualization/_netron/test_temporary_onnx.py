"""A module as the viewer's own ONNX file: its shapes, and no more weights than needed."""

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
    """Return the names and shapes of the weights that are not in a graph."""
    return {
        tensor.name: list(tensor.dims)
        for tensor in graph.initializer
        if any(entry.value == LEFT_OUT for entry in tensor.external_data)
    }


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """A graph of weights of 128, 32, 96 and 12 bytes."""
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
    """The smallest that fit are kept; of the others the name and the shape are."""
    leave_large_weights_out(loaded, largest)
    assert _left_out(onnx_ir.serde.serialize_model(loaded).graph) == left_out


def test_the_weights_that_are_kept_are_as_they_were(loaded: Any) -> None:
    """A bias beside a weight that is left out has its values."""
    before = loaded.graph.initializers["first.bias"].const_value.numpy().copy()
    leave_large_weights_out(loaded, 140)
    graph = onnx_ir.serde.serialize_model(loaded).graph
    (bias,) = [tensor for tensor in graph.initializer if tensor.name == "first.bias"]
    assert (numpy_helper.to_array(bias) == before).all()


@pytest.mark.slow
def test_a_module_above_two_gigabytes_is_written_in_little(tmp_path: Path) -> None:
    """A weight that no ONNX file could hold is there by its shape, on its edges and in its node."""
    layer = nn.Linear(23_000, 23_500, device="meta").to_empty(device="cpu")  # Memory on paper.
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
def test_a_module_of_one_batch_size_is_written_with_it(tmp_path: Path) -> None:
    """A batch that the forward fixes is shown as the number that it is."""
    model = nn.Sequential(nn.Linear(4, 3), Function(lambda inputs: inputs.reshape(2, 3)))
    write_temporary_onnx(model, samples(2, 4), tmp_path / "fixed.onnx")
    assert _shape(_graph(tmp_path / "fixed.onnx").output[0]) == [2, 3]


@pytest.mark.slow
def test_a_module_that_returns_a_structure_is_guessed_for(tmp_path: Path) -> None:
    """An input is guessed also where there are several outputs, or one without a batch."""

    def forward(inputs: Tensor) -> dict[str, object]:
        return {"logits": inputs, "others": (inputs.sum(), inputs.mean(1))}

    write_temporary_onnx(
        nn.Sequential(nn.Linear(4, 3), Function(forward)), None, tmp_path / "several.onnx"
    )
    graph = _graph(tmp_path / "several.onnx")
    assert [value.name for value in graph.output] == ["output_0", "output_1", "output_2"]
    assert [_shape(value) for value in graph.output] == [["batch", 3], [], ["batch"]]


@pytest.mark.slow
def test_the_error_of_a_module_that_cannot_be_exported_is_the_first(tmp_path: Path) -> None:
    """What the exporter says of any batch size is what the user reads; nothing is written."""
    with pytest.raises(ExportError) as caught:
        write_temporary_onnx(seeded(Branching), samples(2, 4), tmp_path / "none.onnx")
    assert "torch.onnx.export" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_example_that_is_none_is_an_error(tmp_path: Path) -> None:
    """An example without a tensor is named by its type."""
    with pytest.raises(InvalidTypeError) as caught:
        write_temporary_onnx(nn.Linear(4, 3), (), tmp_path / "none.onnx")
    assert "tuple" in str(caught.value)


def test_a_module_without_a_first_layer_is_an_error(tmp_path: Path) -> None:
    """Where nothing can be guessed, the argument that is missing is named."""
    with pytest.raises(InvalidInputError) as caught:
        write_temporary_onnx(nn.ReLU(), None, tmp_path / "none.onnx")
    assert "`example_input=`" in str(caught.value)

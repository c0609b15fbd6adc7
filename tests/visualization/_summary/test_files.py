"""The summary of an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from finetunelib.errors import CorruptFileError, InvalidArgumentError
from finetunelib.export._metadata.format import append_metadata
from finetunelib.visualization._summary.files import summary_of_file


def save(path: Path, *tensors: TensorProto, kind: onnx.TypeProto | None = None) -> Path:
    """Write a graph with one node and some tensors; the first is listed as an input too."""
    value = helper.make_tensor_value_info
    inputs = [value("x\x1b[2J", TensorProto.INT64, ["batch", None, 3])]
    inputs += [value(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors[:1]]
    output = value("y", TensorProto.STRING, [])
    if kind is not None:
        output.type.CopyFrom(kind)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "graph", inputs, [output], list(tensors)
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_inputs_tensors_totals_and_metadata(tmp_path: Path) -> None:
    """A table with the inputs and outputs above, and what the metadata says below."""
    weight = helper.make_tensor("head.weight", TensorProto.FLOAT, [2, 8], [0.0] * 16)
    path = save(tmp_path / "a.onnx", weight)
    append_metadata(path, {"labels": '["cat", "dog"]', "verification": '{"status": "verified"}'})
    lines = summary_of_file(path).splitlines()
    assert lines[0].endswith("a.onnx (265 B, opset 17, 1 node)")
    assert lines[1:3] == ["  input   x\\x1b[2J: int64[batch, ?, 3]", "  output  y: string[]"]
    assert ["head.weight", "2x8", "float32", "16", "64", "B"] in [line.split() for line in lines]
    assert lines[-2:] == [
        "1 tensor, 16 values, 64 B.",
        "Its metadata says: status verified; 2 labels.",
    ]


def test_kinds_of_tensors_and_values(tmp_path: Path) -> None:
    """Packed values, strings, unknown types and sizes, sequences, and names to escape."""
    packed = helper.make_tensor("packed", TensorProto.INT4, [5], [1] * 5)
    words = TensorProto(name="words", data_type=8, dims=[2], string_data=[b"a", b"b"])
    unknown = TensorProto(name="odd", data_type=99, dims=[2, 2])
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    kind = helper.make_sequence_type_proto(element)
    text = summary_of_file(save(tmp_path / "a.onnx", packed, words, unknown, kind=kind))
    lines = [line.split() for line in text.splitlines()]
    assert text.count("input ") == 1
    assert ["input", "x\\x1b[2J:", "int64[batch,", "?,", "3]"] in lines
    assert ["output", "y:", "sequence"] in lines
    assert ["packed", "5", "int4", "5", "3", "B"] in lines
    assert ["words", "2", "string", "2", "-"] in lines
    assert ["odd", "2x2", "type", "99", "4", "-"] in lines
    assert lines[-1] == ["3", "tensors,", "11", "values,", "3", "B."]


def test_graph_without_tensors(tmp_path: Path) -> None:
    """The table is empty."""
    text = summary_of_file(save(tmp_path / "a.onnx"))
    assert "output  y: string[]" in text
    assert text.endswith("0 tensors, 0 values, 0 B.")


def test_impossible_shapes_and_keys_are_errors(tmp_path: Path) -> None:
    """A negative size means that the file is damaged; an ONNX file has no keys."""
    path = save(tmp_path / "a.onnx", TensorProto(name="odd", data_type=1, dims=[-2]))
    with pytest.raises(CorruptFileError, match="`odd`"):
        summary_of_file(path)
    with pytest.raises(InvalidArgumentError, match="'model'"):
        summary_of_file(path, key="model")

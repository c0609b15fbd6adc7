"""Writing ONNX files without the exporter, and running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Array = npt.NDArray[Any]


def write_mlp(
    path: Path,
    first: nn.Linear,
    second: nn.Linear,
    *,
    relu: bool = True,
    batch: int | str = "batch",
    input_name: str = "inputs",
) -> Path:
    """Write the model `second(relu(first(inputs)))` with its weights, and return the path."""
    nodes = [
        helper.make_node("Gemm", [input_name, "first.weight", "first.bias"], ["hidden"], transB=1),
        helper.make_node("Relu" if relu else "Identity", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "second.weight", "second.bias"], ["output"], transB=1),
    ]
    weights = [
        numpy_helper.from_array(tensor.detach().numpy(), f"{name}.{part}")
        for name, layer in (("first", first), ("second", second))
        for part, tensor in layer.named_parameters()
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [_value(input_name, batch, first.in_features)],
        [_value("output", batch, second.out_features)],
        weights,
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    """Write a graph as a model that every supported ONNX Runtime reads, and return the path."""
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, path)
    return path


def run(path: Path, *inputs: Tensor, **named: Tensor) -> list[Array]:
    """Run a file with ONNX Runtime on inputs in its own order, or by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = dict(zip(names, inputs, strict=False)) | named
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    return [np.asarray(output) for output in outputs]


def _value(name: str, batch: int | str, features: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, features])

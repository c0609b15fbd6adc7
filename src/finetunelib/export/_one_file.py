"""Writes a model and its weights to one file, one tensor at a time to save memory."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

#: The tags of length-delimited fields in Protocol Buffers: ModelProto.graph (7),
#: GraphProto.initializer (5) and TensorProto.raw_data (9).
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def write_in_one_file(model: Any, path: Path) -> onnx.ModelProto:
    """Write a model, and return it without its weights.

    Args:
        model: A model of onnx_ir (Any: that package has no types).
        path: The file to write.
    """
    import onnx_ir as ir

    graph = model.graph
    weights = dict(graph.initializers)
    graph.initializers.clear()
    try:
        skeleton: onnx.ModelProto = ir.serde.serialize_model(model)
    finally:
        for value in weights.values():
            graph.register_initializer(value)
    body = skeleton.graph.SerializeToString()
    head = type(skeleton)()
    head.CopyFrom(skeleton)
    head.ClearField("graph")
    tensors = [value.const_value for value in weights.values()]
    headers = [_header(name, tensor) for name, tensor in zip(weights, tensors, strict=True)]
    sizes = [
        len(header) + (int(tensor.nbytes) if raw else 0)
        for (header, raw), tensor in zip(headers, tensors, strict=True)
    ]
    total = len(body) + sum(1 + len(_varint(size)) + size for size in sizes)
    with path.open("wb") as stream:
        stream.write(head.SerializeToString() + _GRAPH + _varint(total) + body)
        for (header, raw), size, tensor in zip(headers, sizes, tensors, strict=True):
            stream.write(_INITIALIZER + _varint(size) + header)
            if raw:
                _write_data(tensor, stream)
    return skeleton


def with_weights_as_inputs(skeleton: onnx.ModelProto, model: Any) -> onnx.ModelProto:
    """Return a model without weights as a valid one, in which the weights are inputs."""
    import onnx

    complete = onnx.ModelProto()
    complete.CopyFrom(skeleton)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        complete.graph.input.append(
            onnx.helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape.numpy()))
        )
    return complete


def _header(name: str, tensor: Any) -> tuple[bytes, bool]:
    """Return the fields of a tensor up to its data, and whether raw data follow."""
    import onnx
    import onnx_ir as ir

    if tensor.dtype == ir.DataType.STRING:
        whole = ir.serde.serialize_tensor(tensor)
        whole.name = name
        return whole.SerializeToString(), False
    fields = onnx.TensorProto(
        name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy())
    )
    return fields.SerializeToString() + _RAW_DATA + _varint(int(tensor.nbytes)), True


def _write_data(tensor: Any, stream: IO[bytes]) -> None:
    data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise RuntimeError(f"A weight has {len(data)} bytes in place of {tensor.nbytes}.")
    stream.write(data)


def _varint(number: int) -> bytes:
    """Return a number as Protocol Buffers write it, seven bits per byte."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

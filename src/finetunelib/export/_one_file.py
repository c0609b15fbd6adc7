"""Writes a model and its weights to one file, one tensor at a time to save memory.

The large weights are aligned, which lets programs map them into memory: a field that ONNX does not
define, and that readers skip, fills the space before each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

#: The numbers of fields: ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9

#: A field of GraphProto that ONNX does not define.
_FILLING = 2047

#: Weights of at least this many bytes start at a multiple of `ALIGNMENT` bytes.
LARGE_WEIGHT, ALIGNMENT = 1 << 16, 64


def write_in_one_file(model: Any, path: Path) -> None:
    """Write a model.

    Args:
        model: A model of onnx_ir (Any: that package has no types).
        path: The file to write.
    """
    import onnx_ir as ir

    graph = model.graph
    weights = dict(graph.initializers)
    graph.initializers.clear()
    try:
        skeleton = ir.serde.serialize_model(model)
    finally:
        for value in weights.values():
            graph.register_initializer(value)
    body = skeleton.graph.SerializeToString()
    skeleton.ClearField("graph")
    head = skeleton.SerializeToString() + _tag(GRAPH)
    parts = [_Part.of(name, value.const_value) for name, value in weights.items()]
    total, fillings = _layout(len(head), len(body), parts)
    with path.open("wb") as stream:
        stream.write(head + _varint(total) + body)
        for part, filling in zip(parts, fillings, strict=True):
            stream.write(_filling(filling) + part.start)
            if part.data_bytes:
                _write_data(part.tensor, stream)


@dataclass(frozen=True, slots=True)
class _Part:
    """A weight in a file: the bytes up to its data, and the number of bytes of those."""

    tensor: Any
    start: bytes
    data_bytes: int

    @classmethod
    def of(cls, name: str, tensor: Any) -> _Part:
        """Describe how a weight is written."""
        import onnx
        import onnx_ir as ir

        if tensor.dtype == ir.DataType.STRING:
            whole = ir.serde.serialize_tensor(tensor)
            whole.name = name
            text: bytes = whole.SerializeToString()
            return cls(tensor, _tag(INITIALIZER) + _varint(len(text)) + text, 0)
        size = int(tensor.nbytes)
        fields = onnx.TensorProto(
            name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy())
        )
        header = fields.SerializeToString() + _tag(RAW_DATA) + _varint(size)
        return cls(tensor, _tag(INITIALIZER) + _varint(len(header) + size) + header, size)


def _layout(before: int, body: int, parts: Sequence[_Part]) -> tuple[int, list[int]]:
    """Return the length of a graph that starts with its length, and the filling of each part."""
    length = 1
    while True:
        position = before + length + body
        fillings = []
        for part in parts:
            fillings.append(_needed(position + len(part.start), part.data_bytes))
            position += fillings[-1] + len(part.start) + part.data_bytes
        total = position - before - length
        if len(_varint(total)) == length:
            return total, fillings
        length += 1


def _needed(position: int, size: int) -> int:
    """Return the number of bytes that align data that would start at a position."""
    if size < LARGE_WEIGHT:
        return 0
    missing = -position % ALIGNMENT
    smallest = len(_filling_start(0))
    return missing + ALIGNMENT if 0 < missing < smallest else missing


def _filling(size: int) -> bytes:
    """Return a field that readers skip, of this many bytes."""
    if not size:
        return b""
    start = _filling_start(size - len(_filling_start(0)))
    return start + bytes(size - len(start))


def _filling_start(size: int) -> bytes:
    return _tag(_FILLING) + _varint(size)


def _write_data(tensor: Any, stream: IO[bytes]) -> None:
    array = np.asarray(tensor.numpy(), order="C")
    if sys.byteorder == "little" and array.dtype.kind in "biuf" and array.nbytes == tensor.nbytes:
        stream.write(array.reshape(-1).view(np.uint8).data)  # Without a copy of it.
        return
    data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise RuntimeError(f"A weight has {len(data)} bytes in place of {tensor.nbytes}.")
    stream.write(data)


def _tag(field: int) -> bytes:
    """Return the tag of a length-delimited field of Protocol Buffers."""
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    """Return a number as Protocol Buffers write it, seven bits per byte."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

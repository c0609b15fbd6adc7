"""Reads the graph of a file and the places of its weights, without the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from finetunelib.errors import CorruptFileError
from finetunelib.export._one_file import ALIGNMENT, GRAPH, INITIALIZER, LARGE_WEIGHT, RAW_DATA

if TYPE_CHECKING:
    import onnx

#: The bytes of a field after its tag by wire type, and the types of other lengths.
_FIXED, _VARINT, _DELIMITED = {1: 8, 5: 4}, 0, 2

#: The bytes that the largest number needs.
_LONGEST_VARINT = 10


def read_back(path: Path) -> onnx.ModelProto:
    """Return the model in a file, whose large weights are external data in that file itself.

    ONNX Runtime maps external data into memory in place of copying them.

    Raises:
        CorruptFileError: If the file is not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    head, graph = bytearray(), bytearray()
    weights: list[onnx.TensorProto] = []
    try:
        with path.open("rb") as stream:
            for number, start, length in _fields(stream, path.stat().st_size):
                if number == GRAPH:
                    graph += _graph(stream, stream.tell() + length, weights)
                else:
                    head += start + _exactly(stream, length)
        model = onnx.ModelProto()
        model.ParseFromString(bytes(head))
        model.graph.ParseFromString(bytes(graph))
    except (DecodeError, EOFError, ValueError) as error:
        raise CorruptFileError(
            f"`{path}` is not an ONNX model: {error}. Export it again."
        ) from error
    for tensor in weights:
        tensor.external_data.add(key="location", value=path.name)
    model.graph.initializer.extend(weights)
    return model


def with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a valid model in which the external weights of a model are inputs."""
    import onnx

    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    del complete.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.external_data:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            complete.graph.input.append(value)
        else:
            complete.graph.initializer.append(tensor)
    return complete


def _graph(stream: IO[bytes], end: int, weights: list[onnx.TensorProto]) -> bytearray:
    """Return the bytes of a graph without its large weights, which are added to the list."""
    rest = bytearray()
    for number, start, size in _fields(stream, end):
        position = stream.tell()
        if number == INITIALIZER and size >= LARGE_WEIGHT:
            tensor = _external(stream, position + size)
            if tensor is not None:
                weights.append(tensor)
                continue
            stream.seek(position)
        rest += start + _exactly(stream, size)
    return rest


def _external(stream: IO[bytes], end: int) -> onnx.TensorProto | None:
    """Return a weight as external data, or `None` if they cannot be mapped into memory."""
    import onnx

    header = bytearray()
    place = None
    for number, start, length in _fields(stream, end):
        if number == RAW_DATA:
            place = (stream.tell(), length)
            stream.seek(length, 1)
        else:
            header += start + _exactly(stream, length)
    if place is None or place[0] % ALIGNMENT:
        return None
    tensor = onnx.TensorProto()
    tensor.ParseFromString(bytes(header))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, number in zip(("offset", "length"), place, strict=True):
        tensor.external_data.add(key=key, value=str(number))
    return tensor


def _fields(stream: IO[bytes], end: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield the number, first bytes and remaining length of each field, which the caller reads."""
    while stream.tell() < end:
        tag, start = _varint(stream)
        kind = tag & 7
        length = _FIXED.get(kind, 0)
        if kind in (_VARINT, _DELIMITED):
            value, encoded = _varint(stream)
            start += encoded
            length = value if kind == _DELIMITED else 0
        elif not length:
            raise ValueError(f"a field is of the unknown type {kind}")
        if length > end - stream.tell():
            raise EOFError("a field is longer than what contains it")
        yield tag >> 3, start, length


def _varint(stream: IO[bytes]) -> tuple[int, bytes]:
    """Return a number as Protocol Buffers write it, and its bytes."""
    value, encoded = 0, b""
    while not encoded or encoded[-1] & 0x80:
        if len(encoded) == _LONGEST_VARINT:
            raise ValueError("a number is too long")
        encoded += _exactly(stream, 1)
        value |= (encoded[-1] & 0x7F) << (7 * (len(encoded) - 1))
    return value, encoded


def _exactly(stream: IO[bytes], length: int) -> bytes:
    found = stream.read(length)
    if len(found) < length:
        raise EOFError("the file ends within a field")
    return found

"""The summary of a file: its tensors with shapes, dtypes and sizes, without running code in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetunelib._escapes import one_line
from finetunelib._files.paths import as_path, check_readable
from finetunelib._messages import readable_size, shape_text
from finetunelib._tables import text_table, wrapped
from finetunelib.errors import CorruptFileError, InvalidArgumentError

if TYPE_CHECKING:  # An ONNX file is read without PyTorch.
    from finetunelib._typing import StrPath

_HEADINGS = ("Tensor", "Shape", "Type", "Values", "Memory")
_NUMERIC = ("Values", "Memory")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. `bytes` is `None` if it does not follow from the shape and the dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int | None

    @property
    def values(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


def summary_of_file(path: StrPath, *, key: str | None = None) -> str:
    """Return a table of the tensors in an ONNX file or a weights file, and their totals.

    Args:
        path: An `.onnx` file; or a weights file, an index of shards or a folder, as for
            `finetunelib.finetuning.load_weights`.
        key: The dotted key of the state dict in a file of `torch.save`.

    Raises:
        FileMissingError: If the file does not exist.
        CorruptFileError: If the file is damaged, has an unknown format, or contains more than
            weights.
        InvalidArgumentError: If `key` is not in the file, is needed, or the file has no keys.
    """
    if as_path(path).suffix.lower() == ".onnx":
        if key is not None:
            raise InvalidArgumentError(f"`key` is for files of `torch.save`, got {key!r}.")
        return _onnx_text(check_readable(path, purpose="model file"))
    return _weights_text(path, key)


def _weights_text(path: StrPath, key: str | None) -> str:
    from finetunelib.finetuning._weights.sources import open_weights

    weights = open_weights(path, mapped=True, key=key)
    tensors = [
        StoredTensor(
            name,
            tensor.shape,
            str(tensor.dtype).removeprefix("torch."),
            math.prod(tensor.shape) * tensor.dtype.itemsize,
        )
        for name, tensor in weights.tensors.items()
    ]
    title = f"{_shown(weights.path)} ({readable_size(weights.path.stat().st_size)})"
    return "\n".join([title, "", *_table(tensors)])


def _table(tensors: Sequence[StoredTensor]) -> list[str]:
    rows = [
        (
            one_line(tensor.name),
            shape_text(tensor.shape),
            tensor.dtype,
            f"{tensor.values:,}",
            "-" if tensor.bytes is None else readable_size(tensor.bytes),
        )
        for tensor in tensors
    ]
    size = readable_size(sum(tensor.bytes or 0 for tensor in tensors))
    values = sum(tensor.values for tensor in tensors)
    return [
        *text_table(_HEADINGS, rows, numeric=_NUMERIC, rules=True),
        f"{_counted(len(tensors), 'tensor')}, {_counted(values, 'value')}, {size}.",
    ]


def _onnx_text(file: Path) -> str:
    from finetunelib.export._model_file import read_onnx

    model = read_onnx(file)
    graph = model.graph
    if not graph.node and not graph.input:
        raise CorruptFileError(f"`{file}` contains no graph. Export it again.")
    opset = next((entry.version for entry in model.opset_import if not entry.domain), None)
    title = (
        f"{_shown(file)} ({readable_size(file.stat().st_size)}, opset {opset}, "
        f"{_counted(len(graph.node), 'node')})"
    )
    tensors = [_stored(file, tensor) for tensor in graph.initializer]
    stored = {tensor.name for tensor in tensors}  # Old files list them among the inputs too.
    return "\n".join(
        [
            title,
            *(
                f"  input   {_described(entry)}"
                for entry in graph.input
                if entry.name not in stored
            ),
            *(f"  output  {_described(entry)}" for entry in graph.output),
            "",
            *_table(tensors),
            *_recorded(model),
        ]
    )


def _recorded(model: Any) -> Iterator[str]:
    """Yield what the metadata of a file says about it."""
    from finetunelib.export._metadata.format import decode

    metadata = decode({entry.key: entry.value for entry in model.metadata_props})
    verification, labels = metadata["verification"], metadata["labels"]
    parts = []
    if verification is not None:
        parts.append(f"status {verification.get('status', 'unknown')}")
    if labels is not None:
        parts.append(f"{len(labels)} labels")
    parts += [
        f"{name} {metadata[name]}"
        for name in ("preprocessing", "postprocessing")
        if metadata[name] is not None
    ]
    if parts:
        yield from wrapped(f"Its metadata says: {'; '.join(parts)}.")


def _stored(file: Path, tensor: Any) -> StoredTensor:
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape):
        raise CorruptFileError(
            f"`{file}` contains `{tensor.name}` with the shape {list(shape)}. Export it again."
        )
    dtype, bits = _dtype(tensor.data_type)
    size = None if bits is None else -(-math.prod(shape) * bits // 8)
    return StoredTensor(tensor.name, shape, dtype, size)


def _described(value: Any) -> str:
    """Return an input or output of a graph as text."""
    name, kind = one_line(value.name), value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"{name}: {kind.removesuffix('_type') if kind else 'unknown type'}"
    tensor = value.type.tensor_type
    sizes = [
        str(size.dim_value) if size.HasField("dim_value") else one_line(size.dim_param) or "?"
        for size in tensor.shape.dim
    ]
    return f"{name}: {_dtype(tensor.elem_type)[0]}[{', '.join(sizes)}]"


def _dtype(number: int) -> tuple[str, int | None]:
    """Return the name of an ONNX element type and the bits of a value, `None` if unknown."""
    import onnx

    if number == onnx.TensorProto.STRING:
        return "string", None
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    except KeyError:
        return f"type {number}", None
    # Several small values share a byte in a file, but not in numpy.
    bits = 8 * dtype.itemsize
    if dtype.itemsize == 1:
        bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}.get(dtype.name, 8)
    return dtype.name, bits


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shown(path: Path) -> str:
    return one_line(str(path), 1000)

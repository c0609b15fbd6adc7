"""What an export made, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetunelib.export._verification import Verification


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of an ONNX file.

    Attributes:
        name: Its name in the graph.
        dtype: Its element type, such as `"float32"`.
        shape: Its sizes; a dynamic one is a name, such as `"batch"`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export_onnx` wrote and what was proven about it.

    Attributes:
        path: The file.
        size: Its size in bytes.
        opset_version: The version of ONNX's operators that it uses.
        inputs: The inputs of the graph.
        outputs: The outputs of the graph.
        verification: The comparison with the model, or `None` with `verify=False`.
    """

    path: Path
    size: int
    opset_version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    verification: Verification | None

    def __str__(self) -> str:
        verification = self.verification or "Not verified, as asked."
        size, unit = (self.size / 1e6, "MB") if self.size >= 1e6 else (self.size / 1e3, "kB")
        return "\n".join(
            [
                f"{self.path} ({size:.1f} {unit}, opset {self.opset_version})",
                *(f"  input   {info}" for info in self.inputs),
                *(f"  output  {info}" for info in self.outputs),
                str(verification),
            ]
        )


def tensor_infos(values: Any) -> tuple[TensorInfo, ...]:
    """Return the inputs or outputs of an ONNX graph (a list of `ValueInfoProto`)."""
    import onnx

    infos = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param
            for size in tensor.shape.dim
        )
        infos.append(TensorInfo(value.name, dtype, shape))
    return tuple(infos)

"""What an export made, for people and for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetunelib._messages import readable_size
from finetunelib._public import public
from finetunelib.export._verification.verify import Verification


@public("finetunelib.export")
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


@public("finetunelib.export")
@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export_onnx` wrote and what was proven about it.

    Printed, it ends with two commands to paste: one that runs the file with ONNX Runtime, and one
    that shows it in Netron.

    Attributes:
        path: The file.
        size: Its size in bytes, that of `data_path` included.
        opset_version: The version of ONNX's operators that it uses.
        inputs: The inputs of the graph.
        outputs: The outputs of the graph.
        verification: The comparison with the model, or `None` with `verify=False`.
        data_path: The file beside it that holds the weights of a model above 2 GB, else `None`.
        example_shapes: A shape that each input takes, in the inputs' order.
    """

    path: Path
    size: int
    opset_version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    verification: Verification | None
    data_path: Path | None = None
    example_shapes: tuple[tuple[int, ...], ...] = ()

    def __str__(self) -> str:
        beside = f", its weights in {self.data_path.name} beside it" if self.data_path else ""
        return "\n".join(
            [
                f"{self.path} ({readable_size(self.size)}, opset {self.opset_version}{beside})",
                *(f"  input   {info}" for info in self.inputs),
                *(f"  output  {info}" for info in self.outputs),
                str(self.verification or "Not verified, as asked."),
                f"Run it:      {self.run_command}",
                f"Look at it:  {self.view_command}",
            ]
        )

    @property
    def run_command(self) -> str:
        """A line for a shell that runs the file on zeros with ONNX Runtime and numpy alone."""
        shapes: Sequence[Sequence[int | str]] = self.example_shapes or [
            info.shape for info in self.inputs
        ]
        feed = ", ".join(
            f"{_text(info.name)}: np.zeros({_shape(shape)}, {_text(info.dtype)})"
            for info, shape in zip(self.inputs, shapes, strict=True)
        )
        return _python(
            "import numpy as np, onnxruntime as ort; "
            f"print(ort.InferenceSession({_text(str(self.path))}).run(None, {{{feed}}}))"
        )

    @property
    def view_command(self) -> str:
        """A line for a shell that shows the file in Netron until Ctrl-C."""
        return _python(
            "from finetunelib import visualize; "
            f"v = visualize({_text(str(self.path))}, block=False); "
            "print(v.url, flush=True); v.wait()"
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


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"


def _text(text: str) -> str:
    # Double quotes, since a shell's are single.
    return json.dumps(text, ensure_ascii=False)


def _shape(shape: Sequence[int | str]) -> str:
    return str(tuple(2 if isinstance(size, str) else size for size in shape))

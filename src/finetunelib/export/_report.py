"""The report of an export."""

from __future__ import annotations

import json
import os
import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetunelib._escapes import one_line
from finetunelib._html import html_table
from finetunelib._messages import readable_size
from finetunelib._public import public
from finetunelib._tables import wrapped
from finetunelib.export._verification.outcome import Verification

#: The longest name in a repr, and the longest path in a report, in characters.
_LONGEST_NAME, _LONGEST_PATH = 40, 1000


@public("finetunelib.export")
@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of an ONNX file.

    Attributes:
        name: The name in the graph.
        dtype: The element type, such as `"float32"`.
        shape: The sizes; a dynamic one is a name, such as `"batch"`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@public("finetunelib.export")
@dataclass(frozen=True, slots=True, repr=False)
class ExportReport:
    """The file that `export_onnx` wrote, and the result of its comparison with the model.

    If you print it, it ends with two commands: one opens the file in Netron, the other lists its
    tensors. `run_command` is a third one, which runs the file.

    Attributes:
        path: The file.
        size: The size in bytes, including `data_path`.
        opset_version: The version of the ONNX operators.
        inputs: The inputs of the graph.
        outputs: The outputs of the graph.
        verification: The comparison with the model, or `None` with `verify=False`.
        data_path: The file with the weights of a model above 2 GB, or `None`.
        example_shapes: A valid shape for each input.
        size_checks: Conditions on the sizes of dynamic axes, such as `"length <= 40"`. The graph
            checks them when it runs, and stops with an error if one does not hold.
        notes: Arguments and outputs that are not tensors, such as a number that became a constant.
    """

    path: Path
    size: int
    opset_version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    verification: Verification | None
    data_path: Path | None = None
    example_shapes: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    size_checks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        name = one_line(repr(self.path.name), _LONGEST_NAME)
        return f"ExportReport({name}, {readable_size(self.size)}, {self._status})"

    def __str__(self) -> str:
        tensors = [f"input   {info}" for info in self.inputs]
        tensors += [f"output  {info}" for info in self.outputs]
        *notes, verification = self._sentences
        return "\n".join(
            [
                *wrapped(self._title),
                *(line for text in [*tensors, *notes] for line in wrapped(text, indent="  ")),
                *wrapped(verification),
                f"View:     {self.view_command}",
                f"Summary:  {self.summary_command}",
            ]
        )

    def _repr_html_(self) -> str:
        tensors = (("input", self.inputs), ("output", self.outputs))
        return html_table(
            ("Tensor", "Name", "Type", "Shape"),
            [
                (kind, info.name, info.dtype, str(list(info.shape)).replace("'", ""))
                for kind, infos in tensors
                for info in infos
            ],
            title=self._title,
            notes=[
                *self._sentences,
                f"View: `{self.view_command}`",
                f"Summary: `{self.summary_command}`",
            ],
            code=("Name",),
        )

    @property
    def _sentences(self) -> list[str]:
        checks = [f"The graph checks that {check}." for check in self.size_checks]
        verification = str(self.verification or "Not verified (`verify=False`).")
        return [*self.notes, *checks, verification]

    @property
    def _status(self) -> str:
        return self.verification.status if self.verification else "not verified"

    @property
    def _title(self) -> str:
        weights = f", weights in {self.data_path.name}" if self.data_path else ""
        size = f"{readable_size(self.size)}, opset {self.opset_version}{weights}"
        return f"{one_line(str(self.path), _LONGEST_PATH)} ({size})"

    @property
    def run_command(self) -> str:
        """A shell command that runs the file on zeros, with only ONNX Runtime and numpy."""
        shapes: Sequence[Sequence[int | str]] = self.example_shapes or [
            info.shape for info in self.inputs
        ]
        feed = ", ".join(
            f"{_text(info.name)}: np.zeros({_shape(shape)}, {_text(info.dtype)})"
            for info, shape in zip(self.inputs, shapes, strict=True)
        )
        code = (
            "import numpy as np, onnxruntime as ort; "
            f"print(ort.InferenceSession({_text(str(self.path))}).run(None, {{{feed}}}))"
        )
        return f"python -c {shlex.quote(code)}"

    @property
    def view_command(self) -> str:
        """A shell command that shows the file in Netron until Ctrl-C."""
        return f"python -m finetunelib view {_shell_word(self.path)}"

    @property
    def summary_command(self) -> str:
        """A shell command that prints the inputs, outputs and tensors of the file."""
        return f"python -m finetunelib summary {_shell_word(self.path)}"


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


def _shell_word(path: Path) -> str:
    """Return a path as one word of a POSIX shell, without control characters."""
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"  # Not an option.
    if text.isprintable():
        return shlex.quote(text)
    bytes_of_path = os.fsencode(text)
    plain = set(string.ascii_letters + string.digits + "/._- ")
    escapes = "".join(chr(b) if chr(b) in plain else f"\\0{b:03o}" for b in bytes_of_path)
    return f"\"$(printf %b '{escapes}')\""


def _text(text: str) -> str:
    # Double quotes, because the shell command is in single quotes.
    return json.dumps(text, ensure_ascii=False)


def _shape(shape: Sequence[int | str]) -> str:
    return str(tuple(2 if isinstance(size, str) else size for size in shape))

"""ONNX Runtime on a file: opened, and run on a model's inputs; what a file takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetunelib._forward.inputs import Inputs
from finetunelib.errors import CorruptFileError, ExportMismatchError

Array = npt.NDArray[Any]


class RunError(ExportMismatchError):
    """ONNX Runtime cannot run the file on a batch that the model takes."""


class RefusedError(CorruptFileError):
    """ONNX Runtime does not load a file that ONNX's checker accepts."""


def open_session(path: Path, *, checked: bool = False) -> Any:
    """Return a session of ONNX Runtime on the CPU, after a check of the file.

    Args:
        path: The file.
        checked: Whether the file was checked by ONNX already.

    Raises:
        CorruptFileError: The file is no valid ONNX model.
        RefusedError: It is one, but ONNX Runtime does not load it.
    """
    import onnx
    import onnxruntime

    # Neither library names its exceptions; whatever they raise here is about the file.
    if not checked:
        try:
            onnx.checker.check_model(str(path))
        except Exception as error:
            message = f"`{path}` is no valid ONNX model: {_reason(error)}"
            raise CorruptFileError(message) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Its errors are raised as well.
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedError(f"ONNX Runtime cannot load `{path}`: {_reason(error)}") from error


def run_session(session: Any, batch: Inputs) -> list[Array]:
    """Return the file's outputs on a batch.

    Raises:
        ExportMismatchError: The file takes other inputs than the model.
        RunError: The run fails.
    """
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(batch.tensors):
        raise ExportMismatchError(
            f"The file takes {len(names)} inputs ({', '.join(names)}), but the batch that the "
            f"model takes holds {len(batch.tensors)}."
        )
    by_name = batch.kwargs.keys() == set(names)
    tensors = batch.kwargs if by_name else dict(zip(names, batch.tensors, strict=True))
    try:
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return [np.asarray(output) for output in session.run(None, feed)]
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        raise RunError(
            f"ONNX Runtime cannot run the file on a batch of {len(batch.tensors[0])}, which the "
            f"model takes: {_reason(error)}"
        ) from error


def graph_inputs(graph: Any) -> list[Any]:
    """Return what a graph takes, without the weights that some files list among its inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _reason(error: BaseException) -> str:
    """Return the first two lines, of which the first may only announce the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") + "."

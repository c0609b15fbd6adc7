"""ONNX Runtime on a file: opened, and run on a model's inputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetunelib.errors import CorruptFileError, ExportMismatchError
from finetunelib.export._inputs import Inputs

Array = npt.NDArray[Any]

_NODE = re.compile(r"Name:\s*'([^']+)'")


class RunError(ExportMismatchError):
    """ONNX Runtime cannot run the file on a batch that the model takes."""


def open_session(path: Path, *, optimized: bool = True, checked: bool = False) -> Any:
    """Return a session of ONNX Runtime on the CPU, after a check of the file.

    Args:
        path: The file.
        optimized: Whether the runtime may fuse nodes; their names go with that.
        checked: Whether the file was checked by ONNX already.

    Raises:
        CorruptFileError: The file is no valid ONNX model.
    """
    import onnx
    import onnxruntime

    try:
        if not checked:
            onnx.checker.check_model(str(path))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Its warnings are about its own optimizations.
        if not optimized:
            levels = onnxruntime.GraphOptimizationLevel
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # Neither library names its exceptions; whatever they raise here is about the file.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CorruptFileError(f"`{path}` is no valid ONNX model: {reason}") from error


def run_session(session: Any, batch: Inputs) -> list[Array]:
    """Return the file's outputs on a batch.

    Raises:
        ExportMismatchError: The file takes other inputs than the model.
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
        reason = str(error).strip().partition("\n")[0]
        node = _NODE.search(reason)
        raise RunError(
            f"ONNX Runtime cannot run the file on a batch of {len(batch.tensors[0])}, which the "
            f"model takes: {reason}",
            node=node[1] if node else None,
        ) from error

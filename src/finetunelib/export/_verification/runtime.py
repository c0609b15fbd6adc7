"""Opens and runs a file with ONNX Runtime."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from finetunelib._forward.inputs import Inputs
from finetunelib.errors import CorruptFileError, ExportMismatchError
from finetunelib.export._batches.arrays import Array

#: The option that says where the external data of a model in memory are.
_FOLDER = "session.model_external_initializers_file_folder_path"


class RunError(ExportMismatchError):
    """ONNX Runtime cannot run the file on a batch that the model accepts."""


class RefusedError(CorruptFileError):
    """ONNX Runtime cannot load a file that the ONNX checker accepts."""


def open_session(path: Path) -> Any:
    """Check a file with ONNX, and return an ONNX Runtime session on the CPU.

    Raises:
        CorruptFileError: If the file is not a valid ONNX model.
        RefusedError: If it is valid, but ONNX Runtime cannot load it.
    """
    import onnx

    # Neither library documents its exceptions. All of them are about the file here.
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        message = f"`{path}` is not a valid ONNX model: {_reason(error)}"
        raise CorruptFileError(message) from error
    return _session(path, str(path), _options())


def open_mapped(path: Path, model: Any) -> Any:
    """Return a session of a file that ONNX has checked, with its weights mapped into memory.

    Args:
        path: The file.
        model: The `onnx.ModelProto` in it, whose large weights are external data next to it or in
            the file itself.

    Raises:
        RefusedError: If ONNX Runtime cannot load it.
    """
    import onnxruntime

    if any(tensor.external_data for tensor in model.graph.initializer):
        options = _options()
        options.add_session_config_entry(_FOLDER, str(path.parent.resolve()))
        # All optimizations but those that copy weights into another layout.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        with contextlib.suppress(RefusedError):
            return _session(path, model.SerializeToString(), options)
    return _session(path, str(path), _options())


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Errors are raised too.
    # A comparison runs a file a few times. Packed copies of its weights, as large as the weights,
    # would only make many runs faster.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _session(path: Path, source: str | bytes, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedError(f"ONNX Runtime cannot load `{path}`: {_reason(error)}") from error


def run_session(session: Any, batch: Inputs) -> list[Array]:
    """Return the outputs of a file for a batch.

    Raises:
        ExportMismatchError: If the file and the model take different numbers of inputs.
        RunError: If the run fails.
    """
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(batch.tensors):
        raise ExportMismatchError(
            f"The file takes {len(names)} inputs ({', '.join(names)}), but the model takes "
            f"{len(batch.tensors)}."
        )
    by_name = batch.kwargs.keys() == set(names)
    tensors = batch.kwargs if by_name else dict(zip(names, batch.tensors, strict=True))
    try:
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return [np.asarray(output) for output in session.run(None, feed)]
    # The exceptions of ONNX Runtime have no common base class but Exception.
    except Exception as error:
        raise RunError(
            f"ONNX Runtime cannot run the file on a batch of {len(batch.tensors[0])}, which the "
            f"model accepts: {_reason(error)}"
        ) from error


def graph_inputs(graph: Any) -> list[Any]:
    """Return the inputs of a graph, without weights, which some files list as inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _reason(error: BaseException) -> str:
    """Return the first two lines. The first one may only introduce the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") + "."

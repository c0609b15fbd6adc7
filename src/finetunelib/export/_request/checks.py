"""Argument checks of `export_onnx` and `verify_onnx`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from finetunelib._arguments import uninitialized
from finetunelib._files import check_writable
from finetunelib._typing import StrPath
from finetunelib.errors import ExportError, InvalidArgumentError


def check_path(path: StrPath) -> Path:
    """Return the path of a file to export to.

    Raises:
        PathNotWritableError: If the file cannot be written.
        InvalidArgumentError: If the path does not end in `.onnx`.
    """
    file = check_writable(path)
    if file.suffix != ".onnx":
        raise InvalidArgumentError(f"`path` must end in .onnx, got `{file}`.")
    return file


def check_values(model: nn.Module) -> None:
    """Check that all tensors of a model have values.

    Raises:
        ExportError: If some are lazy or on the meta device.
    """
    # First of all: calling the model would initialize lazy layers, and so change it.
    lazy = uninitialized(model)
    if lazy is not None:
        raise ExportError(lazy)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ExportError(
            "The model has tensors on the meta device, which have no values. Load its weights."
        )


def check_tolerance(tolerance: float) -> None:
    """Check the tolerance of a comparison.

    Raises:
        InvalidArgumentError: If it is not a finite number above 0.
    """
    if not 0.0 < tolerance < float("inf"):
        raise InvalidArgumentError(f"`tolerance` must be a finite number above 0, got {tolerance}.")

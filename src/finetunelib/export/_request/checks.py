"""What is checked of a user's arguments before an export or a comparison begins."""

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
        PathNotWritableError: Nothing can be written there.
        InvalidArgumentError: It does not end in `.onnx`.
    """
    file = check_writable(path)
    if file.suffix != ".onnx":
        raise InvalidArgumentError(f"`path` must end in .onnx, but is `{file}`.")
    return file


def check_values(model: nn.Module) -> None:
    """Check that all tensors of a model have values.

    Raises:
        ExportError: Some are lazy, or on the meta device.
    """
    # Before anything else: a call would give a lazy layer its weights, and change the model.
    lazy = uninitialized(model)
    if lazy is not None:
        raise ExportError(lazy)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ExportError(
            "The model holds tensors on the meta device, which have no values. Load its weights."
        )


def check_tolerance(tolerance: float) -> None:
    """Check a tolerance that a user passed.

    Raises:
        InvalidArgumentError: No error would be below it, or every one.
    """
    if not 0.0 < tolerance < float("inf"):
        raise InvalidArgumentError(
            f"`tolerance` must be a finite number above 0, but is {tolerance}."
        )

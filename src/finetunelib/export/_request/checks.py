"""Argument checks of `export_onnx` and `verify_onnx`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from finetunelib._arguments import uninitialized
from finetunelib._files.paths import check_writable
from finetunelib._typing import StrPath
from finetunelib.errors import ExportError, InvalidArgumentError, InvalidTypeError


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


def check_kind(model: nn.Module) -> None:
    """Check that a module is not one that TorchScript or `torch.export` made.

    Raises:
        InvalidTypeError: If it is.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidTypeError(
            f"`model` is a TorchScript module ({type(model).__name__}), which cannot be exported. "
            "Pass the original module."
        )
    # The module of an exported program replaces its own `eval` by one that raises.
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        raise InvalidTypeError(
            "`model` is the module of an exported program, which has no eval mode. "
            "Pass the original module."
        )


def check_opset(opset_version: int | None) -> None:
    """Check that the installed onnx has a version of the operators.

    Raises:
        ExportError: If it does not.
    """
    if opset_version is None:
        return
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset_version <= newest:
        raise ExportError(
            f"`opset_version` must be from 1 to {newest}, the newest that the installed onnx has, "
            f"got {opset_version}."
        )


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

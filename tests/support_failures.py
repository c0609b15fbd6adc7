"""Failures of an export, and the state that an export must not change."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from finetunelib.errors import ExportError, ExportMismatchError, PathNotWritableError
from finetunelib.export._tracing import exporter
from support_untouched import changed_since, snapshot


class Model(nn.Module):
    """A small model whose forward changes buffers and attributes, as in real models."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Dropout(0.5))
        self.head = nn.Linear(64, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.last: object = None
        self.on_call: Callable[[int], object] = lambda number: None

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            self.calls += 1
            self.on_call(int(self.calls))
            self.last = inputs
        outputs: Tensor = self.head(self.layers(inputs))
        return outputs


def recorded_model() -> Model:
    """Return a model in train mode, partly frozen, with gradients and a hook."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Model()
    made.layers[2].eval()
    made.layers[0].requires_grad_(False)
    made.head.weight.grad = torch.ones(3, 64)
    made.head.register_forward_hook(lambda *_: None)
    return made


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """Return a function that raises."""

    def fail(*_args: object, **_options: object) -> NoReturn:
        raise error

    return fail


def full() -> OSError:
    """Return the error of a full disk."""
    return OSError(errno.ENOSPC, "No space left on device")


class FailingSession:
    """A session whose run fails or returns changed outputs."""

    def __init__(self, real: Any, run: Callable[[list[Any]], list[Any]]) -> None:
        self._real, self._run = real, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def run(self, names: Any, feed: Any) -> list[Any]:
        """Run, and change the outputs."""
        return self._run(self._real.run(names, feed))


def running(run: Callable[[list[Any]], list[Any]]) -> Callable[..., Any]:
    """Return a function that opens sessions whose outputs go through a function."""
    real = onnxruntime.InferenceSession
    return lambda *args, **options: FailingSession(real(*args, **options), run)


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of a folder."""
    return {
        str(entry.relative_to(folder)): entry.read_bytes() if entry.is_file() else b""
        for entry in folder.rglob("*")
    }


def _process() -> dict[str, Any]:
    """Return the state of the process that an export must not change."""
    names = ("", *exporter._LOGGERS, "onnxruntime", "finetunelib")
    return {
        "filters": list(warnings.filters),
        "levels": {name: logging.getLogger(name).level for name in names},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in names},
        "disabled": logging.root.manager.disable,
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "dtype": torch.get_default_dtype(),
        "umask": _umask(),
        "folder": Path.cwd(),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _attributes(model: nn.Module) -> dict[str, dict[str, int]]:
    return {
        name: {key: id(value) for key, value in vars(module).items() if key != "on_call"}
        for name, module in model.named_modules()
    }


class Watch:
    """The state that an export must not change, recorded before it."""

    def __init__(self, model: nn.Module, folder: Path, temporary: Path) -> None:
        self._model, self._folders = model, (folder, temporary)
        self._before = self._now()
        self._snapshot = snapshot(model)

    def _now(self) -> list[Any]:
        folders = [content(folder) for folder in self._folders]
        return [folders, _process(), _attributes(self._model)]

    def forget_folder(self) -> None:
        """Ignore the content of the destination folder, after a successful export."""
        self._before[0][0] = content(self._folders[0])

    def check(self, capfd: pytest.CaptureFixture[str]) -> None:
        """Assert that nothing has changed."""
        assert self._now() == self._before
        assert changed_since(self._snapshot, self._model) == []
        assert capfd.readouterr() == ("", "")


#: The function that fails, what it does instead, and the exception that the user gets.
FAILURES: dict[str, tuple[str, Any, type[BaseException]]] = {
    "the exporter's call is interrupted": (
        "torch.onnx.export",
        raising(KeyboardInterrupt()),
        KeyboardInterrupt,
    ),
    "the exporter raises": ("torch.onnx.export", raising(RuntimeError("broken")), ExportError),
    "the exporter raises SystemExit": ("torch.onnx.export", raising(SystemExit(3)), SystemExit),
    "the exporter returns nothing": ("torch.onnx.export", lambda *_, **__: None, ExportError),
    "the annotations fail": (
        "finetunelib.export._write.annotate",
        raising(AttributeError("metadata_props")),
        AttributeError,
    ),
    "the disk is full at the save": (
        "torch.onnx.ONNXProgram.save",
        raising(full()),
        PathNotWritableError,
    ),
    "the save is interrupted": (
        "torch.onnx.ONNXProgram.save",
        raising(KeyboardInterrupt()),
        KeyboardInterrupt,
    ),
    "the checker refuses": (
        "onnx.checker.check_model",
        raising(onnx.checker.ValidationError("not a graph")),
        ExportError,
    ),
    "the checker crashes": (
        "onnx.checker.check_model",
        raising(MemoryError()),
        MemoryError,
    ),
    "the file cannot be read again": (
        "finetunelib.export._verified_file.check_graph",
        raising(OSError(errno.EIO, "Input/output error")),
        OSError,
    ),
    "no session opens": (
        "onnxruntime.InferenceSession",
        raising(RuntimeError("no kernel")),
        ExportError,
    ),
    "the run fails": (
        "onnxruntime.InferenceSession",
        running(raising(RuntimeError("no memory"))),
        ExportMismatchError,
    ),
    "the run is interrupted": (
        "onnxruntime.InferenceSession",
        running(raising(KeyboardInterrupt())),
        KeyboardInterrupt,
    ),
    "the outputs differ": (
        "onnxruntime.InferenceSession",
        running(lambda outputs: [output + 1 for output in outputs]),
        ExportMismatchError,
    ),
    "the outputs are not finite": (
        "onnxruntime.InferenceSession",
        running(lambda outputs: [output * np.nan for output in outputs]),
        ExportMismatchError,
    ),
    "the weights cannot be hashed": (
        "finetunelib.export._export.weights_sha256",
        raising(RuntimeError("no values")),
        RuntimeError,
    ),
    "the self-test cannot be created": (
        "finetunelib.export._export.self_test_of",
        raising(MemoryError()),
        MemoryError,
    ),
    "the disk is full at the metadata": (
        "finetunelib.export._export.append_metadata",
        raising(full()),
        PathNotWritableError,
    ),
    "the metadata is interrupted": (
        "finetunelib.export._export.append_metadata",
        raising(KeyboardInterrupt()),
        KeyboardInterrupt,
    ),
    "the disk is full at the flush": ("os.fsync", raising(full()), PathNotWritableError),
    "the file cannot be renamed": (
        "pathlib.Path.replace",
        raising(PermissionError(errno.EACCES, "Permission denied")),
        PathNotWritableError,
    ),
    "no temporary file can be created": (
        "tempfile.mkstemp",
        raising(full()),
        PathNotWritableError,
    ),
    "the folder is read-only": ("os.access", lambda *_: False, PathNotWritableError),
}

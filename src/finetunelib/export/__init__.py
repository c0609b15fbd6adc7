"""ONNX files that were compared with the model: `export_onnx` (at the top level) and its parts.

`load_onnx_metadata` needs no PyTorch; the other names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from finetunelib.export._metadata import OnnxMetadata, SelfTest, load_onnx_metadata

if TYPE_CHECKING:
    from finetunelib.export._gates import Comparison
    from finetunelib.export._report import ExportReport, TensorInfo
    from finetunelib.export._verification import Verification, verify_onnx

__all__ = [
    "Comparison",
    "ExportReport",
    "OnnxMetadata",
    "SelfTest",
    "TensorInfo",
    "Verification",
    "load_onnx_metadata",
    "verify_onnx",
]

#: Where the names that need PyTorch are defined.
_HOMES = {
    "Comparison": "_gates",
    "ExportReport": "_report",
    "TensorInfo": "_report",
    "Verification": "_verification",
    "verify_onnx": "_verification",
}

for _public in (OnnxMetadata, SelfTest, load_onnx_metadata):
    _public.__module__ = __name__


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetunelib.export' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

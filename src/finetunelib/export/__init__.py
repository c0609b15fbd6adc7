"""ONNX files that were compared with the model: `export_onnx` (at the top level) and its parts."""

from finetunelib.export._export import export_onnx
from finetunelib.export._gates import Comparison
from finetunelib.export._metadata import OnnxMetadata, SelfTest, load_onnx_metadata
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

for _public in (
    Comparison,
    ExportReport,
    OnnxMetadata,
    SelfTest,
    TensorInfo,
    Verification,
    load_onnx_metadata,
    verify_onnx,
):
    _public.__module__ = __name__
export_onnx.__module__ = "finetunelib"

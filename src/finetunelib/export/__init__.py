"""ONNX files that were compared with the model: `export_onnx` (at the top level) and its parts.

`load_onnx_metadata` needs no PyTorch; the other names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from finetunelib._public import lazily
from finetunelib.export._metadata.format import OnnxMetadata, SelfTest, load_onnx_metadata

if TYPE_CHECKING:
    from finetunelib.export._report import ExportReport, TensorInfo
    from finetunelib.export._verification.comparison import Comparison
    from finetunelib.export._verification.outcome import Verification
    from finetunelib.export._verification.verify import verify_onnx

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


if not TYPE_CHECKING:  # Type checkers see only the names above.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "Comparison": "_verification.comparison",
            "ExportReport": "_report",
            "TensorInfo": "_report",
            "Verification": "_verification.outcome",
            "verify_onnx": "_verification.verify",
        },
    )

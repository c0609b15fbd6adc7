"""Build a model, train it, fine-tune it, export it to ONNX and look at it.

Five functions stand here; everything else lives in the sub-packages `models`, `data`,
`finetuning`, `training`, `export`, `visualization` and in `errors`.
"""

from finetunelib.export._export import export_onnx
from finetunelib.finetuning._replace_head import freeze_and_replace_head
from finetunelib.models._mlp import build_mlp
from finetunelib.training._trainer import Trainer
from finetunelib.visualization._visualize import visualize

__version__ = "0.1.0"

__all__ = [
    "Trainer",
    "__version__",
    "build_mlp",
    "export_onnx",
    "freeze_and_replace_head",
    "visualize",
]

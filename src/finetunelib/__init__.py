"""Build a model, train it, fine-tune it, export it to ONNX and look at it.

Five functions stand here; everything else lives in the sub-packages `models`, `data`,
`finetuning`, `training`, `callbacks`, `export`, `visualization` and in `errors`. A name is imported
when it is first used, so that a program without PyTorch can read what an exported file tells.
"""

from typing import TYPE_CHECKING

from finetunelib._lazy import lazily

if TYPE_CHECKING:
    from finetunelib.export._export import export_onnx
    from finetunelib.finetuning._freeze_and_replace import freeze_and_replace_head
    from finetunelib.models._mlp import build_mlp
    from finetunelib.training._trainer import Trainer
    from finetunelib.visualization._netron.visualize import visualize

__version__ = "0.1.0"

__all__ = [
    "Trainer",
    "__version__",
    "build_mlp",
    "export_onnx",
    "freeze_and_replace_head",
    "visualize",
]

_PACKAGES = (
    "callbacks",
    "data",
    "errors",
    "export",
    "finetuning",
    "models",
    "training",
    "visualization",
)

if not TYPE_CHECKING:  # A checker is to see the names above, and no others.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "Trainer": "training._trainer",
            "build_mlp": "models._mlp",
            "export_onnx": "export._export",
            "freeze_and_replace_head": "finetuning._freeze_and_replace",
            "visualize": "visualization._netron.visualize",
            **{package: package for package in _PACKAGES},
        },
    )

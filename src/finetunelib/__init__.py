"""Build, train and fine-tune PyTorch models, export them to ONNX, and view them in Netron.

The five entry points are here. Everything else is in the sub-packages `models`, `data`,
`finetuning`, `training`, `callbacks`, `export` and `visualization`, and in `errors`. A name is
imported when it is first used, so the metadata of an exported file can be read without PyTorch.
"""

from typing import TYPE_CHECKING

from finetunelib._public import lazily

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

if not TYPE_CHECKING:  # A type checker sees the imports above.
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

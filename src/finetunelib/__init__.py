"""Build a model, train it, fine-tune it, export it to ONNX and look at it.

Five functions stand here; everything else lives in the sub-packages `models`, `data`,
`finetuning`, `training`, `export`, `visualization` and in `errors`. A name is imported when it is
first used, so that a program without PyTorch can read what an exported file tells.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Where each of the five is defined; the package in front of it gives it its public path.
_HOMES = {
    "Trainer": "training._trainer",
    "build_mlp": "models._mlp",
    "export_onnx": "export._export",
    "freeze_and_replace_head": "finetuning._replace_head",
    "visualize": "visualization._visualize",
}

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


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return importlib.import_module(f"finetunelib.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'finetunelib' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"finetunelib.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})

"""The class of the models that `finetunelib.build_mlp` builds."""

from finetunelib.models._mlp import MLP

__all__ = ["MLP"]


def __dir__() -> list[str]:
    return __all__

"""Models that are built from a few numbers: `build_mlp` (at the top level) and its class."""

from finetunelib.models._mlp import MLP, build_mlp

__all__ = ["MLP"]

# Tracebacks, pickles and docs show where users import from.
MLP.__module__ = __name__
build_mlp.__module__ = "finetunelib"

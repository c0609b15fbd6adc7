"""Models that are built from a few numbers: `build_mlp` (at the top level) and its class."""

from finetunelib.models._mlp import MLP

__all__ = ["MLP"]

# Tracebacks, pickles and docs show where users import from.

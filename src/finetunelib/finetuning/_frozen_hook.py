"""The hook that keeps a frozen module in eval mode.

Every pickled model that is frozen names this function by its path, so the path never changes;
a stored file tests it.
"""

from __future__ import annotations

from torch import nn


def keep_in_eval_mode(module: nn.Module, args: tuple[object, ...]) -> None:  # noqa: ARG001 - torch passes it
    """Set the module's mode to eval before its forward runs, whatever `train()` set it to."""
    if module.training:
        module.training = False

"""Which parts of the model were frozen when a checkpoint was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetunelib.errors import CheckpointError, FreezeError
from finetunelib.finetuning._freezing.frozen_state import FrozenState
from finetunelib.training._checkpointing.manifest import WEIGHTS
from finetunelib.training._checkpointing.measured import TRAINING_WEIGHTS


def saved_frozen_state(
    path: Path, saved: Mapping[str, Any], model: nn.Module
) -> FrozenState | None:
    """Return the frozen parts in a checkpoint, or `None` if an early version wrote it.

    Raises:
        CheckpointError: If they are damaged, or the model does not have one of them.
    """
    if "freezing" not in saved:
        return None
    try:
        frozen = FrozenState.from_dict(saved["freezing"])
        frozen.check_fits(model)
    except FreezeError as error:
        raise CheckpointError(f"`{path}` does not fit the model: {error}") from error
    return frozen


def has_weights_of(path: Path, saved: Mapping[str, Any], model: nn.Module) -> bool:
    """Return whether a model has the training weights of a checkpoint bit for bit."""
    from safetensors import safe_open

    current = model.state_dict()
    if TRAINING_WEIGHTS in saved:
        weights: Mapping[str, torch.Tensor] = saved[TRAINING_WEIGHTS]
        return all(torch.equal(current[name].cpu(), value) for name, value in weights.items())
    with safe_open(path / WEIGHTS, framework="pt") as file:
        return all(
            name in current and torch.equal(current[name].cpu(), file.get_tensor(name))
            for name in file.keys()  # noqa: SIM118 - not a mapping
        )

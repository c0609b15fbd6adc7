"""Snapshots of a model and the process, to show that a function changes nothing."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return the state of a model and of the process as plain values."""
    parameters = dict(model.named_parameters())
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - the global state is what users seed
    torch_loggers = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "state": {name: _plain(tensor) for name, tensor in model.state_dict().items()},
        "gradients": {name: _plain(p.grad) for name, p in parameters.items()},
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "objects": {name: id(p) for name, p in parameters.items()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        },
        "torch": torch.get_rng_state().tolist(),
        "numpy": [numpy_state[1].tolist(), *numpy_state[2:]],
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "levels": {name: logging.getLogger(name).level for name in torch_loggers},
    }


def changed_since(before: dict[str, Any], model: nn.Module) -> list[str]:
    """Return the names of the entries that differ from a snapshot."""
    after = snapshot(model)
    # Loggers that were created in between are ignored.
    after["levels"] = {name: after["levels"][name] for name in before["levels"]}
    return [name for name in before if before[name] != after[name]]


def _plain(tensor: Tensor | None) -> tuple[str, list[Any]] | None:
    return None if tensor is None else (str(tensor.dtype), tensor.detach().flatten().tolist())

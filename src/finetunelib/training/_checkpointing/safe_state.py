"""States that can be read back without running code."""

from __future__ import annotations

from collections import Counter, OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetunelib.errors import CheckpointError

#: The types that survive a round trip through `torch.load(weights_only=True)`, which rejects even
#: their subclasses.
_PLAIN = (type(None), bool, int, float, str, bytes)
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple, torch.Size)


def plain(value: Any, where: str = "state") -> Any:
    """Return a state in types that can be read back without running code.

    Args:
        value: The state, or a part of it.
        where: How to reach `value` in the state, for messages.

    Raises:
        CheckpointError: If the state contains an object of another type.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Tensor):
        # Libraries set attributes on tensors, which would be saved with them.
        return value.detach() if vars(value) else value
    if kind in _MAPPINGS or isinstance(value, MappingProxyType):
        content = {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
        return kind(content) if kind in _MAPPINGS else content
    if kind in _SEQUENCES:
        return kind(plain(part, f"{where}[{position}]") for position, part in enumerate(value))
    if isinstance(value, np.generic):  # For example a learning rate from `linspace`.
        return plain(value.item(), where)
    raise CheckpointError(
        f"{where} is of type {kind.__name__}, which a checkpoint cannot contain, because loading "
        "it could run code. Keep numbers, strings, tensors, lists and dicts in `state_dict`."
    )

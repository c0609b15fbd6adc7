"""Digests of tensors: what shows that one is bit for bit the tensor that it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Where a model keeps the digests of what was loaded into it. It lies on the module, so that a
#: copy or a pickle of the model keeps them too.
_LOADED = "_loaded_digests"


def digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bits, in hexadecimal."""
    values = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    state.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def remember_loaded(model: nn.Module, digests: Mapping[str, str]) -> None:
    """Note on a model which bits were loaded into its tensors, beside what was noted before."""
    object.__setattr__(model, _LOADED, {**loaded_digests(model), **digests})


def loaded_digests(model: nn.Module) -> dict[str, str]:
    """Return the digests of what was loaded into a model, by the name of the tensor."""
    return dict(getattr(model, _LOADED, {}))

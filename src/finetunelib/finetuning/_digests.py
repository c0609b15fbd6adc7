"""Digests of tensors: what shows that one is bit for bit the tensor that it was."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Where a model keeps the digests of what was loaded into it. It lies on the module, so that a
#: copy or a pickle of the model keeps them too.
_LOADED = "_loaded_digests"


def digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bits, in hexadecimal."""
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    state = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    for part in _dense_parts(values):
        flat = part.contiguous().reshape(-1)
        # Not by numpy, which would leave the user's memory marked as one that cannot be resized.
        size = flat.numel() * flat.element_size()
        if size:
            state.update((ctypes.c_char * size).from_address(flat.data_ptr()))
    return state.hexdigest()


def _dense_parts(values: Tensor) -> list[Tensor]:
    """Return the tensors that hold the bits of one, which may be sparse or quantized."""
    if values.is_quantized:
        return [values.int_repr()]
    if values.layout is torch.strided:
        return [values]
    entries = values.to_sparse().coalesce()
    return [entries.indices(), entries.values()]


def remember_loaded(model: nn.Module, digests: Mapping[str, str]) -> None:
    """Note on a model which bits were loaded into its tensors, beside what was noted before."""
    object.__setattr__(model, _LOADED, {**loaded_digests(model), **digests})


def loaded_digests(model: nn.Module) -> dict[str, str]:
    """Return the digests of what was loaded into a model, by the name of the tensor."""
    return dict(getattr(model, _LOADED, {}))

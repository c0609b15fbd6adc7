"""The tensors in a model's state dict: their values, bits, and replacing them for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors in a model's state dict by name. They share memory with the model."""
    state = model.state_dict().items()
    return {name: value.detach() for name, value in state if isinstance(value, torch.Tensor)}


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the values of tensors into a model, by their names in its state dict."""
    state = state_tensors(model)
    for name, value in tensors.items():
        state[name].copy_(value)


@contextlib.contextmanager
def tensors_replaced(
    model: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Run the block with other values in a model, and restore its own, which are yielded.

    Nothing is written to tensors that have these values already.
    """
    state = state_tensors(model)
    own = {name: tensor.clone() for name, tensor in state.items()}
    new = {name: value for name, value in tensors.items() if not same_bits(value, state[name])}
    copy_into(model, new)
    try:
        yield own
    finally:
        copy_into(model, {name: own[name] for name in new})


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape, device and bits, if that is known."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.layout is not torch.strided or one.is_quantized or one.is_conj() or one.is_neg():
        return False
    try:
        return torch.equal(_octets(one), _octets(other))
    except (RuntimeError, TypeError):  # A subclass without memory of its own.
        return False


def _octets(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as bytes, since nan is not equal to itself and -0.0 is equal to 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

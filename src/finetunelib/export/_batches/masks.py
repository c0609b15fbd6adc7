"""Recognizes masks among the inputs, and varies them as tokenizers do."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: `on_off` is 1 for a number of positions and then 0, as in an attention mask; `off_on` is the
#: reverse, as in a key padding mask; `bits` has no such order; `flag` is one boolean per row.
MaskForm = Literal["on_off", "off_on", "bits", "flag"]


def mask_form(tensor: Tensor, name: str) -> MaskForm | None:
    """Return the form of a mask, or `None` if a tensor is not one.

    Args:
        tensor: An input, with its rows along the first axis.
        name: The name of the input. Floating-point numbers are a mask only if it says so.
    """
    boolean = tensor.dtype == torch.bool
    if not boolean and not _may_be_mask(tensor, name):
        return None
    if tensor.dim() < 2 or tensor.shape[-1] < 2:
        return "flag" if boolean else None
    steps = tensor.to(torch.int8).diff(dim=-1)
    if bool((steps <= 0).all()) and bool((tensor[..., 0] != 0).all()):
        return "on_off"
    if bool((steps >= 0).all()) and bool((tensor[..., 0] == 0).any()):
        return "off_on"
    return "bits" if boolean else None


def _may_be_mask(tensor: Tensor, name: str) -> bool:
    """Return whether a tensor that is not boolean has the values of a mask."""
    if not tensor.numel() or tensor.is_complex():
        return False
    if tensor.is_floating_point() and "mask" not in name.lower():
        return False
    return not bool(((tensor != 0) & (tensor != 1)).any())


def vary_mask(tensor: Tensor, form: MaskForm, generator: torch.Generator) -> Tensor:
    """Return a mask of the same form whose rows differ.

    The first position of each row keeps its value, so no row of an attention mask sees nothing.
    """
    rows = len(tensor)
    if form != "flag" and tensor.shape[-1] < 2:
        return tensor
    if form == "flag":
        start = int(torch.randint(0, 2, (), generator=generator))
        flags = (torch.arange(rows) + start) % 2 == 0
        return flags.reshape(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor).to(tensor.device)
    length = tensor.shape[-1]
    if form == "bits":
        bits = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.bool)
        bits[..., 0], bits[..., -1] = True, False
        return bits.to(tensor.device)
    cuts = torch.randint(1, length, (rows,), generator=generator)
    cuts[-1] = max(1, length // 2)  # At least one row differs from a full mask.
    cuts = cuts.reshape(-1, *[1] * (tensor.dim() - 1))
    tail = (torch.arange(length) >= cuts).to(tensor.device).expand_as(tensor)
    return tensor.masked_fill(tail, 0 if form == "on_off" else 1)

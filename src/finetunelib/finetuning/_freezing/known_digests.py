"""Digests of tensors that nothing has written to since they were computed.

They spare a `fit` from computing the digests of the frozen tensors at its start. A digest that is
known by mistake cannot make a certificate wrong: a tensor is certified only if the digest that is
computed at the end of the `fit` is the same.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from finetunelib.finetuning._digests import digest


@dataclass(frozen=True, slots=True)
class _Known:
    """A digest, and what shows that the tensor was written to after it was computed."""

    digest: str
    traces: tuple[object, ...]


#: What is known of each tensor that exists.
_known: MutableMapping[Tensor, _Known] = WeakIdKeyDictionary()


def computed_digest(tensor: Tensor) -> str:
    """Compute the digest of a tensor, and remember it."""
    value = digest(tensor)
    traces = _traces(tensor)
    if traces is not None:
        _known[tensor] = _Known(value, traces)
    return value


def known_digest(tensor: Tensor) -> str:
    """Return the digest of a tensor, computed now unless it is known.

    Writes are found by PyTorch's count of changes, by the address, and by a sum over the bits,
    which takes a fraction of the time of a digest.
    """
    known = _known.get(tensor)
    if known is not None and known.traces == _traces(tensor):
        return known.digest
    return computed_digest(tensor)


@torch.no_grad()
def _traces(tensor: Tensor) -> tuple[object, ...] | None:
    """Return what a write to a tensor changes, or `None` if that is not known."""
    values = tensor.detach()
    if (
        type(tensor) not in (Tensor, nn.Parameter)
        or values.layout is not torch.strided
        or values.is_quantized
        or values.is_conj()
        or values.is_neg()
        or tensor.is_inference()
        or not values.is_contiguous()
    ):
        return None
    version = tensor._version  # noqa: SLF001 - PyTorch's own count of changes
    octets = values.reshape(-1).view(torch.uint8)
    whole = octets.numel() - octets.numel() % 8
    try:
        bits = octets[:whole].view(torch.int64).sum().item() + octets[whole:].sum().item()
    except RuntimeError:  # The values do not start at a multiple of eight bytes.
        return None
    return version, values.data_ptr(), values.dtype, values.shape, values.device, bits

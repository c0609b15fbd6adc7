"""The number formats of a training: full, or mixed with half precision where that is safe."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from finetunelib.errors import InvalidArgumentError

PrecisionName: TypeAlias = Literal["fp32", "bf16-mixed", "fp16-mixed"]


class Precision(Protocol):
    """How a step computes, and how its gradients reach the optimizer."""

    def autocast(self) -> AbstractContextManager[object]:
        """Return the block in which a forward pass runs."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        ...

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to their true size, for clipping."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer update the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what it has adapted so far."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class FullPrecision:
    """Computes in the model's own dtype."""

    def __init__(self) -> None:
        self._nothing = contextlib.nullcontext()

    def autocast(self) -> AbstractContextManager[object]:
        """Return a block that changes nothing."""
        return self._nothing

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None: ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer update the weights."""
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it adapts nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class MixedPrecision(FullPrecision):
    """Runs matrix products in bfloat16; its range is float32's, so nothing has to be scaled."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self._device = device
        self._dtype = dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return a block in which torch chooses the dtype of each operation."""
        return torch.autocast(self._device.type, dtype=self._dtype)


class ScaledPrecision(MixedPrecision):
    """Runs matrix products in float16, with the loss scaled so that small gradients survive."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, torch.float16)
        self._scaler = torch.amp.GradScaler(device.type)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss."""
        super().backward(self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights unless a gradient overflowed, and adapt the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and how long it has held."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._scaler.load_state_dict(dict(state))


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of that name.

    Raises:
        InvalidArgumentError: There is none of that name.
    """
    if name == "fp32":
        return FullPrecision()
    if name == "bf16-mixed":
        return MixedPrecision(device)
    if name == "fp16-mixed":
        return ScaledPrecision(device)
    raise InvalidArgumentError(
        f'`precision` must be "fp32", "bf16-mixed" or "fp16-mixed", but is {name!r}.'
    )

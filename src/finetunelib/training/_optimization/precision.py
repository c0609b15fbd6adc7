"""Number formats: full precision, or mixed with half precision where that is safe."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from finetunelib._forward.outputs import in_full_precision
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._updates.update import Update

PrecisionName: TypeAlias = Literal["fp32", "bf16-mixed", "fp16-mixed"]


class Precision(Protocol):
    """The number format of a step, and how its gradients reach the optimizer."""

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context manager for the forward pass."""
        ...

    def widen(self, outputs: Tensor) -> Tensor:
        """Return outputs in float32 if `autocast` made them half precision."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        ...

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale of the loss, before clipping."""
        ...

    def step(self, update: Update) -> None:
        """Update the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the scale of the loss, if there is one."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class FullPrecision:
    """Computes in the model's own dtype."""

    def __init__(self) -> None:
        self._nothing = contextlib.nullcontext()

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context manager that does nothing."""
        return self._nothing

    def widen(self, outputs: Tensor) -> Tensor:
        """Return the outputs unchanged."""
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None: ...

    def step(self, update: Update) -> None:
        """Update the weights."""
        update.step()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class MixedPrecision(FullPrecision):
    """Runs matrix products in bfloat16, whose range is that of float32, so no scaling is needed."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self._device = device
        self._dtype = dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context manager in which PyTorch chooses the dtype of each operation."""
        return torch.autocast(self._device.type, dtype=self._dtype)

    def widen(self, outputs: Tensor) -> Tensor:
        """Return outputs in half precision as float32, which numpy can take."""
        return in_full_precision(outputs)


class ScaledPrecision(MixedPrecision):
    """Runs matrix products in float16, and scales the loss to keep small gradients above zero."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, torch.float16)
        self._scaler = torch.amp.GradScaler(device.type)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the scaled loss."""
        super().backward(self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale."""
        self._scaler.unscale_(optimizer)

    def step(self, update: Update) -> None:
        """Update the weights unless a gradient overflowed, and adapt the scale."""
        self._scaler.step(update.optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the number of steps since it last changed."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._scaler.load_state_dict(dict(state))


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision with a name.

    Raises:
        InvalidArgumentError: If the name is unknown.
    """
    if name == "fp32":
        return FullPrecision()
    if name == "bf16-mixed":
        return MixedPrecision(device)
    if name == "fp16-mixed":
        return ScaledPrecision(device)
    raise InvalidArgumentError(
        f'`precision` must be "fp32", "bf16-mixed" or "fp16-mixed", got {name!r}.'
    )

"""Notices when callbacks replace the weights of the model for validation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from finetunelib._forward.state_tensors import state_tensors
from finetunelib.training._callbacks.context import TrainContext


@dataclass(frozen=True, slots=True)
class WeightsBefore:
    """The memory and the version of each tensor of a model, before callbacks may change it.

    Attributes:
        marks: The address and the version by name, or `None` if nobody asked for them.
    """

    marks: dict[str, tuple[int, int]] | None

    @classmethod
    def of(cls, context: TrainContext) -> WeightsBefore:
        """Return the marks of a model, if a callback asked for the weights that are measured."""
        return cls(_marks(context.model) if context.measured.wanted else None)

    def replaced_by(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Return a copy of the model's weights if they have changed, or `None`."""
        if self.marks is None or self.marks == _marks(model):
            return None
        return {name: tensor.clone() for name, tensor in state_tensors(model).items()}


def forget_measured(context: TrainContext) -> None:
    """Release the memory of the weights that were measured, at the end of an epoch."""
    context.measured.weights = None


def _marks(model: nn.Module) -> dict[str, tuple[int, int]]:
    # A state dict has new tensors each time, which share their memory and version with the model.
    return {
        name: (tensor.data_ptr(), tensor._version)  # noqa: SLF001 - torch's own counter
        for name, tensor in state_tensors(model).items()
    }

"""Small models, some of which cannot be exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A model that calls a function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> object:
        return self.function(inputs)


class Difference(nn.Module):
    """A model of two inputs that are not interchangeable."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


class Branching(nn.Module):
    """A model that cannot be exported, because it branches on the values of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        if inputs.sum() > 0:
            return outputs
        return -outputs


class Deceiving(nn.Module):
    """A model whose outputs go through `other` while it is exported."""

    def __init__(self, other: Callable[[Tensor], Tensor] = lambda outputs: outputs + 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.other = other

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return self.other(outputs) if torch.compiler.is_exporting() else outputs


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with the same weights every time, without the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def linear() -> nn.Module:
    """Return a linear layer from 4 to 3 features with the same weights every time."""
    return seeded(lambda: nn.Linear(4, 3))


def samples(*shape: int, seed: int = 1) -> Tensor:
    """Return normally distributed numbers that depend on the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs_of(model: nn.Module, *inputs: Tensor) -> Tensor:
    """Return the outputs of a model in eval mode."""
    with torch.no_grad():
        outputs: Tensor = model.eval()(*inputs)
        return outputs

"""Small models and weights files that the tests of weights share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.models import MLP


def mlp(seed: int = 0, *, classes: int = 3, hidden: tuple[int, ...] = (5,)) -> MLP:
    """Return a model with a norm and its buffers."""
    return build_mlp(4, hidden, classes, normalization=nn.BatchNorm1d, seed=seed)


class Tied(nn.Module):
    """A language model whose head shares its weight with the embedding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(7, 4, generator=generator, device="cpu")
        with torch.no_grad():
            self.embedding.weight.copy_(values)
        self.head.weight = self.embedding.weight


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose names all begin with `prefix`."""
    return {prefix + name: tensor for name, tensor in state.items()}


def write(state: object, folder: Path, name: str = "a.pth") -> Path:
    """Write a state dict with `torch.save`, and return the path."""
    torch.save(state, folder / name)
    return folder / name


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same tensors, with equal bits and dtypes."""
    return same_bits(one.state_dict(), other.state_dict())


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two state dicts have the same tensors, with equal bits and dtypes."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
        for name, tensor in one.items()
    )

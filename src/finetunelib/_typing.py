"""Type aliases and protocols that several packages share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

StrPath: TypeAlias = str | os.PathLike[str]

#: One item of an iteration over data: (inputs, targets), a mapping, or inputs alone.
Batch: TypeAlias = Any  # Any: the structure of a batch is up to the user's Task.

TensorLike: TypeAlias = Tensor | npt.NDArray[Any]

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Builds a module for a number of features, such as a normalization layer or a head.
FeaturesToModule: TypeAlias = Callable[[int], nn.Module]

Shape: TypeAlias = Sequence[int]

#: Whether a lower or a higher value is better.
Mode: TypeAlias = Literal["min", "max"]

Item_co = TypeVar("Item_co", covariant=True)


class SizedDataset(Protocol[Item_co]):
    """A dataset with a length and items by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item_co: ...


class OptimizerWithRate(Protocol):
    """A class or function that builds an optimizer for parameter groups and a learning rate."""

    def __call__(self, params: list[dict[str, Any]], /, *, lr: float) -> torch.optim.Optimizer: ...


#: Builds an optimizer for parameter groups. It is called with `lr` only if one was passed.
OptimizerFactory: TypeAlias = (
    Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | OptimizerWithRate
)

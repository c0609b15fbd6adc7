"""Type aliases and protocols that several rooms share. Nothing here runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

StrPath: TypeAlias = str | os.PathLike[str]

#: What one iteration of a data set yields: (inputs, targets), a mapping, or inputs alone.
Batch: TypeAlias = Any  # Any: a batch has whatever structure the user's Task understands.

TensorLike: TypeAlias = Tensor | npt.NDArray[Any]

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Makes a module from a number of features: a normalization layer, a head.
FeaturesToModule: TypeAlias = Callable[[int], nn.Module]

Shape: TypeAlias = Sequence[int]

Item_co = TypeVar("Item_co", covariant=True)


class SizedDataset(Protocol[Item_co]):
    """What the library needs of a data set: a length and items by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item_co: ...


class OptimizerFactory(Protocol):
    """A class or function that makes an optimizer of parameter groups."""

    def __call__(self, params: list[dict[str, Any]], /, *, lr: float) -> torch.optim.Optimizer: ...

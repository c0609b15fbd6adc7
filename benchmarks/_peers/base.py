"""The interface of a trainer, and the work that all of them do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

Arrays = tuple[Tensor, Tensor]
Data = Arrays | Dataset[Any]

#: All train with SGD.
LR = 0.01
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Job:
    """What a trainer is asked for, apart from the model and the data.

    Attributes:
        batch_size: The number of samples per step.
        epochs: The number of epochs.
        metric: Whether the accuracy of training is computed.
        bar: Whether a progress bar is drawn.
        callbacks: The number of callbacks that do nothing after each step.
        folder: A folder for the files of trainers that need one.
        classes: The number of classes, for metrics that ask for it.
    """

    batch_size: int = 100
    epochs: int = 1
    metric: bool = True
    bar: bool = False
    callbacks: int = 0
    folder: Path = Path()
    classes: int = 10


class Feed(Protocol):
    """Batches of (inputs, targets) that are ready, with a length."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


class _Ready(IterableDataset[Any]):
    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __iter__(self) -> Any:
        return iter(self._feed)

    def __len__(self) -> int:
        return len(self._feed)


class Peer(ABC):
    """A trainer with a model. Each run uses a new one.

    Attributes:
        name: The name in the results.
        statement: The import that its users write.
    """

    name: ClassVar[str]
    statement: ClassVar[str] = ""

    def __init__(self, model: nn.Module, job: Job) -> None:
        self.model = model
        self.job = job

    @abstractmethod
    def fit(self, feed: Feed) -> None:
        """Train on batches that are ready."""

    def train(self, data: Data) -> None:
        """Train on data in the way that is usual for this trainer."""
        self.fit(loader_of(data, self.job, shuffle=True))

    @abstractmethod
    def evaluate(self, data: Arrays) -> tuple[float, float]:
        """Return the loss and the accuracy."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """Return the outputs in order."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Save the model and its optimizer."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Load what `save` saved."""


def loader_of(data: Data, job: Job, *, shuffle: bool = False) -> DataLoader[Any]:
    """Return a loader of arrays or of a dataset."""
    dataset = TensorDataset(*data) if isinstance(data, tuple) else data
    return DataLoader(dataset, batch_size=job.batch_size, shuffle=shuffle)


def as_loader(feed: Feed) -> DataLoader[Any]:
    """Return batches that are ready as a loader."""
    return feed if isinstance(feed, DataLoader) else DataLoader(_Ready(feed), batch_size=None)


def sgd(model: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of all trainers."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trainable, lr=LR, momentum=MOMENTUM)


def nothing(*_: object, **__: object) -> None:
    """Do nothing: a callback."""


def accuracy_of(outputs: Tensor, targets: Tensor) -> float:
    """Return the fraction of correct outputs."""
    return float((outputs.argmax(1) == targets).float().mean())


def concatenated(parts: Iterable[Tensor]) -> Tensor:
    """Return the rows of several outputs."""
    return torch.cat([part.detach() for part in parts])

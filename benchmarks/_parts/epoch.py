"""One epoch of MNIST in the way that is usual for each trainer, and the accuracy after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _parts.paired import Prepared, alternate, with_noise
from _peers.base import Arrays, Data, Job, Peer, accuracy_of
from _peers.names import peer_of
from finetunelib import build_mlp

#: The accuracies may differ by this much from their middle, because the order of the data differs.
TOLERANCE = 0.015


def measure(names: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Return the times for arrays in memory."""
    train, test = (_arrays(dataset) for dataset in mnist())
    return {"arrays": epochs(names, rounds, train, test, Job(folder=folder))}


def measure_dataset(names: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Return the times for torchvision's dataset with its transform."""
    train, test = mnist()
    return {"dataset": epochs(names, rounds, train, _arrays(test), Job(folder=folder))}


def mnist() -> tuple[Any, Any]:
    """Return the training and the test data, as datasets of vectors."""
    import torchvision

    root = os.environ.get("FINETUNELIB_DATA", "data")
    to_tensor = torchvision.transforms.Compose([torchvision.transforms.ToTensor(), _flat])
    train, test = (
        torchvision.datasets.MNIST(root, train=train, transform=to_tensor)
        for train in (True, False)
    )
    return train, test


def _arrays(dataset: Any) -> Arrays:
    images = dataset.data
    return images.reshape(len(images), -1).float().div(255), dataset.targets


def epochs(
    names: Sequence[str],
    rounds: int,
    train: Data,
    test: Arrays,
    job: Job,
    *,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Return the time of an epoch for each trainer, and the accuracy that it reached."""
    last: dict[str, Peer] = {}

    def prepare(label: str, name: str, data: Data) -> Prepared:
        torch.manual_seed(0)
        last[label] = peer_of(name)(build_mlp(test[0].shape[1], [500], 10, seed=0), job)
        return partial(last[label].train, data)

    def runs(data: Data) -> dict[str, Callable[[], Prepared]]:
        return {label: partial(prepare, label, name, data) for label, name in with_noise(names)}

    few = (test[0][:200], test[1][:200])
    found = alternate(runs(train), rounds, runs(few))
    for label, row in found.items():
        if "error" not in row:
            row["accuracy"] = round(accuracy_of(last[label].predict(test[0]), test[1]), 4)
    reached = [row["accuracy"] for row in found.values() if "accuracy" in row]
    if max(reached) - min(reached) > 2 * tolerance:
        raise RuntimeError(f"The trainers did not reach the same accuracy: {found}.")
    return found


def _flat(image: Tensor) -> Tensor:
    return image.view(-1)

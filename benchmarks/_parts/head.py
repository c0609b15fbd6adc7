"""Fine-tuning a new head on a frozen backbone for ten epochs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _parts.paired import Prepared, alternate, with_noise
from _peers.base import Arrays, Job
from _peers.names import peer_of
from finetunelib import build_mlp, freeze_and_replace_head

EPOCHS = 10


def mlp(rows: int = 5_000) -> tuple[nn.Module, Arrays]:
    """Return the MLP 784-500-10 and its data."""
    torch.manual_seed(0)
    return build_mlp(784, [500], 10, seed=0), (torch.rand(rows, 784), torch.arange(rows) % 5)


def resnet18(rows: int = 60) -> tuple[nn.Module, Arrays]:
    """Return ResNet-18 with random weights and images of 64 x 64."""
    import torchvision

    torch.manual_seed(0)
    images = torch.randn(rows, 3, 64, 64)
    return torchvision.models.resnet18(), (images, torch.arange(rows) % 5)


def measure(names: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Return the times of all epochs for each model and trainer."""
    rows = {}
    for name, make, size in (("mlp", mlp, 100), ("resnet18", resnet18, 20)):
        print(f"  {name}", file=sys.stderr)
        job = Job(batch_size=size, epochs=EPOCHS, folder=folder, classes=5)
        rows[name] = tuned(names, max(1, rounds), make, job)
    return rows


def tuned(
    names: Sequence[str], rounds: int, make: Callable[[], tuple[nn.Module, Arrays]], job: Job
) -> dict[str, Any]:
    """Return the time of each trainer. Every one gets a model that stays frozen in any loop."""

    def prepare(name: str, few: int | None = None) -> Prepared:
        model, (inputs, targets) = make()
        data = inputs[:few], targets[:few]
        model = freeze_and_replace_head(model, num_classes=5)
        peer = peer_of(name)(model, job)
        return partial(_trained, peer.train, data, model)

    labels = with_noise(names)
    runs = {label: partial(prepare, name) for label, name in labels}
    return alternate(runs, rounds, {label: partial(prepare, name, 10) for label, name in labels})


def _trained(train: Callable[[Arrays], None], data: Arrays, model: nn.Module) -> None:
    """Train, and check that the backbone did not change."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    before = [_sum(parameter) for parameter in frozen]
    train(data)
    if before != [_sum(parameter) for parameter in frozen]:
        raise RuntimeError("A frozen parameter has changed.")


def _sum(tensor: Tensor) -> float:
    return float(tensor.double().sum())

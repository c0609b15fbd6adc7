"""Compares ways to fine-tune all layers with few images: at once, in two phases, block by block.

    FINETUNELIB_DATA=... python benchmarks/two_phases.py [--seeds 5]

A small convolutional network is pretrained on MNIST's digits 0 to 4, and then learns the digits 5
to 9 from a few images of each. All ways take the same number of epochs. The data of a seed are the
same for all ways. Prints JSON with the accuracy on test images, and the paired gains over training
all layers at once.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.callbacks import GradualUnfreezing
from finetunelib.finetuning import parameter_groups, replace_head, unfreeze
from lr_finder import Split, of_digits, read

#: The number of images: of each digit to fine-tune with, and of all to pretrain and test with.
FEW, PRETRAINING, TEST = 10, 5000, 2000

EPOCHS = 30
LR = 0.02


class SmallNet(nn.Module):
    """Three convolutions with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_block(1, 16), _block(16, 32), _block(32, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, 5)` of images `(batch, 784)`."""
        features = self.pool(self.blocks(images.reshape(-1, 1, 28, 28))).flatten(1)
        logits: Tensor = self.head(features)
        return logits


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, stride=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def few_of_each(data: Split, seed: int) -> Split:
    """Return `FEW` images of each class, drawn by the seed."""
    inputs, labels = data
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[labels[order] == label][:FEW] for label in range(5)])
    return inputs[rows], labels[rows]


def fit(model: nn.Module, data: Split, epochs: int, **options: object) -> None:
    """Train a model quietly."""
    arguments = {"lr": LR, "batch_size": 10, "progress": False} | options
    Trainer(model, **arguments).fit(data, epochs=epochs)  # type: ignore[arg-type]


def at_once(model: nn.Module, data: Split) -> nn.Module:
    """Train all layers and a new head."""
    model = replace_head(model, 5)
    fit(model, data, EPOCHS)
    return model


def head_only(model: nn.Module, data: Split) -> nn.Module:
    """Train a new head only (linear probing)."""
    model = freeze_and_replace_head(model, 5)
    fit(model, data, EPOCHS)
    return model


def head_then_all(model: nn.Module, data: Split) -> nn.Module:
    """Train a new head in half of the epochs, then all layers with a tenth of the rate."""
    model = freeze_and_replace_head(model, 5)
    fit(model, data, EPOCHS // 2)
    unfreeze(model)
    fit(model, data, EPOCHS // 2, lr=LR / 10)
    return model


def block_by_block(model: nn.Module, data: Split) -> nn.Module:
    """Unfreeze a block in every fifth epoch, with half of the rate of the one after it."""
    model = freeze_and_replace_head(model, 5)
    groups = parameter_groups(model, LR, decay=0.5)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    fit(model, data, EPOCHS, lr=None, optimizer=optimizer, callbacks=[GradualUnfreezing(5)])
    return model


WAYS: dict[str, Callable[[nn.Module, Split], nn.Module]] = {
    "at_once": at_once,
    "head_only": head_only,
    "head_then_all": head_then_all,
    "block_by_block": block_by_block,
}


def measure(folder: Path, seeds: int) -> dict[str, object]:
    """Return the median accuracy of each way, and the paired gains over training at once."""
    training, testing = read(folder, "train"), of_digits(read(folder, "t10k"), 5, 9)
    test = (testing[0][:TEST], testing[1][:TEST])
    torch.manual_seed(0)
    pretrained = SmallNet()
    known = of_digits(training, 0, 4)
    fit(pretrained, (known[0][:PRETRAINING], known[1][:PRETRAINING]), 3, batch_size=64)
    accuracies: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(seeds):
        few = few_of_each(of_digits(training, 5, 9), seed)
        for name, way in WAYS.items():
            torch.manual_seed(seed)
            model = way(copy.deepcopy(pretrained), few)
            found = Trainer(model, progress=False).evaluate(test)
            accuracies[name].append(found["accuracy"])
    return {
        name: {
            "accuracy": round(statistics.median(found), 3),
            "range": [round(min(found), 3), round(max(found), 3)],
            "gain": round(statistics.median(_differences(found, accuracies["at_once"])), 3),
        }
        for name, found in accuracies.items()
    }


def _differences(values: list[float], others: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(Path(os.environ.get("FINETUNELIB_DATA") or "data"), options.seeds)
    date = dt.datetime.now(dt.UTC).date().isoformat()
    print(
        json.dumps({"date": date, "seeds": options.seeds, "images": FEW, "ways": found}, indent=2)
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Compares accuracy at the learning rate that `find_lr` suggests with a tenth and ten times it.

    FINETUNELIB_DATA=... python benchmarks/lr_finder.py [--seeds 3]

On MNIST: a network from random weights on all digits; then, pretrained on the digits 0 to 4, a new
head on the frozen backbone and all layers, on the digits 5 to 9. Prints JSON.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp, freeze_and_replace_head
from finetunelib.errors import NonFiniteError
from finetunelib.finetuning import replace_head
from finetunelib.training import find_lr

#: The number of training images of each task; of the pretraining, all.
IMAGES = 6000

EPOCHS = 3
#: Multiples of the suggestion.
FACTORS = {"tenth": 0.1, "suggestion": 1.0, "ten_times": 10.0}
OPTIMIZERS = {"SGD with momentum": None, "AdamW": torch.optim.AdamW}

Split = tuple[Tensor, Tensor]


def read(folder: Path, part: str) -> Split:
    """Return normalized images `(n, 784)` and labels of MNIST's files."""
    raw = folder / "MNIST" / "raw"
    images = bytearray((raw / f"{part}-images-idx3-ubyte").read_bytes()[16:])
    labels = bytearray((raw / f"{part}-labels-idx1-ubyte").read_bytes()[8:])
    inputs = torch.frombuffer(images, dtype=torch.uint8).reshape(-1, 784)
    return (inputs / 255 - 0.1307) / 0.3081, torch.frombuffer(labels, dtype=torch.uint8).long()


def of_digits(data: Split, first: int, last: int) -> Split:
    """Return the images of some digits, with labels from 0."""
    inputs, labels = data
    rows = (labels >= first) & (labels <= last)
    return inputs[rows], labels[rows] - first


def first_images(data: Split) -> Split:
    """Return the first `IMAGES` images."""
    return data[0][:IMAGES], data[1][:IMAGES]


def accuracy(model: nn.Module, name: str, lr: float, train: Split, test: Split, seed: int) -> float:
    """Return the accuracy of a copy of a model after training, or 0 if the loss is not finite."""
    optimizer = OPTIMIZERS[name]
    trainer = Trainer(
        copy.deepcopy(model), optimizer=optimizer, lr=lr, seed=seed, progress=False, device="cpu"
    )
    try:
        trainer.fit(train, epochs=EPOCHS)
    except NonFiniteError:
        return 0.0
    return trainer.evaluate(test)["accuracy"]


def compare(
    task: str, build: Callable[[int], nn.Module], train: Split, test: Split, seeds: int
) -> list[dict[str, object]]:
    """Return one row for each optimizer: the suggestions, and accuracies at their multiples."""
    rows: list[dict[str, object]] = []
    for name, optimizer in OPTIMIZERS.items():
        suggestions: list[float] = []
        found: dict[str, list[float]] = {multiple: [] for multiple in FACTORS}
        for seed in range(seeds):
            model = build(seed)
            finder = Trainer(model, optimizer=optimizer, seed=seed, progress=False, device="cpu")
            suggestion = find_lr(finder, train).suggestion
            if suggestion is None:
                sys.exit(f"No suggestion for {task} with {name}, seed {seed}.")
            suggestions.append(suggestion)
            for multiple, factor in FACTORS.items():
                lr = factor * suggestion
                found[multiple].append(accuracy(model, name, lr, train, test, seed))
        means = {m: round(100 * statistics.fmean(each), 1) for m, each in found.items()}
        rows.append(
            {
                "task": task,
                "optimizer": name,
                "suggestions": [float(f"{s:.2g}") for s in suggestions],
                "accuracy": means,
            }
        )
    return rows


def main() -> None:
    """Measure the three tasks and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(os.environ.get("FINETUNELIB_DATA", "data"))
    train, test = read(folder, "train"), read(folder, "t10k")
    pretrained = build_mlp(784, [256, 128], 5, seed=0)
    Trainer(pretrained, lr=0.05, progress=False, device="cpu").fit(of_digits(train, 0, 4), epochs=3)

    def with_new_head(seed: int, *, freeze: bool) -> nn.Module:
        model = copy.deepcopy(pretrained)
        torch.manual_seed(seed)
        return (freeze_and_replace_head if freeze else replace_head)(model, num_classes=5)

    others = first_images(of_digits(train, 5, 9)), of_digits(test, 5, 9)
    rows = [
        *compare(
            "random weights",
            lambda seed: build_mlp(784, [256, 128], 10, seed=seed),
            first_images(train),
            test,
            options.seeds,
        ),
        *compare(
            "new head, frozen backbone",
            lambda seed: with_new_head(seed, freeze=True),
            *others,
            options.seeds,
        ),
        *compare(
            "all layers, pretrained",
            lambda seed: with_new_head(seed, freeze=False),
            *others,
            options.seeds,
        ),
    ]
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "images": IMAGES,
        "epochs": EPOCHS,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Fine-tuning a new head for ten epochs, with cached features of the backbone and without.

    python benchmarks/cached_features.py [--rounds 3] [--epochs 10] [--models mlp resnet18]

The MLP 784-500-10 is trained on 20,000 samples, ResNet-18 on 500 images of 64 x 64, with random
values. Times are processor times of one process and one thread, taken alternately. The weights of
both runs must have the same bits. Prints JSON with medians, and medians of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp, freeze_and_replace_head

Data = tuple[Tensor, Tensor]


def mlp() -> tuple[nn.Module, Data, int]:
    """Return the MLP, its data and its batch size."""
    targets = torch.arange(20_000) % 5
    return build_mlp(784, [500], 10, seed=0), (torch.rand(20_000, 784), targets), 100


def resnet18() -> tuple[nn.Module, Data, int]:
    """Return ResNet-18 with random weights, its data and its batch size."""
    import torchvision

    return torchvision.models.resnet18(), (torch.randn(500, 3, 64, 64), torch.arange(500) % 5), 50


MODELS = {"mlp": mlp, "resnet18": resnet18}


def train(name: str, epochs: int, *, cache: bool) -> tuple[float, list[Tensor]]:
    """Return the processor time of a fit in seconds, and the values of the model."""
    torch.manual_seed(0)
    model, data, batch_size = MODELS[name]()
    model = freeze_and_replace_head(model, num_classes=5)
    trainer = Trainer(model, batch_size=batch_size, progress=False, cache_features=cache)
    started = time.process_time()
    history = trainer.fit(data, epochs=epochs)
    seconds = time.process_time() - started
    if history.cached_features is not cache:
        raise RuntimeError(f"The features of {name} were {'not ' if cache else ''}cached.")
    return seconds, list(model.state_dict().values())


def compare(name: str, rounds: int, epochs: int) -> dict[str, Any]:
    """Return the medians of the times and of their ratios."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        values = {}
        for cache in (True, False) if number % 2 else (False, True):
            taken, values[cache] = train(name, epochs, cache=cache)
            seconds[cache].append(taken)
        if not all(map(torch.equal, values[True], values[False])):
            raise RuntimeError(f"The bits of {name} differ.")
    ratios = [plain / cached for plain, cached in zip(seconds[False], seconds[True], strict=True)]
    return {
        "uncached_seconds": round(statistics.median(seconds[False]), 2),
        "cached_seconds": round(statistics.median(seconds[True]), 2),
        "speedup": round(statistics.median(ratios), 1),
        "speedup_range": [round(min(ratios), 1), round(max(ratios), 1)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: compare(name, options.rounds, options.epochs) for name in options.models}
    date = datetime.now(UTC).date().isoformat()
    print(json.dumps({"date": date, "epochs": options.epochs, "models": found}, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

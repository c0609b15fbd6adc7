"""Ten epochs on MNIST as torchvision's Dataset, by the Trainer and by the loop of a tutorial.

    FINETUNELIB_DATA=... python benchmarks/cached_data.py [--rounds 3] [--data tensors]

The MLP 784-500-10 is trained in batches of 100: `loop` is a plain loop over a DataLoader in the
same order, and `cached` is the Trainer, which also measures the accuracy. `tensors` is MNIST with
`ToTensor`, whose tensors are read without a loop; `samples` is the same with a second transform, of
which each sample is read once. Times are processor times of one process and one thread, taken
alternately. The weights of both runs must have the same bits. Prints JSON with medians, and
quartiles of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from finetunelib import Trainer, build_mlp
from finetunelib.data import TensorBatches

BATCH = 100
TRANSFORMS = {
    "tensors": transforms.ToTensor(),
    "samples": transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)]),
}


def network() -> nn.Module:
    """Return the MLP with its initial weights."""
    return build_mlp(784, [500], 10, seed=0)


def loop(data: MNIST, epochs: int) -> nn.Module:
    """Train as a tutorial does, with the order of the Trainer, which draws its own."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    order = TensorBatches(torch.arange(len(data)), batch_size=len(data), seed=0)
    for epoch in range(epochs):
        ((indices,),) = order.epoch(epoch)
        for images, labels in DataLoader(data, batch_size=BATCH, sampler=indices.tolist()):
            loss = criterion(model(images.reshape(-1, 784)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def cached(data: MNIST, epochs: int) -> nn.Module:
    """Train with the Trainer."""
    model = network()
    history = Trainer(model, batch_size=BATCH, progress=False).fit(data, epochs=epochs)
    if not history.cached_data:
        raise RuntimeError("The data was not cached.")
    return model


RUNS: dict[str, Callable[[MNIST, int], nn.Module]] = {"loop": loop, "cached": cached}


def compare(data: MNIST, rounds: int, epochs: int) -> dict[str, Any]:
    """Return the medians of the times, and the medians and quartiles of the ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    for number in range(rounds):
        values: list[list[Tensor]] = []
        for name in list(RUNS)[:: -1 if number % 2 else 1]:
            started = time.process_time()
            model = RUNS[name](data, epochs)
            seconds[name].append(time.process_time() - started)
            values.append(list(model.state_dict().values()))
        if not all(all(map(torch.equal, values[0], other)) for other in values):
            raise RuntimeError("The bits differ.")
    found: dict[str, Any] = {
        f"{name}_seconds": round(statistics.median(taken), 2) for name, taken in seconds.items()
    }
    ratios = [a / b for a, b in zip(seconds["loop"], seconds["cached"], strict=True)]
    found["speedup"] = round(statistics.median(ratios), 1)
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found["speedup_quartiles"] = [round(low, 1), round(high, 1)]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("FINETUNELIB_DATA", "data"))
    found = [
        {
            "data": name,
            "date": datetime.now(UTC).date().isoformat(),
            "epochs": options.epochs,
            "rounds": options.rounds,
            **compare(MNIST(folder, transform=TRANSFORMS[name]), options.rounds, options.epochs),
        }
        for name in options.data
    ]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

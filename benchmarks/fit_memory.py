"""Compares the peak memory of `Trainer.fit` with that of a hand-written loop.

    python benchmarks/fit_memory.py [--width 4096] [--rounds 3]

Each measurement is a process of its own, which trains two linear layers of `width` features for one
epoch of 1,000 rows with SGD and momentum. Prints the medians of the peak resident memory and their
ratio as JSON. Both processes import the same modules.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys

import torch
from torch import Tensor, nn

from finetunelib import Trainer

BATCH_SIZE = 100


def train_by_hand(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Train one epoch with a hand-written loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    for rows in torch.split(torch.randperm(len(inputs)), BATCH_SIZE):
        loss = loss_fn(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def measure(loop: str, width: int) -> None:
    """Train in this process, and print its peak memory in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    inputs, targets = torch.randn(1000, width), torch.randint(0, 10, (1000,))
    if loop == "plain":
        train_by_hand(model, inputs, targets)
    else:
        trainer = Trainer(model, batch_size=BATCH_SIZE, device="cpu", progress=False)
        trainer.fit((inputs, targets), epochs=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", choices=("plain", "fit"))
    options = parser.parse_args()
    if options.loop:
        measure(options.loop, options.width)
        return
    peaks: dict[str, list[float]] = {"plain": [], "fit": []}
    for _ in range(options.rounds):
        for loop, found in peaks.items():
            command = [sys.executable, __file__, "--loop", loop, "--width", str(options.width)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(float(output))
    plain, fit = (statistics.median(peaks[loop]) for loop in ("plain", "fit"))
    result = {"width": options.width, "plain_mib": round(plain, 1), "fit_mib": round(fit, 1)}
    print(json.dumps(result | {"ratio": round(fit / plain, 3)}))


if __name__ == "__main__":
    main()

"""Compares a checkpoint with `torch.save` of the same state, followed by `os.fsync`.

    python benchmarks/checkpoint.py [--rounds 5] [--megabytes 1 1000]

Both write the same trained model and the state of its optimizer (SGD with momentum, so the model is
half of the bytes) into the same folder, alternately. Prints JSON with one entry per size: the
median seconds of both, the medians of their ratios and differences, and the bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from finetunelib import Trainer


def trained(megabytes: int) -> Trainer:
    """Return a Trainer that has taken one step. The model takes half of the given size."""
    width = int((megabytes * 1e6 / 2 / 4) ** 0.5)
    model = nn.Linear(width, width, bias=False)
    trainer = Trainer(model, loss_fn=nn.MSELoss(), device="cpu", progress=False)
    trainer.fit([(torch.randn(2, width), torch.randn(2, width))], epochs=1)
    return trainer


def by_torch(trainer: Trainer, folder: Path) -> tuple[float, int]:
    """Return the seconds and bytes of `torch.save`."""
    assert trainer.optimizer is not None
    file = folder / "plain.pt"
    started = time.perf_counter()
    state = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    torch.save(state, file)
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    size = file.stat().st_size
    file.unlink()
    return seconds, size


def by_checkpoint(trainer: Trainer, folder: Path) -> tuple[float, int]:
    """Return the seconds and bytes of a checkpoint."""
    started = time.perf_counter()
    path = trainer.save_checkpoint(folder / "checkpoint")
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in path.iterdir())
    shutil.rmtree(path)
    return seconds, size


def measure(megabytes: int, rounds: int, folder: Path) -> dict[str, float]:
    """Return medians over the rounds. Each round writes both, in alternating order."""
    trainer = trained(megabytes)
    plain, ours, sizes = [], [], (0, 0)
    for turn in range(rounds + 1):
        sides = (by_torch, by_checkpoint) if turn % 2 else (by_checkpoint, by_torch)
        seconds = {side: side(trainer, folder) for side in sides}
        if turn:  # The first round is a warm-up.
            plain.append(seconds[by_torch][0])
            ours.append(seconds[by_checkpoint][0])
        sizes = seconds[by_torch][1], seconds[by_checkpoint][1]
    pairs = list(zip(ours, plain, strict=True))
    return {
        "megabytes": megabytes,
        "plain_seconds": round(statistics.median(plain), 4),
        "checkpoint_seconds": round(statistics.median(ours), 4),
        "ratio": round(statistics.median(o / p for o, p in pairs), 3),
        "more_milliseconds": round(statistics.median(o - p for o, p in pairs) * 1000, 1),
        "plain_bytes": sizes[0],
        "checkpoint_bytes": sizes[1],
    }


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 1000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(size, options.rounds, Path(folder)) for size in options.megabytes]
    print(json.dumps(results))


if __name__ == "__main__":
    main()

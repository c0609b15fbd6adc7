"""What the Trainer adds to a step of the loop written by hand, in microseconds.

    python benchmarks/step_overhead.py [--steps 2000] [--rounds 15] [--threads 1]

Both sides take the same batches, one after the other in one process, in turns whose order
alternates; each round is one fit of `steps` steps after a warm-up. Prints JSON: the median of
the differences per step, for an almost empty model (one Linear of 2 x 2) without metrics and bar,
with the default metric, and with the default metric and a bar; and the ratio of a step of the
784-500-10 network without and with the default metric.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp
from finetunelib.training import Accuracy

Batches = list[tuple[Tensor, Tensor]]


class Terminal(io.StringIO):
    """A stream that takes a bar and shows it to nobody."""

    def isatty(self) -> bool:
        """Say yes, so that a bar is drawn."""
        return True


def by_hand(model: nn.Module, batches: Batches) -> float:
    """Return the seconds of the plain loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    started = time.perf_counter()
    for inputs, targets in batches:
        loss = loss_fn(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def by_trainer(model: nn.Module, batches: Batches, *, metric: bool, bar: bool) -> float:
    """Return the seconds of an epoch of `fit`, as its history has them."""
    metrics: Mapping[str, Accuracy] = {"accuracy": Accuracy()} if metric else {}
    trainer = Trainer(model, metrics=metrics, device="cpu", progress=bar)
    return trainer.fit(batches, epochs=1)["seconds"][0]


def paired(
    make_model: Callable[[], nn.Module], batches: Batches, rounds: int, *, metric: bool, bar: bool
) -> tuple[float, float, float]:
    """Return medians: microseconds of a plain step, of what is added, and the ratio."""
    plain, added, ratios = [], [], []
    stderr = sys.stderr
    sys.stderr = Terminal() if bar else stderr
    try:
        for turn in range(rounds):
            first = by_hand(make_model(), batches) if turn % 2 else 0.0
            ours = by_trainer(make_model(), batches, metric=metric, bar=bar)
            hand = first or by_hand(make_model(), batches)
            plain.append(hand / len(batches) * 1e6)
            added.append((ours - hand) / len(batches) * 1e6)
            ratios.append(ours / hand)
    finally:
        sys.stderr = stderr
    return statistics.median(plain), statistics.median(added), statistics.median(ratios)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    tiny = [(torch.randn(4, 2), torch.randint(0, 2, (4,))) for _ in range(options.steps)]
    images = [(torch.rand(100, 784), torch.randint(0, 10, (100,))) for _ in range(300)]
    result: dict[str, float] = {"threads": options.threads}
    for name, metric, bar in (
        ("tiny", False, False),
        ("tiny_metric", True, False),
        ("tiny_metric_bar", True, True),
    ):
        plain, added, _ = paired(
            lambda: nn.Linear(2, 2), tiny, options.rounds, metric=metric, bar=bar
        )
        result[f"{name}_added_us"] = round(added, 1)
        result.setdefault("tiny_plain_us", round(plain, 1))
    for name, metric in (("mlp", False), ("mlp_metric", True)):
        plain, _, ratio = paired(
            lambda: build_mlp(784, [500], 10), images, options.rounds, metric=metric, bar=False
        )
        result[f"{name}_ratio"] = round(ratio, 3)
        result.setdefault("mlp_plain_us", round(plain, 1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

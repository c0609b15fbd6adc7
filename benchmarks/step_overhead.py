"""Measures the time that the Trainer adds to a step of a hand-written loop, in microseconds.

    python benchmarks/step_overhead.py [--rounds 2000] [--steps 10]

Uses one process, one thread, and one `fit` per row. The data yields a block of `steps` batches and
then runs the hand-written loop over the same batches, `rounds` times. Each block of the Trainer is
compared with the mean of the hand-written blocks before and after it. The clock measures the CPU
time of the thread, which excludes time during which other programs use the core.

Prints the medians and quartiles of the differences and of the ratios as JSON (`quiet` is the
difference in undisturbed rounds). The hand-written loop never has a metric. A tiny model (one
Linear of 2 x 2) is measured without metrics and progress bar, with the default metric, with both,
and with Adam; then the 784-500-10 network. The time that a new Trainer and `fit` add once is
measured separately, for one step and for an epoch of 200 rows.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp

Batches: TypeAlias = list[tuple[Tensor, Tensor]]

#: The number of warm-up blocks.
WARM_UP = 20


class Terminal(io.StringIO):
    """A stream that discards what is written to it."""

    def isatty(self) -> bool:
        """Return `True` to enable the progress bar."""
        return True


class PlainLoop:
    """A hand-written training loop."""

    def __init__(self, model: nn.Module, *, adam: bool = False) -> None:
        self.model = model
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(model.parameters())
            if adam
            else torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        )
        self.loss_fn = nn.CrossEntropyLoss()

    def train(self, batches: Batches) -> None:
        """Take a step with each batch."""
        model, optimizer, loss_fn = self.model, self.optimizer, self.loss_fn
        for inputs, targets in batches:
            loss = loss_fn(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class Alternating:
    """Timed blocks of batches for a Trainer, with hand-written blocks before, between and after.

    Attributes:
        plain: The seconds of the hand-written blocks. There is one more of them than of the others.
        ours: The seconds between yielding the first batch of a block and the request for the next
            block.
    """

    def __init__(self, loop: PlainLoop, batches: Batches, rounds: int) -> None:
        self.plain: list[float] = []
        self.ours: list[float] = []
        self._loop = loop
        self._batches = batches
        self._rounds = rounds

    def __len__(self) -> int:
        """Return the number of the Trainer's batches."""
        return self._rounds * len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the Trainer's batches, and run the hand-written loop between blocks."""
        self._run_plain()
        for _ in range(self._rounds):
            started = time.thread_time()
            yield from self._batches
            self.ours.append(time.thread_time() - started)
            self._run_plain()

    def _run_plain(self) -> None:
        started = time.thread_time()
        self._loop.train(self._batches)
        self.plain.append(time.thread_time() - started)


@dataclass(frozen=True, slots=True)
class Rounds:
    """The times of one `fit` and of the hand-written loop, in microseconds per step.

    Attributes:
        plain: The hand-written loop, before and after each round.
        ours: The Trainer, in each round.
    """

    plain: list[float]
    ours: list[float]

    @property
    def hand(self) -> list[float]:
        """The time of the hand-written loop around each round of the Trainer."""
        return [(before + after) / 2 for before, after in pairwise(self.plain)]

    @property
    def added(self) -> list[float]:
        """The time that the Trainer adds."""
        return [ours - hand for ours, hand in zip(self.ours, self.hand, strict=True)]

    @property
    def ratios(self) -> list[float]:
        """The ratio of a step of the Trainer to a hand-written one."""
        return [ours / hand for ours, hand in zip(self.ours, self.hand, strict=True)]

    @property
    def quiet(self) -> float:
        """The time that is added in undisturbed rounds: the difference of the first deciles.

        Other programs on the same core or cache can make rounds only longer.
        """
        ours, plain = (statistics.quantiles(us, n=10)[0] for us in (self.ours, self.plain))
        return ours - plain


def paired(
    make_model: Callable[[], nn.Module],
    batches: Batches,
    rounds: int,
    *,
    metric: bool,
    bar: bool = False,
    adam: bool = False,
) -> Rounds:
    """Run a `fit` and the hand-written loop alternately."""
    data = Alternating(PlainLoop(make_model(), adam=adam), batches, WARM_UP + rounds)
    with redirect_stderr(Terminal() if bar else sys.stderr):
        trainer = Trainer(
            make_model(),
            optimizer=torch.optim.Adam if adam else None,
            metrics=None if metric else {},
            device="cpu",
            progress=bar,
        )
        trainer.fit(data, epochs=1)
    us = 1e6 / len(batches)
    return Rounds(
        [seconds * us for seconds in data.plain[WARM_UP:]],
        [seconds * us for seconds in data.ours[WARM_UP:]],
    )


def once(batches: Batches, rounds: int) -> list[float]:
    """Return the milliseconds that a new Trainer and a `fit` of one step add, for each round."""
    added = []
    for _ in range(WARM_UP + rounds):
        started = time.thread_time()
        PlainLoop(nn.Linear(2, 2)).train(batches[:1])
        between = time.thread_time()
        trainer = Trainer(nn.Linear(2, 2), metrics={}, device="cpu", progress=False)
        trainer.fit(batches[:1], epochs=1)
        ended = time.thread_time()
        added.append((ended - between - (between - started)) * 1e3)
    return added[WARM_UP:]


def epoch_of_rows(rounds: int, *, rows: int = 200, batch_size: int = 64) -> list[float]:
    """Return the milliseconds that a new Trainer and an epoch of tensors add, for each round."""
    data = torch.randn(rows, 2), torch.randint(0, 2, (rows,))
    added = []
    for _ in range(WARM_UP + rounds):
        started = time.thread_time()
        order = torch.split(torch.randperm(rows), batch_size)
        PlainLoop(nn.Linear(2, 2)).train([(data[0][part], data[1][part]) for part in order])
        between = time.thread_time()
        trainer = Trainer(nn.Linear(2, 2), device="cpu", progress=False, batch_size=batch_size)
        trainer.fit(data, epochs=1)
        ended = time.thread_time()
        added.append((ended - between - (between - started)) * 1e3)
    return added[WARM_UP:]


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, float | list[float]] = {"threads": 1}

    def report(name: str, values: list[float], digits: int) -> None:
        lower, middle, upper = (round(value, digits) for value in statistics.quantiles(values))
        result[name] = middle
        result[f"{name}_quartiles"] = [lower, upper]

    tiny = [(torch.randn(4, 2), torch.randint(0, 2, (4,))) for _ in range(options.steps)]
    for name, metric, bar, adam in (
        ("tiny", False, False, False),
        ("tiny_metric", True, False, False),
        ("tiny_metric_bar", True, True, False),
        ("tiny_adam_metric", True, False, True),
    ):
        seen = paired(
            lambda: nn.Linear(2, 2), tiny, options.rounds, metric=metric, bar=bar, adam=adam
        )
        result.setdefault("tiny_plain_us", round(statistics.median(seen.plain), 1))
        report(f"{name}_added_us", seen.added, 1)
        report(f"{name}_ratio", seen.ratios, 3)
        result[f"{name}_added_quiet_us"] = round(seen.quiet, 1)
    images = [(torch.rand(100, 784), torch.randint(0, 10, (100,))) for _ in range(options.steps)]
    for name, metric in (("mlp", False), ("mlp_metric", True)):
        seen = paired(
            lambda: build_mlp(784, [500], 10), images, options.rounds // 10, metric=metric
        )
        result.setdefault("mlp_plain_us", round(statistics.median(seen.plain), 1))
        report(f"{name}_added_us", seen.added, 1)
        report(f"{name}_ratio", seen.ratios, 3)
    report("tiny_fit_added_ms", once(tiny, options.rounds // 10), 2)
    report("epoch_of_200_rows_added_ms", epoch_of_rows(options.rounds // 10), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

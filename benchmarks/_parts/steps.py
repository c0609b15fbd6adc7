"""The cost of a step: each trainer against the hand-written loop, in alternating blocks."""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _parts.paired import NOISE, spread, with_noise
from _peers.base import Job
from _peers.hand import Hand
from _peers.names import peer_of
from finetunelib import build_mlp

#: Blocks that are not counted, and the steps of a block.
WARM_UP = 5
STEPS = 10

#: The modes: whether the accuracy is computed, and whether a bar is drawn.
MODES = {"bare": (False, False), "metric": (True, False), "bar": (True, True)}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Alternating:
    """Blocks of batches, with the hand-written loop before, between and after them.

    The times are those of the last iteration: some trainers read one batch in advance.
    """

    def __init__(self, hand: Hand, batches: list[tuple[Tensor, Tensor]], rounds: int) -> None:
        self.plain: list[float] = []
        self.theirs: list[float] = []
        self._hand, self._batches, self._rounds = hand, batches, rounds + WARM_UP

    def __len__(self) -> int:
        return self._rounds * len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.plain.clear()
        self.theirs.clear()
        self._run_by_hand()
        for _ in range(self._rounds):
            started = time.thread_time()
            yield from self._batches
            self.theirs.append(time.thread_time() - started)
            self._run_by_hand()

    def _run_by_hand(self) -> None:
        started = time.thread_time()
        with torch.enable_grad():
            self._hand.fit(self._batches)
        self.plain.append(time.thread_time() - started)

    def result(self) -> dict[str, Any]:
        """Return the ratio of a step to a hand-written one, and what is added to it."""
        us = 1e6 / len(self._batches)
        hand = [(before + after) / 2 for before, after in pairwise(self.plain)][WARM_UP:]
        theirs = self.theirs[WARM_UP:]
        ratios = [own / other for own, other in zip(theirs, hand, strict=True)]
        added = [(own - other) * us for own, other in zip(theirs, hand, strict=True)]
        found = {"hand_us": round(statistics.median(hand) * us, 1)}
        return found | spread(ratios, "ratio") | spread(added, "added_us", 1)


def _models() -> dict[str, tuple[nn.Module, tuple[int, int, int], int]]:
    """Return each model, its batch size, inputs and classes, and a divisor of the rounds."""
    return {
        "tiny": (nn.Linear(2, 2), (4, 2, 2), 1),
        "mlp": (build_mlp(784, [500], 10, seed=0), (100, 784, 10), 4),
    }


def measure(names: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Return the cost of a step for each model, mode and trainer."""
    rows: dict[str, Any] = {}
    for model in ("tiny", "mlp"):
        for mode, (metric, bar) in MODES.items():
            found = rows[f"{model}_{mode}"] = {}
            for label, name in with_noise(names):
                print(f"  {model} {mode} {label}", file=sys.stderr)
                job = Job(metric=metric and label != NOISE, bar=bar, folder=folder)
                found[label] = step(name, model, job, rounds)
    return rows


def step(name: str, model: str, job: Job, rounds: int) -> dict[str, Any]:
    """Return the cost of a step of a trainer for a model."""
    (own, (size, width, classes), divisor), (by_hand, _, _) = (_models()[model] for _ in range(2))
    job = replace(job, classes=classes)
    torch.manual_seed(0)
    batches = [(torch.rand(size, width), torch.randint(0, classes, (size,))) for _ in range(STEPS)]
    feed = Alternating(Hand(by_hand, Job(metric=False)), batches, max(2, rounds // divisor))
    try:
        with redirect_stderr(_Terminal()), redirect_stdout(_Terminal()):
            peer_of(name)(own, job).fit(feed)
    except Exception as error:  # noqa: BLE001 - a trainer that cannot do this is reported
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return feed.result()

"""How time and memory grow with rows, batch size, epochs, layers and callbacks."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _parts.paired import Prepared, processor_time, with_noise
from _parts.process import IS_COUNTED, forget_peak, kilobytes
from _peers.base import Job
from _peers.names import peer_of


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a training run."""

    rows: int = 4_000
    batch_size: int = 100
    epochs: int = 1
    layers: int = 1
    callbacks: int = 0


#: Three sizes for each quantity, each four times the one before.
GROWTH: dict[str, tuple[Size, ...]] = {
    "rows": tuple(Size(rows=rows) for rows in (4_000, 16_000, 64_000)),
    "batch_size": tuple(Size(rows=40 * n, batch_size=n) for n in (50, 200, 800)),
    "epochs": tuple(Size(rows=100, epochs=epochs) for epochs in (10, 40, 160)),
    "layers": tuple(Size(rows=1_000, layers=layers) for layers in (8, 32, 128)),
    "callbacks": tuple(Size(callbacks=callbacks) for callbacks in (2, 8, 32)),
}


def measure(
    names: Sequence[str],
    rounds: int,
    folder: Path,
    growth: Mapping[str, tuple[Size, ...]] = GROWTH,
) -> dict[str, Any]:
    """Return seconds and peaks of memory of each trainer for each size.

    `slope` is the cost of one more unit between the second and third size, divided by that between
    the first and second: 1 means that time grows in proportion.
    """
    rows: dict[str, Any] = {}
    for quantity, sizes in growth.items():
        print(f"  {quantity}", file=sys.stderr)
        numbers = [getattr(size, quantity) for size in sizes]
        rows[quantity] = {
            label: {"sizes": numbers} | _grown(partial(_training, name, folder), sizes, rounds)
            for label, name in with_noise(names)
        }
    return rows


def _grown(
    prepare: Callable[[Size], Prepared], sizes: Sequence[Size], rounds: int
) -> dict[str, Any]:
    try:
        prepare(sizes[0])()
        times = [[processor_time(prepare(size)) for size in sizes] for _ in range(rounds)]
        peaks = [_peak_mb(prepare(size)) for size in sizes]
    except Exception as error:  # noqa: BLE001 - a trainer that cannot do this is reported
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    small, middle, large = (statistics.median(column) for column in zip(*times, strict=True))
    slope = (large - middle) / (middle - small) / 4 if middle > small else None
    return {
        "seconds": [round(seconds, 4) for seconds in (small, middle, large)],
        "slope": None if slope is None else round(slope, 2),
        "peak_mb": peaks,
    }


def _training(name: str, folder: Path, size: Size) -> Prepared:
    torch.manual_seed(0)
    data = torch.rand(size.rows, 20), torch.randint(0, 10, (size.rows,))
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(size.layers)))
    job = Job(size.batch_size, size.epochs, callbacks=size.callbacks, folder=folder, classes=20)
    return partial(peer_of(name)(model, job).train, data)


def _peak_mb(run: Prepared) -> float | None:
    """Return the megabytes that the peak of memory is above its start, on Linux."""
    if not IS_COUNTED:
        run()
        return None
    gc.collect()
    forget_peak()
    before = kilobytes("VmRSS")
    run()
    return round((kilobytes("VmHWM") - before) / 1024, 1)

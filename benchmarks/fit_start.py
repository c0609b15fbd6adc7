"""Measures what `Trainer.fit` costs before its first step and in each epoch.

    python benchmarks/fit_start.py [--rounds 300] [--fits 1000] [--rows 5000000] [--output FILE]

One process and one thread. The clock measures the CPU time of the thread, which excludes time
during which other programs use the core. The memory is that of Linux's `/proc`.

- `fits`: an epoch of 200 rows of a tiny model with the default settings, in batches of 64, without
  and with validation data of the same size: by a new Trainer, and by one that has trained before.
  Each is paired with a hand-written loop that trains, and computes the loss of the validation data.
- `many`: many such fits one after the other. The ratio of the first decile of the times of the last
  tenth of the fits to that of the first tenth, and the memory that the process has more at the end.
- `rows`: the time up to the end of the first step on many rows, next to that of the permutation of
  the rows alone, and the memory above that at the start, at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from _parts.process import forget_peak, kilobytes
from finetunelib import Trainer

Pair: TypeAlias = tuple[Tensor, Tensor]

RESULT = Path(__file__).parent / "results" / "fit_start.json"

#: The rows of the small data, and the number of pairs that are not counted.
ROWS, WARM_UP = 200, 20


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--fits", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/fit_start.py --rounds {options.rounds} "
        f"--fits {options.fits} --rows {options.rows}",
        "threads": 1,
        "rows": many_rows(options.rows),  # First, while the process has used little memory.
        "fits": fits(options.rounds),
        "many": many(options.fits),
    }
    text = json.dumps(result, indent=1)
    options.output.write_text(f"{text}\n", encoding="utf-8")
    print(text)


def points(rows: int) -> Pair:
    """Return random inputs and classes."""
    return torch.randn(rows, 2), torch.randint(0, 2, (rows,))


def by_hand(model: nn.Module, train: Pair, val: Pair | None) -> None:
    """Train an epoch, and compute the loss of the validation data."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    for rows in torch.split(torch.randperm(len(train[0])), 64):
        loss = loss_fn(model(train[0][rows]), train[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if val is not None:
        model.eval()
        with torch.no_grad():
            for inputs, targets in zip(*(torch.split(part, 64) for part in val), strict=True):
                loss_fn(model(inputs), targets)
        model.train()


def quiet_trainer(model: nn.Module, batch_size: int = 64) -> Trainer:
    """Return a Trainer with the default settings, except that it prints nothing."""
    return Trainer(model, batch_size=batch_size, device="cpu", progress=False)


def fits(rounds: int) -> dict[str, Any]:
    """Return the milliseconds that a `fit` adds to a hand-written loop."""
    train, val = points(ROWS), points(ROWS)
    found = {}
    for name, data in (("train", None), ("train_and_val", val)):
        model, trainer = nn.Linear(2, 2), quiet_trainer(nn.Linear(2, 2))
        hand = partial(by_hand, model, train, data)
        found[name] = {
            "new_trainer": paired(partial(new_trainer, model, train, data), hand, rounds),
            "same_trainer": paired(partial(trainer.fit, train, data, epochs=1), hand, rounds),
        }
    return found


def new_trainer(model: nn.Module, train: Pair, val: Pair | None = None) -> None:
    """Train an epoch with a Trainer of its own."""
    quiet_trainer(model).fit(train, val, epochs=1)


def paired(ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Return the times of two functions that take turns, and the difference."""
    pairs = [(seconds(plain), seconds(ours)) for _ in range(WARM_UP + rounds)][WARM_UP:]
    hand, own = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        **spread(hand, "plain_ms"),
        **spread([after - before for before, after in pairs], "added_ms"),
        # Other programs on the same core or cache can make rounds only longer.
        "added_quiet_ms": round(1e3 * (decile(own) - decile(hand)), 2),
    }


def many(count: int) -> dict[str, Any]:
    """Return how the time and the memory of one `fit` after the other grow."""
    data, model = points(ROWS), nn.Linear(2, 2)
    runs: dict[str, Callable[[], object]] = {
        "same_trainer": partial(quiet_trainer(model).fit, data, epochs=1),
        "new_trainers": partial(new_trainer, model, data),
    }
    found = {}
    for name, run in runs.items():
        run()
        before, part = kilobytes("VmRSS"), max(1, count // 10)
        times = [seconds(run) for _ in range(count)]
        ratio = decile(times[-part:]) / decile(times[:part])
        found[name] = {
            "fits": count,
            "seconds": round(sum(times), 2),
            "last_to_first": round(ratio, 2),
            "grown_kb": kilobytes("VmRSS") - before,
        }
    return found


def many_rows(rows: int) -> dict[str, Any]:
    """Return the time and the memory of the first step on many rows."""
    data = points(rows)
    quiet_trainer(nn.Linear(2, 2)).fit(points(ROWS), epochs=1)
    found: dict[str, Any] = {"number": rows}
    for batch_size in (1, 64):
        trainer = quiet_trainer(nn.Linear(2, 2), batch_size)
        forget_peak()
        before = kilobytes("VmRSS")
        started = seconds(partial(trainer.fit, data, max_steps=1))
        found[f"batch_size_{batch_size}"] = {
            "first_step_ms": round(1e3 * started, 1),
            "added_peak_mb": round((kilobytes("VmHWM") - before) / 1024, 1),
        }
    alone = seconds(partial(torch.randperm, rows, dtype=torch.int32))
    size = round(4 * rows / 2**20, 1)
    return {**found, "permutation_ms": round(1e3 * alone, 1), "permutation_mb": size}


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of a function."""
    started = time.thread_time()
    run()
    return time.thread_time() - started


def spread(values: Sequence[float], name: str) -> dict[str, Any]:
    """Return the median and the quartiles of seconds, in milliseconds."""
    lower, middle, upper = (round(1e3 * value, 2) for value in statistics.quantiles(values))
    return {name: middle, f"{name}_quartiles": [lower, upper]}


def decile(values: Sequence[float]) -> float:
    """Return the first decile, since other programs on the same core can make times only longer."""
    return statistics.quantiles(values, n=10)[0]


if __name__ == "__main__":
    main()

"""The cost of checkpoints, compared with PyTorch's own ways and with Ravex.

    python benchmarks/checkpoint.py [--rounds 5] [--megabytes 1 100 1000] [--ravex FOLDER]

All write the same model and the state of its optimizer (SGD with momentum; half of the bytes are
the model's) into one folder, in turns:

- `torch.save` of both, with an fsync
- `torch.distributed.checkpoint.async_save` of both, in a process group of one
- `ModelCheckpoint`, and `ModelCheckpoint(blocking=False)`
- Ravex, whose backend `torch_save` writes without an fsync. `pip install ravex`, or
  `pip install --target FOLDER ravex` and `--ravex FOLDER`, to leave the environment alone.

Prints JSON for each size. `blocked` is the time for which training waits, measured from the end of
a step to the reading of the next batch; `total` is the time until the checkpoint is complete. Of
each run with checkpoints after several steps, the first one is reported separately, since it
allocates memory. `restore` is the time of `torch.load` of the same bytes and of `load_checkpoint`,
which verifies the digests; `restore_cpu` is their processor time. Times are medians in
milliseconds, and ratios are medians of the ratios in each round.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib import Trainer
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.training import Callback, TrainContext

#: The checkpoints in each run of a training loop.
CHECKPOINTS = 3

#: Milliseconds by the name of what was measured.
Times = dict[str, float]


def linear(megabytes: int) -> nn.Linear:
    """Return a model of half this size; its momentum has the other half."""
    width = int((megabytes * 1e6 / 2 / 4) ** 0.5)
    return nn.Linear(width, width, bias=False)


def milliseconds(started: float) -> float:
    """Return the time since a moment."""
    return (time.perf_counter() - started) * 1000


def by_torch(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Times:
    """Write with `torch.save` and an fsync, and read it again."""
    file = folder / "plain.pt"
    started = time.perf_counter()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    times = {"torch_save.total": milliseconds(started)}
    started, cpu = time.perf_counter(), time.process_time()
    torch.load(file, weights_only=True)
    times["torch_load.restore"] = milliseconds(started)
    times["torch_load.restore_cpu"] = (time.process_time() - cpu) * 1000
    file.unlink()
    return times


def by_async_save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Times:
    """Write with `torch.distributed.checkpoint.async_save`."""
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    started = time.perf_counter()
    writer = dcp.FileSystemWriter(folder / "async", sync_files=True)
    future = dcp.async_save(state, storage_writer=writer)
    times = {"async_save.blocked": milliseconds(started)}
    future.result()
    times["async_save.total"] = milliseconds(started)
    shutil.rmtree(folder / "async")
    return times


class Clock(Callback):
    """Remembers when the last callback of a step was called."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, context: TrainContext) -> None:  # noqa: ARG002 - the hook's form
        """Start the time."""
        self.started = time.perf_counter()


class Batches:
    """Batches that measure the time since the last step, and wait for its checkpoint."""

    def __init__(self, width: int, clock: Clock, folder: Path) -> None:
        self.blocked: list[float] = []
        self.total: list[float] = []
        self._batch = torch.randn(2, width), torch.randn(2, width)
        self._clock = clock
        self._folder = folder

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._batch
        for step in range(1, CHECKPOINTS + 1):
            self.blocked.append(milliseconds(self._clock.started))
            while not (self._folder / f"epoch-0000-step-{step:08d}").exists():
                time.sleep(0.0005)
            self.total.append(milliseconds(self._clock.started))
            yield self._batch


def by_checkpoint(megabytes: int, folder: Path, *, blocking: bool) -> Times:
    """Write checkpoints during training, and load the last one."""
    run, clock = folder / "run", Clock()
    model = linear(megabytes)
    data = Batches(model.in_features, clock, run)
    trainer = Trainer(
        model,
        loss_fn=nn.MSELoss(),
        metrics={},
        callbacks=[ModelCheckpoint(run, every_n_steps=1, blocking=blocking), clock],
        device="cpu",
        progress=False,
    )
    trainer.fit(data, max_steps=CHECKPOINTS + 1)
    name = "checkpoint" if blocking else "background"
    times = {
        f"{name}.blocked": statistics.median(data.blocked[1:]),
        f"{name}.blocked_first": data.blocked[0],
        f"{name}.total": statistics.median(data.total[1:]),
    }
    if blocking:
        gc.collect()
        started, cpu = time.perf_counter(), time.process_time()
        trainer.load_checkpoint(run)
        times["checkpoint.restore"] = milliseconds(started)
        times["checkpoint.restore_cpu"] = (time.process_time() - cpu) * 1000
    shutil.rmtree(run)
    return times


def by_ravex(ravex: Any, megabytes: int, folder: Path) -> Times:
    """Train in a plain loop that Ravex checkpoints after each step."""
    blocked: list[float] = []

    @ravex.train_loop(  # type: ignore[untyped-decorator]
        checkpoint_every=1,
        backend="torch_save",
        storage={"type": "local", "path": str(folder / "ravex")},
    )
    def train() -> None:
        model = linear(megabytes)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        inputs = torch.randn(2 * CHECKPOINTS + 4, model.in_features)
        loader = DataLoader(TensorDataset(inputs), batch_size=2)
        ended = None
        for (batch,) in loader:
            if ended is not None:
                blocked.append(milliseconds(ended))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(batch), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            ended = time.perf_counter()

    before = Path.cwd()
    os.chdir(folder)  # It looks for its configuration here.
    try:
        train()
    finally:
        os.chdir(before)
    assert any((folder / "ravex").rglob("*")), "Ravex has written nothing"
    shutil.rmtree(folder / "ravex")
    return {"ravex.blocked": statistics.median(blocked[1:]), "ravex.blocked_first": blocked[0]}


def measure(megabytes: int, rounds: int, folder: Path, ravex: Any | None) -> dict[str, Any]:
    """Return medians over rounds. Each round measures everything once, in another order."""
    model = linear(megabytes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(torch.randn(2, model.in_features)).square().mean().backward()
    optimizer.step()
    contenders: list[Callable[[], Times]] = [
        lambda: by_torch(model, optimizer, folder),
        lambda: by_async_save(model, optimizer, folder),
        lambda: by_checkpoint(megabytes, folder, blocking=True),
        lambda: by_checkpoint(megabytes, folder, blocking=False),
    ]
    if ravex is not None:
        contenders.append(lambda: by_ravex(ravex, megabytes, folder))
    measured: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        times: Times = {}
        for contender in (
            contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
        ):
            gc.collect()
            times |= contender()
        if turn:  # The first round is a warm-up.
            times["ratio.checkpoint_to_torch_save"] = (
                times["checkpoint.total"] / times["torch_save.total"]
            )
            times["ratio.background_to_checkpoint_blocked"] = (
                times["background.blocked"] / times["checkpoint.blocked"]
            )
            for kind in ("restore", "restore_cpu"):
                times[f"ratio.{kind}"] = times[f"checkpoint.{kind}"] / times[f"torch_load.{kind}"]
            for name, value in times.items():
                measured[name].append(value)
    result: dict[str, Any] = {"megabytes": megabytes}
    for name, values in sorted(measured.items()):
        group, _, part = name.partition(".")
        result.setdefault(group, {})[part] = round(statistics.median(values), 3)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--ravex", help="the folder that Ravex was installed into")
    options = parser.parse_args()
    if options.ravex:
        sys.path.append(options.ravex)
    try:
        ravex = importlib.import_module("ravex")
    except ImportError:
        ravex = None
        sys.stderr.write("Ravex is not installed and is left out: `pip install ravex`.\n")
    distributed: Any = importlib.import_module("torch.distributed")
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(size, options.rounds, Path(folder), ravex) for size in options.megabytes]
    distributed.destroy_process_group()
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

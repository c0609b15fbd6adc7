"""Small checkpoints, forged ones, and failing disks for the tests of checkpoint files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import Dataset

from finetunelib import Trainer
from finetunelib.callbacks import EMA, ModelCheckpoint
from finetunelib.training import Callback, History
from finetunelib.training._checkpointing.background import BackgroundWrite
from finetunelib.training._checkpointing.content import Content, Staging
from finetunelib.training._checkpointing.folder import write_checkpoint
from finetunelib.training._checkpointing.manifest import FILES, MANIFEST, _digest

Data = tuple[Tensor, Tensor]

INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
DATA: Data = (INPUTS, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))


def model(width: int = 3) -> nn.Module:
    """Return a layer with known weights."""
    layer = nn.Linear(4, width)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.constant_(layer.bias, 0.25)
    return layer


def trainer(**options: Any) -> Trainer:
    """Return a silent Trainer of that layer; `options` are those of the Trainer."""
    kept: dict[str, Any] = {"batch_size": 2, "device": "cpu", "progress": False}
    return Trainer(options.pop("model", None) or model(), **(kept | options))


def write(path: Path, step: int = 1, *, blocking: bool = True, **state: object) -> Path:
    """Write a checkpoint without training, in this thread or in another one."""
    history = History([{"epoch": 1, "step": step, "train_loss": 0.5}])
    about = {"epoch": 1, "step": step, "batch": 0}
    layer = model()
    nn.init.constant_(layer.get_parameter("bias"), step)
    content = Content.of(layer, {"step": step, **state}, history, about)
    if blocking:
        return write_checkpoint(path, content)
    return BackgroundWrite(path, Staging().copy(content)).result()


def forge(folder: Path, **changes: Any) -> None:
    """Change a manifest, and update its digests to match the other files."""
    file = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(file.read_text())
    for name in FILES:
        if name != MANIFEST and (folder / name).exists():
            content = (folder / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    manifest |= changes
    manifest["digest"] = _digest(manifest)
    file.write_text(json.dumps(manifest))


def hidden(folder: Path) -> list[str]:
    """Return the names of hidden files and folders that a write left, at any depth."""
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith("."))


class Crash(BaseException):
    """Simulates a process that ends immediately, without any cleanup."""


def disk_full() -> OSError:
    """Return the system's error for a full disk."""
    return OSError(errno.ENOSPC, "No space left on device")


#: The calls that change a disk. If one that writes fails, half of the file is left.
_CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")),
    *((Path, name) for name in ("write_bytes", "write_text")),
    (safetensors.torch, "save_file"),
    (torch, "save"),
)
_WRITERS = {"write_bytes": 0, "write_text": 0, "save_file": 1, "save": 1}


@contextlib.contextmanager
def failing_disk(at: int, failure: Callable[[], BaseException]) -> Iterator[list[str]]:
    """Make one call that changes the disk fail in a block; yield the names of all calls.

    Args:
        at: The position of the call that fails, from 0.
        failure: Returns the exception. After a `Crash` every later call raises it too, so nothing
            is cleaned up.
    """
    calls: list[str] = []
    one_at_a_time, process = threading.Lock(), os.getpid()

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if os.getpid() != process:  # Workers that read data have their own files.
                return real(*args, **kwargs)
            with one_at_a_time:
                calls.append(name)
                position = len(calls) - 1
            error = failure() if position >= at else None
            if error is None or (position > at and not isinstance(error, Crash)):
                return real(*args, **kwargs)
            if position == at and name in _WRITERS:
                file = Path(args[_WRITERS[name]])
                with contextlib.suppress(Crash, OSError):
                    real(*args, **kwargs)
                os.truncate(file, file.stat().st_size // 2)
            raise error

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in _CALLS:
            real = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, _method(wrapped(name, real))))
        yield calls


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that binds to a path when called as its method."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def calls_of(work: Callable[[], object]) -> list[str]:
    """Return the names of the calls with which some work changes the disk."""
    with failing_disk(1 << 30, Crash) as calls:
        work()
    return calls


def bits(trained: Trainer) -> dict[str, Any]:
    """Return everything that two runs must agree on, as plain values."""
    assert trained.optimizer is not None
    timings = ("seconds", "samples_per_second")
    return {
        "weights": _plain(trained.model.state_dict()),
        "optimizer": _plain(trained.optimizer.state_dict()),
        "callbacks": [
            _plain(callback.state_dict())
            for callback in trained._options.callbacks
            if not isinstance(callback, ModelCheckpoint)
        ],
        "state": (trained.state.epoch, trained.state.step, trained.state.batch),
        "history": [
            {k: v for k, v in row.items() if k not in timings} for row in trained.history.rows
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Points with noise that is drawn from PyTorch and Python at each read."""

    def __init__(self, samples: int, noise: float) -> None:
        self.inputs = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
        self.targets = torch.arange(samples) % 3
        self.noise = noise

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = self.noise * (torch.randn(4) + random.random())
        return self.inputs[index] + noise, self.targets[index]


@dataclass(frozen=True, slots=True)
class Combination:
    """A run that can be stopped and resumed, built from scratch each time.

    Attributes:
        rich: Whether there are a schedule, an average of the weights, dropout and augmentation.
        blocking: Whether training waits for its checkpoints.
    """

    workers: int
    window: int
    rich: bool
    samples: int = 8
    epochs: int = 2
    blocking: bool = True

    def __str__(self) -> str:
        kind = "rich" if self.rich else "plain"
        ending = "" if self.blocking else "-in-the-background"
        return f"{kind}-{self.workers}-workers-windows-of-{self.window}{ending}"

    def train(self, folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
        """Train with a checkpoint after each step and each epoch, and return the Trainer."""
        torch.manual_seed(0)
        dropout = nn.Dropout(0.3 if self.rich else 0.0)
        checkpoints = ModelCheckpoint(
            folder, every_n_steps=1, every_n_epochs=1, blocking=self.blocking
        )
        trained = Trainer(
            nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), dropout, nn.Linear(8, 3)),
            optimizer=torch.optim.AdamW,
            lr_scheduler=_one_cycle if self.rich else None,
            lr_scheduler_interval="step",
            callbacks=[*((EMA(0.9),) if self.rich else ()), checkpoints, *callbacks],
            batch_size=2,
            num_workers=self.workers,
            gradient_accumulation_steps=self.window,
            device="cpu",
            progress=False,
        )
        noise = 0.1 if self.rich else 0.0
        data, val = Noisy(self.samples, noise), Noisy(4, noise)
        trained.fit(data, val, epochs=self.epochs, **options)
        return trained


def _one_cycle(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, 0.1, total_steps=200)


COMBINATIONS = [
    Combination(workers, window, rich)
    for workers in (0, 2)
    for window in (1, 3)
    for rich in (False, True)
]

#: Runs whose checkpoints a thread writes.
IN_THE_BACKGROUND = [
    Combination(0, 1, rich=False, blocking=False),
    Combination(0, 3, rich=True, blocking=False),
    Combination(2, 1, rich=True, blocking=False),
]

"""Stored checkpoints of format 1 still load, and training continues from them exactly.

`python tests/training/_checkpointing/test_format_1.py` writes the stored checkpoints. They must
keep loading, so write them again only for a new format, into a new folder.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from finetunelib import Trainer
from finetunelib.callbacks import EMA
from finetunelib.training import Callback, TrainContext

FORMAT_1 = Path(__file__).with_name("format_1")
STEPS = {"inside_epoch": 2, "between_epochs": 3}


class SaveBoth(Callback):
    """Requests one checkpoint in the middle of the first epoch and one at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == STEPS["inside_epoch"]:
            context.request_checkpoint(self.folder / "inside_epoch")

    def on_epoch_end(self, context: TrainContext) -> None:
        if context.state.epoch == 1:
            context.request_checkpoint(self.folder / "between_epochs")


def linear(optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Return a schedule whose position matters in every step."""
    return LinearLR(optimizer, 0.1, total_iters=7)


def small_trainer(*callbacks: Callback) -> Trainer:
    """Return a Trainer in which every part of a checkpoint has a state."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    return Trainer(
        model,
        lr=0.1,
        lr_scheduler=linear,
        lr_scheduler_interval="step",
        callbacks=[EMA(0.9), *callbacks],
        device="cpu",
        progress=False,
    )


def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return 12 points in batches of four, shuffled by a generator that is part of the state."""
    inputs = torch.linspace(-1, 1, 24).reshape(12, 2)
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(inputs, torch.arange(12) % 2)
    return DataLoader(data, batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("name", STEPS)
def test_training_resumes_from_a_stored_checkpoint_of_format_1(name: str) -> None:
    """The resumed run takes the remaining steps and ends where an uninterrupted run ends."""
    uninterrupted, resumed = small_trainer(), small_trainer()
    uninterrupted.fit(loader(), epochs=3)
    with warnings.catch_warnings():
        # The stored checkpoint names the versions that wrote it.
        warnings.filterwarnings("ignore", ".*was written")
        resumed.load_checkpoint(FORMAT_1 / name)
    assert resumed.state.step == STEPS[name]
    resumed.fit(loader(), max_steps=9 - STEPS[name])
    assert resumed.history["step"] == [3, 6, 9]
    expected = uninterrupted.model.state_dict()
    for key, tensor in resumed.model.state_dict().items():
        # Another CPU rounds differently than the one that wrote the checkpoint.
        torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)
    losses = uninterrupted.history["train_loss"]
    assert resumed.history["train_loss"] == pytest.approx(losses, rel=1e-4)


if __name__ == "__main__":
    shutil.rmtree(FORMAT_1, ignore_errors=True)
    torch.set_num_threads(1)
    small_trainer(SaveBoth(FORMAT_1)).fit(loader(), epochs=1)

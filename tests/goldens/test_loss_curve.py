"""A stored loss curve: a run with fixed seeds gives the same numbers as when it was stored.

To store it again after a change that is meant to change the numbers (and is listed in the
changelog), run `python tests/goldens/test_loss_curve.py` and commit `tiny_run.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp
from finetunelib.training import History

GOLDEN = Path(__file__).with_name("tiny_run.json")
MEASURED = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def blobs(seed: int) -> tuple[Tensor, Tensor]:
    """Return 60 points around the corners of a triangle, which overlap a little."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(3).repeat(20)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    return corners[targets] + 0.3 * torch.randn(60, 2, generator=generator), targets


def run() -> History:
    """Train a network with BatchNorm and dropout for five epochs."""
    model = build_mlp(2, [16], 3, normalization=nn.BatchNorm1d, dropout=0.2, seed=0)
    return Trainer(model, lr=0.1, batch_size=16, progress=False).fit(blobs(1), blobs(2), epochs=5)


@pytest.fixture(scope="module")
def curves() -> Iterator[History]:
    """Return the history of a run on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run()
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MEASURED)
def test_loss_curve_is_the_stored_one(curves: History, name: str) -> None:
    """The order of the data, the initial weights, dropout and updates have not changed."""
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    # Kernels of other CPUs and PyTorch versions add in a different order. A relative change of the
    # initial weights by 1e-5, far more than that, changes a loss by 3e-6 and no accuracy. A
    # learning rate of 0.1001 instead of 0.1 changes one by 2e-4.
    assert curves[name] == pytest.approx(stored, abs=1e-4)


if __name__ == "__main__":
    history = run()
    measured = {name: history[name] for name in MEASURED}
    GOLDEN.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")

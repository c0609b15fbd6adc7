"""A last batch of one sample and BatchNorm are found before training."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning import freeze
from training.tiny import Untouched, network, plain_network, points, quiet_trainer

DATA = points(9)  # in batches of 4, the last has one sample


def loader(**options: Any) -> DataLoader[Any]:
    """Return a DataLoader of the data in batches of 4."""
    return DataLoader(TensorDataset(*DATA), batch_size=4, **options)


def batches() -> list[Any]:
    """Return the data as ready batches, the last of one sample."""
    return [(DATA[0][a : a + 4], DATA[1][a : a + 4]) for a in (0, 4, 8)]


@pytest.mark.parametrize(
    "data",
    [DATA, TensorDataset(*DATA), loader(), loader(shuffle=True), batches()],
    ids=["tensors", "dataset", "loader", "shuffled loader", "batches"],
)
def test_last_batch_of_one_sample_is_refused_before_the_first_step(data: Any) -> None:
    """Nothing has changed then, and the model is unchanged."""
    model = network()
    untouched = Untouched(model)
    trainer = quiet_trainer(model)
    with pytest.raises(InvalidArgumentError, match="BatchNorm"):
        trainer.fit(data, epochs=1)
    untouched.check()
    assert trainer.state.step == 0


@pytest.mark.parametrize(("samples", "size"), [(9, 4), (9, 8), (4, 1), (13, 2), (5, 4), (3, 1)])
def test_following_the_hint_trains(samples: int, size: int) -> None:
    """The batch size of the message leaves no batch of one sample."""
    data = points(samples)
    with pytest.raises(InvalidArgumentError) as caught:
        quiet_trainer(network(), batch_size=size).fit(data, epochs=1)
    found = re.search(r"Pass `batch_size=(\d+)`", str(caught.value))
    assert found is not None
    quiet_trainer(network(), batch_size=int(found[1])).fit(data, epochs=1)
    quiet_trainer(network()).fit(loader(drop_last=True), epochs=1)


class Pooled(nn.Sequential):
    """A convolution whose BatchNorm sees many values of one image."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 6)),
            nn.Conv1d(1, 4, 3),
            nn.BatchNorm1d(4),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


@pytest.mark.parametrize("kind", ["none", "frozen", "eval", "many values", "no last one"])
def test_models_and_sizes_that_can_be_trained_are_accepted(kind: str) -> None:
    """The last batch of one sample is trained on like any other."""
    torch.manual_seed(0)
    model: nn.Module = Pooled() if kind == "many values" else network()
    if kind == "none":
        model = plain_network()
    elif kind == "frozen":
        freeze(model.get_submodule("backbone"))
    elif kind == "eval":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
    trainer = quiet_trainer(model)
    trainer.fit(points(10) if kind == "no last one" else DATA, epochs=1)
    assert trainer.state.step == 3

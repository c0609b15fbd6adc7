"""When the training data is read: in every epoch after its start, and once before to check it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from finetunelib.errors import EmptyDataError
from finetunelib.training import Callback, TrainContext
from training.tiny import BATCH, network, plain_network, points, quiet_trainer, same_weights


class Levels(Dataset[tuple[Tensor, Tensor]]):
    """Samples whose inputs are scaled by a level that a callback sets."""

    def __init__(self) -> None:
        self.level = 0
        self.read: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read.append(self.level)
        inputs, targets = points(8)
        return inputs[index] * self.level, targets[index]


class Raise(Callback):
    """Sets the level of a dataset to the number of the epoch, from 1."""

    def __init__(self, data: Levels) -> None:
        self.data = data

    def on_epoch_start(self, context: TrainContext) -> None:
        self.data.level = context.state.epoch + 1


def test_every_epoch_is_read_after_its_start() -> None:
    """A dataset that a callback changes at the start of an epoch is changed for all of it."""
    data = Levels()
    quiet_trainer(plain_network(), callbacks=[Raise(data)]).fit(data, epochs=3)
    checked = [0] * BATCH
    assert data.read == [*checked, *[1] * 8, *[2] * 8, *[3] * 8]


@pytest.mark.slow
def test_workers_see_what_a_callback_changed_at_the_start_of_the_first_epoch() -> None:
    """They start after `on_epoch_start`, so they train as one process does."""
    models = [network(), network()]
    for model, workers in zip(models, (0, 2), strict=True):
        data = Levels()
        trainer = quiet_trainer(model, callbacks=[Raise(data)], num_workers=workers)
        trainer.fit(data, epochs=2)
    assert same_weights(*models)


def test_reading_the_first_batch_for_the_check_changes_no_weights() -> None:
    """A dataset that draws from the global generators gives the numbers of a loop without it."""

    class Noisy(Dataset[tuple[Tensor, Tensor]]):
        """Adds noise that is drawn at each read."""

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            inputs, targets = points(8)
            return inputs[index] + torch.randn(6), targets[index]

    whole, parts = network(), network()
    quiet_trainer(whole).fit(Noisy(), epochs=2)
    trainer = quiet_trainer(parts)
    trainer.fit(Noisy(), epochs=1)
    trainer.fit(Noisy(), epochs=1)
    assert same_weights(whole, parts)


@pytest.mark.slow
def test_first_batch_is_checked_in_a_worker_if_workers_read_the_data() -> None:
    """The dataset may open a file at its first read, which workers must not inherit."""

    class InWorkers(Dataset[tuple[Tensor, Tensor]]):
        """Refuses to be read in the main process."""

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            assert get_worker_info() is not None
            inputs, targets = points(8)
            return inputs[index], targets[index]

    history = quiet_trainer(plain_network(), num_workers=1).fit(InWorkers(), epochs=1)
    assert history["step"] == [2]


def test_loader_is_opened_once_per_epoch() -> None:
    """A sampler is asked for its order once, and the batch of the check is trained on."""

    class Counting(DataLoader[Any]):
        """Counts how often it is opened."""

        opened = 0

        def __iter__(self) -> Any:
            self.opened += 1
            return super().__iter__()

    loader = Counting(TensorDataset(*points(8)), batch_size=4, shuffle=True)
    history = quiet_trainer(plain_network()).fit(loader, epochs=2)
    assert loader.opened == 2
    assert history["step"] == [2, 4]


def test_data_without_a_batch_is_refused_before_callbacks_are_called() -> None:
    """An iterable may turn out to be empty only when it is read."""
    started: list[str] = []

    class Note(Callback):
        """Records the start of a run."""

        def on_fit_start(self, context: TrainContext) -> None:
            started.append("fit")

    with pytest.raises(EmptyDataError, match="`train`"):
        quiet_trainer(plain_network(), callbacks=[Note()]).fit(iter([]), epochs=1)
    assert started == []

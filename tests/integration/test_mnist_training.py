"""On MNIST, training is bitwise equal to a hand-written loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from finetunelib import Trainer, build_mlp
from finetunelib._preserve import derive_seed, random_state_preserved, reseed
from finetunelib.callbacks import EMA
from finetunelib.data import TensorBatches, in_memory
from finetunelib.models import MLP

pytestmark = [pytest.mark.slow, pytest.mark.mnist]

SEED = 3
BATCH = 64
SAMPLES = 6_400  # a hundred batches
STEPS = 250  # two and a half epochs

Pair = tuple[Tensor, Tensor]
Batches = Callable[[int], Iterable[Any]]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run torch on this number of threads, and restore the previous number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(mnist_folder: Path) -> Pair:
    """The first digits of MNIST, scaled as in the tutorial."""
    dataset = MNIST(mnist_folder, train=True)
    return dataset.data[:SAMPLES].unsqueeze(1).float() / 255, dataset.targets[:SAMPLES]


def model_of_the_tutorial() -> MLP:
    """Return the 784-500-10 network, with dropout to detect differences in randomness."""
    return build_mlp(784, [500], 10, dropout=0.2, seed=0)


def loader_of(data: Pair) -> DataLoader[Any]:
    """Return a DataLoader that shuffles with the global generator."""
    return DataLoader(TensorDataset(*data), batch_size=BATCH, shuffle=True)


def source(kind: str, data: Pair) -> tuple[Any, Batches]:
    """Return one kind of data for the Trainer, and its batches for the hand-written loop."""
    if kind == "tensors":
        return data, TensorBatches(*data, batch_size=BATCH, seed=SEED).epoch
    if kind == "list":
        inputs, targets = data
        starts = range(0, SAMPLES, BATCH)
        batches = [(inputs[at : at + BATCH], targets[at : at + BATCH]) for at in starts]
        return batches, lambda epoch: batches
    return loader_of(data), lambda epoch: loader_of(data)


def train_by_hand(
    model: nn.Module, batches: Batches, after_step: Callable[[], None] = lambda: None
) -> None:
    """Train for `STEPS` steps with a hand-written loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    model.train()
    epoch = step = 0
    with random_state_preserved():
        while step < STEPS:
            reseed(derive_seed(SEED, epoch))
            for inputs, targets in batches(epoch):
                optimizer.zero_grad()
                loss: Tensor = loss_fn(model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                after_step()
                step += 1
                if step == STEPS:
                    break
            epoch += 1


def trained(data: Any, val: Any = None, **options: Any) -> Trainer:
    """Return a Trainer that has taken `STEPS` steps."""
    trainer = Trainer(
        model_of_the_tutorial(), lr=0.05, batch_size=BATCH, seed=SEED, progress=False, **options
    )
    trainer.fit(data, val, max_steps=STEPS)
    return trainer


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models are bitwise equal."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["tensors", "list", "loader"])
def test_training_on_mnist_equals_the_hand_written_loop(kind: str, digits: Pair) -> None:
    """The weights are bitwise equal after hundreds of steps without further features."""
    data, batches = source(kind, digits)
    expected = model_of_the_tutorial()
    train_by_hand(expected, batches)
    trainer = trained(data, metrics={})
    assert trainer.state.step == STEPS
    assert same_weights(trainer.model, expected)


def test_metrics_do_not_change_the_weights(digits: Pair) -> None:
    """Accuracy, validation and history have no numeric effect over hundreds of steps."""
    data, batches = source("loader", digits)
    expected = model_of_the_tutorial()
    train_by_hand(expected, batches)
    trainer = trained(data, digits)
    assert same_weights(trainer.model, expected)
    assert trainer.history["val_accuracy"][-1] > 0.9


def test_averages_on_mnist_equal_those_of_the_hand_written_loop(digits: Pair) -> None:
    """The averages are bitwise equal to those of a loop that updates them itself."""
    data, batches = source("tensors", digits)
    expected, hand_ema = model_of_the_tutorial(), EMA(0.99)
    hand_ema.update(expected)
    train_by_hand(expected, batches, lambda: hand_ema.update(expected))
    ema = EMA(0.99)
    trainer = trained(data, digits, callbacks=[ema])
    assert same_weights(trainer.model, expected)
    with ema.applied(trainer.model), hand_ema.applied(expected):
        assert same_weights(trainer.model, expected)


def test_mnist_in_memory_gives_the_same_weights(mnist_folder: Path) -> None:
    """Bytes with a batch transform give bitwise the same weights as `ToTensor` in the dataset."""
    rows = range(1_280)
    from_images = trained(Subset(MNIST(mnist_folder, train=True, transform=ToTensor()), rows))
    kept = in_memory(
        Subset(MNIST(mnist_folder, train=True), rows),
        batch_transform=lambda images: images.float() / 255,
        progress=False,
    )
    assert same_weights(from_images.model, trained(kept).model)

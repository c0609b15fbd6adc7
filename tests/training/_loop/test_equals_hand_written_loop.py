"""Training without optional features is bitwise equal to a hand-written loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib._preserve import derive_seed, random_state_preserved, reseed
from finetunelib.training import Accuracy
from training.tiny import (
    BATCH,
    batches_of,
    cut,
    network,
    plain_network,
    points,
    quiet_trainer,
    ready_batches,
    same_weights,
)

SEED = 5
EPOCHS = 3

Batches = Callable[[int], Iterable[Any]]


# Two threads on one free core wait for each other for seconds.
@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest, one_thread: None) -> Iterator[int]:
    """Set the number of threads for a block, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def train_by_hand(model: nn.Module, batches: Batches, *, epochs: int = EPOCHS) -> list[float]:
    """Train with a hand-written loop, and return the mean loss of each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    means = []
    model.train()
    with random_state_preserved():
        for epoch in range(epochs):
            reseed(derive_seed(SEED, epoch))
            total, samples = 0.0, 0
            for inputs, targets in batches(epoch):
                optimizer.zero_grad()
                loss: Tensor = loss_fn(model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach().double()) * len(targets)
                samples += len(targets)
            means.append(total / samples)
    return means


def shuffled_loader() -> DataLoader[Any]:
    """Return a DataLoader that shuffles with the global generator."""
    return DataLoader(TensorDataset(*points()), batch_size=BATCH, shuffle=True)


def source(kind: str) -> tuple[Any, Batches]:
    """Return data of one type for the Trainer, and its batches for the hand-written loop."""
    if kind == "tensors":
        return points(), lambda epoch: batches_of(points(), epoch, seed=SEED)
    if kind == "list":
        return ready_batches(points()), lambda epoch: ready_batches(points())
    return shuffled_loader(), lambda epoch: shuffled_loader()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["tensors", "list", "loader"])
def test_training_is_the_hand_written_loop_bit_for_bit(kind: str) -> None:
    """Weights and buffers agree after several epochs with dropout and BatchNorm."""
    data, batches = source(kind)
    expected = network()
    train_by_hand(expected, batches)
    model = network()
    quiet_trainer(model, lr=0.1, metrics={}, seed=SEED).fit(data, epochs=EPOCHS)
    assert same_weights(model, expected)
    assert not same_weights(model, network())


@pytest.mark.parametrize("kind", ["tensors", "list", "loader"])
def test_recorded_loss_is_the_hand_written_mean(kind: str) -> None:
    """`train_loss` is the mean over samples of the losses of the loop."""
    data, batches = source(kind)
    means = train_by_hand(network(), batches)
    history = quiet_trainer(network(), lr=0.1, metrics={}, seed=SEED).fit(data, epochs=EPOCHS)
    # Both add the same float32 losses as doubles, possibly in a different order.
    assert history["train_loss"] == pytest.approx(means, rel=1e-12)


@pytest.mark.parametrize("kind", ["tensors", "list", "loader"])
@pytest.mark.parametrize(
    "options",
    [{"metrics": None}, {"metrics": {"top2": Accuracy(2), "mean": lambda o, t: o.mean()}}],
    ids=["default metric", "own metrics"],
)
def test_metrics_do_not_change_the_weights(kind: str, options: dict[str, Any]) -> None:
    """Metrics have no numeric effect on training."""
    data, batches = source(kind)
    expected, model = network(), network()
    train_by_hand(expected, batches)
    quiet_trainer(model, lr=0.1, seed=SEED, **options).fit(data, epochs=EPOCHS)
    assert same_weights(model, expected)


@pytest.mark.parametrize("kind", ["tensors", "list", "loader"])
@pytest.mark.parametrize("val_kind", ["tensors", "list", "loader"])
def test_validation_does_not_change_the_weights(kind: str, val_kind: str) -> None:
    """Validation has no numeric effect, even with a loader that draws random numbers."""
    data, batches = source(kind)
    val, _ = source(val_kind)
    expected, model = network(), network()
    train_by_hand(expected, batches)
    history = quiet_trainer(model, lr=0.1, seed=SEED).fit(data, val, epochs=EPOCHS)
    assert len(history["val_loss"]) == EPOCHS
    assert same_weights(model, expected)


def test_progress_does_not_change_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """A report on stderr has no numeric effect."""
    data, batches = source("tensors")
    expected, model = network(), network()
    train_by_hand(expected, batches)
    quiet_trainer(model, lr=0.1, seed=SEED, progress=True).fit(data, epochs=EPOCHS)
    assert capsys.readouterr().err.count("\n") == EPOCHS
    assert same_weights(model, expected)


def test_random_state_of_the_caller_has_no_effect() -> None:
    """The same seed gives the same bits, whatever was drawn before."""
    first, second = network(), network()
    quiet_trainer(first, seed=SEED).fit(shuffled_loader(), epochs=2)
    torch.rand(7)
    quiet_trainer(second, seed=SEED).fit(shuffled_loader(), epochs=2)
    assert same_weights(first, second)


@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_seeds_give_different_orders(kind: str) -> None:
    """Another seed gives another result, also without dropout."""
    models = [plain_network(), plain_network()]
    for seed, model in enumerate(models):
        quiet_trainer(model, lr=0.1, seed=seed).fit(source(kind)[0], epochs=1)
    assert not same_weights(*models)


def test_validation_loss_is_the_hand_written_evaluation() -> None:
    """`val_loss` and `val_accuracy` are the values in eval mode after the epoch."""
    model = network()
    val = points(10, seed=1)
    history = quiet_trainer(model, lr=0.1).fit(points(), val, epochs=1)
    model.eval()
    with torch.no_grad():
        parts = [model(inputs) for inputs in cut(val[0], BATCH)]
        losses = [
            float(nn.CrossEntropyLoss(reduction="sum")(part, targets))
            for part, targets in zip(parts, cut(val[1], BATCH), strict=True)
        ]
        hits = int((torch.cat(parts).argmax(1) == val[1]).sum())
    # Sums and means of float32 round differently in the last place.
    assert history["val_loss"] == pytest.approx([sum(losses) / 10], rel=1e-6)
    assert history["val_accuracy"] == [hits / 10]


def test_regression_is_the_hand_written_loop() -> None:
    """Another loss gives the bits of the hand-written loop too."""
    inputs, _ = points()
    targets = inputs.sum(1, keepdim=True)
    model, expected = nn.Linear(6, 1), nn.Linear(6, 1)
    expected.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01, momentum=0.9)
    for rows, values in batches_of((inputs, targets)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(expected(rows), values)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    quiet_trainer(model, loss_fn=nn.MSELoss()).fit((inputs, targets), epochs=1)
    assert same_weights(model, expected)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0, 0.1])),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0, 0.1]), label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.functional.cross_entropy,
    ],
    ids=["weight", "label smoothing", "both", "ignore_index", "function"],
)
def test_custom_loss_is_used_unchanged(loss_fn: Any) -> None:
    """A class-weighted or smoothed cross-entropy gives the weights of the hand-written loop."""
    model, expected = plain_network(), plain_network()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for inputs, targets in batches_of(points(), epoch):
            optimizer.zero_grad()
            loss_fn(expected(inputs), targets).backward()
            optimizer.step()
    quiet_trainer(model, lr=0.1, loss_fn=loss_fn).fit(points(), epochs=2)
    assert same_weights(model, expected)


def test_class_probabilities_are_targets_if_the_loss_accepts_them() -> None:
    """Soft targets with nn.CrossEntropyLoss() give the bits of the hand-written loop."""
    inputs, targets = points()
    soft = nn.functional.one_hot(targets, 3) * 0.8 + 0.2 / 3
    model, expected = plain_network(), plain_network()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for rows, values in batches_of((inputs, soft)):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(expected(rows), values)
        loss.backward()
        optimizer.step()
    quiet_trainer(model, lr=0.1, loss_fn=nn.CrossEntropyLoss()).fit((inputs, soft), epochs=1)
    assert same_weights(model, expected)

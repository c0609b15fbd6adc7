"""The check before training leaves the model, the loss and the data as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib._preserve import unchanged
from finetunelib.errors import FinetuneLibError
from finetunelib.training import Callback, TrainContext
from training.tiny import plain_network, points, quiet_trainer, ready_batches, same_bits, weights_of

INPUTS, TARGETS = points(12)
BATCHES = ready_batches((INPUTS, TARGETS), 6)


class Recurrent(nn.Module):
    """Continues from its last hidden state, which is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.RNNCell(6, 4), nn.Linear(4, 3)
        self.hidden: Tensor | None = None

    def forward(self, inputs: Tensor) -> Any:
        hidden = self.cell(inputs, self.hidden)
        self.hidden = hidden.detach()
        return self.head(hidden)


class InPlace(nn.Module):
    """Adds to a buffer, to a tensor that is no buffer, and to a list."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)
        self.register_buffer("total", torch.zeros(6))
        self.cache = torch.zeros(6)
        self.rows: list[int] = []

    def forward(self, inputs: Tensor) -> Any:
        self.total += inputs.detach().sum(0)
        self.cache.add_(inputs.detach().sum(0))
        self.rows.append(len(inputs))
        return self.head(inputs + self.total + self.cache + len(self.rows))


class FromData(nn.Module):
    """Initializes a parameter from the first batch that it sees, in any mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shift, self.head = nn.Parameter(torch.zeros(6)), nn.Linear(6, 3)
        self.ready = False

    def forward(self, inputs: Tensor) -> Any:
        if not self.ready:
            self.shift.data.copy_(inputs.detach().mean(0))
            self.ready = True
        return self.head(inputs - self.shift)


class Bounded(nn.Module):
    """Has an embedding whose rows are renormalized in place when they are read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.head = nn.Embedding(9, 6, max_norm=0.1), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.rows(inputs.abs().long().clamp(max=8)).mean(1))


@pytest.mark.parametrize("kind", [Recurrent, InPlace, FromData, Bounded])
def test_model_with_a_state_is_trained_like_by_hand(kind: Callable[[], nn.Module]) -> None:
    """With a check of training and validation data before the first step."""
    model, by_hand = kind(), kind()
    quiet_trainer(model, optimizer=torch.optim.SGD, lr=0.1).fit(BATCHES, epochs=1)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for inputs, targets in BATCHES:
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert same_bits(weights_of(model), weights_of(by_hand))


@pytest.mark.parametrize("kind", [Recurrent, InPlace, FromData, Bounded])
def test_refused_data_leaves_a_model_with_a_state_as_it_was(kind: Callable[[], nn.Module]) -> None:
    """Values, attributes and the content of lists."""
    model = kind()
    before, attributes = weights_of(model), dict(vars(model))
    wrong = (INPUTS, TARGETS + 7)
    for call in (
        quiet_trainer(model).evaluate,
        lambda data: quiet_trainer(model).fit(data, epochs=1),
    ):
        with pytest.raises(FinetuneLibError):
            call(wrong)
    assert same_bits(weights_of(model), before)
    assert all(vars(model)[name] is value for name, value in attributes.items())
    if isinstance(model, InPlace):
        assert model.rows == []
        assert not model.cache.any()


def test_generator_that_two_loaders_share_starts_where_it_was() -> None:
    """The order of the first epoch is the same with and without validation data."""

    def trained(*, validated: bool) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        data = TensorDataset(INPUTS, TARGETS)
        train, val = (DataLoader(data, 4, shuffle=True, generator=generator) for _ in range(2))
        model = plain_network()
        quiet_trainer(model, lr=0.1).fit(train, val if validated else None, epochs=1)
        return weights_of(model)

    assert same_bits(trained(validated=True), trained(validated=False))


def test_values_of_tensors_are_restored_with_their_bits() -> None:
    """Also nan, and in tensors that share memory; nothing else is written."""
    model = nn.Module()
    model.register_buffer("values", torch.tensor([float("nan"), 1.0, 2.0]))
    model.register_buffer("untouched", torch.zeros(2))
    values, other = model.get_buffer("values"), model.get_buffer("untouched")
    version = other._version
    with unchanged(model):
        values.data[1:] = 7.0
        model.register_buffer("values", torch.ones(1))
    assert model.get_buffer("values") is values
    assert values[1:].tolist() == [1.0, 2.0]
    assert values[:1].isnan().all()
    assert other._version == version


def test_check_undoes_what_a_hook_of_a_known_loss_does() -> None:
    """A loss of PyTorch changes nothing by itself, but its hooks may."""
    loss: Any = nn.CrossEntropyLoss()  # Any: it gets an attribute.
    loss.calls = []
    loss.register_forward_hook(lambda module, *_: module.calls.append(1))
    quiet_trainer(plain_network(), loss_fn=loss).fit(BATCHES, epochs=1)
    assert len(loss.calls) == len(BATCHES)


class Noisy(nn.Module):
    """Draws from the global generator, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = plain_network()

    def forward(self, inputs: Tensor) -> Any:
        return self.head(inputs + torch.randn(inputs.shape))


class Drawing(Callback):
    """Draws a number before the first epoch."""

    drawn = 0.0

    def on_fit_start(self, context: TrainContext) -> None:
        """Draw it."""
        self.drawn = float(torch.rand(()))


def test_numbers_drawn_in_the_check_change_neither_callbacks_nor_training() -> None:
    """The states are restored for a callback, and set by the first epoch without one."""
    quiet, noisy = Drawing(), Drawing()
    quiet_trainer(plain_network(), callbacks=[quiet]).fit(BATCHES, epochs=1)
    with_callback, without = Noisy(), Noisy()
    quiet_trainer(with_callback, callbacks=[noisy]).fit(BATCHES, BATCHES[:1], epochs=1)
    before = torch.get_rng_state()
    quiet_trainer(without).fit(BATCHES, BATCHES[:1], epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert quiet.drawn == noisy.drawn
    assert same_bits(weights_of(with_callback), weights_of(without))

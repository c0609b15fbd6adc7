"""What the small real programs share: a hand-written loop, and comparisons with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib import Trainer
from finetunelib._preserve import derive_seed, reseed
from finetunelib.data import TensorBatches

EPOCHS, BATCH = 3, 16


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with the same initial weights in each call."""
    torch.manual_seed(0)
    return make()


def epochs_of(data: Any) -> Iterator[Iterable[Any]]:
    """Yield the batches of each epoch as a Trainer orders them: ready batches, or tensors."""
    for epoch in range(EPOCHS):
        if isinstance(data, list):
            yield data
        else:
            tensors = data.tensors if isinstance(data, TensorBatches) else data
            yield TensorBatches(*tensors, batch_size=BATCH, seed=0).epoch(epoch)


@dataclass
class Program:
    """A training program, once with a Trainer and once with a hand-written loop.

    Attributes:
        make: Creates the model.
        loss: The loss of a model for a batch, as the hand-written loop computes it.
        data: The training data.
        optimizer: The class of the optimizer, which both use with a learning rate of 0.02.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], Tensor]
    data: Any
    optimizer: Any = torch.optim.Adam  # The base class has no `lr`.

    def by_hand(self, extra: Sequence[nn.Parameter] = ()) -> tuple[nn.Module, list[float]]:
        """Train with a hand-written loop, and return the model and the last epoch's losses."""
        model = seeded(self.make)
        optimizer = self.optimizer([*model.parameters(), *extra], lr=0.02)
        losses: list[float] = []
        for number, batches in enumerate(epochs_of(self.data)):
            reseed(derive_seed(0, number))
            losses.clear()
            for batch in batches:
                optimizer.zero_grad()
                loss = self.loss(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.item())
        return model, losses

    def trained(self, val: Any = None, **options: Any) -> Trainer:
        """Train with a Trainer, and check that its weights are those of the hand-written loop."""
        return self.trained_with(self.by_hand()[0], val, **options)

    def trained_with(self, expected: nn.Module, val: Any = None, **options: Any) -> Trainer:
        """Train with a Trainer, and check that its weights are those of another model."""
        trainer = Trainer(
            seeded(self.make),
            optimizer=self.optimizer,
            lr=0.02,
            batch_size=BATCH,
            progress=False,
            **options,
        )
        trainer.fit(self.data, val, epochs=EPOCHS)
        assert same_state(trainer.model, expected)
        return trainer


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same weights and buffers, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )

"""A trial leaves every bit of the Trainer, the model, the data and the process as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.callbacks import EMA
from finetunelib.errors import InvalidArgumentError
from finetunelib.training import StepOutput, Task, find_lr
from finetunelib.training._trials.restored import everything_restored
from support_untouched import changed_since, snapshot
from training.tiny import network, plain_network, points, quiet_trainer, same_bits, weights_of

DATA = points(22)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Adds noise of generators of its own, and counts its reads."""

    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.python = random.Random(0)
        self.reads = 0

    def __len__(self) -> int:
        return len(DATA[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = torch.randn(1, generator=self.torch) + float(self.numpy.normal())
        return DATA[0][index] + noise + self.python.random(), DATA[1][index]

    def state(self) -> Any:
        """Return the states of the generators and the count."""
        numpy = self.numpy.bit_generator.state["state"]
        return self.torch.get_state().tolist(), numpy, self.python.getstate(), self.reads


class WithMargin(Task):
    """Has a parameter, a buffer and a counter of its own."""

    def __init__(self) -> None:
        self.head = nn.BatchNorm1d(3)
        self.steps = 0

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        self.steps += 1
        outputs = self.head(model(batch[0]))
        return StepOutput(
            nn.functional.cross_entropy(outputs, batch[1]), outputs, batch[1], len(batch[1])
        )


def state_of(trainer: Trainer) -> list[Any]:
    """Return copies of what a trial might change in a Trainer."""
    optimizer = trainer.optimizer
    return [
        optimizer is None or copy.deepcopy(optimizer.state_dict()),
        optimizer is None or sorted(vars(optimizer)),
        trainer.state.epoch,
        trainer.state.step,
        trainer.history.rows,
    ]


def assert_same(before: list[Any], after: list[Any]) -> None:
    """Compare states that `state_of` returned, tensors bit by bit."""
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert before[1:] == after[1:]


def test_nothing_is_changed_before_the_first_fit() -> None:
    """A model with BatchNorm and dropout, gradients, a frozen part, an eval part and a -0.0."""
    model = network()
    model(DATA[0]).sum().backward()
    modules = dict(model.named_modules())
    next(m for m in modules.values() if isinstance(m, nn.BatchNorm1d)).eval()
    first = next(model.parameters())
    with torch.no_grad():
        first[0, 0] = -0.0
    first.requires_grad_(False)
    trainer, before = quiet_trainer(model, callbacks=[EMA()], max_grad_norm=1.0), snapshot(model)
    gradients = [parameter.grad for parameter in model.parameters()]
    find_lr(trainer, DATA, steps=20)
    assert changed_since(before, model) == []
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert first[0, 0].signbit()
    assert trainer.optimizer is None
    assert (trainer.state.step, trainer.state.epoch, len(trainer.history)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_training_continues_as_without_a_trial(name: str) -> None:
    """The optimizer's state, the schedule, the EMA and the random states are those before."""
    weights = []
    for tries in (False, True):
        model = network()
        trainer = quiet_trainer(
            model,
            optimizer=getattr(torch.optim, name),
            lr=0.05,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            gradient_accumulation_steps=2,
            callbacks=[EMA(0.5)],
        )
        trainer.fit(DATA, DATA, epochs=2)
        before, held = state_of(trainer), trainer.optimizer
        if tries:
            find_lr(trainer, DATA, steps=20)
        assert_same(before, state_of(trainer))
        assert trainer.optimizer is held
        trainer.fit(DATA, DATA, epochs=1)
        weights.append(weights_of(model))
    assert same_bits(*weights)


def test_an_optimizer_of_the_user_is_restored_in_place() -> None:
    """Its groups, with a learning rate in a tensor, its state and its attributes."""
    model = plain_network()
    groups = [
        {"params": [model.head.weight], "lr": torch.tensor(0.1)},
        {"params": [model.head.bias], "lr": torch.tensor(0.01)},
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.head.weight or parameter is model.head.bias)
    optimizer = torch.optim.Adam(groups, lr=torch.tensor(1.0), capturable=False, foreach=False)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    rates, step = [group["lr"] for group in optimizer.param_groups], optimizer.step
    trainer = quiet_trainer(model, optimizer=optimizer, lr_scheduler=scheduler)
    before, attributes = copy.deepcopy(optimizer.state_dict()), sorted(vars(optimizer))
    find_lr(trainer, DATA, steps=20)
    assert trainer.optimizer is None
    torch.testing.assert_close(before, optimizer.state_dict(), rtol=0, atol=0)
    assert sorted(vars(optimizer)) == attributes
    assert optimizer.step == step
    assert all(
        group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True)
    )


def test_a_model_returns_to_its_device() -> None:
    """The device "meta" stands for an accelerator: values there cannot be compared with others."""
    model = network()
    model(DATA[0]).sum().backward()
    before = snapshot(model)
    trained = quiet_trainer(model)._trained
    with everything_restored(trained, DATA, None):
        model.to("meta")
    assert changed_since(before, model) == []


def test_a_frozen_backbone_stays_frozen() -> None:
    """Also its running statistics, while the head is tried."""
    model = freeze_and_replace_head(network(), num_classes=3)
    before = snapshot(model)
    find_lr(quiet_trainer(model), DATA, steps=20)
    assert changed_since(before, model) == []


def test_a_task_is_restored() -> None:
    """Its modules, buffers and counters."""
    task, model = WithMargin(), plain_network()
    before = copy.deepcopy(task.head.state_dict())
    find_lr(quiet_trainer(model, task=task), DATA, steps=20)
    assert same_bits(before, task.head.state_dict())
    assert task.steps == 0


def test_generators_of_the_data_are_restored() -> None:
    """Those of a dataset, a sampler and a DataLoader; a list of batches may be written to."""
    dataset = Noisy()
    before = dataset.state()
    find_lr(quiet_trainer(plain_network()), dataset, steps=20)
    assert dataset.state() == before
    own, other = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    sampler = RandomSampler(TensorDataset(*DATA), generator=own)
    loader = DataLoader(TensorDataset(*DATA), batch_size=8, sampler=sampler, generator=other)
    states = own.get_state(), other.get_state()
    find_lr(quiet_trainer(plain_network()), loader, steps=20)
    assert torch.equal(own.get_state(), states[0])
    assert torch.equal(other.get_state(), states[1])
    batches = [(torch.ones(4, 6) * n, torch.tensor([0, 1, 2, 0])) for n in range(-1, 2)]
    model = nn.Sequential(nn.ReLU(inplace=True), plain_network())
    find_lr(quiet_trainer(model), batches, steps=20)
    assert bool((batches[0][0] == -1).all())


class FailsLater(nn.Module):
    """Fails on the eighth forward pass in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = network(), 0

    def forward(self, inputs: Tensor) -> Any:
        self.calls += self.training
        if self.calls == 8:
            raise ValueError("the eighth pass")
        return self.inner(inputs)


def test_everything_is_restored_after_an_error() -> None:
    """The error of the model arrives, and the Trainer can be used."""
    model = FailsLater()
    trainer = quiet_trainer(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="eighth"):
        find_lr(trainer, DATA, steps=20)
    assert changed_since(before, model) == []
    assert model.calls == 0
    assert trainer.optimizer is None
    trainer.fit(DATA, max_steps=2)


def test_an_iterator_is_refused_before_it_is_read() -> None:
    """Its batches would be missing from training."""
    read = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        read.append(True)
        yield DATA

    batches = stream()
    with pytest.raises(InvalidArgumentError, match="find_lr"):
        find_lr(quiet_trainer(plain_network()), batches)
    assert read == []
    assert next(batches) is DATA

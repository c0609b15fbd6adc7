"""Small data, small models and bitwise comparisons for the tests of training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetunelib import Trainer, build_mlp
from finetunelib.data import TensorBatches
from finetunelib.models import MLP

BATCH = 4
WIDTH = 6
CLASSES = 3

#: Findings about what many tests do: they validate on the points that they train on, and set parts
#: of a model to eval mode; with some, any loss will do.
INTENDED = ("validation-in-training-data", "batchnorm-in-eval", "logits-into-nll-loss")

Pair = tuple[Tensor, Tensor]


def points(samples: int = 22, *, seed: int = 0) -> Pair:
    """Return random points, with every class equally often in random order.

    22 points make five batches of four and a last one of two.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, WIDTH, generator=generator)
    classes = torch.arange(samples) % CLASSES
    return inputs, classes[torch.randperm(samples, generator=generator)]


def network() -> MLP:
    """Return a small network with dropout and BatchNorm."""
    return build_mlp(WIDTH, [8, 8], CLASSES, normalization=nn.BatchNorm1d, dropout=0.3, seed=0)


def plain_network() -> MLP:
    """Return a small network without dropout and BatchNorm."""
    return build_mlp(WIDTH, [8], CLASSES, seed=0)


def quiet_trainer(model: nn.Module, **options: Any) -> Trainer:
    """Return a silent Trainer with small batches; `options` are those of the Trainer."""
    defaults: dict[str, Any] = {"batch_size": BATCH, "progress": False, "ignore": INTENDED}
    return Trainer(model, **(defaults | options))


def batches_of(data: Pair, epoch: int = 0, *, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Return the batches that a Trainer creates from tensors in an epoch."""
    return list(TensorBatches(*data, batch_size=BATCH, seed=seed).epoch(epoch))


def cut(tensor: Tensor, size: int = BATCH) -> list[Tensor]:
    """Split the rows of a tensor into pieces of `size`, the last of which may be shorter."""
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]


def ready_batches(data: Pair, size: int = BATCH) -> list[Pair]:
    """Return the data in its original order as a list of batches."""
    inputs, targets = data
    return list(zip(cut(inputs, size), cut(targets, size), strict=True))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter and buffer."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two state dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models are equal bit for bit, buffers included."""
    return same_bits(weights_of(one), weights_of(other))


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return the mode of every submodule."""
    return {name: module.training for name, module in model.named_modules()}


def random_states() -> tuple[bytes, bytes, object]:
    """Return the states of the global generators of torch, numpy and python."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy_bytes = numpy_state["state"]["key"].tobytes() + bytes([numpy_state["state"]["pos"] % 256])
    return torch.get_rng_state().numpy().tobytes(), numpy_bytes, random.getstate()


@dataclass
class Untouched:
    """The state that a failed call must not change."""

    model: nn.Module

    def __post_init__(self) -> None:
        self.before = self._look()

    def check(self) -> None:
        """Assert that weights, buffers, modes, gradients and random states have not changed."""
        weights, *others = self._look()
        old_weights, *old_others = self.before
        assert same_bits(weights, old_weights)
        assert others == old_others

    def _look(self) -> tuple[Any, ...]:
        gradients = {name: p.grad is None for name, p in self.model.named_parameters()}
        trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        weights = weights_of(self.model)
        return weights, modes_of(self.model), gradients, trainable, random_states()

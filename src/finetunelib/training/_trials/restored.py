"""Saves what training steps change, and restores it bit by bit."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetunelib._preserve import unchanged
from finetunelib.data._tensors import TensorBatches
from finetunelib.training._tasks.modules import TrainedModules


@contextlib.contextmanager
def everything_restored(
    trained: TrainedModules, data: object, optimizer: torch.optim.Optimizer | None
) -> Iterator[None]:
    """Restore what training steps change, on exit and also after an error.

    Args:
        trained: The modules that are trained.
        data: The data, as the user passed it.
        optimizer: The optimizer, if it is not one for these steps alone.
    """
    modules = (trained.model, *trained.others.values())
    parameters = [parameter for _, parameter in trained.named_parameters()]
    with (
        source_restored(data),
        unchanged(*modules, others=[trained.task], signs_of_zeros=True),
        # Inside: values are compared on the device that they were on.
        parameters_restored(parameters),
        optimizer_restored(optimizer),
    ):
        yield


@contextlib.contextmanager
def parameters_restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Remove the gradients of parameters, and restore them on exit, with devices and flags.

    Values on the same device are not restored here.
    """
    saved = [(p, p.data, p.grad, p.requires_grad) for p in parameters]
    for parameter, *_ in saved:
        parameter.grad = None  # A backward pass would add to its values.
    try:
        yield
    finally:
        for parameter, data, gradient, requires_grad in saved:
            parameter.grad = None
            if parameter.device != data.device:
                parameter.data = data  # It was moved, so these values were not changed.
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextlib.contextmanager
def optimizer_restored(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Restore the state, the groups and all attributes of an optimizer on exit, in place."""
    if optimizer is None:
        yield
        return
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    contents = _Contents(optimizer, parameters)
    try:
        yield
    finally:
        contents.restore()


@contextlib.contextmanager
def source_restored(data: object) -> Iterator[None]:
    """Restore what reading data changes: attributes, and the states of random generators.

    These are those of a DataLoader, its samplers and its dataset, or of a dataset. Generators of
    torch, numpy and Python in their attributes are restored; other objects inside are not.
    """
    parts = list(_parts_of(data))
    attributes = [(part, dict(vars(part))) for part in parts if hasattr(part, "__dict__")]
    generators = [_state_of(value) for _, values in attributes for value in values.values()]
    try:
        yield
    finally:
        for part, values in attributes:
            vars(part).update(values)
            for name in vars(part).keys() - values.keys():
                del vars(part)[name]
        for state in generators:
            if state is not None:
                _set_state(*state)


class _Contents:
    """The contents of an optimizer: of its dicts and lists, and the values of its tensors."""

    def __init__(self, optimizer: torch.optim.Optimizer, known: set[int]) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        seen, waiting = set(known), [vars(optimizer)]
        while waiting:
            value: Any = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                self._tensors.append((value, value.detach().clone()))
            elif isinstance(value, torch.optim.Optimizer):  # Some wrap another one.
                waiting.append(vars(value))
            elif isinstance(value, dict | list | set | deque):
                self._containers.append((value, value.copy()))
                waiting.extend(value.values() if isinstance(value, dict) else value)
            elif isinstance(value, tuple):
                waiting.extend(value)

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.detach().copy_(value)
        for container, content in self._containers:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(content)


def _parts_of(data: object) -> Iterator[object]:
    """Yield the objects that reading data may change."""
    if isinstance(data, DataLoader):
        batch_sampler = data.batch_sampler
        yield data
        yield from (data.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        yield from _parts_of(data.dataset)
    elif not isinstance(data, list | tuple | Mapping | Tensor | np.ndarray | TensorBatches):
        yield data


def _state_of(value: object) -> tuple[Any, Any] | None:
    """Return a random generator with its state, or `None` for any other value."""
    if isinstance(value, torch.Generator):
        return value, value.get_state()
    if isinstance(value, np.random.RandomState):
        return value, value.get_state()
    if isinstance(value, np.random.Generator):
        return value, value.bit_generator.state
    if isinstance(value, random.Random):
        return value, value.getstate()
    return None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)

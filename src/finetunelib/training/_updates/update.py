"""The update of the weights by the optimizer, and the gradients that it clears before."""

from __future__ import annotations

import inspect
from typing import Protocol

import torch
import torch.optim.optimizer as torch_optimizer

from finetunelib.training._updates.direct import collect_for, is_of_torch, profiler_switch


class Update(Protocol):
    """Clears the gradients, and updates the weights with them."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""
        ...

    def clear(self) -> None:
        """Clear the gradients, as `optimizer.zero_grad()` does."""
        ...

    def step(self) -> None:
        """Update the weights, as `optimizer.step()` does."""
        ...


class OptimizerUpdate:
    """Calls the methods of an optimizer of any kind."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def clear(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Update the weights."""
        self.optimizer.step()


class DirectUpdate:
    """Calls the functions that an optimizer of PyTorch consists of, while nothing watches it.

    `optimizer.step()` takes the steps that a hook, a profiler, a replaced method or a new scheduler
    is to see. All others are taken without the wrappers around it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._whole_step = inspect.unwrap(type(optimizer).step)
        self._collect = collect_for(optimizer)
        self._kind = type(optimizer)
        self._methods = _methods_of(optimizer)
        self._hooks = _hooks_of(optimizer)
        self._profiler_is_on = profiler_switch()
        # A scheduler has replaced the method to see that a step was taken.
        self._is_expected = "step" in vars(optimizer)

    def clear(self) -> None:
        """Clear the gradients."""
        if self._is_watched():
            self.optimizer.zero_grad()
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Update the weights."""
        if self._is_expected or self._is_watched():
            self.optimizer.step()
            self._is_expected = False
            return
        with torch.no_grad():
            calls = self._collect(self.optimizer)
            if calls is None:
                self._whole_step(self.optimizer)
                return
            for call in calls:
                call()

    def _is_watched(self) -> bool:
        # Twice in each step, so without calls of other functions.
        own, kind = vars(self.optimizer), self._kind
        methods = own.get("step"), own.get("zero_grad"), kind.step, kind.zero_grad
        return methods != self._methods or any(self._hooks) or self._profiler_is_on()


def choose_update(optimizer: torch.optim.Optimizer) -> Update:
    """Return the fastest update that has the bits of `optimizer.step()`."""
    direct = (
        type(optimizer).__module__.startswith("torch.optim.")
        and optimizer.defaults.get("differentiable") is False
        and all(map(is_of_torch, (optimizer.step, optimizer.zero_grad)))
        and all(hasattr(owner, name) for owner, name in _hook_names(optimizer))
    )
    return DirectUpdate(optimizer) if direct else OptimizerUpdate(optimizer)


def _methods_of(optimizer: torch.optim.Optimizer) -> tuple[object, ...]:
    """Return the methods of an optimizer's own and of its class, which code may replace."""
    own, kind = vars(optimizer), type(optimizer)
    return own.get("step"), own.get("zero_grad"), kind.step, kind.zero_grad


def _hook_names(optimizer: torch.optim.Optimizer) -> list[tuple[object, str]]:
    """Return where PyTorch keeps the hooks of a step, which have no public name."""
    return [
        (optimizer, "_optimizer_step_pre_hooks"),
        (optimizer, "_optimizer_step_post_hooks"),
        (torch_optimizer, "_global_optimizer_pre_hooks"),
        (torch_optimizer, "_global_optimizer_post_hooks"),
    ]


def _hooks_of(optimizer: torch.optim.Optimizer) -> list[object]:
    return [getattr(owner, name) for owner, name in _hook_names(optimizer)]

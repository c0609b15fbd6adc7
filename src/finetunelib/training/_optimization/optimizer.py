"""Checks the `optimizer` argument, and builds the optimizer over all parameters of the model."""

from __future__ import annotations

import torch
from torch import nn

from finetunelib._typing import OptimizerFactory
from finetunelib.errors import InvalidArgumentError, InvalidTypeError

_DEFAULT_LR = 0.01


def check_optimizer(
    model: nn.Module, optimizer: OptimizerFactory | torch.optim.Optimizer | None, lr: float | None
) -> None:
    """Raise if the optimizer or the learning rate is invalid, before anything is built.

    Raises:
        InvalidTypeError: If `optimizer` is neither an optimizer nor callable, or `lr` is not a
            number.
        InvalidArgumentError: If `lr` is negative, or is combined with an optimizer that is
            already built; or if that optimizer has parameters of another model.
    """
    if lr is not None and not isinstance(lr, int | float):
        raise InvalidTypeError(f"`lr` must be a number, got {lr!r} ({type(lr).__name__}).")
    if lr is not None and not lr >= 0.0:
        raise InvalidArgumentError(f"`lr` must be at least 0, got {lr}.")
    if isinstance(optimizer, torch.optim.Optimizer):
        if lr is not None:
            raise InvalidArgumentError(
                f"`lr` is {lr}, but `optimizer` is already built with its own learning rates. "
                "Omit `lr`, or pass the optimizer's class."
            )
        _check_covers(model, optimizer)
    elif optimizer is not None and not callable(optimizer):
        raise InvalidTypeError(
            "`optimizer` must be a torch.optim.Optimizer, an optimizer class, or a function "
            f"(param_groups, lr) -> optimizer, got {type(optimizer).__name__}."
        )


def build_optimizer(
    model: nn.Module,
    optimizer: OptimizerFactory | torch.optim.Optimizer | None,
    lr: float | None,
) -> torch.optim.Optimizer:
    """Return an optimizer over all parameters of the model, including frozen ones.

    A frozen parameter has no gradient, and every PyTorch optimizer skips it. Parameters can be
    frozen and unfrozen later without a change of the optimizer's groups.

    Raises:
        InvalidArgumentError: If an optimizer that is already built has parameters of another
            model, or the optimizer calls the model itself.
        InvalidTypeError: If the function did not return an optimizer.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        _check_covers(model, optimizer)
        _check_needs_no_closure(optimizer)
        return optimizer
    groups = [{"params": list(model.parameters())}]
    rate = _DEFAULT_LR if lr is None else lr
    if optimizer is None:
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    built = optimizer(groups, lr=rate)
    if not isinstance(built, torch.optim.Optimizer):
        raise InvalidTypeError(
            "`optimizer` must return a torch.optim.Optimizer, got "
            f"{built!r} ({type(built).__name__})."
        )
    _check_needs_no_closure(built)
    return built


def _check_needs_no_closure(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgumentError(
            "`optimizer` is LBFGS, which calls the model several times per step through a closure. "
            "The Trainer does not pass one. Use another optimizer or a hand-written loop."
        )


def check_trainable(model: nn.Module) -> None:
    """Raise if the model has no trainable parameter.

    Raises:
        InvalidArgumentError: If the model has no parameters, or all of them are frozen.
    """
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        state = "all of them are frozen" if parameters else "it has no parameters"
        raise InvalidArgumentError(
            f"The model has no trainable parameter: {state}. "
            "Unfreeze some, or replace the head with `freeze_and_replace_head`."
        )


def _check_covers(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise if an optimizer would update parameters that the model does not have.

    Raises:
        InvalidArgumentError: If it has such a parameter.
    """
    in_model = {id(parameter) for parameter in model.parameters()}
    in_optimizer = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = [
        tuple(parameter.shape) for parameter in in_optimizer if id(parameter) not in in_model
    ]
    if foreign:
        raise InvalidArgumentError(
            f"`optimizer` has {len(foreign)} parameters that the model does not have, the first of "
            f"shape {foreign[0]}. If it was built before the head was replaced, build it "
            "afterwards, or pass its class."
        )

"""The optimizer: built from what a user passed, over all parameters of the model."""

from __future__ import annotations

import torch
from torch import nn

from finetunelib._typing import OptimizerFactory
from finetunelib.errors import InvalidArgumentError, InvalidTypeError

_DEFAULT_LR = 0.01


def check_optimizer(
    model: nn.Module, optimizer: OptimizerFactory | torch.optim.Optimizer | None, lr: float | None
) -> None:
    """Raise when the pair makes no sense, before anything is built of it.

    Raises:
        InvalidTypeError: `optimizer` is neither an optimizer nor makes one, or `lr` no number.
        InvalidArgumentError: `lr` is negative, or given beside a ready optimizer; or that
            optimizer holds parameters of another model.
    """
    if lr is not None and not isinstance(lr, int | float):
        raise InvalidTypeError(f"`lr` must be a number, but is {lr!r} ({type(lr).__name__}).")
    if lr is not None and not lr >= 0.0:
        raise InvalidArgumentError(f"`lr` must be at least 0, but is {lr}.")
    if isinstance(optimizer, torch.optim.Optimizer):
        if lr is not None:
            raise InvalidArgumentError(
                f"`lr` is {lr}, but the optimizer that was passed has learning rates of its own. "
                "Leave `lr` out, or pass the optimizer's class."
            )
        _check_covers(model, optimizer)
    elif optimizer is not None and not callable(optimizer):
        raise InvalidTypeError(
            "`optimizer` must be a torch.optim.Optimizer, its class, or a function "
            f"(param_groups, lr) -> optimizer, but is of type {type(optimizer).__name__}."
        )


def build_optimizer(
    model: nn.Module,
    optimizer: OptimizerFactory | torch.optim.Optimizer | None,
    lr: float | None,
) -> torch.optim.Optimizer:
    """Return an optimizer over all parameters of the model, frozen ones included.

    A frozen parameter has no gradient, and every optimizer of torch passes over it; so what is
    frozen may change later without the optimizer's groups changing.

    Raises:
        InvalidArgumentError: A ready optimizer holds parameters of another model, or an
            optimizer calls the model itself.
        InvalidTypeError: The function returned no optimizer.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        _check_covers(model, optimizer)
        _check_needs_no_closure(optimizer)
        return optimizer
    groups = [{"params": list(model.parameters())}]
    rate = _DEFAULT_LR if lr is None else lr
    if optimizer is None:
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    made = optimizer(groups, lr=rate)
    if not isinstance(made, torch.optim.Optimizer):
        raise InvalidTypeError(
            "`optimizer` must return a torch.optim.Optimizer, but returned "
            f"{made!r} ({type(made).__name__})."
        )
    _check_needs_no_closure(made)
    return made


def _check_needs_no_closure(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgumentError(
            "`optimizer` is LBFGS, which calls the model several times in a step, through a "
            "closure that the Trainer does not pass. Use another optimizer, or a loop of your own."
        )


def check_trainable(model: nn.Module) -> None:
    """Raise when there is nothing to train.

    Raises:
        InvalidArgumentError: The model has no parameters, or all of them are frozen.
    """
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        state = "all of them are frozen" if parameters else "it has none"
        raise InvalidArgumentError(
            f"The model has no parameter to train: {state}. "
            "Unfreeze one, or replace the head with `freeze_and_replace_head`."
        )


def _check_covers(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise when a ready optimizer would move tensors that are not the model's.

    Raises:
        InvalidArgumentError: It holds such a parameter.
    """
    ours = {id(parameter) for parameter in model.parameters()}
    theirs = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = [tuple(parameter.shape) for parameter in theirs if id(parameter) not in ours]
    if foreign:
        raise InvalidArgumentError(
            f"`optimizer` holds {len(foreign)} parameters that are not the model's, the first of "
            f"shape {foreign[0]}; was it built before the head was replaced? Build it afterwards, "
            "or pass its class and let the Trainer build it."
        )

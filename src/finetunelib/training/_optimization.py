"""The optimizer: built from what a user passed, over all parameters of the model."""

from __future__ import annotations

import torch
from torch import nn

from finetunelib._typing import OptimizerFactory
from finetunelib.errors import InvalidArgumentError, InvalidTypeError

DEFAULT_LR = 0.01


def check_optimizer(
    optimizer: OptimizerFactory | torch.optim.Optimizer | None, lr: float | None
) -> None:
    """Raise when the pair makes no sense, before anything is built of it.

    Raises:
        InvalidTypeError: `optimizer` is neither an optimizer nor makes one.
        InvalidArgumentError: `lr` is negative, or given beside a ready optimizer.
    """
    if lr is not None and not lr >= 0.0:
        raise InvalidArgumentError(f"`lr` must be at least 0, but is {lr}.")
    if isinstance(optimizer, torch.optim.Optimizer):
        if lr is not None:
            raise InvalidArgumentError(
                f"`lr` is {lr}, but the optimizer that was passed has learning rates of its own. "
                "Leave `lr` out, or pass the optimizer's class."
            )
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
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    groups = [{"params": list(model.parameters())}]
    rate = DEFAULT_LR if lr is None else lr
    if optimizer is None:
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    return optimizer(groups, lr=rate)


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

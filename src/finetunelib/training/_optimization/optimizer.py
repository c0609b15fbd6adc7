"""Checks the `optimizer` argument, and builds the optimizer over all trained parameters."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch

from finetunelib._messages import nearest
from finetunelib._typing import OptimizerFactory
from finetunelib._wrappers import without_partials
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._optimization.coverage import check_no_other_parameters
from finetunelib.training._tasks.modules import TrainedModules

_DEFAULT_LR = 0.01


def check_optimizer(
    trained: TrainedModules,
    optimizer: OptimizerFactory | torch.optim.Optimizer | None,
    lr: float | None,
) -> None:
    """Raise if the optimizer or the learning rate is invalid, before anything is built.

    Raises:
        InvalidTypeError: If `optimizer` is neither an optimizer nor callable, or `lr` is not a
            number.
        InvalidArgumentError: If `lr` is negative, is missing although the function needs one, or
            is given although the optimizer has its own; or if an optimizer that is already built
            has parameters of another model.
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
        check_no_other_parameters(trained, optimizer)
    elif optimizer is not None:
        if not callable(optimizer):
            raise InvalidTypeError(
                "`optimizer` must be a torch.optim.Optimizer, an optimizer class, or a function "
                f"(param_groups, lr) -> optimizer, got {optimizer!r} "
                f"({type(optimizer).__name__}).{_class_hint(optimizer)}"
            )
        _check_rate(optimizer, lr)


def _class_hint(name: object) -> str:
    """Return the class to pass in place of its name, if `name` is the name of an optimizer."""
    if not isinstance(name, str):
        return ""
    classes = {
        key.lower(): key
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and value is not torch.optim.Optimizer
    }
    found = nearest(name.lower().replace("_", ""), classes)
    return "" if found is None else f" Pass the class: optimizer=torch.optim.{classes[found]}."


def _check_rate(factory: OptimizerFactory, lr: float | None) -> None:
    """Raise if a class or function cannot be called with this learning rate.

    Raises:
        InvalidArgumentError: If `lr` is given twice, cannot be passed, or is missing.
    """
    name = _name_of(factory)
    fixed = _fixed_rate(factory)
    if fixed is not None:
        if lr is not None:
            raise InvalidArgumentError(
                f"`lr` is {lr}, but `optimizer` is a partial of {name} with lr={fixed}. Omit one "
                "of the two."
            )
        return
    try:
        parameters = inspect.signature(factory).parameters
    except (ValueError, TypeError):
        return  # Written in C, for example: the call itself will show whether it fits.
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    rate = parameters.get("lr")
    if lr is not None and rate is None and not takes_any:
        raise InvalidArgumentError(
            f"`lr` is {lr}, but `optimizer` ({name}) has no parameter `lr`. Omit `lr`, or give the "
            "function a parameter of that name."
        )
    if lr is None and rate is not None and rate.default is rate.empty:
        raise InvalidArgumentError(
            f"`optimizer` ({name}) needs a learning rate and has no default. Pass `lr` to the "
            "Trainer."
        )


def _fixed_rate(factory: object) -> object | None:
    """Return the learning rate that a partial fixes, or `None`."""
    while isinstance(factory, partial):
        if "lr" in factory.keywords:
            rate: object = factory.keywords["lr"]
            return rate
        factory = factory.func
    return None


def _name_of(factory: object) -> str:
    function = without_partials(factory)
    return getattr(function, "__name__", type(function).__name__)


def build_optimizer(
    trained: TrainedModules,
    optimizer: OptimizerFactory | torch.optim.Optimizer | None,
    lr: float | None,
) -> torch.optim.Optimizer:
    """Return an optimizer over all parameters of the model, including frozen ones.

    A frozen parameter has no gradient, and every PyTorch optimizer skips it. Parameters can be
    frozen and unfrozen later without a change of the optimizer's groups. Trainable parameters of
    the loss and of the task follow those of the model.

    Raises:
        InvalidArgumentError: If an optimizer that is already built has parameters of another
            model, or the optimizer calls the model itself.
        InvalidTypeError: If the function did not return an optimizer.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        check_no_other_parameters(trained, optimizer)
        _check_needs_no_closure(optimizer)
        return optimizer
    groups: list[dict[str, Any]] = [{"params": trained.parameters_to_optimize()}]
    if optimizer is None:
        return torch.optim.SGD(groups, lr=_DEFAULT_LR if lr is None else lr, momentum=0.9)
    # Any: whether the function takes `lr` was checked when the Trainer was created.
    factory: Any = optimizer
    built = factory(groups) if lr is None else factory(groups, lr=lr)
    if not isinstance(built, torch.optim.Optimizer):
        raise InvalidTypeError(
            "`optimizer` must return a torch.optim.Optimizer, got "
            f"{built!r} ({type(built).__name__})."
        )
    check_no_other_parameters(trained, built)
    _check_needs_no_closure(built)
    return built


def _check_needs_no_closure(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgumentError(
            "`optimizer` is LBFGS, which calls the model several times per step through a closure. "
            "The Trainer does not pass one. Use another optimizer or a hand-written loop."
        )


def check_trainable(trained: TrainedModules) -> None:
    """Raise if there is no trainable parameter.

    Raises:
        InvalidArgumentError: If the model has no parameters, or all of them are frozen.
    """
    parameters = trained.named_parameters()
    if not any(parameter.requires_grad for _, parameter in parameters):
        state = "all of them are frozen" if parameters else "it has no parameters"
        hint = "Unfreeze some, or replace the head with `freeze_and_replace_head`."
        if any("lora_" in name for name, _ in parameters):
            hint = (
                "Its adapters are disabled or were loaded for inference: leave `disable_adapter`, "
                "call `set_adapter`, or pass `is_trainable=True` to `PeftModel.from_pretrained`."
            )
        raise InvalidArgumentError(f"The model has no trainable parameter: {state}. {hint}")

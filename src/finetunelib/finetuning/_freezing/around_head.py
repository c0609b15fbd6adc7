"""Freezing everything except a new head."""

from __future__ import annotations

import warnings

from torch import nn

from finetunelib._messages import quoted
from finetunelib._wrappers import own_name
from finetunelib.finetuning._freezing.adapters import select_adapters
from finetunelib.finetuning._freezing.initial_values import warn_about_initial_values
from finetunelib.finetuning._freezing.plan import plan_freeze
from finetunelib.finetuning._freezing.selection import Selection, subtree, union
from finetunelib.finetuning._freezing.train_outputs import (
    changes_outputs_around,
    check_train_outputs,
)


def freeze_around_head(model: nn.Module, head: nn.Module, *, is_named: bool) -> None:
    """Freeze every module and parameter of `model` outside `head`.

    The modules around the head are held in eval mode too, since their own forward may use dropout.

    Args:
        model: The model.
        head: The head, a module of the model.
        is_named: Whether the user named the head. If so, the modules around it follow `train()`
            in a model that returns something else in train mode, such as a detector.

    Raises:
        FreezeError: If the model cannot be frozen. It is left unchanged.

    Warns:
        UserWarning: If the modules around the head follow `train()`; if peft adapters stay
            trainable; or if frozen tensors have their initial values, because the file of
            `load_weights` did not contain them.
    """
    adapters = select_adapters(model)
    everything, kept = subtree(model), union([subtree(head), adapters])
    around: set[nn.Module] = set()
    if is_named and changes_outputs_around(model, head):
        around = {module for module in model.modules() if head in module.modules()}
    frozen = Selection(
        everything.modules - kept.modules - around,
        frozenset(everything.parameter_names(model) - kept.parameter_names(model)),
        named=everything.named,
    )
    plan = plan_freeze(model, frozen, kept)
    check_train_outputs(model, plan.holds)
    plan.apply()
    warn_about_initial_values(model, plan, stacklevel=4)
    if adapters.modules or adapters.parameters:
        _warn_about_adapters(model, head, adapters)
    if around:
        names = [
            f"`{own_name(name)}`" if name else "the model itself"
            for name, module in model.named_modules()
            if module in around and module is not head
        ]
        warnings.warn(
            f"The model ({type(model).__name__}) returns something else in train mode than in eval "
            "mode, as a detector does. The modules around the new head are therefore not held in "
            f"eval mode: {', '.join(names)}. Everything else is frozen.",
            UserWarning,
            stacklevel=4,
        )


def _warn_about_adapters(model: nn.Module, head: nn.Module, adapters: Selection) -> None:
    names = adapters.parameter_names(model) - subtree(head).parameter_names(model)
    trainable = [
        own_name(name)
        for name, parameter in model.named_parameters()
        if name in names and parameter.requires_grad
    ]
    at = next(own_name(name) for name, module in model.named_modules() if module is head)
    if trainable:
        warnings.warn(
            f"The {len(trainable)} tensors of the model's peft adapters stay trainable, together "
            f"with the new head: {quoted(trainable)}. To freeze them as well, call "
            f'`freeze(model, except_="{at}")`.',
            UserWarning,
            stacklevel=5,
        )

"""Compares the trainable parameters with those of the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from finetunelib._messages import quoted
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._tasks.modules import TrainedModules


class Coverage:
    """Which trainable parameters the optimizer of a Trainer contains.

    An optimizer that the user built, or that a function built over some of the parameters, may
    leave parameters out; a warning names them before each `fit`. Everything else that it does not
    contain was added or unfrozen after it was built, which is an error for an optimizer that the
    Trainer built.

    Args:
        trained: The modules that are trained.
        optimizer: The optimizer, right after it was built.
        ready: Whether the user built it.
    """

    def __init__(
        self, trained: TrainedModules, optimizer: torch.optim.Optimizer, *, ready: bool
    ) -> None:
        self._optimizer = optimizer
        self._ready = ready
        # The parameters are stored and not their ids, because ids of deleted objects are reused.
        self._left_out = [parameter for _, parameter in missing_parameters(trained, optimizer)]

    def check(self, trained: TrainedModules) -> None:
        """Compare the trainable parameters with the optimizer's, before a `fit`.

        Raises:
            InvalidArgumentError: If the optimizer contains parameters that no longer exist, or
                lacks one that was added or unfrozen after the Trainer built it.
        """
        named = trained.named_parameters()
        missing = _missing(named, self._optimizer)
        if not self._ready:
            self._check_unchanged(missing)
        _check_no_other(named, self._optimizer)
        if missing:
            names = quoted([name for name, _ in missing])
            warnings.warn(
                f"`optimizer` does not contain {len(missing)} trainable parameters, so they are "
                f"not trained: {names}. Add them to it, freeze them, or pass the "
                "optimizer's class.",
                stacklevel=3,
            )

    def _check_unchanged(self, missing: Sequence[tuple[str, nn.Parameter]]) -> None:
        known = {id(parameter) for parameter in self._left_out}
        added = [name for name, parameter in missing if id(parameter) not in known]
        if added:
            raise InvalidArgumentError(
                f"{len(added)} trainable parameters are not in the optimizer that this Trainer "
                f"built: {quoted(added)}. They were added or unfrozen since, for example with a "
                "new head. Create a new Trainer for the changed model."
            )


def check_no_other_parameters(trained: TrainedModules, optimizer: torch.optim.Optimizer) -> None:
    """Raise if an optimizer would update parameters that are not trained here.

    Raises:
        InvalidArgumentError: If it has a parameter of neither the model, the loss nor the task.
    """
    _check_no_other(trained.named_parameters(), optimizer)


def _check_no_other(
    named: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> None:
    own = {id(parameter) for _, parameter in named}
    foreign = [tuple(p.shape) for p in parameters_of(optimizer) if id(p) not in own]
    if foreign:
        raise InvalidArgumentError(
            f"The optimizer has {len(foreign)} parameters that the model does not have, the first "
            f"of shape {foreign[0]}. If the head was replaced, build `optimizer` afterwards, or "
            "pass its class to a new Trainer."
        )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters of an optimizer, in the order of its state dict."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def missing_parameters(
    trained: TrainedModules, optimizer: torch.optim.Optimizer
) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters that an optimizer does not contain, with their names."""
    return _missing(trained.named_parameters(), optimizer)


def _missing(
    named: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> list[tuple[str, nn.Parameter]]:
    held = set(map(id, parameters_of(optimizer)))
    return [
        (name, parameter)
        for name, parameter in named
        if parameter.requires_grad and id(parameter) not in held
    ]

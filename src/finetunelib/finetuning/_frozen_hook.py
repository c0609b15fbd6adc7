"""What keeps a frozen module in eval mode: a forward hook and a replaced `train` method.

A pickled frozen model refers to these objects by their import path, so this file must not move.
A test loads a stored pickle to check it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finetunelib.errors import FreezeError

#: Attributes of a frozen module: the first hides the method of its class, `torch.jit.script` calls
#: the second.
_TRAIN = "train"
_SCRIPT = "__prepare_scriptable__"


def keep_in_eval_mode(module: nn.Module, args: tuple[object, ...]) -> None:  # noqa: ARG001 - torch passes it
    """Put a frozen module in eval mode before its forward runs."""
    if module.training:
        module.training = False
    if not torch.compiler.is_compiling() and not stays_in_eval_mode(module):
        # Pickles of the first version contain this hook alone.
        for part in module.modules():
            if keep_in_eval_mode in part._forward_pre_hooks.values():  # noqa: SLF001 - no public way
                stay_in_eval_mode(part)
                part.training = False


class StayInEvalMode:
    """The `train` method of a frozen module: its own mode stays eval, its children follow.

    The hook sees only calls of the module itself. This also covers methods that enter the module
    in another way, such as `forward_features`.
    """

    def __init__(self, module: nn.Module, replaced: Callable[..., Any] | None) -> None:
        # Not weak: in `build().train()` nothing else refers to the module during the call.
        self._module: nn.Module | None = module
        #: The `train` that was set on the module itself before, if any.
        self.replaced = replaced

    def __call__(self, mode: bool = True) -> nn.Module | None:
        """Set the mode of the children that are not frozen, and return the module."""
        module = self._module
        if module is not None:
            module.training = False
            for child in module.children():
                child.train(mode)
        return module

    def belongs_to(self, module: nn.Module) -> bool:
        """Return whether this is the `train` of `module` and not of the one it was copied from."""
        return self._module is module

    def __getstate__(self) -> dict[str, Any]:
        module = self._module
        # A class that pickles itself in another way may not support a reference to itself.
        is_plain = type(module).__reduce_ex__ is object.__reduce_ex__ and (
            type(module).__reduce__ is object.__reduce__
        )
        return {"module": module if is_plain else None, "replaced": self.replaced}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module = state["module"]
        self.replaced = state["replaced"]


class RefuseScripting:
    """Raises when `torch.jit.script` reaches a frozen module. TorchScript has no such hooks."""

    def __call__(self) -> nn.Module:
        """Raise a `FreezeError`."""
        raise FreezeError(
            "A frozen model cannot be scripted, because TorchScript runs neither its hooks nor its "
            "`train` method. Script an unfrozen copy: `plain = copy.deepcopy(model)`, "
            "`unfreeze(plain)`, `torch.jit.script(plain.eval())`."
        )


def stay_in_eval_mode(module: nn.Module) -> None:
    """Replace the `train` method of one module."""
    if not stays_in_eval_mode(module):
        replaced = vars(module).get(_TRAIN)
        if isinstance(replaced, StayInEvalMode):
            replaced = replaced.replaced
        object.__setattr__(module, _TRAIN, StayInEvalMode(module, replaced))
        object.__setattr__(module, _SCRIPT, RefuseScripting())


def stays_in_eval_mode(module: nn.Module) -> bool:
    """Return whether the `train` method of a module is replaced."""
    train = vars(module).get(_TRAIN)
    return isinstance(train, StayInEvalMode) and train.belongs_to(module)


def restore_train(module: nn.Module) -> None:
    """Undo `stay_in_eval_mode`."""
    train = vars(module).get(_TRAIN)
    if isinstance(train, StayInEvalMode):
        del vars(module)[_TRAIN]
        vars(module).pop(_SCRIPT, None)
        if train.replaced is not None:
            object.__setattr__(module, _TRAIN, train.replaced)

"""Holding one module in eval mode, and remembering which of its parameters freezing fixed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from finetunelib.finetuning._frozen_hook import (
    keep_in_eval_mode,
    restore_train,
    stay_in_eval_mode,
)

# The handle travels in a pickle, where it reserves the hook's number: without it torch would give
# that number to the next hook, which would replace this one.
_HANDLE = "_frozen_hook_handle"

#: The attribute of a module that contains the names of its own parameters that freezing fixed.
_FIXED_BY_FREEZE = "_frozen_parameters"


def held_in_eval_mode(module: nn.Module) -> bool:
    """Return whether `freeze` holds a module in eval mode."""
    return keep_in_eval_mode in module._forward_pre_hooks.values()  # noqa: SLF001 - no public way


def hold_in_eval_mode(module: nn.Module) -> None:
    """Keep one module in eval mode from now on. Its children are not affected."""
    if not held_in_eval_mode(module):
        # First in order: another hook may change buffers in train mode (spectral_norm's does).
        handle = module.register_forward_pre_hook(keep_in_eval_mode, prepend=True)
        object.__setattr__(module, _HANDLE, handle)
    stay_in_eval_mode(module)
    module.training = False
    _drop_graphs(module)


def release(module: nn.Module) -> None:
    """Undo `hold_in_eval_mode`, and put the module in train mode."""
    hooks = module._forward_pre_hooks  # noqa: SLF001 - no public way
    for number in [number for number, hook in hooks.items() if hook is keep_in_eval_mode]:
        del hooks[number]
    vars(module).pop(_HANDLE, None)
    restore_train(module)
    module.training = True


def fixed_by_freeze(module: nn.Module) -> frozenset[str]:
    """Return the names of a module's own parameters that `freeze` made untrainable."""
    names: Iterable[str] | None = vars(module).get(_FIXED_BY_FREEZE)
    if names is None:
        # Models that an early version froze do not have the attribute.
        own = [name for name, _ in module.named_parameters(recurse=False)]
        names = own if held_in_eval_mode(module) else ()
    return frozenset(names)


def set_fixed_by_freeze(module: nn.Module, names: Iterable[str]) -> None:
    """Set what `fixed_by_freeze` returns."""
    names = set(names)
    if names or held_in_eval_mode(module):
        object.__setattr__(module, _FIXED_BY_FREEZE, names)
    else:
        vars(module).pop(_FIXED_BY_FREEZE, None)


def _drop_graphs(module: nn.Module) -> None:
    """Detach computed weights, such as those of the old spectral_norm, which cannot be copied."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            vars(module)[name] = value.detach()

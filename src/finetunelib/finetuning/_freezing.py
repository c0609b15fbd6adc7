"""Freezing: parameters and buffers that stay bit for bit, in any loop and under `train()`."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetunelib.errors import FreezeError
from finetunelib.finetuning._frozen_hook import keep_in_eval_mode

# The handle is kept on the module for two reasons: it removes the hook again, and it travels in
# a pickle, where it reserves the hook's number (torch would give it to the next hook otherwise).
_HANDLE = "_frozen_hook_handle"


def freeze_all_but(model: nn.Module, kept: nn.Module) -> None:
    """Freeze every module and parameter of `model` outside the subtree `kept`.

    The ancestors of `kept` are held in eval mode too, since they may use dropout in a forward of
    their own; the modules of `kept` follow `model.train()` as usual and are trainable.

    Raises:
        FreezeError: A parameter is shared between the two parts, or a BatchNorm of the frozen
            part has no running statistics. Nothing is changed then.
    """
    kept_modules = set(kept.modules())
    kept_parameters = set(kept.parameters())
    frozen = {name: part for name, part in model.named_modules() if part not in kept_modules}
    for name, module in frozen.items():
        _check_can_freeze(name, module, kept_parameters)

    for module in frozen.values():
        _hold_in_eval_mode(module)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.grad = None  # An optimizer would go on moving it with momentum or decay.
    for module in kept_modules:
        _release(module)
    for parameter in kept_parameters:
        parameter.requires_grad_(True)


def held_in_eval_mode(module: nn.Module) -> bool:
    """Return whether a module is held in eval mode by this library."""
    return hasattr(module, _HANDLE)


def _check_can_freeze(name: str, module: nn.Module, kept: set[nn.Parameter]) -> None:
    for parameter_name, parameter in module.named_parameters(recurse=False):
        if parameter in kept:
            raise FreezeError(
                f"`{name}.{parameter_name}` is shared with the part that stays trainable, and a "
                "tensor cannot be frozen by half. Untie them, or name a head that shares nothing."
            )
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        raise FreezeError(
            f"`{name}` is a {type(module).__name__} without running statistics "
            "(track_running_stats=False): it normalises by the batch at hand and cannot be "
            "frozen. Give it statistics, or replace it by another normalization."
        )


def _hold_in_eval_mode(module: nn.Module) -> None:
    if not held_in_eval_mode(module):
        # First in order: another hook may change buffers in train mode (spectral_norm's does).
        handle = module.register_forward_pre_hook(keep_in_eval_mode, prepend=True)
        object.__setattr__(module, _HANDLE, handle)
    module.training = False


def _release(module: nn.Module) -> None:
    if held_in_eval_mode(module):
        getattr(module, _HANDLE).remove()
        delattr(module, _HANDLE)
        module.training = True

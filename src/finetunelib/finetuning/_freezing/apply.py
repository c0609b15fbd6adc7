"""What freezing does to a model: parameters and buffers stay bit for bit, under `train()` too.

Which parts are meant is for the callers to say; the public functions are in `_freeze.py`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from finetunelib._arguments import uninitialized
from finetunelib.errors import FreezeError
from finetunelib.finetuning._freezing.selection import Selection, whole
from finetunelib.finetuning._frozen_hook import keep_in_eval_mode

# The handle is kept on the module for two reasons: it removes the hook again, and it travels in
# a pickle, where it reserves the hook's number (torch would give it to the next hook otherwise).
_HANDLE = "_frozen_hook_handle"

#: Where a held module keeps which of its own parameters were trainable until it was frozen.
_FROZEN_PARAMETERS = "_frozen_parameters"


def freeze_all_but(model: nn.Module, kept: nn.Module) -> None:
    """Freeze every module and parameter of `model` outside the subtree `kept`.

    The ancestors of `kept` are held in eval mode too, since they may use dropout in a forward of
    their own; the modules of `kept` follow `model.train()` as usual and are trainable.

    Raises:
        FreezeError: The model cannot be frozen so. Nothing is changed then.
    """
    kept_part = whole(kept)
    change(model, Selection(whole(model).modules - kept_part.modules), kept_part)


def change(model: nn.Module, frozen: Selection, freed: Selection) -> None:
    """Freeze one part of a model and make another trainable; the rest is left as it is.

    Modules that have a frozen one inside are held in eval mode too. One of them is let go again
    when something in it is freed and nothing in it is frozen any more.

    Args:
        model: The model.
        frozen: What is frozen. What is also in `freed` is not.
        freed: What is made trainable.

    Raises:
        FreezeError: A tensor would be frozen under one name and trainable under another, or a
            module cannot be frozen. Nothing is changed then.
    """
    modules = frozen.modules - freed.modules
    freed_names = freed.parameter_names(model)
    frozen_names = frozen.parameter_names(model) - freed_names
    _check_shared(model, frozen_names, freed_names)
    _check_shared_statistics(model, modules, freed.modules)
    for name, module in model.named_modules():
        if module in modules:
            _check_can_freeze(name, module)

    own_names = _own_trainable(model, modules)
    owners = {
        model.get_submodule(name.rpartition(".")[0])
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in freed_names and not parameter.requires_grad
    }
    _set_gradients(model, frozen_names, freed_names)
    let_go = [module for module in freed.modules if held_in_eval_mode(module)]
    for module in let_go:
        _release(module)
    held = modules.union(_around(model, modules))
    for module in model.modules():
        if module in held:
            _hold_in_eval_mode(module, own_names.get(module, set()))
        if module in modules:
            _drop_graphs(module)
    for module in _around(model, owners.union(let_go), inclusive=True):
        inner = any(True for _ in module.children())
        if inner and module not in held and not _has_frozen_inside(module):
            _release(module)


def held_in_eval_mode(module: nn.Module) -> bool:
    """Return whether a module is held in eval mode by this library."""
    return keep_in_eval_mode in module._forward_pre_hooks.values()  # noqa: SLF001 - no public way


def _set_gradients(model: nn.Module, frozen: set[str], freed: set[str]) -> None:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None  # An optimizer would go on moving it with momentum or decay.
        elif name in freed and (parameter.is_floating_point() or parameter.is_complex()):
            parameter.requires_grad_(True)


def _around(
    model: nn.Module, modules: Collection[nn.Module], *, inclusive: bool = False
) -> list[nn.Module]:
    """Return the modules on every path from the root to these ones, the deepest first."""
    by_name = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module, int] = {}
    for name, module in by_name.items():
        if module not in modules:
            continue
        path = name.split(".") if name else []
        for depth in range(len(path) + inclusive):
            found[by_name[".".join(path[:depth])]] = depth
    return sorted(found, key=lambda module: found[module], reverse=True)


def _has_frozen_inside(module: nn.Module) -> bool:
    """Return whether a child is held, or a parameter that was frozen with the module still is.

    One that its author had fixed before does not count.
    """
    names: set[str] = getattr(module, _FROZEN_PARAMETERS, set())
    return any(map(held_in_eval_mode, module.children())) or any(
        name in names and not parameter.requires_grad
        for name, parameter in module.named_parameters(recurse=False)
    )


def _own_trainable(model: nn.Module, modules: Collection[nn.Module]) -> dict[nn.Module, set[str]]:
    """Return the parameters that freezing these modules will take from training, by module."""
    return {
        module: {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        for module in model.modules()
        if module in modules
    }


def _check_shared(model: nn.Module, frozen: set[str], freed: set[str]) -> None:
    """Raise when memory with several names would be frozen under some of them only."""
    names_of: dict[object, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(_memory_of(parameter), {})[name] = parameter
    for names in names_of.values():
        becomes = {
            name: name in frozen or (not parameter.requires_grad and name not in freed)
            for name, parameter in names.items()
        }
        if len(set(becomes.values())) == 2:
            first = next(name for name in names if becomes[name])
            other = next(name for name in names if not becomes[name])
            raise FreezeError(
                f"`{first}` would be frozen and `{other}` trainable, but they are one tensor, "
                "which cannot be frozen by half. Name both parts, or untie them before."
            )


def _check_shared_statistics(
    model: nn.Module, frozen: Collection[nn.Module], freed: Collection[nn.Module]
) -> None:
    """Raise when a norm that stays in train mode would move the statistics of a frozen one."""
    owners: dict[object, list[tuple[str, bool]]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        stays = held_in_eval_mode(module) and module not in freed
        owner = (name, module in frozen or stays)
        owners.setdefault(_memory_of(module.running_mean), []).append(owner)
    for sharing in owners.values():
        held = [name for name, is_held in sharing if is_held]
        moving = [name for name, is_held in sharing if not is_held]
        if held and moving:
            raise FreezeError(
                f"`{held[0]}` would be frozen, but `{moving[0]}` shares its running statistics and "
                "moves them in training. Name both, or give each its own."
            )


def _memory_of(tensor: Tensor) -> object:
    """Return what two tensors have in common that are one in memory, though two objects."""
    lazy = isinstance(tensor, UninitializedParameter | UninitializedBuffer)
    if lazy or tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.numel()


def _check_can_freeze(name: str, module: nn.Module) -> None:
    where = f"`{name}`" if name else "The model"
    lazy = uninitialized(module, name, recurse=False)
    if lazy is not None:
        raise FreezeError(f"{where} is a {type(module).__name__}: {lazy}")
    if isinstance(module, torch.jit.ScriptModule):
        raise FreezeError(
            f"{where} is a ScriptModule, whose mode cannot be held in eval: its submodules run "
            "without hooks. Freeze the model that it was made from."
        )
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        raise FreezeError(
            f"{where} is a {type(module).__name__} without running statistics "
            "(track_running_stats=False): it normalises by the batch at hand and cannot be "
            "frozen. Give it statistics, or replace it by another normalization."
        )


def _drop_graphs(module: nn.Module) -> None:
    """Cut off the graphs of computed weights (old spectral_norm), which no copy could take."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            vars(module)[name] = value.detach()


def _hold_in_eval_mode(module: nn.Module, frozen_parameters: set[str]) -> None:
    if not held_in_eval_mode(module):
        # First in order: another hook may change buffers in train mode (spectral_norm's does).
        handle = module.register_forward_pre_hook(keep_in_eval_mode, prepend=True)
        object.__setattr__(module, _HANDLE, handle)
    known: set[str] = getattr(module, _FROZEN_PARAMETERS, set())
    object.__setattr__(module, _FROZEN_PARAMETERS, known | frozen_parameters)
    module.training = False


def _release(module: nn.Module) -> None:
    if held_in_eval_mode(module):
        getattr(module, _HANDLE).remove()
        delattr(module, _HANDLE)
        vars(module).pop(_FROZEN_PARAMETERS, None)
        module.training = True

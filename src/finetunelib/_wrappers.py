"""What the user wrote, without the wrappers and names of `torch.compile` and others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn

from finetunelib._messages import quoted

#: The part that `torch.compile` adds to a dotted name.
_COMPILED = "_orig_mod"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's module, without wrappers such as `torch.compile` or `DataParallel`."""
    while True:
        if _COMPILED in model._modules:  # noqa: SLF001 - the wrapper forwards other attributes
            model = model.get_submodule(_COMPILED)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def without_partials(function: object) -> object:
    """Return the function or class inside `functools.partial`, or what it is if there is none."""
    while isinstance(function, partial):
        function = function.func
    return function


def own_name(name: str) -> str:
    """Return a dotted name without the parts that `torch.compile` adds."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of an unwrapped model by name, each once under its first name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if _COMPILED not in module._modules:  # noqa: SLF001 - a compiled form shares the name
            found.setdefault(own_name(name), module)
    return found


def name_inside_wrappers(name: str, model: nn.Module) -> str:
    """Convert a dotted name in a wrapped model to the name in the user's module."""
    own = unwrapped(model)
    while model is not own:
        prefix = _COMPILED if _COMPILED in model._modules else "module"  # noqa: SLF001
        name = name.removeprefix(f"{prefix}.")
        model = model.get_submodule(prefix)
    return own_name(name)


def last_layers(modules: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> str:
    """Return the names of the last five modules of these types, for a message."""
    return quoted([name for name, module in modules.items() if isinstance(module, kinds)][-5:])

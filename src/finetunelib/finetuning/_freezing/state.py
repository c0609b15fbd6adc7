"""What is frozen in a model, as plain data that a checkpoint can contain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from finetunelib._messages import quoted
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.errors import FreezeError
from finetunelib.finetuning._freezing.eval_state import enter_eval_state
from finetunelib.finetuning._freezing.hold import (
    fixed_by_freeze,
    held_in_eval_mode,
    hold_in_eval_mode,
    release,
    set_fixed_by_freeze,
)


def frozen_state(model: nn.Module) -> dict[str, Any]:
    """Return what is frozen in a model.

    Returns:
        Lists and dicts of strings and booleans that `torch.load(weights_only=True)` reads:
        `"held"`, the names of the modules that are held in eval mode (`""` is the model);
        `"requires_grad"`, by the name of each parameter; and `"fixed"`, the names of the
        parameters that `unfreeze` makes trainable again. Names are those inside `torch.compile`
        and data parallelism.
    """
    own = unwrapped(model)
    held = [name for name, module in _modules(own) if held_in_eval_mode(module)]
    fixed = [
        f"{name}.{parameter}" if name else parameter
        for name, module in _modules(own)
        for parameter in sorted(fixed_by_freeze(module))
    ]
    return {
        "held": list(dict.fromkeys(held)),
        "requires_grad": {
            name: parameter.requires_grad for name, parameter in _parameters(own).items()
        },
        "fixed": list(dict.fromkeys(fixed)),
    }


def restore_frozen_state(model: nn.Module, state: Mapping[str, Any]) -> tuple[str, ...]:
    """Freeze and unfreeze what differs from a state, and nothing else.

    A module that is held from now on loses no values; a parameter that becomes untrainable loses
    its gradient. A module that is no longer held is in train mode.

    Args:
        model: The model.
        state: What `frozen_state` returned for a model with the same names.

    Returns:
        The names of the modules and parameters that changed, sorted.

    Raises:
        FreezeError: If the model and the state do not have the same names. The message contains
            those that differ, and the model is left unchanged.
    """
    own = unwrapped(model)
    held, fixed, requires_grad = set(state["held"]), set(state["fixed"]), state["requires_grad"]
    parameters = _parameters(own)
    modules = list(_modules(own))
    unknown = held - {name for name, _ in modules}
    different = sorted(unknown | (requires_grad.keys() ^ parameters.keys()))
    if different:
        raise FreezeError(
            "The saved frozen parts are of a model with other names: "
            f"{quoted(different)}. Build the same model before restoring them."
        )
    changed = {name for name, module in modules if held_in_eval_mode(module) != (name in held)}
    changed |= {
        name for name, value in requires_grad.items() if parameters[name].requires_grad != value
    }
    enter_eval_state(own, [module for name, module in modules if name in held])
    for name, parameter in parameters.items():
        if parameter.requires_grad != requires_grad[name]:
            parameter.requires_grad_(requires_grad[name])
        if not requires_grad[name]:
            parameter.grad = None
    for name, module in modules:
        if name in held:
            hold_in_eval_mode(module)
        elif held_in_eval_mode(module):
            release(module)
        own_names = [parameter for parameter, _ in module.named_parameters(recurse=False)]
        set_fixed_by_freeze(
            module,
            [own_n for own_n in own_names if (f"{name}.{own_n}" if name else own_n) in fixed],
        )
    return tuple(sorted(changed))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module under its first name. A compiled module and its wrapper share a name."""
    for name, module in model.named_modules():
        yield own_name(name), module


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {own_name(name): parameter for name, parameter in model.named_parameters()}

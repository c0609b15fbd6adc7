"""What freezing and unfreezing change in a model: planned and checked first, then applied."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from finetunelib.finetuning._freezing.conflicts import (
    check_can_be_compared,
    check_can_freeze,
    check_shared_modules,
    check_shared_parameters,
    check_shared_statistics,
)
from finetunelib.finetuning._freezing.eval_state import enter_eval_state
from finetunelib.finetuning._freezing.hold import (
    fixed_by_freeze,
    held_in_eval_mode,
    hold_in_eval_mode,
    release,
    set_fixed_by_freeze,
)
from finetunelib.finetuning._freezing.selection import Selection


@dataclass(frozen=True, slots=True)
class FreezePlan:
    """The changes that freeze one part of a model and make another trainable.

    Attributes:
        model: The model.
        hold: The modules that will be held in eval mode.
        release: The modules that will no longer be held.
        fix: The names of the parameters that will be untrainable.
        give_back: The names of the parameters that will be trainable again.
    """

    model: nn.Module
    hold: frozenset[nn.Module]
    release: frozenset[nn.Module]
    fix: frozenset[str]
    give_back: frozenset[str]

    def holds(self, module: nn.Module) -> bool:
        """Return whether a module is held in eval mode after the plan is applied."""
        return module in self.hold or (held_in_eval_mode(module) and module not in self.release)

    def apply(self) -> None:
        """Change the model.

        Raises:
            FreezeError: If the `train` method of a module's class fails. The model is unchanged.
        """
        enter_eval_state(self.model, self.hold)
        fixed = {module: set(fixed_by_freeze(module)) for module in self.model.modules()}
        for owner, name, full_name, parameter in _parameters(self.model):
            if full_name in self.give_back:
                fixed[owner].discard(name)
            elif full_name in self.fix and parameter.requires_grad:
                fixed[owner].add(name)
        for _, _, full_name, parameter in _parameters(self.model):
            if full_name in self.give_back:
                parameter.requires_grad_(True)
            elif full_name in self.fix:
                parameter.requires_grad_(False)
                parameter.grad = None  # An optimizer with momentum or decay would still move it.
        for module in self.release:
            release(module)
        for module in self.model.modules():
            if module in self.hold:
                hold_in_eval_mode(module)
            set_fixed_by_freeze(module, fixed[module])


def plan_freeze(model: nn.Module, frozen: Selection, freed: Selection) -> FreezePlan:
    """Plan to freeze one part of a model and to make another trainable.

    Args:
        model: The model.
        frozen: The part to freeze, except what is also in `freed`.
        freed: The part to make trainable. A parameter of a selected module becomes trainable only
            if freezing fixed it; a parameter that is selected by itself always does.

    Raises:
        FreezeError: If a tensor or module would be frozen under one name and trainable under
            another, or if a module cannot be frozen.
        InvalidTypeError: If a tensor has no values that could be compared.
    """
    hold = frozen.modules - freed.modules
    for name, module in model.named_modules():
        if module in hold:
            check_can_freeze(name, module)
    freed_names = freed.parameter_names(model)
    fix = frozen.parameter_names(model) - freed_names
    give_back = _given_back(model, freed)
    check_can_be_compared(model, hold, fix)
    check_shared_parameters(model, fix, give_back)
    released = {module for module in freed.modules if held_in_eval_mode(module)}
    released |= _released_around(model, hold, released, fix, give_back)
    plan = FreezePlan(model, hold, frozenset(released), frozenset(fix), frozenset(give_back))
    check_shared_statistics(model, plan.holds)
    check_shared_modules(
        model, plan.holds, changed=hold | freed.modules, named=frozen.named | freed.named
    )
    return plan


def _given_back(model: nn.Module, freed: Selection) -> set[str]:
    """Return the names of the parameters that become trainable with a selection."""
    return {
        full_name
        for owner, name, full_name, parameter in _parameters(model)
        if (parameter.is_floating_point() or parameter.is_complex())
        and (
            full_name in freed.parameters
            or (owner in freed.modules and name in fixed_by_freeze(owner))
        )
    }


def _released_around(
    model: nn.Module,
    hold: Collection[nn.Module],
    released: Collection[nn.Module],
    fix: Collection[str],
    give_back: Collection[str],
) -> set[nn.Module]:
    """Return the held modules around released parts in which nothing remains frozen."""
    still_fixed: set[nn.Module] = set()
    reopened = set(released)
    for owner, name, full_name, parameter in _parameters(model):
        if full_name in give_back:
            if not parameter.requires_grad:
                reopened.add(owner)
        elif full_name in fix or (not parameter.requires_grad and name in fixed_by_freeze(owner)):
            still_fixed.add(owner)
    found: set[nn.Module] = set()

    def is_held(module: nn.Module) -> bool:
        gone = module in released or module in found
        return module in hold or (held_in_eval_mode(module) and not gone)

    for module in _around(model, reopened):
        children = list(module.children())
        frozen_inside = module in still_fixed or any(map(is_held, children))
        if children and is_held(module) and module not in hold and not frozen_inside:
            found.add(module)
    return found


def _around(model: nn.Module, modules: Collection[nn.Module]) -> list[nn.Module]:
    """Return these modules and those on the paths from the root to them, the deepest first."""
    by_name = dict(model.named_modules(remove_duplicate=False))
    depths: dict[nn.Module, int] = {}
    for name, module in by_name.items():
        if module not in modules:
            continue
        path = name.split(".") if name else []
        for depth in range(len(path) + 1):
            depths[by_name[".".join(path[:depth])]] = depth
    return sorted(depths, key=lambda module: depths[module], reverse=True)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Parameter]]:
    """Yield each parameter with its module, its name there and its name in the model.

    A shared module or parameter occurs under each of its names.
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield module, name, f"{prefix}.{name}" if prefix else name, parameter

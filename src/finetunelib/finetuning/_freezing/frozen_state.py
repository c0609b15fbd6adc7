"""Which parts of a model are frozen, as plain data that a checkpoint can contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class FrozenState:
    """The frozen parts of a model, by the user's names.

    Attributes:
        held: The modules that `freeze` holds in eval mode.
        untrainable: The parameters that do not require a gradient.
        fixed: The parameters among them that `freeze` made untrainable, so `unfreeze` makes them
            trainable again.
    """

    held: frozenset[str]
    untrainable: frozenset[str]
    fixed: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> FrozenState:
        """Return the state of a model."""
        modules = _modules(model)
        return cls(
            frozenset(name for name, module in modules if held_in_eval_mode(module)),
            frozenset(
                name for name, value in _parameters(model).items() if not value.requires_grad
            ),
            frozenset(
                _joined(prefix, name)
                for prefix, module in modules
                for name in fixed_by_freeze(module)
            ),
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FrozenState:
        """Return what `to_dict` was called on.

        Raises:
            FreezeError: If a key is missing or unknown, or a value is not a list of names.
        """
        names = ("held", "untrainable", "fixed")
        if not isinstance(saved, Mapping):
            raise FreezeError(f"A frozen state must be a dict, got {type(saved).__name__}.")
        if set(saved) != set(names) or not all(_is_list_of_names(saved[name]) for name in names):
            raise FreezeError(
                f"A frozen state must contain the lists of names {', '.join(names)}, got "
                f"{', '.join(map(str, saved)) or 'nothing'}."
            )
        return cls(*(frozenset(saved[name]) for name in names))

    def to_dict(self) -> dict[str, list[str]]:
        """Return the state as lists of names."""
        return {
            "held": sorted(self.held),
            "untrainable": sorted(self.untrainable),
            "fixed": sorted(self.fixed),
        }

    def check_fits(self, model: nn.Module) -> None:
        """Raise if a model does not have all named parts.

        Raises:
            FreezeError: If a name is missing.
        """
        missing = self.held - {name for name, _ in _modules(model)}
        missing |= (self.untrainable | self.fixed) - _parameters(model).keys()
        if missing:
            raise FreezeError(
                f"The model does not have the frozen parts {quoted(sorted(missing))}. Build it in "
                "the same way as the one that was saved."
            )

    def apply(self, model: nn.Module) -> None:
        """Freeze and unfreeze the parts of a model that differ from this state.

        Raises:
            FreezeError: If the model does not have a part, or the `train` method of a module's
                class fails. The model is left unchanged.
        """
        self.check_fits(model)
        modules = _modules(model)
        enter_eval_state(model, {module for name, module in modules if name in self.held})
        for name, parameter in _parameters(model).items():
            trainable = name not in self.untrainable
            if parameter.requires_grad != trainable:
                parameter.requires_grad_(trainable)
            if not trainable:
                parameter.grad = None  # An optimizer with momentum or decay would still move it.
        for name, module in modules:
            if name in self.held:
                hold_in_eval_mode(module)
            elif held_in_eval_mode(module):
                release(module)
            own = [own for own, _ in module.named_parameters(recurse=False)]
            set_fixed_by_freeze(module, [n for n in own if _joined(name, n) in self.fixed])

    def difference(self, other: FrozenState) -> str:
        """Return the parts in which two states differ in a few words, or an empty string.

        Args:
            other: The state that replaces this one.
        """
        freezes = (other.untrainable - self.untrainable) or (other.held - self.held)
        frees = (self.untrainable - other.untrainable) or (self.held - other.held)
        parts = [
            f"{verb} {quoted(sorted(names))}"
            for verb, names in (("freezes", freezes), ("unfreezes", frees))
            if names
        ]
        return " and ".join(parts)


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a model. A compiled module and its wrapper have the same name."""
    return [(own_name(name), module) for name, module in unwrapped(model).named_modules()]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model, a shared one under each of its names."""
    found = unwrapped(model).named_parameters(remove_duplicate=False)
    return {own_name(name): value for name, value in found}


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)

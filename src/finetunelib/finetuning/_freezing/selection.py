"""Selecting parts of a model by module, name, pattern, or depth from the head."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from finetunelib._arguments import check_at_least
from finetunelib._messages import quoted
from finetunelib._wrappers import own_name
from finetunelib.errors import (
    FreezeError,
    HeadError,
    InvalidArgumentError,
    InvalidTypeError,
)
from finetunelib.finetuning._freezing.blocks import CONTAINERS, blocks
from finetunelib.finetuning._heads.find import find_head

#: A module of the model, a dotted name, a pattern over names, or several of these.
Parts: TypeAlias = str | nn.Module | Sequence[str | nn.Module]


@dataclass(frozen=True, slots=True)
class Selection:
    """Parts of a model.

    Attributes:
        modules: Modules, with all of their submodules.
        parameters: The names of parameters that are selected by themselves.
        named: The modules in `modules` that the user named, without their submodules.
    """

    modules: frozenset[nn.Module] = frozenset()
    parameters: frozenset[str] = frozenset()
    named: frozenset[nn.Module] = frozenset()

    def parameter_names(self, model: nn.Module) -> set[str]:
        """Return the names of all selected parameters, and all names of a shared module's."""
        return set(self.parameters).union(
            parameter
            for name, module in model.named_modules(remove_duplicate=False)
            if module in self.modules
            for parameter, _ in module.named_parameters(
                prefix=name, recurse=False, remove_duplicate=False
            )
        )


def subtree(module: nn.Module) -> Selection:
    """Select a module and its submodules."""
    return Selection(frozenset(module.modules()), named=frozenset([module]))


def select(model: nn.Module, parts: Parts, argument: str = "parts") -> Selection:
    """Select parts of a model.

    Args:
        model: The model.
        parts: Modules, names or patterns.
        argument: The name of the caller's argument, for messages.

    Raises:
        InvalidArgumentError: If a module is not in the model, or a name or pattern matches nothing.
        InvalidTypeError: If a part is neither a module nor a string.
    """
    if isinstance(parts, str | nn.Module):
        return _select_one(model, parts, argument)
    if not isinstance(parts, Iterable):
        raise InvalidTypeError(
            f"`{argument}` must be a module, a name, a pattern or a sequence of these, got "
            f"{parts!r} ({type(parts).__name__})."
        )
    selected = [_select_one(model, part, argument) for part in parts]
    if not selected:
        raise InvalidArgumentError(
            f"`{argument}` is empty. Leave it out, or name a part of the model, such as "
            f"{quoted(_top_names(model))}."
        )
    return union(selected)


def select_last(model: nn.Module, depth: int, argument: str) -> Selection:
    """Select a model's head and the last blocks before it.

    Args:
        model: The model.
        depth: The number of blocks, at least 0. 0 selects the head alone.
        argument: The name of the caller's argument, for messages.

    Raises:
        InvalidTypeError: If `depth` is not an integer.
        InvalidArgumentError: If `depth` is negative or larger than the number of blocks.
        FreezeError: If the model's head cannot be found.
    """
    check_at_least(0, **{argument: depth})
    try:
        head = find_head(model).module
    except HeadError as error:
        raise FreezeError(
            f"`{argument}` counts from the model's head, which was not found. Name the parts "
            "instead, by module, name or pattern."
        ) from error
    before = blocks(model, head)
    if depth > len(before):
        raise InvalidArgumentError(
            f"`{argument}` must be at most {len(before)}, the number of blocks before the head, "
            f"got {depth}."
        )
    names = [name for block in before[len(before) - depth :] for name in block]
    return union([subtree(head), *(_select_one(model, name, argument) for name in names)])


def _select_one(model: nn.Module, part: object, argument: str) -> Selection:
    if isinstance(part, nn.Module):
        return _select_module(model, part, argument)
    if not isinstance(part, str):
        raise InvalidTypeError(
            f"`{argument}` must contain modules, names or patterns, got {part!r} "
            f"({type(part).__name__})."
        )
    # torch.compile adds parts to the names that the user does not know.
    modules = {own_name(n): m for n, m in model.named_modules(remove_duplicate=False) if n}
    parameters = {own_name(n): n for n, _ in model.named_parameters(remove_duplicate=False)}
    names = [*modules, *parameters]
    # An exact name comes first, because it may contain the brackets of a pattern.
    hits = [part] if part in names else [name for name in names if fnmatchcase(name, part)]
    if not hits:
        near = difflib.get_close_matches(part, names, n=4, cutoff=0.5)
        raise InvalidArgumentError(
            f"`{argument}` contains {part!r}, which matches no module or parameter of the model. "
            + (f"Similar: {quoted(near)}." if near else f"It has {quoted(_top_names(model))}.")
        )
    found = union(subtree(modules[name]) for name in hits if name in modules)
    alone = [parameters[name] for name in hits if name not in modules]
    if part not in names:
        # A pattern that matches a module does not name the module's parameters by themselves.
        covered = found.parameter_names(model)
        alone = [name for name in alone if name not in covered]
    return union([found, Selection(parameters=frozenset(alone))])


def _select_module(model: nn.Module, part: nn.Module, argument: str) -> Selection:
    members = set(model.modules())
    if part in members:
        return subtree(part)
    # `model.layers[:6]` is a new container with modules of the model.
    children = list(part.children())
    if type(part) in CONTAINERS and children and members.issuperset(children):
        return union(subtree(child) for child in children)
    raise InvalidArgumentError(
        f"`{argument}` contains a {type(part).__name__} that is not a module of the model. The "
        f"model has {quoted(_top_names(model))}."
    )


def union(selections: Iterable[Selection]) -> Selection:
    """Select everything that one of several selections contains."""
    found = list(selections)
    return Selection(
        frozenset().union(*(selection.modules for selection in found)),
        frozenset().union(*(selection.parameters for selection in found)),
        frozenset().union(*(selection.named for selection in found)),
    )


def _top_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children()] or [n for n, _ in model.named_parameters()]

"""Which parts of a model are meant: by module, by name, by pattern, or by depth from the head.

Nothing here changes a model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from finetunelib._arguments import check_whole
from finetunelib._messages import quoted
from finetunelib._wrappers import own_name
from finetunelib.errors import (
    FreezeError,
    HeadError,
    InvalidArgumentError,
    InvalidTypeError,
)
from finetunelib.finetuning._heads.find import find_head

#: A module of the model, a dotted name, a pattern over names, or several of these.
Parts: TypeAlias = str | nn.Module | Sequence[str | nn.Module]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Selection:
    """Parts of a model.

    Attributes:
        modules: Modules, with all of their submodules.
        parameters: Names of parameters that were named by themselves, apart from their module.
    """

    modules: frozenset[nn.Module] = frozenset()
    parameters: frozenset[str] = frozenset()

    def parameter_names(self, model: nn.Module) -> set[str]:
        """Return the names of all parameters that are selected, with every name of a shared one."""
        return set(self.parameters).union(
            parameter
            for name, module in model.named_modules(remove_duplicate=False)
            if module in self.modules
            for parameter, _ in module.named_parameters(
                prefix=name, recurse=False, remove_duplicate=False
            )
        )


def whole(module: nn.Module) -> Selection:
    """Select a module with everything in it."""
    return Selection(frozenset(module.modules()))


def select(model: nn.Module, parts: Parts, argument: str = "parts") -> Selection:
    """Select the parts of a model that are named.

    Args:
        model: The model.
        parts: What is meant.
        argument: What the caller calls them, for messages.

    Raises:
        InvalidArgumentError: A module is not the model's, or a name or pattern matches nothing.
        InvalidTypeError: A part is neither a module nor a name.
    """
    if isinstance(parts, str | nn.Module):
        return _select_one(model, parts, argument)
    if not isinstance(parts, Iterable):
        raise InvalidTypeError(
            f"`{argument}` must be a module, a name, a pattern or a sequence of these, but is "
            f"{parts!r} ({type(parts).__name__})."
        )
    selected = [_select_one(model, part, argument) for part in parts]
    if not selected:
        raise InvalidArgumentError(
            f"`{argument}` is empty and selects nothing. Leave it out, or name a part, such as "
            f"{quoted(_top_names(model))}."
        )
    return _union(selected)


def select_last(model: nn.Module, depth: int, argument: str) -> Selection:
    """Select a model's head and the last blocks before it.

    Args:
        model: The model.
        depth: How many blocks, at least 0.
        argument: What the caller calls the depth, for messages.

    Raises:
        InvalidTypeError: `depth` is no whole number.
        InvalidArgumentError: `depth` is negative, or larger than the number of blocks.
        FreezeError: The model's head cannot be found.
    """
    check_whole(**{argument: depth})
    if depth < 0:
        raise InvalidArgumentError(
            f"`{argument}` must be at least 0, but is {depth}. 0 is the head alone."
        )
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
            f"`{argument}` is {depth}, but there are {len(before)} blocks before the head."
        )
    names = [name for block in before[len(before) - depth :] for name in block]
    return _union([whole(head), *(_select_one(model, name, argument) for name in names)])


def blocks(model: nn.Module, head: nn.Module | None = None) -> list[list[str]]:
    """Return the blocks of a model in the order in which it registers them, without its head.

    A block is a child of the model. A container of torch (Sequential, ModuleList, ModuleDict), a
    child with more than half of the model's parameters, and one that has the head inside are
    split into their own children, again and again; parameters that lie directly in what is split
    are a block in front. Modules without parameters belong to the block before them: a ResNet has
    `conv1`, `bn1` (with `relu` and `maxpool`), `layer1.0`, ..., `layer4.1` (with `avgpool`).

    Args:
        model: The model.
        head: A module of it that is no block; none of its own blocks reaches into it.

    Returns:
        The dotted names of modules and parameters of each block.
    """
    half = _size(model) / 2
    found: list[list[str]] = []
    leading: list[str] = []

    def add(name: str, module: nn.Module) -> None:
        if module is head:
            return
        if not _size(module):
            (found[-1] if found else leading).append(name)
        elif _is_split(module, half, head):
            split(f"{name}.", module)
        else:
            found.append([name])

    def split(prefix: str, module: nn.Module) -> None:
        direct = [prefix + name for name, _ in module.named_parameters(recurse=False)]
        if direct:
            found.append(direct)
        for name, child in module.named_children():
            add(prefix + name, child)

    split("", model)
    if found:
        found[0][:0] = leading
    return found


def _is_split(module: nn.Module, half: float, head: nn.Module | None) -> bool:
    # Subclasses of containers are units that somebody named, such as a convolution with its norm.
    container = type(module) in _CONTAINERS
    large = _size(module) > half and any(True for _ in module.children())
    return container or large or (head is not None and head in module.modules())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _select_one(model: nn.Module, part: object, argument: str) -> Selection:
    if isinstance(part, nn.Module):
        return _select_module(model, part, argument)
    if not isinstance(part, str):
        raise InvalidTypeError(
            f"`{argument}` must be modules, names or patterns, but holds {part!r} "
            f"({type(part).__name__})."
        )
    # By the user's own names, without what a compiled part puts into them.
    modules = {own_name(n): m for n, m in model.named_modules(remove_duplicate=False) if n}
    parameters = {own_name(n): n for n, _ in model.named_parameters(remove_duplicate=False)}
    names = [*modules, *parameters]
    # A name as it stands comes first: the brackets of a pattern may belong to a name.
    hits = [part] if part in names else [name for name in names if fnmatchcase(name, part)]
    if not hits:
        near = difflib.get_close_matches(part, names, n=4, cutoff=0.5)
        raise InvalidArgumentError(
            f"`{argument}` has {part!r}, which matches no module and no parameter of the model. "
            + (f"Near it: {quoted(near)}." if near else f"It has {quoted(_top_names(model))}.")
        )
    return _union(
        whole(modules[name])
        if name in modules
        else Selection(parameters=frozenset([parameters[name]]))
        for name in hits
    )


def _select_module(model: nn.Module, part: nn.Module, argument: str) -> Selection:
    members = set(model.modules())
    if part in members:
        return whole(part)
    # `model.layers[:6]` is a new container of modules that are the model's.
    children = list(part.children())
    if type(part) in _CONTAINERS and children and members.issuperset(children):
        return _union(whole(child) for child in children)
    raise InvalidArgumentError(
        f"`{argument}` has a {type(part).__name__} that is no part of the model. It has "
        f"{quoted(_top_names(model))}."
    )


def _union(selections: Iterable[Selection]) -> Selection:
    modules: set[nn.Module] = set()
    parameters: set[str] = set()
    for selection in selections:
        modules |= selection.modules
        parameters |= selection.parameters
    return Selection(frozenset(modules), frozenset(parameters))


def _top_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children()] or [n for n, _ in model.named_parameters()]

"""A model as a tree of its modules, and the runs of repeated blocks in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from finetunelib._wrappers import unwrapped


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A module under one of its names in a model.

    Attributes:
        name: The dotted name, empty for the model itself.
        module: The module, without the wrapper of `torch.compile`.
        children: The submodules. Empty if the module already has a part under an earlier name.
        same_as: That earlier dotted name, or `None`.
    """

    name: str
    module: nn.Module
    children: tuple[Part, ...]
    same_as: str | None

    def walk(self) -> Iterator[Part]:
        """Yield this part and its descendants, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree_of(model: nn.Module) -> Part:
    """Return the tree of a model. Only the first part of each module has children."""
    return _part("", model, {})


def _part(name: str, module: nn.Module, names: dict[nn.Module, str]) -> Part:
    module = unwrapped(module)
    if module in names:
        return Part(name, module, (), names[module])
    names[module] = name
    submodules = {} if packs_weights(module) else module._modules  # noqa: SLF001 - named_children omits repeats
    children = [
        _part(f"{name}.{child_name}" if name else child_name, child, names)
        for child_name, child in submodules.items()
        if child is not None
    ]
    return Part(name, module, tuple(children), None)


def packs_weights(module: nn.Module) -> bool:
    """Return whether a module is quantized and keeps its weights outside of its parameters."""
    return hasattr(module, "_weight_bias")


def runs_of(parts: Sequence[Part], structures: Sequence[object]) -> list[tuple[int, ...]]:
    """Group the children of a module into runs of repeated blocks.

    A run consists of neighbors with equal structures and consecutive numbers as names.

    Args:
        parts: The children.
        structures: The structure of each child.

    Returns:
        The indices of each run, in order. Most runs consist of one child.
    """
    runs: list[tuple[int, ...]] = []
    for index, part in enumerate(parts):
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and _follows(parts[last], part)
            and structures[last] == structures[index]
        ):
            runs[-1] = (*runs[-1], index)
        else:
            runs.append((index,))
    return runs


def _follows(part: Part, following: Part) -> bool:
    """Return whether a name is the successor of another: `layer.1` of `layer.0`.

    The name of a layer must be only a number, because `norm1` and `norm2` are rarely repeats.
    """
    ends = [re.fullmatch(r"(.*?)(\d+)", text) for text in (part.name, following.name)]
    if ends[0] is None or ends[1] is None or ends[0][1] != ends[1][1]:
        return False
    is_block = bool(part.children) or not ends[0][1] or ends[0][1].endswith(".")
    return is_block and int(ends[0][2]) + 1 == int(ends[1][2])

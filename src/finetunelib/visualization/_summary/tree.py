"""A model as a tree of its modules, with repeated blocks side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from finetunelib._wrappers import unwrapped


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A module at its place in a model.

    Attributes:
        name: The dotted name; empty for the model itself.
        module: The module, out of a `torch.compile` that wraps it.
        children: What is below it; empty where it stands elsewhere already.
        same_as: The dotted name under which the same module was met before.
    """

    name: str
    module: nn.Module
    children: tuple[Part, ...]
    same_as: str | None

    def walk(self) -> Iterator[Part]:
        """Yield this part and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree_of(model: nn.Module) -> Part:
    """Return a model as a tree in which each module stands in full once."""
    return _part("", model, {})


def _part(name: str, module: nn.Module, met: dict[nn.Module, str]) -> Part:
    module = unwrapped(module)
    if module in met:
        return Part(name, module, (), met[module])
    met[module] = name
    inside = {} if packs_weights(module) else module._modules  # noqa: SLF001 - named_children drops repeats
    children = [
        _part(f"{name}.{child_name}" if name else child_name, child, met)
        for child_name, child in inside.items()
        if child is not None
    ]
    return Part(name, module, tuple(children), None)


def packs_weights(module: nn.Module) -> bool:
    """Return whether a module is a quantized one, whose weights are in an object of torch's own."""
    return hasattr(module, "_weight_bias")


def runs_of(parts: Sequence[Part], structures: Sequence[object]) -> list[tuple[int, ...]]:
    """Return which neighbours are repeated blocks: of equal structure, under counted-up names.

    Args:
        parts: The children of one module.
        structures: What each looks like; equal values are equal structures.

    Returns:
        The indices of each run of repeated blocks, in order; most are of one.
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
    """Return whether a block's name counts another one's up: `layer.1` after `layer.0`.

    A layer must have a mere number for a name, since `norm1` and `norm2` are seldom neighbours.
    """
    ends = [re.fullmatch(r"(.*?)(\d+)", text) for text in (part.name, following.name)]
    if ends[0] is None or ends[1] is None or ends[0][1] != ends[1][1]:
        return False
    is_block = bool(part.children) or not ends[0][1] or ends[0][1].endswith(".")
    return is_block and int(ends[0][2]) + 1 == int(ends[1][2])

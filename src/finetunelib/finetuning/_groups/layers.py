"""The layers of a model by their depth: from the head back to the inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from finetunelib.finetuning._freezing.blocks import blocks


@dataclass(slots=True)
class Layer:
    """Parts of a model that have the same depth.

    Attributes:
        parts: The dotted names of the modules with parameters, and of parameters in none of them.
        names: The names of all their parameters, each of which belongs to one layer.
        position: The position of the first use of one of them in a forward pass.
        is_head: Whether it is the head.
        is_used: Whether the forward pass uses one of them.
    """

    parts: list[str]
    names: list[str]
    position: float = -math.inf
    is_head: bool = field(default=False, kw_only=True)
    is_used: bool = field(default=True, init=False)


def layers_from_head(
    model: nn.Module, head: nn.Module | None, positions: Mapping[str, int]
) -> list[Layer]:
    """Return the layers of a model, the head first, then the last one before it, and so on.

    The layers are the blocks that `freeze(except_last=...)` counts, in the order in which the
    forward pass uses them. A block whose tensors have at most one dimension, such as a norm,
    belongs to the layer before it, and so does an embedding that follows another one. A parameter
    of a container belongs to the layer that is used last before it, and a block that is not used to
    the layer that is registered before it.

    Args:
        model: An unwrapped model.
        head: The head, or `None` if there is none.
        positions: The position of the first use of each parameter, by name.
    """
    layers, loose = _split(model, head, positions)
    if not layers:
        return [Layer(loose, list(loose))] if loose else []
    layers.sort(key=lambda layer: layer.position)
    _merge_parts(layers, model)
    for name in loose:
        place = positions.get(name, -1)
        before = [layer for layer in layers if layer.position <= place]
        owner = before[-1] if before else layers[0]
        owner.parts.append(name)
        owner.names.append(name)
    # The head comes first, even if another part is used after it.
    layers.reverse()
    layers.sort(key=lambda layer: not layer.is_head)
    return layers


def _split(
    model: nn.Module, head: nn.Module | None, positions: Mapping[str, int]
) -> tuple[list[Layer], list[str]]:
    """Return the layers as they are registered, and the parameters of containers.

    A parameter that several layers share belongs to the one that uses it first.
    """
    owned = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in owned.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: list[Layer] = []
    loose: list[str] = []
    for block in blocks(model, head):
        alone = [part for part in block if part not in modules]
        loose += [name for name in alone if name in owned]
        parts = [part for part in block if part in modules and _has_parameters(modules[part])]
        if parts:
            layers.append(Layer(parts, [n for p in parts for n in _names_in(modules[p], names)]))
    if head is not None:
        found = next(name for name, module in modules.items() if module is head)
        layers.append(Layer([found], list(_names_in(head, names)), is_head=True))
    _place(layers, positions)
    seen: set[str] = set()
    for layer in sorted(layers, key=lambda layer: layer.position):
        layer.names = [n for n in dict.fromkeys(layer.names) if n not in seen]
        seen.update(layer.names)
    return [layer for layer in layers if layer.names], [n for n in loose if n not in seen]


def _place(layers: list[Layer], positions: Mapping[str, int]) -> None:
    """Set the positions of the layers. An unused one has that of the layer registered before it."""
    before = -1.0
    for layer in layers:
        used = [positions[name] for name in layer.names if name in positions]
        # Unused heads are still the end of the model.
        unused = math.inf if layer.is_head else before
        layer.position = before = min(used, default=unused)
        layer.is_used = bool(used)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _names_in(module: nn.Module, names: Mapping[int, str]) -> Iterator[str]:
    for parameter in module.parameters():
        yield names[id(parameter)]


def _merge_parts(layers: list[Layer], model: nn.Module) -> None:
    """Join norms and unused layers with the one before them, or else the next, and embeddings."""
    parameters = dict(model.named_parameters())
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    def is_small(layer: Layer) -> bool:
        small = all(parameters[name].dim() <= 1 for name in layer.names)
        return not layer.is_head and (small or not layer.is_used)

    def is_embedding(layer: Layer) -> bool:
        matrices = [parameters[n] for n in layer.names if parameters[n].dim() > 1]
        return not layer.is_head and all(id(matrix) in tables for matrix in matrices)

    number = 1
    while number < len(layers):
        before, layer = layers[number - 1], layers[number]
        joined = is_small(layer) or (is_embedding(before) and is_embedding(layer))
        if joined and not before.is_head:
            before.parts += layer.parts
            before.names += layer.names
            del layers[number]
        elif is_small(before) and not layer.is_head:  # Only the first layer is still small here.
            layer.parts[:0], layer.names[:0] = before.parts, before.names
            layer.position = before.position
            del layers[number - 1]
        else:
            number += 1

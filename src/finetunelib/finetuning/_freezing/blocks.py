"""The blocks of a model, for freezing by depth from the head."""

from __future__ import annotations

from torch import nn

#: The containers of PyTorch that always consist of their children.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(model: nn.Module, head: nn.Module | None = None) -> list[list[str]]:
    """Return the blocks of a model without its head, in the order in which it registers them.

    A block is a child of the model. Four kinds of children are split into their own children,
    repeatedly: a PyTorch container (Sequential, ModuleList, ModuleDict), a child with more than
    half of the model's parameters, a child that contains the head, and a child whose parameters are
    mostly in a ModuleList, such as the encoder of a transformer (but no item of a container, such
    as a layer with several experts). The direct parameters of a split module are a block before
    its children. Modules without parameters belong to the block
    before them. A ResNet has the blocks `conv1`, `bn1` (with `relu` and `maxpool`), `layer1.0`,
    ..., `layer4.1` (with `avgpool`).

    Args:
        model: The model.
        head: A module of the model that belongs to no block.

    Returns:
        The dotted names of the modules and parameters of each block.
    """
    half = _size(model) / 2
    found: list[list[str]] = []
    leading: list[str] = []

    def add(name: str, module: nn.Module, parent: nn.Module) -> None:
        if module is head:
            return
        if not _size(module):
            (found[-1] if found else leading).append(name)
        elif _is_split(module, half, head) or (
            type(parent) not in CONTAINERS and _is_list_of_layers(module)
        ):
            split(f"{name}.", module)
        else:
            found.append([name])

    def split(prefix: str, module: nn.Module) -> None:
        direct = [prefix + name for name, _ in module.named_parameters(recurse=False)]
        if direct:
            found.append(direct)
        for name, child in module.named_children():
            add(prefix + name, child, module)

    split("", model)
    if found:
        found[0][:0] = leading
    return found


def _is_split(module: nn.Module, half: float, head: nn.Module | None) -> bool:
    # A subclass of a container is one unit, such as a convolution with its norm.
    container = type(module) in CONTAINERS
    large = _size(module) > half and any(True for _ in module.children())
    return container or large or (head is not None and head in module.modules())


def _is_list_of_layers(module: nn.Module) -> bool:
    """Return whether most parameters of a module are in a list of several modules."""
    lists = [child for child in module.children() if type(child) is nn.ModuleList]
    return any(len(layers) > 1 and _size(layers) > _size(module) / 2 for layers in lists)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

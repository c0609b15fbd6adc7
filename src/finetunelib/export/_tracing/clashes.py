"""Renames values inside a graph that have the name of an input or output."""

from __future__ import annotations

from typing import Any


def resolve_clashes(program: Any) -> None:
    """Rename inner values and weights of a program whose names are also those of its interface.

    Args:
        program: A program of PyTorch's exporter; changed in place.
    """
    graph = program.model.graph
    interface = [*graph.inputs, *graph.outputs]
    taken = {value.name for value in interface}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    inner += graph.initializers.values()
    known = taken | {value.name for value in inner}
    for value in inner:
        if value.name in taken and not any(value is other for other in interface):
            number = 1
            while f"{value.name}_inner_{number}" in known:
                number += 1
            value.name = f"{value.name}_inner_{number}"
            known.add(value.name)

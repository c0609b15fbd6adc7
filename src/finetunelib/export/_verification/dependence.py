"""Which outputs of a file do not depend on the values of its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

#: Operators whose outputs depend on the shape of a tensor only.
_SHAPES = ("Shape", "Size")


def independent_outputs(graph: Any, inputs: Collection[str]) -> set[str]:
    """Return the outputs that no value of an input reaches, such as a table or a parameter.

    Args:
        graph: The `onnx.GraphProto`. Its weights may be left out.
        inputs: The names of the inputs, without weights.
    """
    dependent = set(inputs)
    for node in graph.node:  # In topological order.
        if node.op_type not in _SHAPES and any(name in dependent for name in _uses(node)):
            dependent.update(node.output)
    return {value.name for value in graph.output} - dependent


def _uses(node: Any) -> Iterator[str]:
    """Yield the values that a node uses, in the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _uses(inner)

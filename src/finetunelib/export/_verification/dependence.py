"""Which outputs of a file do not depend on the values of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetunelib.export._model_file import read_onnx
from finetunelib.export._verification.runtime import graph_inputs

#: Operators whose outputs depend on the shape of a tensor only.
_SHAPES = ("Shape", "Size")


def independent_outputs(file: Path) -> set[str]:
    """Return the outputs that no value of an input reaches, such as a table or a parameter."""
    graph = read_onnx(file).graph
    dependent = {value.name for value in graph_inputs(graph)}
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

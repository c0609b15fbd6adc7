"""Single changes to an ONNX graph, and a check that each of them is detected."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from finetunelib import export_onnx
from finetunelib.errors import ExportMismatchError
from finetunelib.export import Verification, verify_onnx
from finetunelib.export._tracing import exporter
from finetunelib.export._verification import verify as verification
from support_onnx import Array

Mutation = Callable[[ModelProto], None]


def node(model: ModelProto, output: str) -> NodeProto:
    """Return the node that computes a value."""
    found: NodeProto = next(n for n in model.graph.node if output in n.output)
    return found


def only(model: ModelProto, operator: str, number: int = 0) -> NodeProto:
    """Return a node of an operator, by its number in the graph."""
    found: NodeProto = [n for n in model.graph.node if n.op_type == operator][number]
    return found


def weights(name: str, change: Callable[[Array], Array]) -> Mutation:
    """Change the values of an initializer, or its shape."""

    def mutate(model: ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        changed = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), name))

    return mutate


def one_weight(name: str, by: float) -> Mutation:
    """Change a single number of an initializer."""

    def change(values: Array) -> Array:
        values.flat[values.size // 2] += by
        return values

    return weights(name, change)


def swapped_weights(first: str, second: str) -> Mutation:
    """Swap two initializers of the same shape."""

    def mutate(model: ModelProto) -> None:
        for n in model.graph.node:
            swap = {first: second, second: first}
            n.input[:] = [swap.get(name, name) for name in n.input]

    return mutate


def attributes(output: str, **changed: Any) -> Mutation:
    """Set attributes of a node."""

    def mutate(model: ModelProto) -> None:
        set_attributes(node(model, output), changed)

    return mutate


def set_attributes(of: NodeProto, changed: Mapping[str, Any]) -> None:
    """Set attributes of a node, replacing those with the same names."""
    kept = [attribute for attribute in of.attribute if attribute.name not in changed]
    del of.attribute[:]
    of.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in changed.items())])


def operator(output: str, name: str, **changed: Any) -> Mutation:
    """Change the operator and the attributes of a node."""

    def mutate(model: ModelProto) -> None:
        found = node(model, output)
        found.op_type = name
        del found.attribute[:]
        del found.input[1:]
        set_attributes(found, changed)

    return mutate


def removed(output: str, *, source: int = 0) -> Mutation:
    """Remove a node, and use one of its inputs in place of its output."""

    def mutate(model: ModelProto) -> None:
        found = node(model, output)
        for n in model.graph.node:
            n.input[:] = [found.input[source] if name == output else name for name in n.input]
        model.graph.node.remove(found)

    return mutate


def rewired(output: str, position: int, source: str) -> Mutation:
    """Change an input of a node."""

    def mutate(model: ModelProto) -> None:
        node(model, output).input[position] = source

    return mutate


def inserted(output: str, *operators: tuple[str, dict[str, Any], list[float]]) -> Mutation:
    """Insert operators after a node. The output of the last one has the name of the node's."""

    def mutate(model: ModelProto) -> None:
        found = node(model, output)
        position = list(model.graph.node).index(found) + 1
        found.output[list(found.output).index(output)] = before = f"{output}_inserted"
        for number, (name, given, constants) in enumerate(operators):
            names = [f"inserted_{number}_{i}" for i in range(len(constants))]
            model.graph.initializer.extend(
                numpy_helper.from_array(np.array(value, np.float32), constant)
                for constant, value in zip(names, constants, strict=True)
            )
            last = number == len(operators) - 1
            after = output if last else f"{output}_inserted_{number}"
            extra = helper.make_node(name, [before, *names], [after], f"inserted_{name}", **given)
            model.graph.node.insert(position + number, extra)
            before = after

    return mutate


def both(*mutations: Mutation) -> Mutation:
    """Apply several changes."""

    def mutate(model: ModelProto) -> None:
        for mutation in mutations:
            mutation(model)

    return mutate


def fixed_input(size: int) -> Mutation:
    """Fix the batch size of the first input."""

    def mutate(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    return mutate


@dataclass(frozen=True)
class Exported:
    """A model, its exported file, and batches to compare them on."""

    model: nn.Module
    file: onnx.ModelProto
    batches: Sequence[Tensor]
    options: dict[str, Any]


def exported(folder: Path, model: nn.Module, *batches: Tensor, **options: Any) -> Exported:
    """Export a model on the last of the batches."""
    path = folder / "model.onnx"
    export_onnx(model, path, batches[-1], verify=False, **options)
    return Exported(model, onnx.load(path), batches, options)


def verify(made: Exported, mutation: Mutation, path: Path) -> Verification:
    """Compare a changed file with the model."""
    changed = copy.deepcopy(made.file)
    mutation(changed)
    onnx.save(changed, path)
    return verify_onnx(path, made.model, made.batches, **made.options)


def check_found(
    made: Exported, mutation: Mutation, path: Path, node: str | None, module: str
) -> None:
    """Assert that a changed file is detected, and that the node and modules are named."""
    with pytest.raises(ExportMismatchError) as caught:
        verify(made, mutation, path)
    assert (caught.value.node, caught.value.module) == (node, module)
    for name in [*module.split(", "), *([] if node is None else [node])]:
        assert f"`{name}`" in str(caught.value)


def trace_once(monkeypatch: pytest.MonkeyPatch, programs: dict[str, Any]) -> None:
    """Trace a model once for all of its changed files."""
    real = exporter.trace

    def trace(model: nn.Module, inputs: Any, *, axes: Any, **rest: Any) -> Any:
        key = f"{model} {axes}"
        if key not in programs:
            programs[key] = real(model, inputs, axes=axes, **rest)
        return programs[key]

    monkeypatch.setattr(verification, "trace", trace)

"""A file with changes that do not affect its outputs is still verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto, TensorProto, helper

from finetunelib import build_mlp
from support_models import samples
from support_mutations import (
    Exported,
    Mutation,
    attributes,
    check_found,
    exported,
    node,
    operator,
    trace_once,
    verify,
)

pytestmark = pytest.mark.slow

_programs: dict[str, Any] = {}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A multilayer perceptron and its file."""
    rows = [samples(n, 4, seed=n) for n in (1, 2, 7)]
    return exported(tmp_path_factory.mktemp("exported"), build_mlp(4, [8, 6], 3, seed=0), *rows)


def _identity(model: ModelProto) -> None:
    extra = helper.make_node("Identity", ["relu"], ["relu_again"], "again")
    node(model, "linear_1").input[0] = "relu_again"
    model.graph.node.insert(2, extra)


def _renamed_nodes(model: ModelProto) -> None:
    for number, found in enumerate(model.graph.node):
        found.name = f"other_{number}"


def _renamed_values(model: ModelProto) -> None:
    names = {"relu": "hidden", "linear": "before"}
    for found in model.graph.node:
        found.input[:] = [names.get(name, name) for name in found.input]
        found.output[:] = [names.get(name, name) for name in found.output]
    del model.graph.value_info[:]


def _no_names(model: ModelProto) -> None:
    for found in model.graph.node:
        found.name = ""


def _reordered_weights(model: ModelProto) -> None:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def _described(model: ModelProto) -> None:
    model.doc_string = model.graph.doc_string = "Some words."
    model.metadata_props.add(key="author", value="somebody")
    for found in model.graph.node:
        found.doc_string = "A node."
        del found.metadata_props[:]


def _unused(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["relu"], ["nowhere"], "unused"))


def _weights_as_constants(model: ModelProto) -> None:
    for tensor in list(model.graph.initializer):
        value = TensorProto()
        value.CopyFrom(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=value))
        model.graph.initializer.remove(tensor)


def _gemm_as_matmul(model: ModelProto) -> None:
    gemm = node(model, "linear")
    at = list(model.graph.node).index(gemm)
    model.graph.node.remove(gemm)
    steps = [
        helper.make_node("Transpose", [gemm.input[1]], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", [gemm.input[0], "turned"], ["product"]),
        helper.make_node("Add", ["product", gemm.input[2]], ["linear"]),
    ]
    for number, step in enumerate(steps):
        model.graph.node.insert(at + number, step)


@pytest.mark.parametrize(
    "change",
    [
        _identity,
        _renamed_nodes,
        _renamed_values,
        _no_names,
        _reordered_weights,
        _described,
        _unused,
        _weights_as_constants,
        _gemm_as_matmul,
    ],
)
def test_a_change_of_no_effect_is_verified(mlp: Exported, tmp_path: Path, change: Mutation) -> None:
    """Only what the file computes is compared, and not its structure."""
    assert verify(mlp, change, tmp_path / "changed.onnx").status == "verified"


@pytest.mark.parametrize("change", [_identity, _renamed_nodes, _unused, _weights_as_constants])
def test_a_change_of_no_effect_does_not_hide_another(
    mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Mutation
) -> None:
    """An error is located even if the file also has harmless changes."""
    trace_once(monkeypatch, _programs)

    def mutate(model: ModelProto) -> None:
        attributes("output", alpha=2.0)(model)
        change(model)

    name = "other_4" if change is _renamed_nodes else "node_linear_2"
    check_found(mlp, mutate, tmp_path / "changed.onnx", name, "head")


def test_a_node_without_a_name_is_named_by_its_output(
    mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of nodes are optional in ONNX, but names of values are not."""
    trace_once(monkeypatch, _programs)

    def mutate(model: ModelProto) -> None:
        operator("relu", "Abs")(model)
        _no_names(model)

    check_found(mlp, mutate, tmp_path / "changed.onnx", "relu", "backbone.2")

"""Checks inside the graph of the assumptions of the exporter about sizes."""

from __future__ import annotations

# The types that sympy declares are narrower than what it accepts.
# pyright: reportArgumentType=false, reportOperatorIssue=false
import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import sympy  # type: ignore[import-untyped]
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from finetunelib import export_onnx
from finetunelib.errors import ExportError
from finetunelib.export import load_onnx_metadata, verify_onnx
from finetunelib.export._tracing.conditions import (
    always_holds,
    axis_symbol,
    simplified,
    text,
    without_implied,
)
from finetunelib.export._tracing.size_checks import add_size_checks
from support_models import Difference, Function, samples

_A, _B = axis_symbol("a"), axis_symbol("b")


def _first_sixteen(x: Tensor) -> Tensor:
    return (x[:, :16] if x.shape[1] > 16 else x).mean(1)


def _one_is_special(x: Tensor) -> Tensor:
    return (2 * x if x.shape[1] == 1 else x).mean(1)


@pytest.mark.parametrize(
    ("condition", "shown"),
    [
        (sympy.Eq(_A, Min(40, _A)), "a <= 40"),
        (sympy.Eq(Max(5, _A), _A), "a >= 5"),
        (sympy.Ne(_A, Min(40, _A)), "a > 40"),
        (sympy.Eq(Mod(4 * _A * _B, 16 * _B), 0), "a % 4 == 0"),
        (sympy.Eq(_A * _B, 4 * _B * FloorDiv(_A, 4)), "a % 4 == 0"),
        (sympy.Le(1, FloorDiv(_A, 2)), "a >= 2"),
        (sympy.Eq(_A, _B), "a == b"),
        (sympy.Or(_A <= 3, sympy.Eq(_B, 2)), "a <= 3 or b == 2"),
        (sympy.Eq(_A, 3 * FloorDiv(_A, 2)), "a == 3*(a//2)"),
    ],
)
def test_conditions_are_simplified_and_readable(condition: Any, shown: str) -> None:
    """Conditions appear in the report and in the names of nodes."""
    assert text(simplified(condition)) == shown


def test_conditions_that_always_hold_or_follow_from_others_are_left_out() -> None:
    """Checking them would only take time."""
    assert always_holds(3 * _A * _B > 1)
    assert not always_holds(_A <= 40)
    both = [_A <= 40, sympy.Or(_A <= 40, sympy.Eq(Min(40, _A), 1)), _A <= 40]
    assert without_implied(both) == [_A <= 40]


@pytest.mark.parametrize(
    "condition",
    [
        _A <= 7,
        _A > _B,
        sympy.Ne(_A, 5),
        sympy.Eq(Mod(_A, 4), 0),
        sympy.Eq(FloorDiv(_A - 9, 4), -1),
        sympy.And(_A >= 3, sympy.Or(_A <= 6, sympy.Eq(_B, 9))),
        sympy.Not(sympy.And(_A >= 3, _A + 2 * _B <= 20), evaluate=False),
        sympy.Lt(Min(_A, _B) * Max(_A, 6), 40),
    ],
    ids=text,
)
def test_a_graph_runs_only_at_sizes_that_meet_a_condition(condition: Any) -> None:
    """This holds in ONNX Runtime and in the reference implementation, for sizes of two axes."""
    import onnx_ir as ir

    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["a", "b"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["a", "b"])
    nodes = [onnx.helper.make_node("Neg", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [shape], [result])
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    model = ir.serde.deserialize_model(proto)
    add_size_checks(model.graph, [condition], [{0: "a", 1: "b"}])
    checked = ir.serde.serialize_model(model)
    onnx.checker.check_model(checked, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(checked.SerializeToString(), options)
    reference = ReferenceEvaluator(checked)
    for sizes in [(a, b) for a in (1, 3, 4, 5, 7, 8, 12) for b in (1, 6, 9)]:
        feed = {"x": samples(*sizes).numpy()}
        meets = bool(condition.subs(dict(zip((_A, _B), sizes, strict=True))))
        assert _runs(lambda feed=feed: session.run(None, feed)) == meets, sizes
        assert _runs(lambda feed=feed: reference.run(None, feed)) == meets, sizes


def _runs(call: Any) -> bool:
    try:
        call()
    # Neither engine documents its exceptions.
    except Exception as error:  # noqa: BLE001
        return not re.search("required_|index", str(error))
    return True


def test_a_condition_that_onnx_cannot_express_is_refused() -> None:
    """The condition must not be dropped silently."""
    import onnx_ir as ir

    value = ir.Value(name="x", shape=ir.Shape(["a"]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Neg", [value])
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 20})
    with pytest.raises(ExportError, match=r"cos\(a\).*Dim"):
        add_size_checks(graph, [sympy.cos(_A) > 0], [{0: "a"}])


@pytest.mark.slow
def test_a_branch_is_checked_by_the_graph_without_verification(tmp_path: Path) -> None:
    """The file is valid on one side of the branch, and raises an error on the other."""
    for function, right, wrong, shown in (
        (_first_sixteen, 16, 17, "length <= 16"),
        (_one_is_special, 2, 1, "length != 1"),
    ):
        report = export_onnx(
            Function(function),
            tmp_path / "m.onnx",
            samples(2, 12, 4),
            dynamic_shapes=[{1: "length"}],
            verify=False,
        )
        assert report.size_checks == (shown,)
        assert shown in str(report)
        assert load_onnx_metadata(report.path)["size_checks"] == [shown]
        session = onnxruntime.InferenceSession(report.path)
        session.run(None, {"inputs": samples(3, right, 4).numpy()})
        with pytest.raises(Exception, match="required_length"):
            session.run(None, {"inputs": samples(3, wrong, 4).numpy()})


@pytest.mark.slow
def test_a_model_that_needs_multiples_gets_a_check_of_them(tmp_path: Path) -> None:
    """Neither the model nor the file accepts other sizes, and `verify_onnx` does not try them."""

    def groups(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, 4, 3).mean(2).sum(1)

    model = Function(groups)
    report = export_onnx(
        model, tmp_path / "m.onnx", samples(2, 12, 3), dynamic_shapes=[{1: "length"}]
    )
    assert report.size_checks == ("length % 4 == 0",)
    assert report.verification is not None
    assert report.verification.limits == {}
    assert verify_onnx(report.path, model, [samples(3, 12, 3)]).status == "verified"


@pytest.mark.slow
def test_two_axes_that_must_be_equal_are_checked(tmp_path: Path) -> None:
    """The exporter merges two such axes and does not report it."""
    report = export_onnx(
        Difference(),
        tmp_path / "m.onnx",
        (samples(2, 12, 4), samples(2, 12, 4, seed=2)),
        dynamic_shapes=[{1: "a"}, {1: "b"}],
    )
    assert report.size_checks == ("a == b",)


@pytest.mark.slow
def test_a_declared_range_is_checked_and_known_to_later_comparisons(tmp_path: Path) -> None:
    """`verify_onnx` does not compare at sizes outside the range."""
    from torch.export import Dim

    model = Function(_first_sixteen)
    steps: Any = [{1: Dim("length", min=10, max=16)}]
    report = export_onnx(model, tmp_path / "m.onnx", samples(2, 12, 4), dynamic_shapes=steps)
    assert report.size_checks == ("length >= 10", "length <= 16")
    verification = verify_onnx(report.path, model, [samples(5, 16, 4)])
    assert verification.status == "verified"
    assert verification.limits == {"length": (10, 16)}

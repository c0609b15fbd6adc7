"""Checks of sizes inside a graph: ONNX Runtime stops at a size for which the graph is not right.

A check is made of operators that every version has. If a condition does not hold, a Gather reads
index 1 of a table of one zero, which is an error whose message has the name of the node. Otherwise
it reads the zero, which is added to the shape to which an input is reshaped: its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetunelib.errors import ExportError
from finetunelib.export._request.dynamic_axes import AxisName, derived_size, root_name
from finetunelib.export._tracing.conditions import relation, text

#: The annotation of a node that checks a size.
CHECK = "check"

#: What the signs are called in the name of a node.
_WORDS = {
    "<=": "at_most", ">=": "at_least", "<": "below", ">": "above", "==": "equal", "!=": "not_equal",
    "%": "modulo", "//": "divided_by", "*": "times", "+": "plus", "-": "minus",
}  # fmt: skip

#: The operator of each relation, and whether its result is negated.
_RELATIONS = {
    "Eq": ("Equal", False),
    "Ne": ("Equal", True),
    "Lt": ("Less", False),
    "Gt": ("Greater", False),
    "Le": ("Greater", True),
    "Ge": ("Less", True),
}


def add_size_checks(
    graph: Any, conditions: Sequence[Any], axes: Sequence[Mapping[int, AxisName]]
) -> None:
    """Add a check for each condition to a graph.

    Args:
        graph: The graph of a program of PyTorch's exporter; changed in place.
        conditions: Conditions on the sizes of axes.
        axes: The dynamic axes of each input.

    Raises:
        ExportError: If a condition cannot be written with operators of ONNX.
    """
    if not conditions:
        return
    used = [value for value in graph.inputs if value.uses()]
    dynamic = [
        value for value, own in zip(graph.inputs, axes, strict=True) if own and value in used
    ]
    guarded = next(iter([*dynamic, *used]), None)
    if guarded is None:
        return  # Nothing is computed from the inputs.
    uses = list(guarded.uses())
    checks = _Checks(graph, axes)
    shape = checks.add("Shape", guarded)
    for condition in conditions:
        shape = checks.add("Add", shape, checks.zero_if(condition))
    result = checks.add("Reshape", guarded, shape, name=f"{guarded.name}_of_checked_size")
    result.shape, result.type = guarded.shape, guarded.type
    for node, position in uses:
        node.replace_input_with(position, result)
    if len(graph):
        graph.insert_before(graph[0], checks.nodes)
    else:
        graph.extend(checks.nodes)


class _Checks:
    """Builds the nodes of checks."""

    def __init__(self, graph: Any, axes: Sequence[Mapping[int, AxisName]]) -> None:
        self.nodes: list[Any] = []
        self._sizes: dict[str, Any] = {}
        self._places = {
            root_name(name): (value, axis, name)
            for value, own in reversed(list(zip(graph.inputs, axes, strict=True)))
            for axis, name in own.items()
        }
        names = [value.name for value in (*graph.inputs, *graph.initializers.values())]
        names += [value.name for node in graph.all_nodes() for value in node.outputs]
        self._taken = set(filter(None, names))

    def add(self, kind: str, *inputs: Any, name: str = "size_check", **attributes: Any) -> Any:
        """Add a node, and return its output."""
        import onnx_ir as ir

        free, number = name, 1
        while free in self._taken:
            free, number = f"{name}_{number}", number + 1
        self._taken.add(free)
        node = ir.node(kind, inputs, attributes, name=free)
        node.outputs[0].name = free
        self.nodes.append(node)
        return node.outputs[0]

    def zero_if(self, condition: Any) -> Any:
        """Return a zero that can be read only if a condition holds."""
        index = self.add("Cast", self._is(condition, true=False), to=_int64())
        shown = text(condition)
        result = self.add("Gather", self._constant([0]), index, name=_name(shown))
        result.producer().metadata_props[CHECK] = shown
        result.producer().doc_string = f"The sizes of the inputs must be such that {shown}."
        return result

    def _is(self, condition: Any, *, true: bool) -> Any:
        """Return whether a condition is true, or whether it is false."""
        kind = type(condition).__name__
        if kind in ("And", "Or"):
            first, *others = [self._is(argument, true=true) for argument in condition.args]
            operator = kind if true else {"And": "Or", "Or": "And"}[kind]
            for other in others:
                first = self.add(operator, first, other)
            return first
        if kind == "Not":
            return self._is(condition.args[0], true=not true)
        sign = relation(condition)
        if sign is None:
            raise _unknown(condition)
        operator, negated = _RELATIONS[sign]
        result = self.add(operator, *map(self._number, condition.args))
        return self.add("Not", result) if negated == true else result

    def _number(self, expression: Any) -> Any:
        kind = type(expression).__name__
        if expression.is_Symbol:
            return self._size(str(expression))
        if expression.is_Integer:
            return self._constant(int(expression))
        numbers = [self._number(argument) for argument in expression.args]
        if kind in ("Add", "Mul"):
            first, *others = numbers
            for other in others:
                first = self.add(kind, first, other)
            return first
        if kind in ("Min", "Max"):
            first, *others = numbers
            for other in others:
                smaller = self.add("Less", first, other)
                pair = (first, other) if kind == "Min" else (other, first)
                first = self.add("Where", smaller, *pair)
            return first
        if kind in ("Mod", "PythonMod"):
            return self.add("Mod", *numbers)
        if kind in ("FloorDiv", "CleanDiv"):
            # Div rounds to zero, and the sum of sizes may be negative.
            rest = self.add("Mod", *numbers)
            return self.add("Div", self.add("Sub", numbers[0], rest), numbers[1])
        raise _unknown(expression)

    def _size(self, name: str) -> Any:
        if name not in self._sizes:
            value, axis, own = self._places[name]
            size = self.add("Gather", self.add("Shape", value), self._constant(axis))
            start = derived_size(own, 0)
            step = derived_size(own, 1) - start
            if (step, start) != (1, 0):
                size = self.add("Sub", size, self._constant(start))
                size = self.add("Div", size, self._constant(step))
            self._sizes[name] = size
        return self._sizes[name]

    def _constant(self, number: int | list[int]) -> Any:
        if isinstance(number, list):
            return self.add("Constant", value_ints=number)
        return self.add("Constant", value_int=number)


def _int64() -> int:
    import onnx_ir as ir

    return int(ir.DataType.INT64)


def _name(shown: str) -> str:
    """Return the name of a node, which is all that an error of ONNX Runtime shows."""
    for sign, word in _WORDS.items():
        shown = shown.replace(sign, f" {word} ")
    return "required_" + "_".join(re.findall(r"\w+", shown))


def _unknown(expression: Any) -> ExportError:
    return ExportError(
        f"The exported graph is right only for sizes with a condition on `{text(expression)}`, "
        "which ONNX cannot check. Declare the range of the axis that you need with "
        "`torch.export.Dim(name, min=..., max=...)` in `dynamic_shapes`."
    )

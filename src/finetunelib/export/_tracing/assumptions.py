"""What the exporter assumed about the sizes of inputs, which the ONNX graph does not contain.

A branch on a size, such as `if x.shape[1] > 16`, is decided once. The exporter records the
condition under which the decision is right, and drops it when it writes the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib.export._request.dynamic_axes import AxisName, bounds, derived_size, root_name
from finetunelib.export._tracing.conditions import (
    always_holds,
    axis_symbol,
    integers,
    simplified,
    without_implied,
)

#: How many sizes are tried for one condition, and the largest number in it that is considered.
_MOST_TRIES, _LARGEST = 64, 1 << 20

Sizes = Mapping[str, int]


@dataclass(slots=True)
class Assumptions:
    """Conditions on the sizes of dynamic axes, as sympy expressions of `axis_symbol`."""

    conditions: list[Any] = field(default_factory=list)


def holds(condition: Any, sizes: Sizes) -> bool:
    """Return whether a condition holds for some sizes.

    What cannot be decided counts as holding.
    """
    values = {symbol: sizes[str(symbol)] for symbol in condition.free_symbols}
    return str(condition.subs(values)) != "False"


def violations(condition: Any, sizes: Sizes) -> list[dict[str, int]]:
    """Return sizes at which a condition does not hold, with one axis other than in `sizes`.

    For each axis, these are the nearest size below and above, and one that is farther away.
    """
    found: list[dict[str, int]] = []
    for name in sorted(map(str, condition.free_symbols)):
        here = sizes[name]
        failing = [
            size
            for size in _candidates(condition, here, sizes)
            if not holds(condition, {**sizes, name: size})
        ]
        for side in (
            [size for size in failing if size < here],
            [size for size in failing if size > here],
        ):
            # The candidates are in the order of their distance.
            found += [{**sizes, name: size} for size in dict.fromkeys((*side[:1], *side[-1:]))]
    return found


def _candidates(condition: Any, here: int, sizes: Sizes) -> list[int]:
    numbers = {here, *sizes.values(), *integers(condition, _LARGEST)}
    near = {size + step for size in numbers for step in (-1, 0, 1) if 0 < size + step < _LARGEST}
    near |= {1, max(1, here // 2), here * 2}
    return sorted(near, key=lambda size: abs(size - here))[:_MOST_TRIES]


@contextlib.contextmanager
def recording_assumptions(
    model: nn.Module, inputs: Inputs, axes: Sequence[Mapping[int, AxisName]]
) -> Iterator[Assumptions]:
    """Yield the assumptions of an export in the block; they are complete at its end.

    Args:
        model: The module that is exported.
        inputs: The inputs that it is traced with.
        axes: The dynamic axes of each input.
    """
    found = Assumptions()
    environments: list[tuple[Any, list[Tensor]]] = []

    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_dynamo_compiling():
            return
        tensors = [*args[: len(inputs.args)], *(kwargs.get(name) for name in inputs.kwargs)]
        for tensor in tensors:
            environment = getattr(getattr(tensor, "fake_mode", None), "shape_env", None)
            if environment is not None:
                environments.append((environment, tensors))
                return

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
    if environments:
        found.conditions += [*_declared(axes), *_recorded(*environments[-1], axes)]
        found.conditions[:] = without_implied(found.conditions)


def _declared(axes: Sequence[Mapping[int, AxisName]]) -> Iterator[Any]:
    """Yield the bounds that the user declared, within which the exporter decides branches."""
    for name in (name for own in axes for name in own.values()):
        yield from _range(axis_symbol(root_name(name)), *bounds(name))


def _recorded(
    environment: Any, tensors: Sequence[Any], axes: Sequence[Mapping[int, AxisName]]
) -> Iterator[Any]:
    """Yield the conditions in the exporter's shape environment."""
    own = _symbols(tensors, axes)
    asserts = [a for group in environment.deferred_runtime_asserts.values() for a in group]
    for assumed in (*environment.guards, *asserts):
        condition = assumed.expr
        if condition.free_symbols and condition.free_symbols <= own.keys():
            condition = simplified(condition.xreplace(own))
            if not always_holds(condition):
                yield condition
    for symbol, size in own.items():
        limits = environment.var_to_range.get(symbol)
        if limits is not None and size.is_Symbol:
            low, high = _integer(limits.lower), _integer(limits.upper)
            yield from _range(size, low, high)


def _symbols(tensors: Sequence[Any], axes: Sequence[Mapping[int, AxisName]]) -> dict[Any, Any]:
    """Return the size of each dynamic axis by the exporter's symbol for it.

    Two axes that the exporter found to be equal have different symbols, which keeps this condition.
    """
    found: dict[Any, Any] = {}
    for tensor, own in zip(tensors, axes, strict=True):
        for axis, name in own.items():
            node = getattr(tensor.shape[axis], "node", None)
            symbol = getattr(node, "_expr", None)
            if getattr(symbol, "is_Symbol", False):
                start = derived_size(name, 0)
                step = derived_size(name, 1) - start
                found[symbol] = step * axis_symbol(root_name(name)) + start
    return found


def _range(symbol: Any, low: int | None, high: int | None) -> Iterator[Any]:
    # The exporter starts at 2, because it treats a size of 1 as a constant.
    if low is not None and low > 2:
        yield symbol >= low
    if high is not None:
        yield symbol <= high


def _integer(limit: Any) -> int | None:
    """Return a limit as a number, `None` if it is infinite."""
    return int(limit) if limit.is_Integer and abs(int(limit)) < _LARGEST else None

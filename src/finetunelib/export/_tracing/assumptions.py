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
from finetunelib.export._request.dynamic_axes import AxisName, root_name

#: How many sizes are tried for one condition, and the largest number in it that is considered.
_MOST_TRIES, _LARGEST = 64, 1 << 20

Sizes = Mapping[str, int]


@dataclass(slots=True)
class Assumptions:
    """Conditions on the sizes of dynamic axes, as sympy expressions, and the axes' symbols."""

    conditions: list[Any] = field(default_factory=list)
    symbols: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def violations(self, sizes: Sizes) -> list[dict[str, int]]:
        """Return sizes near the given ones at which a condition does not hold."""
        found: list[dict[str, int]] = []
        for condition in self.conditions:
            for name, symbol in self.symbols.items():
                if symbol in condition.free_symbols:
                    found += self._nearest(condition, name, sizes)
        for name, (low, high) in self.ranges.items():
            for size in (low - 1, None if high is None else high + 1):
                if size is not None and 0 < size < _LARGEST:
                    found.append({**sizes, name: size})
        return [dict(items) for items in dict.fromkeys(tuple(each.items()) for each in found)]

    def fail(self, sizes: Sizes) -> bool:
        """Return whether a condition does not hold for these sizes."""
        for name, (low, high) in self.ranges.items():
            if sizes[name] < low or (high is not None and sizes[name] > high):
                return True
        return any(not self._holds(condition, sizes) for condition in self.conditions)

    def texts(self) -> list[str]:
        """Return the conditions, with the names of the axes."""
        names = {symbol: name for name, symbol in self.symbols.items()}
        return sorted({str(condition.subs(names)) for condition in self.conditions})

    def _nearest(self, condition: Any, name: str, sizes: Sizes) -> list[dict[str, int]]:
        """Return the nearest size of one axis below and above at which a condition fails."""
        here = sizes[name]
        numbers = {here, *sizes.values(), *(int(number) for number in _integers(condition))}
        near = {
            size + step for size in numbers for step in (-1, 0, 1) if 0 < size + step < _LARGEST
        }
        near |= {1, max(1, here // 2), here * 2}
        tried = sorted(near, key=lambda size: abs(size - here))[:_MOST_TRIES]
        failing = [size for size in tried if not self._holds(condition, {**sizes, name: size})]
        below = next((size for size in failing if size < here), None)
        above = next((size for size in failing if size > here), None)
        return [{**sizes, name: size} for size in (below, above) if size is not None]

    def _holds(self, condition: Any, sizes: Sizes) -> bool:
        values = {symbol: sizes[name] for name, symbol in self.symbols.items()}
        # What cannot be decided counts as holding, such as a condition on values.
        return str(condition.subs(values)) != "False"


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
        _collect(found, *environments[-1], axes)


def _collect(
    found: Assumptions,
    environment: Any,
    tensors: Sequence[Any],
    axes: Sequence[Mapping[int, AxisName]],
) -> None:
    """Read the conditions from the exporter's shape environment."""
    for tensor, own in zip(tensors, axes, strict=True):
        for axis, name in own.items():
            expression = getattr(getattr(tensor.shape[axis], "node", None), "expr", None)
            if getattr(expression, "is_Symbol", False):
                found.symbols.setdefault(root_name(name), expression)
    known = set(found.symbols.values())
    asserts = [a for group in environment.deferred_runtime_asserts.values() for a in group]
    for condition in [guard.expr for guard in environment.guards] + [a.expr for a in asserts]:
        if condition.free_symbols and condition.free_symbols <= known:
            found.conditions.append(condition)
    for name, symbol in found.symbols.items():
        limits = environment.var_to_range.get(symbol)
        low, high = _integer(limits.lower), _integer(limits.upper)
        low = 1 if low is None or low <= 2 else low
        if low > 1 or high is not None:
            found.ranges[name] = (low, high)


def _integers(condition: Any) -> Iterator[int]:
    for number in condition.atoms():
        if number.is_Integer and abs(int(number)) < _LARGEST:
            yield abs(int(number))


def _integer(limit: Any) -> int | None:
    """Return a limit as a number, `None` if it is infinite."""
    return int(limit) if limit.is_Integer and abs(int(limit)) < _LARGEST else None

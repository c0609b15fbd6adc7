"""Conditions on sizes, as sympy expressions whose symbols are the names of axes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

#: The signs of relations in Python.
_SIGNS = {"Eq": "==", "Ne": "!=", "Le": "<=", "Lt": "<", "Ge": ">=", "Gt": ">"}
#: What sympy prints for a rounded division.
_DOUBLED = re.compile(r"\(\(([^()]*)\)\)")

_CLASSES = {
    "Equality": "Eq",
    "Unequality": "Ne",
    "LessThan": "Le",
    "StrictLessThan": "Lt",
    "GreaterThan": "Ge",
    "StrictGreaterThan": "Gt",
}


def axis_symbol(name: str) -> Any:
    """Return the symbol for the size of an axis."""
    import sympy  # type: ignore[import-untyped]

    return sympy.Symbol(name, integer=True, positive=True)


def relation(condition: Any) -> str | None:
    """Return `"Eq"`, `"Le"` and so on, `None` if a condition is not a relation."""
    return _CLASSES.get(type(condition).__name__)


def always_holds(condition: Any) -> bool:
    """Return whether a condition holds for all sizes from 1 on, as far as bounds show."""
    import sympy
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    if condition == sympy.true:
        return True
    every = ValueRanges(1, sympy.oo)
    try:
        bounds = bound_sympy(condition, dict.fromkeys(condition.free_symbols, every))
    # It raises whatever it does not know; then nothing is known.
    except Exception:  # noqa: BLE001
        return False
    return bool(bounds.lower == sympy.true)


def simplified(condition: Any) -> Any:
    """Return an equivalent condition that is easier to read and to compute."""
    import sympy

    if isinstance(condition, sympy.Or | sympy.And):
        return condition.func(*map(simplified, condition.args))
    if relation(condition) is not None and condition.args[0].is_number:
        condition = condition.reversed
    kind = relation(condition)
    if kind in ("Eq", "Ne"):
        return _simplified_equation(condition)
    left, right = condition.args if kind else (condition, condition)
    if kind == "Ge" and right.is_Integer and _is_floor_division(left):
        return left.args[0] >= left.args[1] * right
    return condition


def _simplified_equation(condition: Any) -> Any:
    import sympy
    from torch.utils._sympy.functions import Mod

    equal = relation(condition) == "Eq"
    left, right = _divided(*condition.args)
    for one, other in ((left, right), (right, left)):
        if _rounded_down(other, one):
            return condition.func(Mod(one, other.as_coeff_mul()[0]), 0)
        limits = [argument for argument in other.args if argument != one]
        if len(limits) == 1 and one in other.args and type(other).__name__ in ("Min", "Max"):
            at_most = sympy.Le if type(other).__name__ == "Min" else sympy.Ge
            limited = at_most(one, limits[0])
            return limited if equal else ~limited
    return condition.func(left, right)


def is_between_axes(condition: Any) -> bool:
    """Return whether a condition says that two axes are equal."""
    return relation(condition) == "Eq" and all(side.is_Symbol for side in condition.args)


def without_implied(conditions: list[Any]) -> list[Any]:
    """Return conditions without repeated ones, and without an `Or` of which one part is another."""
    import sympy

    distinct = list(dict.fromkeys(conditions))
    return [
        condition
        for condition in distinct
        if not (isinstance(condition, sympy.Or) and any(a in distinct for a in condition.args))
    ]


def text(condition: Any) -> str:
    """Return a condition as Python would have it, such as `length <= 40`."""
    import sympy

    for kind, word in ((sympy.And, " and "), (sympy.Or, " or ")):
        if isinstance(condition, kind):
            return word.join(sorted(map(text, condition.args)))
    if isinstance(condition, sympy.Not):
        return f"not ({text(condition.args[0])})"
    kind = relation(condition)
    if kind is None:
        return str(condition)
    return f"{_side(condition.args[0])} {_SIGNS[kind]} {_side(condition.args[1])}"


def integers(condition: Any, largest: int) -> Iterator[int]:
    """Yield the integers in a condition whose magnitude is below `largest`."""
    for number in condition.atoms():
        if number.is_Integer and abs(int(number)) < largest:
            yield abs(int(number))


def _side(expression: Any) -> str:
    written = str(expression)
    if type(expression).__name__ in ("Mod", "PythonMod"):
        left, right = map(str, expression.args)
        return f"{left} % {right}"
    if written.startswith("(") and _DOUBLED.fullmatch(written):
        return written[2:-2]
    return _DOUBLED.sub(r"(\1)", written)


def _is_floor_division(expression: Any) -> bool:
    """Return whether an expression is the whole part of a quotient by a positive number."""
    divides = type(expression).__name__ == "FloorDiv"
    return divides and bool(expression.args[1].is_Integer and expression.args[1].is_positive)


def _rounded_down(expression: Any, size: Any) -> bool:
    """Return whether an expression is a size rounded down to a multiple, `k*(size//k)`."""
    factor, rest = expression.as_coeff_mul()
    if len(rest) != 1 or not _is_floor_division(rest[0]):
        return False
    return bool(rest[0].args == (size, factor))


def _divided(left: Any, right: Any) -> tuple[Any, Any]:
    """Return both sides of an equation without their common positive factors."""
    for side, other in ((left, right), (right, left)):
        if other == 0 and type(side).__name__ in ("Mod", "PythonMod"):
            return side.func(*_without_common_factors(*side.args)), other
    return _without_common_factors(left, right)


def _without_common_factors(left: Any, right: Any) -> tuple[Any, Any]:
    """Return two expressions without the integers and axes that are a factor of both."""
    import sympy

    if left == 0 or right == 0:
        return left, right
    one, other = left.as_coeff_mul()[0], right.as_coeff_mul()[0]
    if one.is_Integer and other.is_Integer:
        common = sympy.Integer(math.gcd(int(one), int(other)))
        left, right = left / common, right / common
    for symbol in sorted(left.free_symbols & right.free_symbols, key=str):
        while all(symbol in sympy.Mul.make_args(side) for side in (left, right)):
            left, right = left / symbol, right / symbol
    return left, right

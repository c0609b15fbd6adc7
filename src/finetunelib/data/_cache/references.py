"""What code refers to: the functions, methods and classes that read a sample."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any


def references(value: object) -> tuple[Any, ...]:
    """Return the objects that an object refers to, other than as attributes and elements.

    These are the slots and the class of an object, and for functions and classes of the user's own
    code their closures, defaults, globals and attributes. Installed libraries are not searched.
    """
    if isinstance(value, FunctionType):
        return tuple(_of_function(value))
    if isinstance(value, type):
        return tuple(_of_class(value))
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    owned = (getattr(value, name, None) for name in _OF_WRAPPERS.get(type(value), ()))
    return type(value), *_of_slots(value), *owned


#: The attributes of functions and descriptors that are not in their `__dict__`.
_OF_WRAPPERS: dict[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    BuiltinMethodType: ("__self__",),  # a module for functions
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
}


def _of_function(function: FunctionType) -> Iterator[object]:
    if not is_users(function.__module__):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # It has no value yet.
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    own, names = function.__globals__, list(_names(function.__code__))
    for name in names:
        value = own.get(name)
        yield value
        # Such as `settings` in `settings.scale`.
        if isinstance(value, ModuleType) and is_users(value.__name__):
            yield from (vars(value)[inner] for inner in names if inner in vars(value))


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in code, also inside its comprehensions and lambdas."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


#: Names of functions that create random numbers without a generator that could be found.
_RANDOM_NAMES = frozenset(
    {"default_rng", "RandomState", "Random", "SystemRandom", "urandom", "uuid1", "uuid4", "secrets"}
)


def random_names(function: FunctionType) -> list[str]:
    """Return what code of the user's mentions that creates random numbers.

    Constructors are left out: what they draw is in attributes afterwards.
    """
    if function.__name__ == "__init__" or not is_users(function.__module__):
        return []
    return sorted(_RANDOM_NAMES.intersection(_names(function.__code__)))


#: Attributes of classes that Python sets by itself, some of them at the first use.
_OF_PYTHON = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"})


def _of_class(kind: type) -> Iterator[object]:
    if not is_users(kind.__module__):
        return
    yield from kind.__bases__
    for name, value in list(vars(kind).items()):
        # Caches of abc and typing change at their own pace.
        if name not in _OF_PYTHON and not name.startswith(("_abc_", "__abstract")):
            yield value


def _of_slots(value: object) -> Iterator[object]:
    for kind in type(value).__mro__:
        if not is_users(kind.__module__):
            continue
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield getattr(value, name)


def is_users(module: str | None) -> bool:
    """Return whether a module is neither installed nor part of Python or of this library."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == "finetunelib":
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file

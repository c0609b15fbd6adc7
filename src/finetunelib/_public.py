"""The public names of a package: the path of their objects, and importing them when first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Public = TypeVar("_Public", bound=type | Callable[..., object])


def public(module: str) -> Callable[[_Public], _Public]:
    """Return a decorator that sets `__module__`, which tracebacks, pickles and the docs show.

    Args:
        module: The package that users import the object from, such as `"finetunelib.export"`.
    """

    def decorate(public_object: _Public) -> _Public:
        public_object.__module__ = module
        return public_object

    return decorate


def lazily(
    package: str, namespace: dict[str, Any], modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package, whose imports would take time.

    Args:
        package: The name of the package.
        namespace: Its `globals()`. A name is stored there once it was imported.
        modules: For each name, its module relative to the package; for a sub-package, itself.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        namespace[name] = module if modules[name] == name else getattr(module, name)
        return namespace[name]

    def public_names() -> list[str]:
        return sorted({*namespace["__all__"], *modules})

    return get, public_names

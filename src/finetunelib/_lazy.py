"""Importing the public names of a package when they are first used, because imports take time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, namespace: dict[str, Any], modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package.

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

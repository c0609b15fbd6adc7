"""Names of a package that are imported when they are first used, since imports cost time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, names: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        package: The package's name.
        names: Its `globals()`, where a name stays once it was imported.
        homes: The module of each name, relative to the package; of a sub-package, its own name.
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name]}")
        names[name] = module if homes[name] == name else getattr(module, name)
        return names[name]

    def listed() -> list[str]:
        return sorted({*names, *homes})

    return get, listed

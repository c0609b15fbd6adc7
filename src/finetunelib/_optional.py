"""Imports of packages that are extras and not dependencies."""

from __future__ import annotations

import importlib
from types import ModuleType

from finetunelib.errors import MissingDependencyError


def require(package: str, *, extra: str) -> ModuleType:
    """Import an optional package, or raise an error that says how to install it.

    Args:
        package: The name to import, such as `"matplotlib"`.
        extra: The extra of this distribution that installs it, such as `"plots"`.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: If the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise  # The package is installed, but one of its own dependencies is not.
        raise MissingDependencyError(
            f"This needs the package `{package}`, which is not installed. "
            f'Install it with: pip install "finetunelib[{extra}]"',
            name=package,
        ) from error

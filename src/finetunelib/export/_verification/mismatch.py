"""The error for a file that differs from the model, with the location of the difference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetunelib._forward.inputs import Inputs
from finetunelib.errors import ExportMismatchError

if TYPE_CHECKING:
    from finetunelib.export._verification.locate import MismatchLocation


def find_location(
    file: Path, program: Callable[[], Any], batch: Inputs, inner_name: str, tolerance: float
) -> MismatchLocation | None:
    """Return where a file differs from the model. A failed search must not hide the mismatch."""
    from finetunelib.export._verification.locate import locate

    with contextlib.suppress(Exception):
        return locate(file, program(), batch, inner_name, tolerance)
    return None


def mismatch_error(problem: str, location: MismatchLocation | None) -> ExportMismatchError:
    """Return the error for a mismatch."""
    if location is None:
        return ExportMismatchError(problem)
    return ExportMismatchError(f"{problem} {location}", node=location.node, module=location.module)

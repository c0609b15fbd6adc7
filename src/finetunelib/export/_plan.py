"""An export whose arguments are checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from finetunelib._forward.inputs import Inputs
from finetunelib.export._request.dynamic_axes import AxisName
from finetunelib.export._request.rows import BatchAxes


@dataclass(frozen=True, slots=True)
class Subject:
    """The module to export, the one to compare it with, and their inputs with batch axes."""

    exported: nn.Module
    reference: nn.Module
    inputs: Inputs
    batch: BatchAxes
    samples: Inputs | None


@dataclass(frozen=True, slots=True)
class Interface:
    """Names, dynamic axes and operator version of the graph."""

    input_names: list[str]
    output_names: list[str]
    axes: list[dict[int, AxisName]]
    dynamic_batch: bool
    opset_version: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """An export whose arguments are checked. A `tolerance` of `None` skips the comparison."""

    file: Path
    subject: Subject
    interface: Interface
    tolerance: float | None
    two_files: bool
    keep_mismatch: bool

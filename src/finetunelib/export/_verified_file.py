"""Writes the file of an export, and compares it with the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from finetunelib._progress import Progress
from finetunelib.export._plan import Plan
from finetunelib.export._report import ExportReport
from finetunelib.export._tracing.assumptions import Assumptions
from finetunelib.export._write import (
    FixedInGraphError,
    check_graph,
    keeping_mismatch,
    naming_fixed_outputs,
    open_shapes,
    save,
    trace_model,
    verify_file,
    wrong_shapes,
)


def write_verified(plan: Plan, new: Path, progress: Progress) -> ExportReport:
    """Trace the model, write it to the path `new`, check the graph, and compare it."""
    program, assumptions = trace_model(plan)
    progress.advance()
    try:
        report = _write_program(program, assumptions, plan, new)
    except FixedInGraphError as error:
        # The exporter declares wrong shapes for recurrent layers, and its optimizer relies on them.
        program, _ = trace_model(plan, optimize=False, exported=error.exported)
        report = _write_program(program, assumptions, plan, new)
    progress.advance()
    return report


def _write_program(program: Any, assumptions: Assumptions, plan: Plan, new: Path) -> ExportReport:
    report = check_graph(save(program, new, plan), new, plan)
    if plan.tolerance is None:
        return report
    exported = program.exported_program
    del program  # It has a copy of the weights.
    with keeping_mismatch(new, plan), naming_fixed_outputs(report, exported, plan):
        verification, shapes = verify_file(new, exported, assumptions, plan, plan.tolerance)
    wrong = wrong_shapes(report, shapes)
    if wrong:
        program, _ = trace_model(plan, optimize=False, exported=exported)
        open_shapes(program, wrong)
        report = check_graph(save(program, new, plan), new, plan)
    return dataclasses.replace(report, verification=verification)

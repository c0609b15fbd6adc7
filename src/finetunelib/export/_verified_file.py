"""Writes the file of a checked export, and compares it with the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetunelib._messages import first_line
from finetunelib._progress import Progress
from finetunelib.errors import CorruptFileError, ExportError, ExportMismatchError
from finetunelib.export._batches.limits import SizeLimits, size_limits
from finetunelib.export._batches.runs import (
    Run,
    Runner,
    first_runs,
    runs_at_other_sizes,
    sample_runs,
)
from finetunelib.export._batches.samples import Sampler
from finetunelib.export._batches.sizes import Axes
from finetunelib.export._plan import Plan
from finetunelib.export._report import ExportReport
from finetunelib.export._request.batch_axes import fixed_outputs
from finetunelib.export._tracing.conditions import text
from finetunelib.export._tracing.size_checks import add_size_checks
from finetunelib.export._verification.compare import FileComparison
from finetunelib.export._verification.outcome import Verification
from finetunelib.export._verification.runtime import open_mapped
from finetunelib.export._write import (
    check_graph,
    fixed_axis,
    fixed_in_graph,
    keeping_mismatch,
    save,
    trace_model,
)

Shape = tuple[int, ...]

#: The largest error at a size that contradicts an assumption, if nothing else is compared.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written from an exported program.

    Attributes:
        path: The file.
        model: The `onnx.ModelProto` in it, whose large weights are external.
        exported: The `torch.export.ExportedProgram` that it comes from.
    """

    path: Path
    model: Any
    exported: Any


class FixedInGraphError(ExportError):
    """The graph fixes the batch of an output that follows it in the model.

    Attributes:
        exported: The `torch.export.ExportedProgram` that the graph comes from.
    """

    def __init__(self, message: str, exported: Any) -> None:
        super().__init__(message)
        self.exported = exported


def write_verified(plan: Plan, new: Path, progress: Progress) -> ExportReport:
    """Trace the model, write it to the path `new`, check the graph, and compare it.

    Raises:
        ExportError: If the model cannot be exported with its dynamic axes.
        ExportMismatchError: If the file and the model compute different outputs.
    """
    program, assumptions = trace_model(plan)
    limits = size_limits(assumptions, _runner(plan))
    progress.advance()
    programs = [program]
    del program
    try:
        report = _write_program(programs, limits, plan, new)
    except FixedInGraphError as error:
        # The exporter declares wrong shapes for recurrent layers, and its optimizer relies on them.
        programs.append(trace_model(plan, optimize=False, exported=error.exported)[0])
        report = _write_program(programs, limits, plan, new)
    progress.advance()
    return report


def _write_program(programs: list[Any], limits: SizeLimits, plan: Plan, new: Path) -> ExportReport:
    """Write and compare the only program in a list, which is emptied to release its weights."""
    program = programs.pop()
    report, model = _save_checked(program, limits.checked, plan, new)
    exported = program.exported_program
    if plan.tolerance is None:
        if limits.sizes and not _agree(Written(new, model, exported), limits, plan):
            compared = limits.compared
            limits.check_all(Axes(plan.interface.axes, plan.subject.inputs.tensors))
            report, _ = _save_checked(program, compared, plan, new)
        return _with_checks(report, limits)
    del program  # It has a copy of the weights.
    with keeping_mismatch(new, plan), naming_fixed_outputs(report, exported, plan):
        written = Written(new, model, exported)
        verification, shapes = verify_file(written, limits, plan, plan.tolerance)
    wrong = wrong_shapes(report, shapes)
    if wrong:
        program, _ = trace_model(plan, optimize=False, exported=exported)
        open_shapes(program, wrong)
        report, model = _save_checked(program, limits.checked, plan, new)
        with keeping_mismatch(new, plan):
            written = Written(new, model, exported)
            verification, _ = verify_file(written, limits, plan, plan.tolerance)
    return dataclasses.replace(_with_checks(report, limits), verification=verification)


def _save_checked(
    program: Any, conditions: Sequence[Any], plan: Plan, new: Path
) -> tuple[ExportReport, Any]:
    """Add checks of sizes to the graph of a program, write it, and check the graph.

    Returns:
        The report, and the model in the file, whose large weights are external.
    """
    add_size_checks(program.model.graph, conditions, plan.interface.axes)
    model = save(program, new, plan)
    return check_graph(model, new, plan), model


def _with_checks(report: ExportReport, limits: SizeLimits) -> ExportReport:
    return dataclasses.replace(report, size_checks=tuple(map(text, limits.checked)))


def _runner(plan: Plan) -> Runner:
    """Return what runs the model on the example or the real samples."""
    subject, interface = plan.subject, plan.interface
    axes = Axes(interface.axes, subject.inputs.tensors)
    source = subject.samples or subject.inputs
    sampler = Sampler(source, interface.input_names, subject.batch, axes)
    name = "example_input" if subject.samples is None else "sample_inputs"
    return Runner(subject.reference, sampler, name)


def _comparison(written: Written, plan: Plan, tolerance: float) -> FileComparison:
    """Open a file for a comparison.

    Raises:
        CorruptFileError: If ONNX Runtime cannot load the file.
    """
    return FileComparison(
        open_mapped(written.path, written.model),
        written.path,
        plan.subject.reference,
        plan.interface.input_names,
        plan.subject.batch,
        tolerance,
        program=lambda: written.exported,
        graph=lambda: written.model.graph,
    )


def _agree(written: Written, limits: SizeLimits, plan: Plan) -> bool:
    """Return whether a file is right at the sizes that contradict an assumption."""
    try:
        _comparison(written, plan, _TOLERANCE).compare(limits.runs(_runner(plan)))
    except (ExportMismatchError, CorruptFileError):
        return False
    return True


def verify_file(
    written: Written, limits: SizeLimits, plan: Plan, tolerance: float
) -> tuple[Verification, dict[str, set[Shape]]]:
    """Compare a file with the model. Return the result, and the shapes of each output.

    Raises:
        ExportError: If ONNX Runtime cannot load the file.
        ExportMismatchError: If the file and the model compute different outputs.
    """
    try:
        comparison = _comparison(written, plan, tolerance)
    except CorruptFileError as error:
        raise ExportError(
            "ONNX Runtime cannot load the exported graph: "
            f"{first_line(error.__cause__ or error)}. `verify=False` keeps the file for another "
            "engine."
        ) from error
    runner = _runner(plan)

    def runs() -> Iterator[Run]:
        if plan.subject.samples is None:
            varying, found = first_runs(runner)
            yield from found
        else:
            varying = runner
            yield from sample_runs(runner)
        yield from runs_at_other_sizes(varying)
        yield from limits.runs(varying)

    comparison.compare(runs())
    axes = runner.sampler.axes.example
    return comparison.result(limits.limits, axes), comparison.seen.shapes


def wrong_shapes(report: ExportReport, shapes: Mapping[str, set[Shape]]) -> list[tuple[int, int]]:
    """Return the axes of outputs that the graph declares fixed, but that varied in the runs.

    The exporter declares the number of steps of a recurrent layer so.
    """
    return [
        (number, axis)
        for number, info in enumerate(report.outputs)
        for axis, size in enumerate(info.shape)
        if isinstance(size, int)
        and any(shape[axis] != size for shape in shapes.get(info.name, ()) if axis < len(shape))
    ]


def open_shapes(program: Any, axes: Sequence[tuple[int, int]]) -> None:
    """Declare axes of the outputs of a program as dynamic, with a name of their own."""
    for number, axis in axes:
        value = program.model.graph.outputs[number]
        sizes = list(value.shape)
        sizes[axis] = f"{value.name}_axis_{axis}"
        value.shape = type(value.shape)(sizes)


@contextlib.contextmanager
def naming_fixed_outputs(report: ExportReport, exported: Any, plan: Plan) -> Iterator[None]:
    """Name the module that fixes the batch, if that explains a mismatch in the block."""
    try:
        yield
    except ExportMismatchError as error:
        suspects = fixed_in_graph(report)
        if plan.interface.dynamic_batch and suspects:
            subject = plan.subject
            fixed = fixed_outputs(subject.reference, subject.inputs, subject.batch)
            for info, is_fixed in zip(report.outputs, fixed, strict=True):
                if info in suspects and is_fixed is None:
                    raise FixedInGraphError(str(fixed_axis(info, 0, plan)), exported) from error
        raise

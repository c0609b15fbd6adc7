"""The steps of an export: trace, save, check the graph, compare, and keep a mismatch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from finetunelib._files.atomic import atomic_folder
from finetunelib._messages import first_line
from finetunelib.errors import (
    CorruptFileError,
    ExportError,
    ExportMismatchError,
    PathNotWritableError,
)
from finetunelib.export._batches.limits import BeyondAssumptions, check_declared
from finetunelib.export._batches.runs import (
    Run,
    Runner,
    first_runs,
    runs_at_other_sizes,
    sample_runs,
)
from finetunelib.export._batches.samples import Sampler
from finetunelib.export._batches.sizes import Axes
from finetunelib.export._model_file import data_file, naming, read_onnx
from finetunelib.export._one_file import with_weights_as_inputs, write_in_one_file
from finetunelib.export._plan import Plan
from finetunelib.export._report import ExportReport, TensorInfo, tensor_infos
from finetunelib.export._request.batch_axes import fixed_outputs
from finetunelib.export._request.pipeline import inner_name
from finetunelib.export._request.rows import at_least_two
from finetunelib.export._tracing.annotations import annotate
from finetunelib.export._tracing.assumptions import Assumptions, recording_assumptions
from finetunelib.export._tracing.clashes import resolve_clashes
from finetunelib.export._tracing.exporter import fixed_batch, trace
from finetunelib.export._verification.compare import FileComparison
from finetunelib.export._verification.outcome import Verification
from finetunelib.export._verification.runtime import open_session

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


class FixedInGraphError(ExportError):
    """The graph fixes the batch of an output that follows it in the model.

    Attributes:
        exported: The `torch.export.ExportedProgram` that the graph comes from.
    """

    def __init__(self, message: str, exported: Any) -> None:
        super().__init__(message)
        self.exported = exported


def trace_model(
    plan: Plan, *, optimize: bool = True, exported: Any = None
) -> tuple[Any, Assumptions]:
    """Return the annotated ONNX program of the model, and what it assumes about sizes.

    Raises:
        ExportError: If the model cannot be exported with its dynamic axes.
    """
    subject, interface = plan.subject, plan.interface
    # The exporter treats a batch of one as a constant.
    inputs = subject.inputs
    if interface.dynamic_batch:
        inputs = at_least_two(inputs, subject.batch)
    with recording_assumptions(subject.exported, inputs, interface.axes) as assumptions:
        program = trace(
            subject.exported,
            inputs.map(Tensor.clone),
            axes=interface.axes,
            input_names=interface.input_names,
            output_names=interface.output_names,
            opset_version=interface.opset_version,
            optimize=optimize,
            exported=exported,
        )
    check_declared(assumptions, Axes(interface.axes, inputs.tensors))
    annotate(program, subject.exported, inner_name(subject.exported))
    resolve_clashes(program)
    return program, assumptions


def save(program: Any, temporary: Path, plan: Plan) -> onnx.ModelProto:
    """Write a program to a temporary file, and return a valid model without its weights.

    Raises:
        PathNotWritableError: If the file cannot be written.
    """
    with naming(plan.file):
        if plan.two_files:
            program.save(temporary, external_data=True)
            return read_onnx(temporary)
        return with_weights_as_inputs(write_in_one_file(program.model, temporary), program.model)


def check_graph(written: onnx.ModelProto, path: Path, plan: Plan) -> ExportReport:
    """Check the validity, operator version and dynamic axes of a file, and return its report.

    Raises:
        ExportError: If one of them is not as requested.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path) if plan.two_files else written)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The exported graph is invalid: {first_line(error)}") from error
    report = _report(written, plan)
    if plan.interface.opset_version not in (None, report.opset_version):
        raise ExportError(
            f"`opset_version` is {plan.interface.opset_version}, but the exporter could only write "
            f"{report.opset_version}. The installed onnx supports versions up to "
            f"{onnx.defs.onnx_opset_version()}."
        )
    _check_dynamic(report, plan)
    return report


def _report(model: Any, plan: Plan) -> ExportReport:
    return ExportReport(
        path=plan.file,
        size=0,
        opset_version=model.opset_import[0].version,
        inputs=tensor_infos(model.graph.input[: len(plan.interface.input_names)]),
        outputs=tensor_infos(model.graph.output),
        verification=None,
        data_path=data_file(plan.file) if plan.two_files else None,
        example_shapes=tuple(tuple(tensor.shape) for tensor in plan.subject.inputs.tensors),
    )


def _check_dynamic(report: ExportReport, plan: Plan) -> None:
    """Check that the axes that must be dynamic are not fixed in the graph."""
    for info, axes in zip(report.inputs, plan.interface.axes, strict=True):
        for axis in axes:
            if isinstance(info.shape[axis], int):
                raise _fixed(info, axis, plan)
    suspects = _fixed_in_graph(report)
    if plan.interface.dynamic_batch and suspects:
        # An output need not have a batch, or may have it as another axis.
        subject = plan.subject
        fixed = fixed_outputs(subject.reference, subject.inputs, subject.batch)
        for info, is_fixed in zip(report.outputs, fixed, strict=True):
            # The declared shape of a right graph may be wrong. A comparison finds that out.
            if info in suspects and (is_fixed or (is_fixed is None and plan.tolerance is None)):
                raise _fixed(info, 0, plan)


def _fixed_in_graph(report: ExportReport) -> list[TensorInfo]:
    """Return the outputs whose first axis has a fixed size."""
    return [info for info in report.outputs if info.shape and isinstance(info.shape[0], int)]


def _fixed(info: TensorInfo, axis: int, plan: Plan) -> ExportError:
    shown = f" to {info.shape[axis]} in the exported graph (axis {axis} of `{info}`)"
    return fixed_batch(plan.subject.exported, plan.subject.inputs, shown)


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


def verify_file(
    path: Path, exported: Any, assumptions: Assumptions, plan: Plan, tolerance: float
) -> tuple[Verification, dict[str, set[Shape]]]:
    """Compare a file with the model. Return the result, and the shapes of each output.

    Raises:
        ExportError: If ONNX Runtime cannot load the file.
        ExportMismatchError: If the file and the model compute different outputs.
    """
    try:
        session = open_session(path, checked=True)
    except CorruptFileError as error:
        raise ExportError(
            "ONNX Runtime cannot load the exported graph: "
            f"{first_line(error.__cause__ or error)}. `verify=False` keeps the file for another "
            "engine."
        ) from error
    subject, interface = plan.subject, plan.interface
    comparison = FileComparison(
        session,
        path,
        subject.reference,
        interface.input_names,
        subject.batch,
        tolerance,
        program=lambda: exported,
    )
    axes = Axes(interface.axes, subject.inputs.tensors)
    source = subject.samples or subject.inputs
    sampler = Sampler(source, interface.input_names, subject.batch, axes)
    name = "example_input" if subject.samples is None else "sample_inputs"
    runner = Runner(subject.reference, sampler, name)
    beyond = BeyondAssumptions(assumptions)

    def runs() -> Iterator[Run]:
        if subject.samples is None:
            varying, found = first_runs(runner)
            yield from found
        else:
            varying = runner
            yield from sample_runs(runner)
        yield from runs_at_other_sizes(varying)
        yield from beyond.runs(varying)

    comparison.compare(runs())
    return comparison.result(beyond.limits, axes.example), comparison.seen.shapes


@contextlib.contextmanager
def naming_fixed_outputs(report: ExportReport, exported: Any, plan: Plan) -> Iterator[None]:
    """Name the module that fixes the batch, if that explains a mismatch in the block."""
    try:
        yield
    except ExportMismatchError as error:
        suspects = _fixed_in_graph(report)
        if plan.interface.dynamic_batch and suspects:
            subject = plan.subject
            fixed = fixed_outputs(subject.reference, subject.inputs, subject.batch)
            for info, is_fixed in zip(report.outputs, fixed, strict=True):
                if info in suspects and is_fixed is None:
                    raise FixedInGraphError(str(_fixed(info, 0, plan)), exported) from error
        raise


@contextlib.contextmanager
def keeping_mismatch(temporary: Path, plan: Plan) -> Iterator[None]:
    """Keep a file that differs from the model in a folder next to it, if the user asked for it."""
    try:
        yield
    except ExportMismatchError as error:
        if not plan.keep_mismatch:
            raise
        raise ExportMismatchError(
            f"{error} {_keep(temporary, plan)}", node=error.node, module=error.module
        ) from error


def _keep(temporary: Path, plan: Plan) -> str:
    """Copy a file to the folder for mismatches, and return where it is."""
    folder = plan.file.with_name(f"{plan.file.stem}.mismatch")
    names = [plan.file.name, *([data_file(plan.file).name] if plan.two_files else [])]
    try:
        with atomic_folder(folder, names=names) as kept:
            shutil.copyfile(temporary, kept / plan.file.name)
            if plan.two_files:
                shutil.copyfile(data_file(temporary), kept / data_file(plan.file).name)
    except PathNotWritableError as error:  # It must not hide the mismatch.
        return f"The file could not be kept: {error}"
    return f"The file is in `{folder}`."

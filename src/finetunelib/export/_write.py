"""The steps of an export: trace, save, check the graph, and keep a mismatch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from finetunelib._files.atomic import atomic_folder
from finetunelib._messages import first_line
from finetunelib.errors import ExportError, ExportMismatchError, PathNotWritableError
from finetunelib.export._model_file import data_file, naming, read_onnx
from finetunelib.export._one_file import write_in_one_file
from finetunelib.export._plan import Plan
from finetunelib.export._read_back import read_back, with_weights_as_inputs
from finetunelib.export._report import ExportReport, TensorInfo, tensor_infos
from finetunelib.export._request.batch_axes import fixed_outputs
from finetunelib.export._request.pipeline import inner_name
from finetunelib.export._request.rows import at_least_two
from finetunelib.export._tracing.annotations import annotate
from finetunelib.export._tracing.assumptions import Assumptions, recording_assumptions
from finetunelib.export._tracing.clashes import resolve_clashes
from finetunelib.export._tracing.exporter import fixed_batch, trace

if TYPE_CHECKING:
    import onnx


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
    annotate(program, subject.exported, inner_name(subject.exported))
    resolve_clashes(program)
    return program, assumptions


def save(program: Any, temporary: Path, plan: Plan) -> onnx.ModelProto:
    """Write a program to a temporary file, and return the model in it, without large weights.

    Those are external data, in the file itself if the program is not written to two files.

    Raises:
        PathNotWritableError: If the file cannot be written.
    """
    with naming(plan.file):
        if plan.two_files:
            program.save(temporary, external_data=True)
            return read_onnx(temporary)
        write_in_one_file(program.model, temporary)
        return read_back(temporary)


def check_graph(written: onnx.ModelProto, path: Path, plan: Plan) -> ExportReport:
    """Check the validity, operator version and dynamic axes of a file, and return its report.

    Raises:
        ExportError: If one of them is not as requested.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path) if plan.two_files else with_weights_as_inputs(written))
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
                raise fixed_axis(info, axis, plan)
    suspects = fixed_in_graph(report)
    if plan.interface.dynamic_batch and suspects:
        # An output need not have a batch, or may have it as another axis.
        subject = plan.subject
        fixed = fixed_outputs(subject.reference, subject.inputs, subject.batch)
        for info, is_fixed in zip(report.outputs, fixed, strict=True):
            # The declared shape of a right graph may be wrong. A comparison finds that out.
            if info in suspects and (is_fixed or (is_fixed is None and plan.tolerance is None)):
                raise fixed_axis(info, 0, plan)


def fixed_in_graph(report: ExportReport) -> list[TensorInfo]:
    """Return the outputs whose first axis has a fixed size."""
    return [info for info in report.outputs if info.shape and isinstance(info.shape[0], int)]


def fixed_axis(info: TensorInfo, axis: int, plan: Plan) -> ExportError:
    shown = f" to {info.shape[axis]} in the exported graph (axis {axis} of `{info}`)"
    return fixed_batch(plan.subject.exported, plan.subject.inputs, shown)


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

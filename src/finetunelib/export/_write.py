"""The steps of an export: trace, save, check the graph, compare, and keep a mismatch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetunelib._files import atomic_folder, not_written
from finetunelib._forward.inputs import Inputs
from finetunelib._messages import first_line
from finetunelib.errors import (
    CorruptFileError,
    ExportError,
    ExportMismatchError,
    PathNotWritableError,
)
from finetunelib.export._model_file import data_file, read_onnx
from finetunelib.export._report import ExportReport, tensor_infos
from finetunelib.export._request.dynamic_axes import AxisName
from finetunelib.export._request.pipeline import inner_name
from finetunelib.export._tracing.annotations import annotate
from finetunelib.export._tracing.exporter import fixed_batch, trace
from finetunelib.export._verification.runtime import open_session
from finetunelib.export._verification.samples import batches
from finetunelib.export._verification.verify import Verification, compare


@dataclass(frozen=True, slots=True)
class Subject:
    """The module to export, the one to compare it with, and their inputs."""

    exported: nn.Module
    reference: nn.Module
    inputs: Inputs
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


def trace_model(plan: Plan) -> Any:
    """Return the annotated ONNX program of the model."""
    subject, interface = plan.subject, plan.interface
    # The exporter treats a batch of one as a constant.
    inputs = subject.inputs.with_two_rows() if interface.dynamic_batch else subject.inputs
    program = trace(
        subject.exported,
        inputs,
        axes=interface.axes,
        input_names=interface.input_names,
        output_names=interface.output_names,
        opset_version=interface.opset_version,
    )
    annotate(program, subject.exported, inner_name(subject.exported))
    return program


def save(program: Any, temporary: Path, plan: Plan) -> None:
    """Write a program to a temporary file.

    Raises:
        PathNotWritableError: If the file cannot be written.
    """
    with naming(plan.file):
        program.save(temporary, external_data=plan.two_files)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Raise errors about a temporary file as errors about the file that the user asked for.

    Raises:
        PathNotWritableError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise not_written(file, error) from error


def check_graph(path: Path, plan: Plan) -> ExportReport:
    """Check the validity, operator version and dynamic axes of a file, and return its report.

    Raises:
        ExportError: If one of them is not as requested.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The exported graph is invalid: {first_line(error)}") from error
    report = _report(read_onnx(path), plan)
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
        inputs=tensor_infos(model.graph.input),
        outputs=tensor_infos(model.graph.output),
        verification=None,
        data_path=data_file(plan.file) if plan.two_files else None,
        example_shapes=tuple(tuple(tensor.shape) for tensor in plan.subject.inputs.tensors),
    )


def _check_dynamic(report: ExportReport, plan: Plan) -> None:
    interface = plan.interface
    required = [
        (info, axis)
        for info, axes in zip(report.inputs, interface.axes, strict=True)
        for axis in axes
    ]
    if interface.dynamic_batch:
        required += [(info, 0) for info in report.outputs if info.shape]
    for info, axis in required:
        if isinstance(info.shape[axis], int):
            shown = f" to {info.shape[axis]} in the exported graph (axis {axis} of `{info}`)"
            raise fixed_batch(plan.subject.exported, plan.subject.inputs, shown)


def verify_file(path: Path, program: Any, plan: Plan, tolerance: float) -> Verification:
    """Compare a file with the model.

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
    return compare(
        session,
        path,
        subject.reference,
        batches(
            subject.reference,
            subject.inputs,
            subject.samples,
            interface.axes,
            dynamic_batch=interface.dynamic_batch,
        ),
        tolerance,
        program=lambda: program.exported_program,
    )


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

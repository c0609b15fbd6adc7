"""`export_onnx`: from a module to one verified file."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetunelib._arguments import check_model
from finetunelib._files import not_written, whole_folder
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.outputs import flat_outputs, named_outputs
from finetunelib._forward.run import run_model
from finetunelib._messages import first_line
from finetunelib._preserve import attributes_preserved, buffers_preserved
from finetunelib._progress import Progress, choose_progress
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import (
    CorruptFileError,
    ExportError,
    ExportMismatchError,
    PathNotWritableError,
)
from finetunelib.export._metadata.describe import Description, self_test_of, weights_sha256
from finetunelib.export._metadata.format import OnnxMetadata, SelfTest, append_metadata, encode
from finetunelib.export._model_file import LARGEST_FILE, data_file, read_onnx, whole_model
from finetunelib.export._report import ExportReport, tensor_infos
from finetunelib.export._request.checks import check_path, check_tolerance, check_values
from finetunelib.export._request.dynamic_axes import AxisName, DynamicShapes, dynamic_axes
from finetunelib.export._request.names import check_classes, input_names_of, output_names_of
from finetunelib.export._request.pipeline import Pipeline, Preprocessing, inner_name, pipelines
from finetunelib.export._tracing.annotations import annotate
from finetunelib.export._tracing.exporter import fixed_batch, trace
from finetunelib.export._verification.runtime import open_session
from finetunelib.export._verification.samples import batches, checked_samples
from finetunelib.export._verification.verify import Verification, compare
from finetunelib.finetuning._freezing.certificate import Certificate

#: From this size on an export takes long enough to say how far it is.
_LARGE = 200_000_000


@public("finetunelib")
def export_onnx(  # noqa: PLR0913 - the design's list of what an export is asked
    model: nn.Module,
    path: StrPath,
    example_input: ModelInputs,
    *,
    dynamic_batch: bool = True,
    dynamic_shapes: DynamicShapes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    verify: bool = True,
    sample_inputs: ModelInputs | None = None,
    tolerance: float = 1e-3,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    softmax: bool = False,
    metadata: Mapping[str, str] | None = None,
    certificate: Certificate | None = None,
    self_test: bool = False,
    opset_version: int | None = None,
    keep_mismatch: bool = False,
) -> ExportReport:
    """Export a model to one ONNX file, and compare the file with the model before keeping it.

    The file is exported in eval mode by `torch.onnx.export`, freed of paths and source lines of
    this machine, checked by ONNX, and run by ONNX Runtime beside the model at batch sizes 1, 2
    and 7. It appears under its name only when all of this went well; a former file stays as it
    was otherwise. The model is left as it was: modes, buffers, hooks and random states.

    The file tells what it is (see `finetunelib.export.load_onnx_metadata`), and each node of its
    graph says which module it comes from and whether that module's parameters are frozen. A model
    above 2 GB becomes two files, `model.onnx` and `model.onnx.data`.

    Args:
        model: The model, whose output is a tensor or a structure of tensors.
        path: The file to write, ending in `.onnx`. Missing folders are made.
        example_input: What the model takes, on any device: a tensor `(batch, ...)`, several in a
            tuple, or a dict by argument name. With `preprocessing`, what that takes.
        dynamic_batch: Whether the file takes any batch size. `False` fixes the example's.
        dynamic_shapes: Further dynamic axes: their names by number, in a dict by the input's
            name or in a list in the inputs' order. `{"tokens": {1: "length"}}` leaves the length
            of a text open. A `torch.export.Dim` in place of a name has bounds.
        input_names: Names of the graph's inputs. `None` takes those of `forward`'s arguments.
        output_names: Names of the graph's outputs. `None` takes those that the model's output
            has (of a dict or named tuple), else `output`, or `output_0`, `output_1` and so on;
            `probabilities` with `softmax`.
        verify: Whether to compare the file with the model.
        sample_inputs: Real samples to compare on, in the form of `example_input`. `None` varies
            the example.
        tolerance: The largest error allowed, as a share of the outputs' spread over the samples.
        labels: The names of the classes, in the order of the output; kept in the file.
        preprocessing: What the graph does before the model: a module, a preset of torchvision
            (`weights.transforms()`), or `(mean, std)` for raw images `(batch, channels, height,
            width)`, uint8 from 0 to 255. The file then takes what this takes.
        softmax: Whether the graph ends with a softmax over the classes.
        metadata: Texts to keep in the file, such as `{"description": ..., "author": ...}`.
        certificate: `History.certificate` of the training: its tensors are hashed again, and the
            file says which ones were frozen throughout.
        self_test: Whether the file carries two samples and what the model makes of them, so that
            whoever runs it can check the installation.
        opset_version: The version of ONNX's operators. `None` is the exporter's default.
        keep_mismatch: Whether a file that differs from the model is kept beside the path for a
            look, in a folder `model.mismatch`.

    Returns:
        What was written and what was proven; print it.

    Raises:
        PathNotWritableError: Nothing can be written at `path`.
        InvalidArgumentError: `path` does not end in `.onnx`, the numbers of names, labels and
            tensors do not fit, `dynamic_shapes` names what there is not, or `tolerance` is not
            a finite number above 0.
        InvalidTypeError: An argument is of a kind that cannot be used, or the model's output holds
            something else than tensors.
        InvalidInputError: The model cannot take `example_input` or `sample_inputs`.
        FreezeError: A tensor of `certificate` has changed since the training.
        ExportError: The exporter cannot export the model, fixed its batch size, cannot write
            `opset_version`, or wrote what ONNX or ONNX Runtime cannot read.
        ExportMismatchError: The file computes something else than the model. No file is kept.

    Warns:
        UserWarning: The comparison was inconclusive, because the outputs do not vary from sample
            to sample. The file is kept.

    Example:
        >>> import os, tempfile, torch
        >>> from finetunelib import build_mlp, export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "mlp.onnx")
        ...     report = export_onnx(build_mlp(4, [8], 3, seed=0), path, torch.randn(2, 4))
        >>> report.verification.status, report.inputs[0].shape
        ('verified', ('batch', 4))
    """
    file = check_path(path)
    check_tolerance(tolerance)
    own = unwrapped(check_model(model))
    check_values(own)
    size = _size(own)
    description = Description.of(labels, metadata, certificate, own)
    given = Inputs.of(example_input, "example_input").beside(own)
    exported, reference, inputs = pipelines(own, given, preprocessing, softmax=softmax)
    with contextlib.ExitStack() as as_it_was:
        for module in (exported, reference):
            as_it_was.enter_context(attributes_preserved(module))
            as_it_was.enter_context(buffers_preserved(module))
        # Dry runs, so that bad inputs fail here and readably.
        outputs = named_outputs(run_model(reference, inputs, "example_input"))
        check_classes(outputs, labels, softmax=softmax)
        samples = None
        if sample_inputs is not None:
            samples = checked_samples(reference, sample_inputs, inputs)
        names = input_names_of(own, given, input_names)
        axes = dynamic_axes(names, inputs.tensors, dynamic_shapes, dynamic_batch=dynamic_batch)
        plan = _Plan(
            file=file,
            exported=exported,
            reference=reference,
            inputs=inputs,
            samples=samples,
            input_names=names,
            output_names=output_names_of(outputs, output_names, softmax=softmax),
            axes=axes,
            dynamic_batch=dynamic_batch,
            opset_version=opset_version,
            tolerance=tolerance if verify else None,
            two_files=size > LARGEST_FILE,
            keep_mismatch=keep_mismatch,
        )
        carried = _self_test(plan, tolerance) if self_test else None

        def texts(verification: Verification | None) -> OnnxMetadata:
            return description.complete(
                pipeline=exported.preprocessing if isinstance(exported, Pipeline) else None,
                softmax=softmax,
                weights=weights_sha256(own),
                verification=verification,
                self_test=carried,
            )

        report = _export(plan, texts, choose_progress(size > _LARGE))
    if report.verification is not None and report.verification.status == "inconclusive":
        warnings.warn(f"{file}: {report.verification}", stacklevel=2)
    return report


@dataclass(frozen=True, slots=True)
class _Plan:
    """An export of which all arguments were checked."""

    file: Path
    exported: nn.Module
    reference: nn.Module
    inputs: Inputs
    samples: Inputs | None
    input_names: list[str]
    output_names: list[str]
    axes: list[dict[int, AxisName]]
    dynamic_batch: bool
    opset_version: int | None
    tolerance: float | None
    two_files: bool
    keep_mismatch: bool


def _export(
    plan: _Plan, texts: Callable[[Verification | None], OnnxMetadata], progress: Progress
) -> ExportReport:
    """Trace, write, check, compare and describe; the file has its name when all went well."""
    started = time.monotonic()
    progress.start(f"Exporting {plan.file.name}", 3)
    try:
        program = _traced(plan)
        progress.advance()
        with whole_model(plan.file, two_files=plan.two_files) as temporary:
            _save(program, temporary, plan)
            report = _read(temporary, plan)
            progress.advance()
            if plan.tolerance is not None:
                with _kept_for_a_look(temporary, plan):
                    verification = _verify(temporary, program, plan, plan.tolerance)
                report = dataclasses.replace(report, verification=verification)
            metadata = texts(report.verification)
            with _writing(plan.file):
                append_metadata(temporary, encode(metadata), metadata["description"])
            report = dataclasses.replace(report, size=_bytes(temporary))
            progress.advance()
    except BaseException:
        progress.abort()
        raise
    progress.finish(f"Exported {plan.file} in {time.monotonic() - started:.0f} s.")
    return report


def _traced(plan: _Plan) -> Any:
    # The example's own size where it stays fixed; a batch of one would be taken for a constant.
    inputs = plan.inputs.at_least_two_rows() if plan.dynamic_batch else plan.inputs
    program = trace(
        plan.exported,
        inputs,
        axes=plan.axes,
        input_names=plan.input_names,
        output_names=plan.output_names,
        opset_version=plan.opset_version,
    )
    annotate(program, plan.exported, inner_name(plan.exported))
    return program


def _save(program: Any, temporary: Path, plan: _Plan) -> None:
    with _writing(plan.file):
        program.save(temporary, external_data=plan.two_files)


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Name the file that a user asked for in what the system says of a temporary one."""
    try:
        yield
    except OSError as error:
        raise not_written(file, error) from error


def _read(path: Path, plan: _Plan) -> ExportReport:
    """Check the graph that was written, and return what it is."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The exported graph is invalid: {first_line(error)}") from error
    model = read_onnx(path)
    written = model.opset_import[0].version
    if plan.opset_version not in (None, written):
        raise ExportError(
            f"`opset_version` is {plan.opset_version}, but the exporter could only write "
            f"{written}. The installed onnx knows versions up to {onnx.defs.onnx_opset_version()}."
        )
    report = ExportReport(
        path=plan.file,
        size=_bytes(path),
        opset_version=written,
        inputs=tensor_infos(model.graph.input),
        outputs=tensor_infos(model.graph.output),
        verification=None,
        data_path=data_file(plan.file) if plan.two_files else None,
        example_shapes=tuple(tuple(tensor.shape) for tensor in plan.inputs.tensors),
    )
    _check_dynamic(report, plan)
    return report


def _check_dynamic(report: ExportReport, plan: _Plan) -> None:
    """Check in the saved graph itself that what is to be dynamic is."""
    must = [(i, axis) for i, axes in zip(report.inputs, plan.axes, strict=True) for axis in axes]
    if plan.dynamic_batch:
        must += [(info, 0) for info in report.outputs if info.shape]
    for info, axis in must:
        if isinstance(info.shape[axis], int):
            shown = f" to {info.shape[axis]} in the exported graph (axis {axis} of `{info}`)"
            raise fixed_batch(plan.exported, plan.inputs, shown)


def _verify(path: Path, program: Any, plan: _Plan, tolerance: float) -> Verification:
    try:
        session = open_session(path, checked=True)
    except CorruptFileError as error:
        raise ExportError(
            "ONNX Runtime cannot load the exported graph: "
            f"{first_line(error.__cause__ or error)}. `verify=False` keeps the file for another "
            "engine."
        ) from error
    return compare(
        session,
        path,
        plan.reference,
        batches(
            plan.reference, plan.inputs, plan.samples, plan.axes, dynamic_batch=plan.dynamic_batch
        ),
        tolerance,
        program=lambda: program.exported_program,
    )


@contextlib.contextmanager
def _kept_for_a_look(temporary: Path, plan: _Plan) -> Iterator[None]:
    """Keep a file that differs from the model in a folder beside it, where that was asked for."""
    try:
        yield
    except ExportMismatchError as error:
        if not plan.keep_mismatch:
            raise
        folder = plan.file.with_name(f"{plan.file.stem}.mismatch")
        names = [plan.file.name, *([data_file(plan.file).name] if plan.two_files else [])]
        try:
            with whole_folder(folder, names=names) as kept:
                shutil.copyfile(temporary, kept / plan.file.name)
                if plan.two_files:
                    shutil.copyfile(data_file(temporary), kept / data_file(plan.file).name)
            where = f"The file is in `{folder}`."
        except PathNotWritableError as refused:  # Which must not hide what is wrong with the file.
            where = f"The file could not be kept: {refused}"
        raise ExportMismatchError(
            f"{error} {where}", node=error.node, module=error.module
        ) from error


def _self_test(plan: _Plan, tolerance: float) -> SelfTest:
    """Return two samples (all of a fixed batch) and what the model makes of them."""
    source = plan.samples or plan.inputs
    rows = [2 if plan.dynamic_batch else len(tensor) for tensor in plan.inputs.tensors]
    batch = source.first_rows(rows)
    outputs = flat_outputs(run_model(plan.reference, batch, "example_input"))
    return self_test_of(
        plan.input_names,
        batch.tensors,
        dict(zip(plan.output_names, outputs, strict=True)),
        tolerance,
    )


def _size(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, data_file(path)) if file.is_file())

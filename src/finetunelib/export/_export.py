"""`export_onnx`: from a module to one verified file."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._files import check_writable, whole_file
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CorruptFileError,
    ExportError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
)
from finetunelib.export._inputs import Inputs, ModelInputs
from finetunelib.export._report import ExportReport, tensor_infos
from finetunelib.export._tracing import trace
from finetunelib.export._verification import Verification, model_outputs, verify_onnx

#: Sizes that differ from what is usually traced: 1 and an odd one.
_BATCH_SIZES = (1, 2, 7)

#: Protocol buffers end at 2 GB; the rest is for the graph itself.
_LARGEST = 2_000_000_000


def export_onnx(
    model: nn.Module,
    path: StrPath,
    example_input: ModelInputs,
    *,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    verify: bool = True,
    sample_inputs: ModelInputs | None = None,
    tolerance: float = 1e-3,
    opset_version: int | None = None,
) -> ExportReport:
    """Export a model to one ONNX file, and compare the file with the model before keeping it.

    The file is exported in eval mode by `torch.onnx.export`, freed of paths and source lines of
    this machine, checked by ONNX, and run by ONNX Runtime beside the model at batch sizes 1, 2
    and 7. It appears under its name only when all of this went well; a former file stays as it
    was otherwise. The model is left as it was, the modes of its submodules included.

    Args:
        model: The model, whose output is a tensor or a structure of tensors.
        path: The file to write, ending in `.onnx`. Missing folders are made.
        example_input: What the model takes, on the model's device: a tensor `(batch, ...)`,
            several in a tuple, or a dict by argument name.
        dynamic_batch: Whether the file takes any batch size. `False` fixes the example's.
        input_names: Names of the graph's inputs. `None` takes those of `forward`'s arguments.
        output_names: Names of the graph's outputs. `None` is `output`, or `output_0`,
            `output_1` and so on.
        verify: Whether to compare the file with the model.
        sample_inputs: Real samples to compare on, in the form of `example_input`. `None` varies
            the example.
        tolerance: The largest error allowed, as a share of the outputs' spread over the samples.
        opset_version: The version of ONNX's operators. `None` is the exporter's default.

    Returns:
        What was written and what was proven; print it.

    Raises:
        PathNotWritableError: Nothing can be written at `path`.
        InvalidArgumentError: `path` does not end in `.onnx`, the numbers of names and tensors
            differ, or `tolerance` is not above 0.
        InvalidTypeError: `example_input` or the model's output holds something else than tensors.
        InvalidInputError: The model cannot take `example_input` or `sample_inputs`.
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
    file = _check_arguments(model, path, tolerance)
    inputs = Inputs.of(example_input, "example_input")
    # Dry runs, so that bad inputs fail here and readably.
    outputs = model_outputs(model, inputs, "example_input")
    samples = inputs
    if sample_inputs is not None:
        samples = _samples(model, sample_inputs, inputs)
    program = trace(
        model,
        inputs.at_least_two_rows() if dynamic_batch else inputs,
        dynamic_batch=dynamic_batch,
        input_names=_input_names(model, inputs, input_names),
        output_names=_output_names(outputs, output_names),
        opset_version=opset_version,
    )
    with whole_file(file) as temporary:
        _save(program, temporary, file)
        graph = _read_graph(temporary, opset_version)
        report = ExportReport(
            path=file,
            size=temporary.stat().st_size,
            opset_version=graph.opset_import[0].version,
            inputs=tensor_infos(graph.graph.input),
            outputs=tensor_infos(graph.graph.output),
            verification=None,
        )
        if dynamic_batch:
            _check_dynamic(report)
        if verify:
            batches = _batches(
                inputs, samples, dynamic_batch=dynamic_batch, varied=sample_inputs is None
            )
            report = _verified(report, _verify(temporary, model, batches, tolerance))
    if report.verification is not None and report.verification.status == "inconclusive":
        warnings.warn(f"{file}: {report.verification}", stacklevel=2)
    return report


def _check_arguments(model: nn.Module, path: StrPath, tolerance: float) -> Path:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"`model` must be a torch.nn.Module, but is {type(model).__name__}.")
    file = check_writable(path)
    if file.suffix != ".onnx":
        raise InvalidArgumentError(f"`path` must end in .onnx, but is `{file}`.")
    if not tolerance > 0.0:
        raise InvalidArgumentError(f"`tolerance` must be above 0, but is {tolerance}.")
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if size > _LARGEST:
        raise ExportError(
            f"The model's weights take {size / 1e9:.1f} GB, and a single ONNX file holds at most "
            "2 GB. Export it in half precision: `model.half()` and a half-precision example."
        )
    return file


def _samples(model: nn.Module, sample_inputs: ModelInputs, inputs: Inputs) -> Inputs:
    samples = Inputs.of(sample_inputs, "sample_inputs")
    if len(samples.tensors) != len(inputs.tensors):
        raise InvalidArgumentError(
            f"`sample_inputs` holds {len(samples.tensors)} tensors, but `example_input` holds "
            f"{len(inputs.tensors)}. Pass both in the same form."
        )
    model_outputs(model, samples, "sample_inputs")
    return samples


def _input_names(model: nn.Module, inputs: Inputs, names: Sequence[str] | None) -> list[str]:
    count = len(inputs.tensors)
    if names is not None:
        if len(names) != count:
            raise InvalidArgumentError(
                f"`input_names` holds {len(names)} names, but the model takes {count} inputs."
            )
        return list(names)
    arguments = list(inspect.signature(model.forward).parameters.values())
    positional = [a.name for a in arguments if a.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(positional) < len(inputs.args):
        positional = ["input", *(f"input_{i}" for i in range(1, len(inputs.args)))]
    return [*positional[: len(inputs.args)], *inputs.kwargs]


def _output_names(outputs: list[Tensor], names: Sequence[str] | None) -> list[str]:
    if names is None:
        many = len(outputs) > 1
        return [f"output_{i}" if many else "output" for i in range(len(outputs))]
    if len(names) != len(outputs):
        raise InvalidArgumentError(
            f"`output_names` holds {len(names)} names, but the model has {len(outputs)} outputs."
        )
    return list(names)


def _save(program: Any, temporary: Path, file: Path) -> None:
    try:
        program.save(temporary, external_data=False)
    except OSError as error:
        raise PathNotWritableError(f"`{file}` could not be written: {error}") from error


def _read_graph(path: Path, opset_version: int | None) -> Any:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The exported graph is invalid: {_first_line(error)}") from error
    graph = onnx.load(path)
    written = graph.opset_import[0].version
    if opset_version not in (None, written):
        raise ExportError(
            f"`opset_version` is {opset_version}, but the exporter could only write {written}. "
            f"The installed onnx knows versions up to {onnx.defs.onnx_opset_version()}."
        )
    return graph


def _check_dynamic(report: ExportReport) -> None:
    for info in (*report.inputs, *report.outputs):
        if info.shape and isinstance(info.shape[0], int):
            raise ExportError(
                f"The batch size is fixed to {info.shape[0]} in the exported graph (`{info}`): "
                "the model's forward turns it into a constant, for example in a reshape. Use "
                "`x.shape[0]` or -1 there, or pass `dynamic_batch=False`."
            )


def _batches(
    inputs: Inputs, samples: Inputs, *, dynamic_batch: bool, varied: bool
) -> list[ModelInputs]:
    """Return batches of different samples: of several sizes, or of the example's own."""
    lengths = [len(tensor) for tensor in inputs.tensors]
    sizes = [[*_BATCH_SIZES] if dynamic_batch else [length] * 2 for length in lengths]
    totals = [sum(size) for size in sizes]
    if varied:
        pool = samples.resized(totals, torch.Generator().manual_seed(0))
    else:
        pool = samples.first_rows(totals)
    parts = [torch.split(tensor, size) for tensor, size in zip(pool.tensors, sizes, strict=True)]
    batches = [pool.with_tensors(part) for part in zip(*parts, strict=True)]
    return [batch.kwargs or batch.args for batch in batches]


def _verify(
    path: Path, model: nn.Module, batches: list[ModelInputs], tolerance: float
) -> Verification:
    try:
        return verify_onnx(path, model, batches, tolerance=tolerance)
    except CorruptFileError as error:
        raise ExportError(
            "ONNX Runtime cannot load the exported graph: "
            f"{_first_line(error.__cause__ or error)}. `verify=False` keeps the file for another "
            "engine."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _verified(report: ExportReport, verification: Verification) -> ExportReport:
    return ExportReport(
        report.path,
        report.size,
        report.opset_version,
        report.inputs,
        report.outputs,
        verification,
    )

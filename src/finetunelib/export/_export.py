"""`export_onnx`: from a module to one verified file."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._forward.inputs import ModelInputs
from finetunelib._forward.outputs import flat_outputs
from finetunelib._forward.run import run_model
from finetunelib._preserve import attributes_preserved, buffers_preserved
from finetunelib._progress import Progress, choose_progress
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.export._batches.samples import checked_samples
from finetunelib.export._metadata.describe import (
    Description,
    check_certificate,
    self_test_of,
    weights_sha256,
)
from finetunelib.export._metadata.format import SelfTest, append_metadata, encode
from finetunelib.export._model_file import LARGEST_FILE, atomic_model, file_bytes, naming
from finetunelib.export._plan import Interface, Plan, Subject
from finetunelib.export._report import ExportReport
from finetunelib.export._request.arguments import Arguments
from finetunelib.export._request.batch_axes import find_batch_axes
from finetunelib.export._request.checks import (
    check_kind,
    check_opset,
    check_path,
    check_tolerance,
    check_values,
)
from finetunelib.export._request.dynamic_axes import DynamicShapes, dynamic_axes
from finetunelib.export._request.names import check_classes, input_names_of, output_names_of
from finetunelib.export._request.pipeline import Pipeline, Preprocessing
from finetunelib.export._request.prepare import prepare
from finetunelib.export._request.rows import batch_size, take_rows
from finetunelib.finetuning._freezing.certificate import Certificate

#: Models of at least this many bytes take long enough to export to show progress.
_LARGE = 200_000_000


@public("finetunelib")
def export_onnx(  # noqa: PLR0913 - the options of an export
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

    The model is exported in eval mode by `torch.onnx.export`. Paths and source lines of this
    machine are removed, ONNX checks the file, and ONNX Runtime runs it on the same batches as the
    model, of 1, 2 and 7 samples (1 and 3 for large models). The file appears at `path` only if all
    of this succeeds; otherwise an existing file is unchanged. Modes, buffers, hooks and random
    states are restored.

    The file contains metadata (see `finetunelib.export.load_onnx_metadata`), and each node of its
    graph names the module that it comes from and whether its parameters are frozen. A model above
    2 GB becomes two files, `model.onnx` and `model.onnx.data`.

    Args:
        model: The model. Its output is a tensor or a structure of tensors.
        path: The file to write, ending in `.onnx`. Missing folders are created.
        example_input: Inputs of the model, on any device: a tensor `(batch, ...)`, several in a
            tuple, or a dict by argument name. With `preprocessing`, the inputs of that.
        dynamic_batch: Whether the exported model accepts any batch size. If `False`, it is fixed
            to that of `example_input`.
        dynamic_shapes: Further dynamic axes: for each input, a dict from axis number to name, in a
            dict by input name or in a list in the order of the inputs. `{"tokens": {1: "length"}}`
            makes the length of texts dynamic. A `torch.export.Dim` in place of a name sets bounds.
        input_names: Names of the graph's inputs. `None` uses those of `forward`'s arguments.
        output_names: Names of the graph's outputs. `None` uses those in the model's output (a dict
            or named tuple), else `output`, or `output_0`, `output_1` and so on; `probabilities`
            with `softmax`.
        verify: Whether to compare the file with the model. If `False`, it is compared only at sizes
            that contradict what the exporter assumed about sizes, and the graph checks an
            assumption without which it is wrong.
        sample_inputs: Real samples to compare on, in the form of `example_input`. `None` varies
            the example.
        tolerance: The largest error allowed, as a fraction of the outputs' spread over the samples.
        labels: The names of the classes, in the order of the output; stored in the file.
        preprocessing: Preprocessing to include in the graph: a module, a torchvision preset
            (`weights.transforms()`), or `(mean, std)` for raw uint8 images from 0 to 255 of shape
            `(batch, channels, height, width)`. The file then takes its inputs.
        softmax: Whether the graph ends with a softmax over the classes.
        metadata: Texts to store in the file, such as `{"description": ..., "author": ...}`.
        certificate: `History.certificate` of a training run. Its tensors are hashed again, and the
            file records which ones were frozen.
        self_test: Whether to store two samples and the model's outputs for them in the file.
            Anyone who runs it can use them to check the installation.
        opset_version: The version of the ONNX operators. `None` is the exporter's default.
        keep_mismatch: Whether to keep a file that differs from the model, in a folder
            `model.mismatch` next to `path`.

    Returns:
        A report of what was written and verified. Print it for a summary.

    Raises:
        PathNotWritableError: If the file cannot be written.
        InvalidArgumentError: If `path` does not end in `.onnx`, `dynamic_shapes` names an input or
            axis that does not exist, `tolerance` is not a finite number above 0, or the number of
            names, labels or tensors is wrong.
        InvalidTypeError: If an argument is of an unsupported type, or the model's output contains
            anything other than tensors, numbers and `None`.
        InvalidInputError: If the model cannot take `example_input` or `sample_inputs`.
        FreezeError: If a tensor of `certificate` has changed since the training run.
        ExportError: If the exporter cannot export the model, fixed its batch size, assumed a size
            that the graph cannot check or cannot write `opset_version`, or if ONNX or ONNX Runtime
            cannot read the file.
        ExportMismatchError: If the file and the model compute different outputs. No file is kept.

    Warns:
        UserWarning: If the comparison was inconclusive, because an input, a dynamic axis or an
            output did not vary. The file is kept.

    Example:
        >>> import os, tempfile, torch
        >>> from finetunelib import build_mlp, export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "mlp.onnx")
        ...     report = export_onnx(build_mlp(4, [8], 3, seed=0), path, torch.randn(2, 4))
        >>> report.verification.status, report.inputs[0].shape
        ('verified', ('batch', 4))
    """
    # Imported here because the package should stay fast to import.
    from finetunelib.export._verified_file import write_verified

    file = check_path(path)
    check_tolerance(tolerance)
    user_model = unwrapped(check_model(model))
    check_kind(user_model)
    check_values(user_model)
    check_opset(opset_version)
    description = Description.of(labels, metadata, certificate)
    if certificate is not None:
        check_certificate(certificate, user_model)
    arguments = Arguments.of(example_input, user_model, "example_input").on_device_of(user_model)
    size = _model_bytes(user_model)
    with _restored(user_model), contextlib.ExitStack() as stack:
        # Run the model once first: wrong inputs should fail early, with a readable message.
        prepared = prepare(user_model, arguments, preprocessing, "example_input", softmax=softmax)
        exported, reference, inputs = prepared.exported, prepared.reference, prepared.inputs
        stack.enter_context(_restored(exported, reference))
        check_classes(prepared.outputs, labels, softmax=softmax)
        batch = find_batch_axes(reference, inputs)
        samples = None
        if sample_inputs is not None:
            real = arguments.flat(sample_inputs, user_model, "sample_inputs")
            samples = checked_samples(reference, real.on_device_of(user_model), inputs, batch)
        names = input_names_of(arguments.names, input_names)
        plan = Plan(
            file=file,
            subject=Subject(exported, reference, inputs, batch, samples),
            interface=Interface(
                input_names=names,
                output_names=output_names_of(
                    prepared.outputs, output_names, names, softmax=softmax
                ),
                axes=dynamic_axes(
                    names,
                    inputs.tensors,
                    dynamic_shapes,
                    batch=batch if dynamic_batch else [None] * len(batch),
                ),
                dynamic_batch=dynamic_batch,
                opset_version=opset_version,
            ),
            tolerance=tolerance if verify else None,
            two_files=size > LARGEST_FILE,
            keep_mismatch=keep_mismatch,
        )
        test = _self_test(plan, tolerance) if self_test else None
        with _showing(plan, size) as progress, atomic_model(file, two_files=plan.two_files) as new:
            report = write_verified(plan, new, progress)
            found = description.complete(
                pipeline=exported.preprocessing if isinstance(exported, Pipeline) else None,
                softmax=softmax,
                weights=weights_sha256(user_model),
                verification=report.verification,
                size_checks=report.size_checks,
                self_test=test,
            )
            with naming(file):
                append_metadata(new, encode(found), found["description"])
    size = file_bytes(file, two_files=plan.two_files)
    report = dataclasses.replace(report, size=size, notes=prepared.notes)
    if report.verification is not None and report.verification.status == "inconclusive":
        warnings.warn(f"{file}: {report.verification}", stacklevel=2)
    return report


@contextlib.contextmanager
def _showing(plan: Plan, size: int) -> Iterator[Progress]:
    """Show the progress of an export if the model, of this size in bytes, is large."""
    started = time.monotonic()
    progress = choose_progress(size > _LARGE)
    progress.start(f"Exporting {plan.file.name}", 2)
    try:
        yield progress
    except BaseException:
        progress.abort()
        raise
    progress.finish(f"Exported {plan.file} in {time.monotonic() - started:.0f} s.")


@contextlib.contextmanager
def _restored(*models: nn.Module) -> Iterator[None]:
    """Restore the attributes and buffers of models after the block."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(attributes_preserved(model))
            stack.enter_context(buffers_preserved(model))
        yield


def _self_test(plan: Plan, tolerance: float) -> SelfTest:
    """Return two samples (all samples of a fixed batch) and the model's outputs for them."""
    subject, interface = plan.subject, plan.interface
    source = subject.samples or subject.inputs
    rows = 2 if interface.dynamic_batch else batch_size(subject.inputs, subject.batch)
    batch = take_rows(source, subject.batch, rows)
    outputs = flat_outputs(run_model(subject.reference, batch.map(Tensor.clone), "example_input"))
    return self_test_of(
        interface.input_names,
        batch.tensors,
        dict(zip(interface.output_names, outputs, strict=True)),
        tolerance,
    )


def _model_bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""The comparison of an ONNX file, run by ONNX Runtime, with the model that it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._files import check_readable
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.outputs import flat_outputs
from finetunelib._forward.run import run_model
from finetunelib._preserve import attributes_preserved, buffers_preserved
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import ExportMismatchError, InvalidArgumentError, InvalidTypeError
from finetunelib.export._model_file import read_onnx
from finetunelib.export._request.checks import check_tolerance
from finetunelib.export._request.dynamic_axes import AxisName
from finetunelib.export._request.pipeline import Pipeline, Preprocessing, inner_name, pipelines
from finetunelib.export._tracing.exporter import trace
from finetunelib.export._verification.comparison import Comparison, examine
from finetunelib.export._verification.runtime import (
    Array,
    RefusedError,
    RunError,
    graph_inputs,
    open_session,
    run_session,
)

if TYPE_CHECKING:
    from finetunelib.export._verification.locate import Departure


@public("finetunelib.export")
@dataclass(frozen=True, slots=True)
class Verification:
    """What a comparison showed.

    Attributes:
        status: `"verified"`: the file computes what the model does. `"inconclusive"`: nothing
            differed, but the outputs do not vary over the samples, so that nothing was proven.
        batch_sizes: The batch sizes that were compared.
        tolerance: The largest error that was allowed, as a share of the spread.
        comparisons: The numbers, one for each output and batch.

    Example:
        >>> import os, tempfile, torch
        >>> from finetunelib import build_mlp, export_onnx
        >>> from finetunelib.export import verify_onnx
        >>> model, inputs = build_mlp(4, [8], 3, seed=0), torch.randn(2, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(model, os.path.join(folder, "mlp.onnx"), inputs, verify=False)
        ...     verify_onnx(report.path, model, [inputs]).status
        'verified'
    """

    status: Literal["verified", "inconclusive"]
    batch_sizes: tuple[int, ...]
    tolerance: float
    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, dict.fromkeys(self.batch_sizes)))
        if self.status == "inconclusive":
            return (
                f"Inconclusive at batch {sizes}: nothing differs, but the model's outputs do not "
                "vary from sample to sample, so that agreement proves nothing. "
                "Pass real samples: `sample_inputs=`."
            )
        worst = max(comparison.error for comparison in self.comparisons)
        norm = max(abs(comparison.norm_ratio - 1) for comparison in self.comparisons)
        return (
            f"Verified with ONNX Runtime at batch {sizes}: the largest error is {worst:.1e} of the "
            f"outputs' spread (allowed: {self.tolerance:.0e}), the norms agree to {norm:.0e}"
            + (", and so do all predicted classes." if self._has_classes else ".")
        )

    @property
    def _has_classes(self) -> bool:
        return any(comparison.argmax_agreement is not None for comparison in self.comparisons)


@public("finetunelib.export")
def verify_onnx(
    path: StrPath,
    model: nn.Module,
    inputs: Sequence[ModelInputs],
    *,
    tolerance: float = 1e-3,
    preprocessing: Preprocessing | None = None,
    softmax: bool = False,
) -> Verification:
    """Compare an ONNX file with the model that it came from, on given batches.

    The file is checked by ONNX and run by ONNX Runtime on the CPU; the model runs in eval mode
    and is left as it was. Four things must hold for every output and batch: all values are finite;
    no value differs by more than `tolerance`; the norms of what varies agree to `tolerance`; the
    largest value of each sample is at the same place. Errors are measured against the spread of
    the outputs over the samples, since an error that is small beside a large constant may still be
    all that varies. One output has one scale: a column that varies a thousand times less than
    another is not proven by it, so return such columns as outputs of their own.

    Where they differ, the model is traced again, and each node of the file is run on the model's
    own values to find the first one that departs.

    Args:
        path: The ONNX file.
        model: The model.
        inputs: Batches to compare on: each a tensor, several in a tuple in the order of the
            file's inputs, or a dict, by the names of the file's inputs or in their order.
        tolerance: The largest error allowed, as a share of the outputs' spread; finite, above 0.
        preprocessing: What the file does before the model, as for `export_onnx`.
        softmax: Whether the file ends with a softmax.

    Returns:
        The numbers, with the status `"verified"` or `"inconclusive"`.

    Raises:
        ExportMismatchError: One of the four does not hold, the file takes or returns other tensors
            than the model, or it holds a node that ONNX Runtime refuses and the model does not
            have. Its `node` and `module` say where, as far as that was found.
        FileMissingError: There is no such file.
        CorruptFileError: The file is no valid ONNX model, or ONNX Runtime cannot load it.
        InvalidArgumentError: `tolerance` is not a finite number above 0, or there is no batch.
        InvalidInputError: The model cannot take a batch.
        InvalidTypeError: `model` is no module, `inputs` no list of batches, or a batch or the
            model's output holds something else than tensors.

    Example:
        See `Verification`.
    """
    check_tolerance(tolerance)
    model = unwrapped(check_model(model))
    if isinstance(inputs, Tensor | Mapping):
        raise InvalidTypeError(
            f"`inputs` must be a list of batches, but is of type {type(inputs).__name__}. "
            "Pass `[inputs]`."
        )
    if not inputs:
        raise InvalidArgumentError("`inputs` is empty. Pass at least one batch to compare on.")
    file = check_readable(path, purpose="ONNX file")
    session: Any = None
    refusal: RefusedError | None = None
    try:
        session = open_session(file)
    except RefusedError as error:
        refusal = error
    declared = _declared_inputs(file) if session is None else _inputs_of(session)
    batches = [
        Inputs.of(batch, f"inputs[{number}]").beside(model).in_order(list(declared))
        for number, batch in enumerate(inputs)
    ]
    exported, reference, first = pipelines(model, batches[0], preprocessing, softmax=softmax)
    if isinstance(reference, Pipeline):
        batches = [batch.by_position() for batch in batches]
    program = partial(_traced_again, exported, first, list(declared.values()))
    with attributes_preserved(reference), buffers_preserved(reference):
        if refusal is None:
            return compare(session, file, reference, batches, tolerance, program=program)
        # What the runtime refuses may be a right file for another one, or a file that was changed.
        found = _sought(file, program, batches[0], inner_name(reference), tolerance)
        if found is None:
            raise refusal
        raise _mismatch(str(refusal), found) from refusal


def compare(
    session: Any,
    file: Path,
    model: nn.Module,
    batches: Sequence[Inputs],
    tolerance: float,
    *,
    program: Callable[[], Any],
) -> Verification:
    """Compare an opened file with a model; `program` returns what was exported, when needed.

    Raises:
        ExportMismatchError: The file computes something else.
    """
    expected = [_run_model(model, batch, f"inputs[{n}]") for n, batch in enumerate(batches)]
    prefix = inner_name(model)
    actual = []
    for batch in batches:
        try:
            actual.append(run_session(session, batch))
        except RunError as error:
            found = _sought(file, program, batch, prefix, tolerance)
            raise _mismatch(str(error), found) from error
    names = [output.name for output in session.get_outputs()]
    if len(names) != len(expected[0]):
        raise ExportMismatchError(
            f"The file has {len(names)} outputs ({', '.join(names)}), but the model returns "
            f"{len(expected[0])}."
        )
    findings = [
        examine(name, [b[i] for b in expected], [b[i] for b in actual], tolerance)
        for i, name in enumerate(names)
    ]
    for finding in findings:
        if finding.problem:
            found = _sought(file, program, batches[finding.batch], prefix, tolerance)
            raise _mismatch(finding.problem, found)
    return Verification(
        status="verified" if all(finding.varies for finding in findings) else "inconclusive",
        batch_sizes=tuple(len(batch.tensors[0]) for batch in batches),
        tolerance=tolerance,
        comparisons=tuple(c for finding in findings for c in finding.comparisons),
    )


def _sought(
    file: Path, program: Callable[[], Any], batch: Inputs, prefix: str, tolerance: float
) -> Departure | None:
    """Search for where a file departs; not finding it must not hide that it does."""
    from finetunelib.export._verification.locate import locate

    with contextlib.suppress(Exception):
        return locate(file, program(), batch, prefix, tolerance)
    return None


def _mismatch(problem: str, found: Departure | None) -> ExportMismatchError:
    if found is None:
        return ExportMismatchError(problem)
    return ExportMismatchError(f"{problem} {found}", node=found.node, module=found.module)


def _run_model(model: nn.Module, batch: Inputs, name: str) -> list[Array]:
    outputs = flat_outputs(run_model(model, batch, name))
    return [tensor.detach().cpu().to(torch.float64).numpy() for tensor in outputs]


def _inputs_of(session: Any) -> dict[str, list[int | str | None]]:
    """Return the names and shapes of a file's inputs."""
    return {value.name: value.shape for value in session.get_inputs()}


def _declared_inputs(file: Path) -> dict[str, list[int | str | None]]:
    """Return the same of a file that the runtime does not load."""
    graph = read_onnx(file).graph
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph_inputs(graph)
    }


def _traced_again(
    model: nn.Module, inputs: Inputs, shapes: Sequence[Sequence[int | str | None]]
) -> Any:
    """Return the exported program of a model, with the dynamic axes of a file of it."""
    axes: list[dict[int, AxisName]] = [
        {axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for shape in shapes
    ]
    return trace(
        model,
        inputs.at_least_two_rows(),
        axes=axes,
        input_names=None,
        output_names=None,
        opset_version=None,
    ).exported_program

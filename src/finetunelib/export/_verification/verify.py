"""Compares an ONNX file, run by ONNX Runtime, with the model that it was exported from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

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
from finetunelib.errors import (
    ExportMismatchError,
    FinetuneLibError,
    InvalidArgumentError,
    InvalidTypeError,
)
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
    from finetunelib.export._verification.locate import MismatchLocation

#: The sizes of an input; a dynamic one is a name.
Shape: TypeAlias = list[int | str | None]


@public("finetunelib.export")
@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """The result of comparing a file with a model.

    Attributes:
        status: `"verified"` if the file computes what the model does. `"inconclusive"` if nothing
            differed, but the outputs do not vary over the samples, which proves nothing.
        batch_sizes: The batch sizes that were compared.
        tolerance: The largest error allowed, as a fraction of the spread.
        comparisons: The numbers for each output and batch.

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

    def __repr__(self) -> str:
        return (
            f"Verification({self.status!r}, batch_sizes={self.batch_sizes}, "
            f"tolerance={self.tolerance}, {len(self.comparisons)} comparisons)"
        )

    def __str__(self) -> str:
        sizes = ", ".join(map(str, dict.fromkeys(self.batch_sizes)))
        if self.status == "inconclusive":
            return (
                f"Inconclusive at batch sizes {sizes}: nothing differs, but the model's outputs do "
                "not vary over the samples, so the agreement proves nothing. "
                "Pass real samples: `sample_inputs=`."
            )
        worst = max(comparison.error for comparison in self.comparisons)
        norm = max(abs(comparison.norm_ratio - 1) for comparison in self.comparisons)
        return (
            f"Verified with ONNX Runtime at batch sizes {sizes}: the largest error is {worst:.1e} "
            f"of the outputs' spread (allowed: {self.tolerance:.0e}), the norms agree to {norm:.0e}"
            + (", and all predicted classes agree." if self._has_classes else ".")
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
    """Compare an ONNX file with the model that it was exported from, on given batches.

    ONNX checks the file, and ONNX Runtime runs it on the CPU. The model runs in eval mode and is
    restored. For each output and batch, four conditions must hold: all values are finite; no value
    differs by more than `tolerance`; the norms of the variation agree to `tolerance`; the largest
    value of each sample is at the same index. Errors are measured relative to the spread of the
    outputs over the samples, because an error that is small compared with a large constant can
    still be all that varies. An output has one scale: a column that varies a thousand times less
    than another is not verified by it, so return such columns as separate outputs.

    If they differ, the model is traced again, and each node of the file runs on the model's values
    to find the first one that differs.

    Args:
        path: The ONNX file.
        model: The model.
        inputs: Batches to compare on. Each is a tensor, several in a tuple in the order of the
            file's inputs, or a dict, by the names of the file's inputs or in their order.
        tolerance: The largest error allowed, as a fraction of the outputs' spread; above 0.
        preprocessing: The preprocessing in the file, as for `export_onnx`.
        softmax: Whether the file ends with a softmax.

    Returns:
        The numbers, with the status `"verified"` or `"inconclusive"`.

    Raises:
        ExportMismatchError: If a condition does not hold, the file and the model have different
            inputs or outputs, or the file has a node that ONNX Runtime cannot load and the model
            does not have. Its `node` and `module` are the location, if it was found.
        FileMissingError: If the file does not exist.
        CorruptFileError: If the file is not a valid ONNX model, or ONNX Runtime cannot load it.
        InvalidArgumentError: If `tolerance` is not a finite number above 0, or `inputs` is empty.
        InvalidInputError: If the model cannot take a batch.
        InvalidTypeError: If `model` is not an `nn.Module`, `inputs` is not a list of batches, or a
            batch or the model's output contains anything other than tensors.

    Example:
        See `Verification`.
    """
    check_tolerance(tolerance)
    model = unwrapped(check_model(model))
    _check_batches(inputs)
    file = check_readable(path, purpose="ONNX file")
    try:
        session = open_session(file)
    except RefusedError as error:
        pair = _Pair.of(file, _declared_inputs(file), model, inputs, preprocessing, softmax)
        with pair.restored():
            raise _explain_refusal(error, pair, tolerance) from error
    pair = _Pair.of(file, _inputs_of(session), model, inputs, preprocessing, softmax)
    with pair.restored():
        return compare(session, file, pair.model, pair.batches, tolerance, program=pair.program)


def _check_batches(inputs: object) -> None:
    if isinstance(inputs, Tensor | Mapping):
        raise InvalidTypeError(
            f"`inputs` must be a list of batches, got {type(inputs).__name__}. Pass `[inputs]`."
        )
    if not inputs:
        raise InvalidArgumentError("`inputs` is empty. Pass at least one batch to compare on.")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A file and the model to compare it with, the batches, and the model's exported program."""

    file: Path
    model: nn.Module
    batches: list[Inputs]
    program: Callable[[], Any]

    @classmethod
    def of(
        cls,
        file: Path,
        declared: Mapping[str, Shape],
        model: nn.Module,
        inputs: Sequence[ModelInputs],
        preprocessing: Preprocessing | None,
        softmax: bool,
    ) -> _Pair:
        """Prepare the comparison of a file that declares these inputs."""
        batches = [
            Inputs.of(batch, f"inputs[{number}]").on_device_of(model).in_order(list(declared))
            for number, batch in enumerate(inputs)
        ]
        exported, reference, first = pipelines(model, batches[0], preprocessing, softmax=softmax)
        if isinstance(reference, Pipeline):
            batches = [batch.by_position() for batch in batches]
        program = partial(_traced_again, exported, first, list(declared.values()))
        return cls(file, reference, batches, program)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the attributes and buffers of the model after the block."""
        with attributes_preserved(self.model), buffers_preserved(self.model):
            yield


def _explain_refusal(error: RefusedError, pair: _Pair, tolerance: float) -> FinetuneLibError:
    """Return the error for a file that ONNX Runtime cannot load.

    The file may be right and made for another engine, or it may have been changed.
    """
    prefix = inner_name(pair.model)
    location = _locate(pair.file, pair.program, pair.batches[0], prefix, tolerance)
    return error if location is None else _mismatch_error(str(error), location)


def compare(
    session: Any,
    file: Path,
    model: nn.Module,
    batches: Sequence[Inputs],
    tolerance: float,
    *,
    program: Callable[[], Any],
) -> Verification:
    """Compare a loaded file with a model; `program` returns the exported program if needed.

    Raises:
        ExportMismatchError: If they compute different outputs.
    """
    explain = partial(_explain, file, program, inner_name(model), tolerance)
    expected, actual = _run_both(session, model, batches, explain)
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
            raise explain(finding.problem, batches[finding.batch])
    return Verification(
        status="verified" if all(finding.varies for finding in findings) else "inconclusive",
        batch_sizes=tuple(len(batch.tensors[0]) for batch in batches),
        tolerance=tolerance,
        comparisons=tuple(c for finding in findings for c in finding.comparisons),
    )


def _run_both(
    session: Any,
    model: nn.Module,
    batches: Sequence[Inputs],
    explain: Callable[[str, Inputs], ExportMismatchError],
) -> tuple[list[list[Array]], list[list[Array]]]:
    """Return the outputs of the model and of the file for each batch."""
    expected = [_run_model(model, batch, f"inputs[{n}]") for n, batch in enumerate(batches)]
    actual = []
    for batch in batches:
        try:
            actual.append(run_session(session, batch))
        except RunError as error:
            raise explain(str(error), batch) from error
    return expected, actual


def _explain(
    file: Path,
    program: Callable[[], Any],
    prefix: str,
    tolerance: float,
    problem: str,
    batch: Inputs,
) -> ExportMismatchError:
    """Return the error for a mismatch on a batch, with its location if it can be found."""
    return _mismatch_error(problem, _locate(file, program, batch, prefix, tolerance))


def _locate(
    file: Path, program: Callable[[], Any], batch: Inputs, prefix: str, tolerance: float
) -> MismatchLocation | None:
    """Return where a file differs from the model. A failed search must not hide the mismatch."""
    from finetunelib.export._verification.locate import locate

    with contextlib.suppress(Exception):
        return locate(file, program(), batch, prefix, tolerance)
    return None


def _mismatch_error(problem: str, location: MismatchLocation | None) -> ExportMismatchError:
    if location is None:
        return ExportMismatchError(problem)
    return ExportMismatchError(f"{problem} {location}", node=location.node, module=location.module)


def _run_model(model: nn.Module, batch: Inputs, name: str) -> list[Array]:
    outputs = flat_outputs(run_model(model, batch, name))
    return [tensor.detach().cpu().to(torch.float64).numpy() for tensor in outputs]


def _inputs_of(session: Any) -> dict[str, Shape]:
    """Return the names and shapes of the inputs of a session."""
    return {value.name: value.shape for value in session.get_inputs()}


def _declared_inputs(file: Path) -> dict[str, Shape]:
    """Return the names and shapes of the inputs of a file that ONNX Runtime cannot load."""
    graph = read_onnx(file).graph
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph_inputs(graph)
    }


def _traced_again(model: nn.Module, inputs: Inputs, shapes: Sequence[Shape]) -> Any:
    """Return the exported program of a model, with the dynamic axes that a file declares."""
    axes: list[dict[int, AxisName]] = [
        {axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for shape in shapes
    ]
    return trace(
        model,
        inputs.with_two_rows(),
        axes=axes,
        input_names=None,
        output_names=None,
        opset_version=None,
    ).exported_program

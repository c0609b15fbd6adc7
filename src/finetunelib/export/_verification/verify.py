"""`verify_onnx`: compares an ONNX file with the model that it was exported from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._files.paths import check_readable
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._preserve import attributes_preserved, buffers_preserved
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import FinetuneLibError, InvalidArgumentError, InvalidTypeError
from finetunelib.export._batches.runs import Run, Runner, run_batch, runs_at_missing_sizes
from finetunelib.export._batches.samples import Sampler
from finetunelib.export._batches.sizes import Axes
from finetunelib.export._model_file import read_onnx
from finetunelib.export._request.arguments import Arguments
from finetunelib.export._request.checks import check_kind, check_tolerance
from finetunelib.export._request.dynamic_axes import AxisName
from finetunelib.export._request.pipeline import Pipeline, Preprocessing, inner_name
from finetunelib.export._request.prepare import prepare
from finetunelib.export._request.rows import BatchAxes, at_least_two
from finetunelib.export._tracing.exporter import trace
from finetunelib.export._verification.compare import FileComparison
from finetunelib.export._verification.mismatch import find_location, mismatch_error
from finetunelib.export._verification.outcome import Verification
from finetunelib.export._verification.runtime import RefusedError, graph_inputs, open_session

#: A limit of the size of one axis, in the JSON list of checks in the metadata of a file.
_LIMIT = re.compile(r'"(\w+) (<=|>=) (\d+)"')

#: The sizes of an input; a dynamic one is a name.
Shape: TypeAlias = Sequence[int | str | None]


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
    restored. If a dynamic axis has one size in all batches, it is also compared at a second one.
    For each output and batch, these conditions must hold: all values are finite; no value differs
    by more than `tolerance`; the norms of the variation agree to `tolerance`; the largest value of
    each sample of an output `(batch, classes)` is at the same index; integers and booleans are
    equal, except where rounding decides them. Errors are measured relative to the spread of the
    outputs over the samples, because an error that is small compared with a large constant can
    still be all that varies. A column or channel that varies a thousand times less than another
    is measured by its own spread.

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
    check_kind(model)
    _check_batches(inputs)
    file = check_readable(path, purpose="ONNX file")
    session: Any = None
    refusal: RefusedError | None = None
    try:
        session = open_session(file)
    except RefusedError as error:
        refusal = error
    declared = _declared_inputs(file) if session is None else _inputs_of(session)
    pair = _Pair.of(declared, model, inputs, preprocessing, softmax=softmax)
    with pair.restored():
        if refusal is not None:
            raise _explain_refusal(refusal, file, pair, tolerance) from refusal
        return _compare(session, file, pair, tolerance)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A model to compare a file with, on batches in the order of the file's inputs."""

    model: nn.Module
    batches: list[Inputs]
    declared: dict[str, Shape]
    program: Callable[[], Any]

    @classmethod
    def of(
        cls,
        declared: dict[str, Shape],
        model: nn.Module,
        inputs: Sequence[ModelInputs],
        preprocessing: Preprocessing | None,
        *,
        softmax: bool,
    ) -> _Pair:
        """Prepare the comparison of a file with these inputs."""
        ordered = [_in_order(batch, list(declared)) for batch in inputs]
        arguments = Arguments.of(ordered[0], model, "inputs[0]").on_device_of(model)
        with attributes_preserved(model), buffers_preserved(model):
            prepared = prepare(model, arguments, preprocessing, "inputs[0]", softmax=softmax)
        batches = [
            arguments.flat(batch, model, f"inputs[{number}]").on_device_of(model)
            for number, batch in enumerate(ordered)
        ]
        if isinstance(prepared.reference, Pipeline):
            batches = [batch.by_position() for batch in batches]
        program = partial(
            _traced_again, prepared.exported, prepared.inputs, list(declared.values())
        )
        return cls(prepared.reference, batches, declared, program)

    @property
    def names(self) -> list[str]:
        """The names of the inputs, as far as the file and the batches have as many."""
        count = len(self.batches[0].tensors)
        return [*self.declared, *(f"input {n}" for n in range(len(self.declared), count))][:count]

    @property
    def axes(self) -> list[dict[int, AxisName]]:
        """The dynamic axes of the inputs of the batches."""
        shapes = [self.declared.get(name, []) for name in self.names]
        return [
            {
                axis: size or f"axis {axis} of {name}"
                for axis, size in enumerate(shape[: tensor.dim()])
                if not isinstance(size, int)
            }
            for name, shape, tensor in zip(self.names, shapes, self.batches[0].tensors, strict=True)
        ]

    @property
    def batch(self) -> BatchAxes:
        """The batch axis of each input: the first axis, or the one with the name of the first."""
        axes = self.axes
        first = axes[0].get(0)
        size = len(self.batches[0].tensors[0])
        found: list[int | None] = []
        for own, tensor in zip(axes, self.batches[0].tensors, strict=True):
            named = [axis for axis, name in own.items() if first is not None and name == first]
            same = tensor.dim() > 0 and len(tensor) == size
            found.append(named[0] if named else 0 if same else None)
        return found

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the attributes and buffers of the model after the block."""
        with attributes_preserved(self.model), buffers_preserved(self.model):
            yield


def _compare(session: Any, file: Path, pair: _Pair, tolerance: float) -> Verification:
    """Compare a loaded file on all batches, and at a second size of each dynamic axis."""
    limits = _stored_limits(file)
    batch, axes = pair.batch, Axes(pair.axes, pair.batches[0].tensors, limits)
    comparison = FileComparison(
        session,
        file,
        pair.model,
        pair.names,
        batch,
        tolerance,
        program=pair.program,
        graph=lambda: read_onnx(file).graph,
    )
    sampler = Sampler(max(pair.batches, key=lambda b: len(b.tensors[0])), pair.names, batch, axes)
    runner = Runner(pair.model, sampler, "inputs")

    def runs() -> Iterator[Run]:
        seen: list[dict[str, int]] = []
        for number, inputs in enumerate(pair.batches):
            sizes = Axes(pair.axes, inputs.tensors).example
            seen.append(sizes)
            yield run_batch(pair.model, inputs, batch, sizes, f"inputs[{number}]")
        yield from runs_at_missing_sizes(runner, seen)

    comparison.compare(runs())
    known = {name: limit for name, limit in limits.items() if name in axes.example}
    return comparison.result(known, axes.example)


def _stored_limits(file: Path) -> dict[str, tuple[int, int | None]]:
    """Return the smallest and largest size of each axis that a file says it checks."""
    found: dict[str, tuple[int, int | None]] = {}
    stored = {entry.key: entry.value for entry in read_onnx(file).metadata_props}
    for name, sign, number in _LIMIT.findall(stored.get("size_checks", "")):
        low, high = found.get(name, (1, None))
        found[name] = (low, int(number)) if sign == "<=" else (int(number), high)
    return found


def _in_order(batch: ModelInputs, names: Sequence[str]) -> ModelInputs:
    """Return a dict with the file's names in the file's order, and other inputs unchanged."""
    if isinstance(batch, Mapping) and batch.keys() == set(names):
        return {name: batch[name] for name in names}
    return batch


def _check_batches(inputs: object) -> None:
    if isinstance(inputs, Tensor | Mapping):
        raise InvalidTypeError(
            f"`inputs` must be a list of batches, got {type(inputs).__name__}. Pass `[inputs]`."
        )
    if not inputs:
        raise InvalidArgumentError("`inputs` is empty. Pass at least one batch to compare on.")


def _explain_refusal(
    error: RefusedError, file: Path, pair: _Pair, tolerance: float
) -> FinetuneLibError:
    """Return the error for a file that ONNX Runtime cannot load.

    The file may be right and made for another engine, or it may have been changed.
    """
    location = find_location(file, pair.program, pair.batches[0], inner_name(pair.model), tolerance)
    return error if location is None else mismatch_error(str(error), location)


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
        at_least_two(inputs, [0] * len(inputs.tensors)),
        axes=axes,
        input_names=None,
        output_names=None,
        opset_version=None,
    ).exported_program

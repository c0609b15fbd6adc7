"""The comparison of an ONNX file, run by ONNX Runtime, with the model that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetunelib._files import check_readable
from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CorruptFileError,
    ExportMismatchError,
    FinetuneLibError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.export._inputs import Inputs, ModelInputs

#: Outputs that vary by less than this share of their size tell nothing: their variation is as
#: small as what float32 rounds away, and any file would agree with them.
_SMALLEST_SPREAD = 1e-4

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The agreement of one output.

    Attributes:
        output: The name of the output in the file.
        largest_error: The largest absolute difference of any value.
        spread: The largest range over the samples of any value of the output, in the model.
        error: `largest_error` as a share of `spread`; infinity where there is no spread.
    """

    output: str
    largest_error: float
    spread: float
    error: float


@dataclass(frozen=True, slots=True)
class Verification:
    """What a comparison showed.

    Attributes:
        status: `"verified"`: the file computes what the model does. `"inconclusive"`: nothing
            differed, but the outputs do not vary over the samples, so that nothing was proven.
        batch_sizes: The batch sizes that were compared.
        tolerance: The largest error that was allowed, as a share of the spread.
        comparisons: The numbers, an output each.

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
        sizes = ", ".join(map(str, self.batch_sizes))
        if self.status == "inconclusive":
            return (
                f"Inconclusive at batch {sizes}: nothing differs, but the model's outputs do not "
                "vary from sample to sample, so that agreement proves nothing. "
                "Pass real samples: `sample_inputs=`."
            )
        worst = max(comparison.error for comparison in self.comparisons)
        return (
            f"Verified with ONNX Runtime at batch {sizes}: the largest error is {worst:.1e} of the "
            f"outputs' spread (allowed: {self.tolerance:.0e})."
        )


def verify_onnx(
    path: StrPath,
    model: nn.Module,
    inputs: Sequence[ModelInputs],
    *,
    tolerance: float = 1e-3,
) -> Verification:
    """Compare an ONNX file with the model that it came from, on given batches.

    The file is checked by ONNX and run by ONNX Runtime on the CPU; the model runs in eval mode
    and is left as it was. The error is measured against the spread of the outputs over the
    samples, since an error that is small beside a large constant may still be all that varies.

    Args:
        path: The ONNX file.
        model: The model.
        inputs: Batches to compare on: each a tensor, several in a tuple in the order of the
            file's inputs, or a dict, by the names of the file's inputs or in their order.
        tolerance: The largest error allowed, as a share of the outputs' spread; above 0.

    Returns:
        The numbers, with the status `"verified"` or `"inconclusive"`.

    Raises:
        ExportMismatchError: A value is not finite, or differs by more than the tolerance, or the
            file takes or returns other tensors than the model.
        FileMissingError: There is no such file.
        CorruptFileError: The file is no valid ONNX model.
        InvalidArgumentError: `tolerance` is not above 0, or there is no batch.
        InvalidInputError: The model cannot take a batch.
        InvalidTypeError: A batch or the model's output holds something else than tensors.

    Example:
        See `Verification`.
    """
    if not tolerance > 0.0:
        raise InvalidArgumentError(f"`tolerance` must be above 0, but is {tolerance}.")
    if not inputs:
        raise InvalidArgumentError("`inputs` is empty. Pass at least one batch to compare on.")
    file = check_readable(path, purpose="ONNX file")
    session = _open(str(file))
    batches = [Inputs.of(batch, f"inputs[{number}]") for number, batch in enumerate(inputs)]
    expected = [_run_model(model, batch, f"inputs[{n}]") for n, batch in enumerate(batches)]
    actual = [_run_session(session, batch) for batch in batches]

    names = [output.name for output in session.get_outputs()]
    if len(names) != len(expected[0]):
        raise ExportMismatchError(
            f"The file has {len(names)} outputs ({', '.join(names)}), but the model returns "
            f"{len(expected[0])}."
        )
    comparisons = tuple(
        _compare(name, [b[i] for b in expected], [b[i] for b in actual], tolerance)
        for i, name in enumerate(names)
    )
    varies = all(
        comparison.spread > _SMALLEST_SPREAD * _size([batch[i] for batch in expected])
        for i, comparison in enumerate(comparisons)
    )
    return Verification(
        status="verified" if varies else "inconclusive",
        batch_sizes=tuple(len(batch.tensors[0]) for batch in batches),
        tolerance=tolerance,
        comparisons=comparisons,
    )


def _compare(name: str, expected: list[Array], actual: list[Array], tolerance: float) -> Comparison:
    """Return the numbers of one output, or raise when they are out of bounds."""
    for theirs, ours in zip(expected, actual, strict=True):
        if theirs.shape != ours.shape:
            raise ExportMismatchError(
                f"The output `{name}` has the shape {ours.shape} in the file and {theirs.shape} in "
                "the model."
            )
        for where, values in (("model", theirs), ("file", ours)):
            if not np.isfinite(values).all():
                raise ExportMismatchError(
                    f"The output `{name}` of the {where} holds values that are not finite. "
                    "A file is verified on finite outputs only; check the weights and the example."
                )
    spread = float(max(np.ptp(_samples(expected), axis=0).max(initial=0.0), 0.0))
    largest = max(
        float(np.abs(theirs - ours).max(initial=0.0))
        for theirs, ours in zip(expected, actual, strict=True)
    )
    size = _size(expected)
    # Where nothing varies, the size of the outputs is all that an error can be compared with.
    scale = spread if spread > _SMALLEST_SPREAD * size else size
    if largest > tolerance * scale:
        raise ExportMismatchError(
            f"The output `{name}` differs by up to {largest:.3g} between the file and the model, "
            f"which is {largest / scale if scale else float('inf'):.3g} of its spread over the "
            f"samples ({scale:.3g}); allowed is {tolerance:.3g}."
        )
    return Comparison(name, largest, spread, largest / spread if spread else float("inf"))


def _samples(batches: list[Array]) -> Array:
    """Return all samples of an output, where the batches agree in the shape of a sample."""
    if not batches[0].ndim:
        return np.stack(batches)  # One number a batch, such as a mean.
    if len({batch.shape[1:] for batch in batches}) == 1:
        return np.concatenate(batches)
    return max(batches, key=len)


def _size(batches: list[Array]) -> float:
    return max(float(np.abs(batch).max(initial=0.0)) for batch in batches)


def _open(path: str) -> Any:
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Its warnings are about its own optimizations.
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # Neither library names its exceptions; whatever they raise here is about the file.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CorruptFileError(f"`{path}` is no valid ONNX model: {reason}") from error


def model_outputs(model: nn.Module, inputs: Inputs, name: str) -> list[Tensor]:
    """Return what a model computes in eval mode; it is left as it was.

    Raises:
        InvalidInputError: The model cannot take these inputs, which the user knows as `name`.
        InvalidTypeError: The output holds something else than tensors.
    """
    try:
        with evaluating(model), random_state_preserved():
            return flat_outputs(inputs.call(model))
    except FinetuneLibError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs.tensors)
        reason = str(error).strip().partition("\n")[0]
        raise InvalidInputError(f"The model cannot take `{name}` ({shapes}): {reason}") from error


def _run_model(model: nn.Module, batch: Inputs, name: str) -> list[Array]:
    outputs = model_outputs(model, batch, name)
    return [tensor.detach().cpu().to(torch.float64).numpy() for tensor in outputs]


def _run_session(session: Any, batch: Inputs) -> list[Array]:
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(batch.tensors):
        raise ExportMismatchError(
            f"The file takes {len(names)} inputs ({', '.join(names)}), but the batch that the "
            f"model takes holds {len(batch.tensors)}."
        )
    by_name = batch.kwargs.keys() == set(names)
    tensors = batch.kwargs if by_name else dict(zip(names, batch.tensors, strict=True))
    try:
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        outputs = session.run(None, feed)
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportMismatchError(
            f"ONNX Runtime cannot run the file on a batch of {len(batch.tensors[0])}, which the "
            f"model takes: {reason}"
        ) from error
    return [np.asarray(output, dtype=np.float64) for output in outputs]


def flat_outputs(output: object) -> list[Tensor]:
    """Return the tensors of a model's output in the order in which they are exported.

    Raises:
        InvalidTypeError: The output holds something else than tensors.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list) and output:
        return [tensor for part in output for tensor in flat_outputs(part)]
    raise InvalidTypeError(
        f"The model must return tensors to be exported, but returned {type(output).__name__}."
    )

"""Runs a model once, and wraps it if ONNX does not have its arguments or outputs as they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import named_outputs
from finetunelib._forward.run import run_model
from finetunelib.export._request.arguments import Arguments
from finetunelib.export._request.pipeline import Preprocessing, pipelines
from finetunelib.export._request.results import check_cache, result_notes


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an export or a comparison works on.

    Attributes:
        exported: The module to export: the model, or a pipeline that contains it.
        reference: The module to compare it with, which differs only for a torchvision preset.
        inputs: The inputs of both.
        outputs: The outputs for them, with the names that the model gives them, or `""`.
        notes: A sentence for each argument and output that is not a tensor.
    """

    exported: nn.Module
    reference: nn.Module
    inputs: Inputs
    outputs: list[tuple[str, Tensor]]
    notes: tuple[str, ...]


def prepare(
    model: nn.Module,
    arguments: Arguments,
    preprocessing: Preprocessing | None,
    argument: str,
    *,
    softmax: bool,
) -> Prepared:
    """Run a model once on the arguments that the user passed as `argument`, and wrap it if needed.

    Raises:
        InvalidArgumentError: If the preprocessing or the softmax does not fit the model.
        InvalidInputError: If the model cannot take the arguments.
        InvalidTypeError: If an output is not a tensor, a number or `None`.
    """
    modules = pipelines(model, arguments, preprocessing, softmax=softmax, clean=False)
    inputs = modules[2].map(Tensor.clone)
    output = run_model(modules[1], inputs, argument)
    check_cache(output)
    notes = result_notes(output)
    # A tensor counts the times that it was written to.
    written = any(tensor._version for tensor in inputs.tensors)  # noqa: SLF001
    if notes or written:
        modules = pipelines(model, arguments, preprocessing, softmax=softmax, clean=True)
        output = run_model(modules[1], modules[2], argument)
    outputs = named_outputs(output)
    return Prepared(*modules, outputs, (*arguments.notes, *notes))

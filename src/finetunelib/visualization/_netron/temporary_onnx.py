"""Exports a module to a temporary ONNX file for the viewer, without its largest weights."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._forward.guess import run_on_example
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._forward.outputs import flat_outputs
from finetunelib._forward.run import run_model, run_once
from finetunelib.errors import ExportError
from finetunelib.export._request.dynamic_axes import BATCH, AxisName
from finetunelib.export._request.pipeline import inner_name
from finetunelib.export._tracing.annotations import annotate
from finetunelib.export._tracing.exporter import trace

#: The largest number of bytes of weights in a file. The largest weights are left out first.
LARGEST = 64_000_000

#: The file name of weights that are left out, which Netron shows in their place.
LEFT_OUT = "left out, too large for the viewer"

#: The exporter is not thread-safe: it changes global state, warnings and stderr.
_one_at_a_time = threading.Lock()


def write_temporary_onnx(model: nn.Module, example_input: ModelInputs | None, file: Path) -> None:
    """Export a module for the viewer, without changing the module.

    Args:
        model: The module.
        example_input: The inputs of the module. `None` guesses them from the first layer.
        file: The file to write.

    Raises:
        InvalidInputError: If the module does not accept the input, or none could be guessed.
        InvalidTypeError: If the input or the output of the module contains no tensors.
        ExportError: If the module cannot be exported.
    """
    import onnx_ir as ir

    with _one_at_a_time:
        inputs = (
            _guess(model) if example_input is None else Inputs.of(example_input, "example_input")
        ).on_device_of(model)
        outputs = flat_outputs(run_model(model, inputs, "example_input"))
        graph = _traced(model, inputs, len(outputs))
        leave_large_weights_out(graph, LARGEST)
        file.write_bytes(ir.serde.serialize_model(graph).SerializeToString())


def leave_large_weights_out(graph: Any, largest: int) -> None:
    """Remove the values of the largest weights of a graph, but keep their names and shapes.

    Args:
        graph: An onnx_ir model (Any: that package, which torch's exporter uses, is untyped).
        largest: The number of bytes of weights to keep.
    """
    import onnx_ir as ir

    remaining = largest
    weights = [
        value for value in graph.graph.initializers.values() if value.const_value is not None
    ]
    for value in sorted(weights, key=lambda value: int(value.const_value.nbytes)):
        tensor = value.const_value
        remaining -= tensor.nbytes
        if remaining < 0:
            value.const_value = ir.ExternalTensor(
                LEFT_OUT, None, None, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=""
            )


def _guess(model: nn.Module) -> Inputs:
    def run(inputs: Inputs) -> Tensor:
        run_once(model, inputs)
        return torch.empty(1, 1)  # Whatever the module returns can be shown.

    return run_on_example(model, None, run)[0]


def _traced(model: nn.Module, inputs: Inputs, outputs: int) -> Any:
    names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]

    def traced(inputs: Inputs, axes: dict[int, AxisName]) -> Any:
        program = trace(
            model,
            inputs,
            axes=[axes] * len(inputs.tensors),
            input_names=None,
            output_names=names,
            opset_version=None,
        )
        annotate(program, model, inner_name(model))
        return program.model

    try:
        return traced(inputs.with_two_rows(), {0: BATCH})
    except ExportError as error:
        # The module may require one batch size. Show it with that size.
        with contextlib.suppress(ExportError):
            return traced(inputs, {})
        raise error from error.__cause__

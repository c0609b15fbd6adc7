"""A module as an ONNX file for the viewer: shapes on every edge, and no more weights than needed.

The viewer's one call of the exporter is here.
"""

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

#: How many bytes of weights a file holds; the larger weights beyond are left out.
LARGEST = 64_000_000

#: What stands for the file of the weights that are left out; the viewer shows it.
LEFT_OUT = "left out, too large for the viewer"

#: Torch's exporter keeps its state, and that of warnings and stderr, for the whole process.
_one_at_a_time = threading.Lock()


def write_temporary_onnx(model: nn.Module, example_input: ModelInputs | None, file: Path) -> None:
    """Write what the viewer needs of a module; the module is left as it was.

    Args:
        model: The module.
        example_input: What it takes. `None` guesses it from the first layer.
        file: Where to write.

    Raises:
        InvalidInputError: The module cannot take the input, or none could be guessed.
        InvalidTypeError: The input, or what the module returns, holds no tensors.
        ExportError: The module cannot be exported.
    """
    import onnx_ir as ir

    with _one_at_a_time:
        inputs = (
            _guess(model) if example_input is None else Inputs.of(example_input, "example_input")
        ).beside(model)
        outputs = flat_outputs(run_model(model, inputs, "example_input"))
        graph = _traced(model, inputs, len(outputs))
        leave_large_weights_out(graph, LARGEST)
        file.write_bytes(ir.serde.serialize_model(graph).SerializeToString())


def leave_large_weights_out(graph: Any, largest: int) -> None:
    """Keep the smallest weights of a graph, as many as fit; of the others keep name and shape.

    Args:
        graph: A model of onnx_ir (Any: that package comes with torch's exporter, without types).
        largest: How many bytes the weights may take.
    """
    import onnx_ir as ir

    room = largest
    weights = [
        value for value in graph.graph.initializers.values() if value.const_value is not None
    ]
    for value in sorted(weights, key=lambda value: int(value.const_value.nbytes)):
        tensor = value.const_value
        room -= tensor.nbytes
        if room < 0:
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
        return traced(inputs.at_least_two_rows(), {0: BATCH})
    except ExportError as error:
        # A module may take one batch size only; that is no reason not to look at it.
        with contextlib.suppress(ExportError):
            return traced(inputs, {})
        raise error from error.__cause__

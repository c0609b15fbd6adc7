"""The call of torch's exporter: quiet, on a model in eval mode, with its errors made readable."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from finetunelib._forward.inputs import Inputs
from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib.errors import ExportError
from finetunelib.export._request.dynamic_axes import AxisName
from finetunelib.export._request.pipeline import Pipeline, inner_name
from finetunelib.export._tracing.errors import explain, says_static
from finetunelib.export._tracing.fixed_batch import module_that_fixes_the_batch

_LOGGERS = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")

#: What the exporter stores about the exporting machine: paths, and lines of the user's source.
_LEAKS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")

#: What it stores about its own insides, a page of text a graph.
_INSIDES = "pkg.torch.export."


def trace(
    model: nn.Module,
    inputs: Inputs,
    *,
    axes: Sequence[Mapping[int, AxisName]],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    opset_version: int | None,
) -> Any:
    """Return the model as an ONNX program of torch's exporter, without traces of this machine.

    Args:
        model: The model, or a pipeline with it.
        inputs: What it is called with.
        axes: The dynamic axes of each input.
        input_names: The names of the inputs in the graph.
        output_names: The names of the outputs in the graph.
        opset_version: The version of the operators, `None` for the exporter's own choice.

    Raises:
        ExportError: The exporter cannot export the model, or the model fixes its batch size.
    """
    with evaluating(model), random_state_preserved(), _quiet():
        try:
            program = torch.onnx.export(
                model,
                inputs.args,
                kwargs=inputs.kwargs or None,
                dynamic_shapes=_dynamic_shapes(model, inputs, axes),
                input_names=input_names,
                output_names=output_names,
                opset_version=opset_version,
                dynamo=True,
                verbose=False,
            )
        # The exporter lets through whatever tracing a user's forward can raise.
        except Exception as error:
            if says_static(error):
                raise fixed_batch(model, inputs, _fixed_size(error)) from error
            message = explain(error, model, inner_name(model))
            raise ExportError(message) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing for this model.")
    _strip(program.model)
    return program


def fixed_batch(model: nn.Module, inputs: Inputs, shown: str) -> ExportError:
    """Return the error about an axis that the model's forward fixes, with the module's name."""
    module = module_that_fixes_the_batch(model, inputs)
    where = (module or "the model").replace(f"`{inner_name(model)}.", "`")
    return ExportError(
        f"An axis that must be dynamic is fixed{shown}: the forward of {where} turns it into a "
        "constant, for example in a reshape. Use `x.shape[0]` or -1 there, or pass "
        "`dynamic_batch=False`."
    )


def _fixed_size(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    found = re.search(r"static shape of (\d+)|constant \((\d+)\)", str(error))
    return f" to {found[1] or found[2]}" if found else ""


def _dynamic_shapes(
    model: nn.Module, inputs: Inputs, axes: Sequence[Mapping[int, AxisName]]
) -> Any:
    if not any(axes):
        return None
    per_input = [dict(own) for own in axes]
    if isinstance(model, Pipeline):
        return (tuple(per_input),)  # Its forward takes `*inputs`: one argument that is a tuple.
    if not inputs.kwargs:
        return tuple(per_input)
    return dict(zip(inputs.kwargs, per_input, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose warnings are about its own insides.

    What it has to say about a failure is in the error that it raises; the graphs that it prints
    beside it, by `print` and by handlers that write to `sys.stderr`, are not for the user.
    """
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _strip(model: Any) -> None:
    for graph in (model.graph, *model.functions.values()):
        graph.doc_string = None
        for key in [key for key in graph.metadata_props if key.startswith(_INSIDES)]:
            del graph.metadata_props[key]
        for node in graph.all_nodes():
            for key in _LEAKS:
                node.metadata_props.pop(key, None)
            node.doc_string = None

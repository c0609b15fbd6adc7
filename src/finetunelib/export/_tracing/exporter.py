"""The call of PyTorch's exporter: in eval mode, without its output, with readable errors."""

from __future__ import annotations

import contextlib
import gc
import inspect
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
from finetunelib.export._request.pipeline import inner_name
from finetunelib.export._tracing.errors import explain, narrower_range, says_static
from finetunelib.export._tracing.fixed_batch import module_that_fixes_the_batch

_LOGGERS = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")

#: Metadata of the exporter that contains paths and source lines of this machine.
_LEAKS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")

#: Metadata of the exporter about its internals, a page of text per graph.
_INSIDES = "pkg.torch.export."


def trace(
    model: nn.Module,
    inputs: Inputs,
    *,
    axes: Sequence[Mapping[int, AxisName]],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    opset_version: int | None,
    optimize: bool = True,
    exported: Any = None,
) -> Any:
    """Return the ONNX program of a model, without paths and source lines of this machine.

    Args:
        model: The model, or a pipeline that contains it.
        inputs: The inputs to trace it with.
        axes: The dynamic axes of each input.
        input_names: The names of the inputs in the graph.
        output_names: The names of the outputs in the graph.
        opset_version: The version of the operators. `None` is the exporter's default.
        optimize: Whether the exporter folds constants and operators.
        exported: The `torch.export.ExportedProgram` of an earlier call, to translate it again.

    Raises:
        ExportError: If the exporter cannot export the model, or the model fixes its batch size.
    """
    with evaluating(model), random_state_preserved(), _quiet(), _without_garbage_collection():
        try:
            program = torch.onnx.export(
                model if exported is None else exported,
                inputs.args,
                kwargs=inputs.kwargs or None,
                dynamic_shapes=_dynamic_shapes(model, inputs, axes),
                input_names=input_names,
                output_names=output_names,
                opset_version=opset_version,
                optimize=optimize,
                dynamo=True,
                verbose=False,
            )
        # Tracing a forward can raise anything.
        except Exception as error:
            message = narrower_range(error)
            if message is not None:
                raise ExportError(message) from error
            if says_static(error):
                raise fixed_batch(model, inputs, _fixed_size(error)) from error
            message = explain(error, model, inner_name(model))
            raise ExportError(message) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing for this model.")
    _strip(program.model)
    return program


def fixed_batch(model: nn.Module, inputs: Inputs, shown: str) -> ExportError:
    """Return the error for an axis that the forward of a module turns into a constant."""
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
    if not inputs.kwargs:
        return _by_argument(model, per_input)
    return dict(zip(inputs.kwargs, per_input, strict=True))


def _by_argument(model: nn.Module, per_input: Sequence[dict[int, AxisName]]) -> tuple[Any, ...]:
    """Return the dynamic axes with those of `*args`, one argument that is a tuple, in a tuple."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(per_input)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*per_input[:first], tuple(per_input[first:]))


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Let the exporter create its many long-lived objects without a search for garbage.

    The search takes a tenth of the time of an export.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose warnings are about its internals.

    The error that it raises has all that matters to the user; the graphs that it also writes to
    `sys.stderr` do not.
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

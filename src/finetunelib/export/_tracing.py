"""The call of torch's exporter: quiet, on a model in eval mode, with its errors made readable."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib.errors import ExportError
from finetunelib.export._inputs import Inputs

_LOGGERS = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")

#: What the exporter stores about the exporting machine: paths, and lines of the user's source.
_LEAKS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def trace(
    model: nn.Module,
    inputs: Inputs,
    *,
    dynamic_batch: bool,
    input_names: Sequence[str] | None,
    output_names: Sequence[str],
    opset_version: int | None,
) -> Any:
    """Return the model as an ONNX program of torch's exporter, without traces of this machine.

    Raises:
        ExportError: The exporter cannot export the model.
    """
    with evaluating(model), random_state_preserved(), _quiet():
        try:
            program = torch.onnx.export(
                model,
                inputs.args,
                kwargs=inputs.kwargs or None,
                dynamic_shapes=_dynamic_shapes(inputs) if dynamic_batch else None,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset_version,
                dynamo=True,
                verbose=False,
            )
        # The exporter lets through whatever tracing a user's forward can raise.
        except Exception as error:
            raise ExportError(
                f"torch.onnx.export cannot export this model: {_cause(error)}"
            ) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing for this model.")
    _strip(program.model)
    return program


def _dynamic_shapes(inputs: Inputs) -> Any:
    batch = {0: "batch"}
    if inputs.kwargs:
        return dict.fromkeys(inputs.kwargs, batch)
    return tuple(batch for _ in inputs.args)


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


def _cause(error: BaseException) -> str:
    """Return the first statement of what lies at the bottom of the exporter's chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A line that ends in a colon only announces the reason.
    reason = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {reason or 'no reason given'}"


def _strip(model: Any) -> None:
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            for key in _LEAKS:
                node.metadata_props.pop(key, None)
            node.doc_string = None

"""Locates the first graph node whose output differs from the model's, and its module.

Each node runs on the model's own values of its inputs. An error therefore does not propagate
through the graph, and a node that cannot run does not hide earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetunelib._forward.inputs import Inputs
from finetunelib.export._batches.arrays import Array
from finetunelib.export._model_file import read_onnx
from finetunelib.export._verification.model_values import ModelTrace
from finetunelib.export._verification.runtime import graph_inputs

#: A node differs if its error is at least a tenth of the error allowed for the outputs.
_SHARE = 0.1

#: Rounding alone changes a node's output by less than this fraction of its range.
_ROUNDING = 2e-5

#: The range of values counts as at least this fraction of their magnitude. Values that hardly vary
#: differ in nothing but the seventh digit, at which float32 rounds.
_FLOOR = 0.01

#: Temporary names of the nodes. ONNX Runtime's errors name the node that failed.
_NUMBERED = "finetunelib_node_{}_"
_NUMBER = re.compile(_NUMBERED.format(r"(\d+)"))


@dataclass(frozen=True, slots=True)
class MismatchLocation:
    """A node or input of a file that differs from the model.

    Attributes:
        node: The name of the node in the file, or `None` for an input.
        place: A description of the node or input.
        modules: The dotted names of the modules that it computes, in order, each with its class.
    """

    node: str | None
    place: str
    modules: dict[str, str]

    @property
    def module(self) -> str | None:
        """The dotted names, as in the annotations of a file."""
        return ", ".join(self.modules) or None

    def __str__(self) -> str:
        names = ", ".join(f"`{name}` ({kind})" for name, kind in self.modules.items())
        return f"The first difference is at {self.place}: {names or 'module unknown'}."


def locate(
    path: Path, exported: Any, batch: Inputs, inner_name: str, tolerance: float
) -> MismatchLocation | None:
    """Return the first node or input of a file that differs from the model.

    Args:
        path: The file. ONNX Runtime may be unable to load or run it.
        exported: The `torch.export.ExportedProgram` of the model. Its values have the same names as
            those of the file.
        batch: A batch on which the file and the model differ.
        inner_name: The name of the user's model in the exported module.
        tolerance: The largest error allowed for an output.

    Returns:
        The location, or `None` if no value with a common name differs.
    """
    model = read_onnx(path)
    kept = {name for node in model.graph.node for name in node.output}
    trace = ModelTrace(exported, inner_name, model.graph)
    fixed = _fixed_input(model.graph, batch, trace)
    if fixed is not None:
        return fixed
    known = trace.values_on(batch, kept)
    count = len(model.graph.node)
    stopped = None
    while True:
        try:
            values = _values_of_nodes(model, path.parent, batch, known, count)
            break
        except _StoppedError as error:
            count = error.number
            stopped = _location_at(model.graph.node[count], ", which cannot be run", trace, kept)
    found = _first_difference(model.graph.node[:count], known, values, tolerance)
    return stopped if found is None else _location_at(*found, trace, kept)


class _StoppedError(Exception):
    """ONNX Runtime cannot load or run a node."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _first_difference(
    nodes: Any, known: dict[str, Array], values: dict[str, Array], tolerance: float
) -> tuple[Any, str] | None:
    """Return the first node that differs, and by how much."""
    errors = [
        (_error(known[name], values[name]), node)
        for node in nodes
        for name in node.output
        if name in values
    ]
    largest = max((error for error, _ in errors), default=0.0)
    if largest <= min(_ROUNDING, tolerance):
        return None
    # If the outputs vary little, all errors are small.
    limit = min(_SHARE * tolerance, largest)
    error, node = next(found for found in errors if found[0] >= limit)
    if np.isinf(error):
        return node, ", whose output has a different shape or is not finite"
    return node, f", by {error:.2g} of its range"


def _location_at(node: Any, how: str, trace: ModelTrace, kept: Collection[str]) -> MismatchLocation:
    name = node.name or node.output[0]
    modules: dict[str, str] = {}
    for value in node.output:
        modules |= trace.modules_of(value, kept)
    return MismatchLocation(name, f"the node `{name}` ({node.op_type}){how}", modules)


def _fixed_input(graph: Any, batch: Inputs, trace: ModelTrace) -> MismatchLocation | None:
    """Return the first input that the file fixes to a size different from the batch's."""
    pairs = zip(graph_inputs(graph), batch.tensors, strict=False)
    for position, (value, tensor) in enumerate(pairs):
        for axis, (size, given) in enumerate(
            zip(value.type.tensor_type.shape.dim, tensor.shape, strict=False)
        ):
            if size.HasField("dim_value") and size.dim_value != given:
                place = f"the input `{value.name}`, whose axis {axis} is fixed to {size.dim_value}"
                return MismatchLocation(None, place, trace.modules_that_take(position))
    return None


def _values_of_nodes(
    model: Any, folder: Path, batch: Inputs, known: dict[str, Array], count: int
) -> dict[str, Array]:
    """Return the outputs of the first `count` nodes of a file for the model's values.

    Raises:
        _StoppedError: If ONNX Runtime cannot load or run one of them.
    """
    import onnx
    import onnxruntime

    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.node[count:], graph.value_info[:], graph.output[:]
    names = [name for node in graph.node for name in node.output if name in known]
    if not names:
        return {}
    # The name of a value refers to the file's value, so the model's gets another name.
    own = {name: f"finetunelib_model_{name}" for name in names}
    given = {own[name]: known[name] for name in names}
    for number, node in enumerate(graph.node):
        node.name = _NUMBERED.format(number)
        for position, name in enumerate(node.input):
            node.input[position] = own.get(name, name)
    for name, value in given.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feed = {**_by_name(graph, batch), **given}
    part = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=graph,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Nodes that the runtime fuses lose their names.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.absolute())
    )
    try:
        session = onnxruntime.InferenceSession(
            part.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return dict(zip(names, map(np.asarray, session.run(None, feed)), strict=True))
    # The exceptions of ONNX Runtime have no common base class but Exception.
    except Exception as error:
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        raise _StoppedError(int(found[1])) from error


def _by_name(graph: Any, batch: Inputs) -> dict[str, Array]:
    names = [value.name for value in graph_inputs(graph)]
    tensors = [tensor.detach().cpu().numpy() for tensor in batch.tensors]
    return dict(zip(names, tensors, strict=False))


def _error(ours: Array, theirs: Array) -> float:
    """Return the error of a value as a fraction of its range; infinity if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.size:
        return 0.0
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):  # Equal infinities, as in a mask, have no distance.
        distances = np.abs(ours - theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    largest = float(np.where(same, 0.0, distances).max())
    finite = ours[np.isfinite(ours)]
    if not np.isfinite(largest) or not finite.size:
        return float("inf") if largest else 0.0
    return largest / (max(float(np.ptp(finite)), _FLOOR * float(np.abs(finite).max())) or 1.0)

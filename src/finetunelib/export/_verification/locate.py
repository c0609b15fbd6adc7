"""Where a file departs from the model that it came from: the first node, and its module.

Every node is run on the model's own values of what it takes. So an error does not wander through
the graph, and what cannot be run does not hide what comes before it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetunelib._forward.inputs import Inputs
from finetunelib.export._model_file import read_onnx
from finetunelib.export._verification.model_values import ModelTrace
from finetunelib.export._verification.runtime import Array, graph_inputs

#: A node departs when it adds a tenth of the error that is allowed of the outputs.
_SHARE = 0.1

#: Rounding alone makes a node's output differ by less than this share of its range.
_ROUNDING = 2e-5

#: A range counts as no less than this share of the values' size: float32 rounds at the seventh
#: digit, which would be all that there is of values that hardly vary.
_FLOOR = 0.01

#: What nodes are called while they are looked at, so that every one has a name to be found by.
_NUMBERED = "finetunelib_node_{}_"
_NUMBER = re.compile(_NUMBERED.format(r"(\d+)"))


@dataclass(frozen=True, slots=True)
class Departure:
    """A place in a file that does not compute what the model does there.

    Attributes:
        node: The name of the node in the file; `None` where it is an input.
        place: The place, in words.
        modules: The dotted names of the modules whose work it does, the first one first, each with
            its class.
    """

    node: str | None
    place: str
    modules: dict[str, str]

    @property
    def module(self) -> str | None:
        """The dotted names, as the annotations in a file have them."""
        return ", ".join(self.modules) or None

    def __str__(self) -> str:
        names = ", ".join(f"`{name}` ({kind})" for name, kind in self.modules.items())
        return f"It departs first at {self.place}: {names or 'of no module known'}."


def locate(
    path: Path, exported: Any, batch: Inputs, inner_name: str, tolerance: float
) -> Departure | None:
    """Return the first place of a file that departs from the model.

    Args:
        path: The file, which may be one that ONNX Runtime does not load or run.
        exported: The `torch.export.ExportedProgram` that files of this model are made from. Its
            values have the names of the file's.
        batch: A batch on which the file and the model differ.
        inner_name: What the user's model is called in what was exported.
        tolerance: The largest error allowed of an output.

    Returns:
        The place, or `None` where no node with a name in common departs.
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
            values = _own_values(model, path.parent, batch, known, count)
            break
        except _StoppedError as error:
            count = error.number
            stopped = _at(model.graph.node[count], ", which cannot be run", trace, kept)
    found = _first_departure(model.graph.node[:count], known, values, tolerance)
    return stopped if found is None else _at(*found, trace, kept)


class _StoppedError(Exception):
    """ONNX Runtime does not load or run a node."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _first_departure(
    nodes: Any, known: dict[str, Array], values: dict[str, Array], tolerance: float
) -> tuple[Any, str] | None:
    """Return the first node that departs, and how far."""
    errors = [
        (_error(known[name], values[name]), node)
        for node in nodes
        for name in node.output
        if name in values
    ]
    largest = max((error for error, _ in errors), default=0.0)
    if largest <= min(_ROUNDING, tolerance):
        return None
    # Where the outputs vary by a small part of their size, so is every error a small part.
    limit = min(_SHARE * tolerance, largest)
    error, node = next(found for found in errors if found[0] >= limit)
    if np.isinf(error):
        return node, ", whose output has another shape or is not finite"
    return node, f", by {error:.2g} of its range"


def _at(node: Any, how: str, trace: ModelTrace, kept: Collection[str]) -> Departure:
    name = node.name or node.output[0]
    modules: dict[str, str] = {}
    for value in node.output:
        modules |= trace.modules_of(value, kept)
    return Departure(name, f"the node `{name}` ({node.op_type}){how}", modules)


def _fixed_input(graph: Any, batch: Inputs, trace: ModelTrace) -> Departure | None:
    """Return the first input that the file fixes to other sizes than the batch has."""
    pairs = zip(graph_inputs(graph), batch.tensors, strict=False)
    for position, (value, tensor) in enumerate(pairs):
        for axis, (size, given) in enumerate(
            zip(value.type.tensor_type.shape.dim, tensor.shape, strict=False)
        ):
            if size.HasField("dim_value") and size.dim_value != given:
                place = f"the input `{value.name}`, whose axis {axis} is fixed to {size.dim_value}"
                return Departure(None, place, trace.modules_that_take(position))
    return None


def _own_values(
    model: Any, folder: Path, batch: Inputs, known: dict[str, Array], count: int
) -> dict[str, Array]:
    """Return what the first nodes of a file make of the model's own values.

    Raises:
        _StoppedError: ONNX Runtime does not load or run one of them.
    """
    import onnx
    import onnxruntime

    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.node[count:], graph.value_info[:], graph.output[:]
    names = [name for node in graph.node for name in node.output if name in known]
    if not names:
        return {}
    # A value's own name belongs to what the file makes of it.
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
    whole = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=graph,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # The names of nodes go with what the runtime fuses.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.absolute())
    )
    try:
        session = onnxruntime.InferenceSession(
            whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return dict(zip(names, map(np.asarray, session.run(None, feed)), strict=True))
    # ONNX Runtime's own exceptions share no base class but Exception.
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
    """Return how far a value is off, as a share of its range; infinity for another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.size:
        return 0.0
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):  # The infinities of a mask are equal, and have no distance.
        distances = np.abs(ours - theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    largest = float(np.where(same, 0.0, distances).max())
    finite = ours[np.isfinite(ours)]
    if not np.isfinite(largest) or not finite.size:
        return float("inf") if largest else 0.0
    return largest / (max(float(np.ptp(finite)), _FLOOR * float(np.abs(finite).max())) or 1.0)

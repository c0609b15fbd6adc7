"""Where a file departs from the model that it came from: the first node, and its module."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetunelib.errors import FinetuneLibError
from finetunelib.export._inputs import Inputs
from finetunelib.export._session import Array, RunError, open_session, run_session
from finetunelib.export._trace_errors import user_name

#: A value departs by a tenth of what its outputs may: errors grow on their way to the outputs.
_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Departure:
    """A node that does not compute what the model does at that place.

    Attributes:
        node: Its name in the file.
        operator: Its operator, such as `"Conv"`.
        module: The dotted names of the modules whose work it does, the last one first.
        error: How far its output is off, as a share of that output's range; `None` where it has
            another shape or cannot be computed.
    """

    node: str
    operator: str
    module: str
    error: float | None

    def __str__(self) -> str:
        by = "" if self.error is None else f", by {self.error:.2g} of its range"
        return f"It departs first at the node `{self.node}` ({self.operator}){by}: {self.module}."


def locate(
    path: Path, exported: Any, batch: Inputs, inner_name: str, tolerance: float
) -> Departure | None:
    """Return the first node of a file whose output is not what the model has there.

    Args:
        path: The file.
        exported: The `torch.export.ExportedProgram` that files of this model are made from. Its
            values have the names of the file's.
        batch: A batch on which the outputs differ.
        inner_name: What the user's model is called in what was exported.
        tolerance: The largest error allowed of an output.

    Returns:
        The node, or `None` where no node with a name in common departs.
    """
    reference = _Reference(path, exported, batch, inner_name)
    graph, values = _values_in(path, batch, reference.values)
    for node in graph.node:
        for name in node.output:
            if values is None or name not in values:
                continue
            error = _error(reference.values[name], values[name])
            if error is None or error > _SHARE * tolerance:
                return Departure(node.name, node.op_type, reference.modules(name, graph), error)
    return None


def locate_failure(path: Path, exported: Any, batch: Inputs, inner_name: str) -> Departure | None:
    """Return the node at which ONNX Runtime stops on a batch that the model takes."""
    import onnx

    # What the runtime fuses has other names; without that the node is the file's own.
    try:
        run_session(open_session(path, optimized=False), batch)
    except RunError as error:
        stopped = error.node
    else:
        return None
    graph = onnx.load(path, load_external_data=False).graph
    reference = _Reference(path, exported, batch, inner_name)
    for node in graph.node:
        if node.name == stopped:
            names = [name for name in node.output if name in reference.values]
            module = reference.modules(names[0], graph) if names else "of no module known"
            return Departure(node.name, node.op_type, module, None)
    return None


class _Reference:
    """The values of all operations in the model, by the names that the exporter gives them."""

    def __init__(self, path: Path, exported: Any, batch: Inputs, inner_name: str) -> None:
        import onnx

        self._nodes = {node.name: node for node in exported.graph.nodes}
        self._inner_name = inner_name
        self.values = _values_of(exported, batch)
        # The file's outputs have names of their own.
        outputs = onnx.load(path, load_external_data=False).graph.output
        for value, own in zip(outputs, exported.graph_signature.user_outputs, strict=False):
            if own in self.values:
                self.values[value.name] = self.values[own]
                self._nodes[value.name] = self._nodes[own]

    def modules(self, value: str, graph: Any) -> str:
        """Return whose work a node of the file does, the operations between its inputs too."""
        kept = {name for node in graph.node for name in node.output}
        waiting, found = [self._nodes[value]], {}
        seen = set(waiting)
        while waiting:
            node = waiting.pop(0)
            name, kind = _module(node)
            shown = user_name(name, self._inner_name)
            if kind:
                found[f"module `{shown}` ({kind})" if shown else f"the model itself ({kind})"] = 0
            for before in node.all_input_nodes:
                if before.op == "call_function" and before not in seen and before.name not in kept:
                    seen.add(before)
                    waiting.append(before)
        return ", ".join(found) or "of no module known"


def _module(node: Any) -> tuple[str, str]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return str(name).removeprefix("L['self']").lstrip("."), kind.rpartition(".")[2]


def _values_of(exported: Any, batch: Inputs) -> dict[str, Array]:
    values: dict[str, Array] = {}

    class Recorder(torch.fx.Interpreter):
        """Keeps what every operation returns."""

        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op == "call_function":
                values[n.name] = value.detach().cpu().to(torch.float64).numpy()
            return value

    with torch.no_grad():
        Recorder(exported.graph_module).run(*_arguments(exported, batch))
    return values


def _arguments(exported: Any, batch: Inputs) -> Iterator[Any]:
    """Yield what the exported graph takes: parameters, buffers and constants, then the inputs."""
    tensors = iter(batch.tensors)
    held: Mapping[str, Any] = {**exported.constants, **exported.state_dict}
    for spec in exported.graph_signature.input_specs:
        yield next(tensors) if spec.kind.name == "USER_INPUT" else held[spec.target]


def _values_in(
    path: Path, batch: Inputs, wanted: Mapping[str, Array]
) -> tuple[Any, dict[str, Array] | None]:
    """Return a file's graph, and the values of its nodes of these names."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    had = [value.name for value in model.graph.output]
    names = [name for node in model.graph.node for name in node.output if name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    typed = {value.name: value for value in model.graph.value_info}
    for value in model.graph.output:
        if value.name in typed and value.name not in had:
            value.CopyFrom(typed[value.name])
    with _beside(path) as temporary:
        onnx.save(model, temporary)
        try:
            outputs = run_session(_unchecked(temporary), batch)
        except FinetuneLibError:
            return model.graph, None
    return model.graph, dict(zip(names, outputs, strict=True))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path for a file that is gone afterwards, where it finds the model's weights."""
    with tempfile.TemporaryDirectory(prefix="finetunelib-") as folder:
        data = path.with_name(f"{path.name}.data")
        if data.exists():
            (Path(folder) / data.name).symlink_to(data.absolute())
        yield Path(folder) / "opened.onnx"


def _unchecked(path: Path) -> Any:
    """Return a session on a graph whose outputs have no types, which the checker would refuse."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _error(ours: Array, theirs: Array) -> float | None:
    if ours.shape != theirs.shape:
        return None
    if not ours.size:
        return 0.0
    difference = float(np.abs(ours - theirs.astype(np.float64)).max())
    scale = float(np.ptp(ours)) or float(np.abs(ours).max()) or 1.0
    return difference / scale if np.isfinite(difference) else float("inf")

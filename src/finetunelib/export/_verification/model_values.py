"""What a model computes on its way: the values of its operations, and the modules they belong to.

The names are those that torch's exporter gives to the values of a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib._forward.inputs import Inputs
from finetunelib.export._request.pipeline import user_name
from finetunelib.export._tracing.annotations import ROOT
from finetunelib.export._verification.runtime import Array

#: Whose work the softmax is that a pipeline ends with.
_AFTER = "postprocessing"


class ModelTrace:
    """The operations of a model, under the names that their values have in its file."""

    def __init__(self, exported: Any, inner_name: str, graph: Any) -> None:
        """Take the names.

        Args:
            exported: The `torch.export.ExportedProgram` that files of this model are made from.
            inner_name: What the user's model is called in what was exported.
            graph: The graph of the file.
        """
        signature = exported.graph_signature
        nodes = list(exported.graph.nodes)
        self._exported = exported
        self._nodes = {node.name: node for node in nodes}
        self._order = {node: number for number, node in enumerate(nodes)}
        self._inner_name = inner_name
        self._inputs = signature.user_inputs
        # The file's outputs have names of their own.
        for value, own in zip(graph.output, signature.user_outputs, strict=False):
            if own in self._nodes:
                self._nodes[value.name] = self._nodes[own]

    def values_on(self, batch: Inputs, wanted: Iterable[str]) -> dict[str, Array]:
        """Return the values of these names on a batch, as far as there are such."""
        nodes = {name: self._nodes[name] for name in wanted if name in self._nodes}
        values = _values_of(self._exported, batch, set(nodes.values()))
        return {name: values[node] for name, node in nodes.items() if node in values}

    def modules_of(self, value: str, kept: Collection[str]) -> dict[str, str]:
        """Return the modules that compute a value from those that the file keeps, with classes.

        The first in the order of the work comes first.
        """
        found = [self._nodes[value]] if value in self._nodes else []
        seen = set(found)
        for node in found:  # It grows on the way.
            for before in node.all_input_nodes:
                if before.op == "call_function" and before not in seen and before.name not in kept:
                    seen.add(before)
                    found.append(before)
        return self._modules(found)

    def modules_that_take(self, position: int) -> dict[str, str]:
        """Return the modules that an input of the file goes to, with their classes."""
        return self._modules(self._nodes[self._inputs[position]].users)

    def _modules(self, nodes: Iterable[Any]) -> dict[str, str]:
        ordered = sorted(filter(_is_tensor, nodes), key=self._order.__getitem__)
        modules = [module for node in ordered if (module := _module(node))]
        return {self._shown(name): kind for name, kind in modules}

    def _shown(self, name: str) -> str:
        if self._inner_name and not name:
            return _AFTER  # A pipeline does nothing else itself.
        return user_name(name, self._inner_name) or ROOT


def _is_tensor(node: Any) -> bool:
    # What computes sizes belongs to no module.
    return isinstance(node.meta.get("val"), Tensor | tuple | list)


def _module(node: Any) -> tuple[str, str] | None:
    """Return the innermost module that an operation was recorded in, with its class."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return str(name).removeprefix("L['self']").lstrip("."), kind.rpartition(".")[2]


def _values_of(exported: Any, batch: Inputs, wanted: Collection[Any]) -> dict[Any, Array]:
    values: dict[Any, Array] = {}

    class Recorder(torch.fx.Interpreter):
        """Keeps what these operations return."""

        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op == "call_function" and n in wanted:
                values[n] = value.detach().cpu().numpy()
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

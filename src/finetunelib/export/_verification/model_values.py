"""The intermediate values of a model, under their names in the file, and their modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib._forward.inputs import Inputs
from finetunelib.export._batches.arrays import Array
from finetunelib.export._request.pipeline import user_name
from finetunelib.export._tracing.annotations import ROOT

#: The module name shown for the softmax of a pipeline.
_AFTER = "postprocessing"


class ModelTrace:
    """The operations of a model, by the names of their values in the file."""

    def __init__(self, exported: Any, inner_name: str, graph: Any) -> None:
        """Index the operations.

        Args:
            exported: The `torch.export.ExportedProgram` of the model.
            inner_name: The name of the user's model in the exported module.
            graph: The graph of the file.
        """
        signature = exported.graph_signature
        nodes = list(exported.graph.nodes)
        self._exported = exported
        self._nodes = {node.name: node for node in nodes}
        self._order = {node: number for number, node in enumerate(nodes)}
        self._inner_name = inner_name
        self._inputs = signature.user_inputs
        # The outputs were renamed in the file.
        for value, own in zip(graph.output, signature.user_outputs, strict=False):
            if own in self._nodes:
                self._nodes[value.name] = self._nodes[own]

    def values_on(self, batch: Inputs, wanted: Iterable[str]) -> dict[str, Array]:
        """Return the values with these names for a batch, omitting unknown names."""
        nodes = {name: self._nodes[name] for name in wanted if name in self._nodes}
        values = _values_of(self._exported, batch, set(nodes.values()))
        return {name: values[node] for name, node in nodes.items() if node in values}

    def modules_of(self, value: str, kept: Collection[str]) -> dict[str, str]:
        """Return the modules that compute a value from values in the file, each with its class.

        They are in the order of execution.
        """
        found = [self._nodes[value]] if value in self._nodes else []
        seen = set(found)
        for node in found:  # `found` grows during the loop.
            for before in node.all_input_nodes:
                if before.op == "call_function" and before not in seen and before.name not in kept:
                    seen.add(before)
                    found.append(before)
        return self._modules(found)

    def modules_that_take(self, position: int) -> dict[str, str]:
        """Return the modules that use an input of the file, each with its class."""
        return self._modules(self._nodes[self._inputs[position]].users)

    def _modules(self, nodes: Iterable[Any]) -> dict[str, str]:
        ordered = sorted(filter(_is_tensor, nodes), key=self._order.__getitem__)
        modules = [module for node in ordered if (module := _module(node))]
        return {self._shown(name): kind for name, kind in modules}

    def _shown(self, name: str) -> str:
        if self._inner_name and not name:
            return _AFTER  # The softmax is the only operation of a pipeline itself.
        return user_name(name, self._inner_name) or ROOT


def _is_tensor(node: Any) -> bool:
    # Operations on sizes belong to no module.
    return isinstance(node.meta.get("val"), Tensor | tuple | list)


def _module(node: Any) -> tuple[str, str] | None:
    """Return the innermost module of an operation, with its class."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    name, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return str(name).removeprefix("L['self']").lstrip("."), kind.rpartition(".")[2]


def _values_of(exported: Any, batch: Inputs, wanted: Collection[Any]) -> dict[Any, Array]:
    values: dict[Any, Array] = {}

    class Recorder(torch.fx.Interpreter):
        """Stores the results of some operations."""

        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op == "call_function" and n in wanted:
                values[n] = value.detach().cpu().numpy()
            return value

    with torch.no_grad():
        Recorder(exported.graph_module).run(*_arguments(exported, batch))
    return values


def _arguments(exported: Any, batch: Inputs) -> Iterator[Any]:
    """Yield the arguments of the exported graph: parameters, buffers, constants and inputs."""
    tensors = iter(batch.tensors)
    stored: Mapping[str, Any] = {**exported.constants, **exported.state_dict}
    for spec in exported.graph_signature.input_specs:
        yield next(tensors) if spec.kind.name == "USER_INPUT" else stored[spec.target]

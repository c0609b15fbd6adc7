"""Annotations on the nodes of a graph: module, class, parameters, state and output shape."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from torch import nn

from finetunelib.export._request.pipeline import Pipeline, user_name

#: The keys of the annotations, as viewers show them.
MODULE, CLASS, PARAMETERS, STATE, OUTPUT = "module", "class", "parameters", "state", "output"

#: The annotation for the model itself, whose name is empty.
ROOT = "(the model)"

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"

#: Metadata of the exporter that the annotations replace.
_NOISE = (_SCOPES, _CLASSES, "pkg.onnxscript.rewriter.rule_name")


def annotate(program: Any, model: nn.Module, inner_name: str) -> None:
    """Annotate each node with its module, class, parameters, their state, and output shape.

    The parameters are all that contribute to the node: a Conv into which the exporter folded a
    BatchNorm names those of both.

    Args:
        program: The program from PyTorch's exporter; changed in place.
        model: The module that was exported.
        inner_name: The name of the user's model in `model`, `""` if they are the same.
    """
    graph = program.model.graph
    parameters = dict(model.named_parameters(remove_duplicate=False))
    origins = _Origins(program)
    for node in graph.all_nodes():
        used = {value.name for value in node.inputs if value is not None}
        used |= origins.of(value.name for value in node.outputs)
        own = [name for name in parameters if name in used]
        modules = _modules_of(own, model) or _module_of(node.metadata_props, model)
        if modules:
            names = [user_name(name, inner_name) for name in modules]
            node.metadata_props[MODULE] = ", ".join(filter(None, names)) or ROOT
            node.metadata_props[CLASS] = ", ".join(modules.values())
        if own:
            node.metadata_props[PARAMETERS] = ", ".join(
                f"{user_name(name, inner_name)} {list(parameters[name].shape)}" for name in own
            )
            node.metadata_props[STATE] = _state({n: parameters[n].requires_grad for n in own})
        if node.outputs and node.outputs[0].shape is not None:
            node.metadata_props[OUTPUT] = " x ".join(map(str, node.outputs[0].shape)) or "a number"
        for key in _NOISE:
            node.metadata_props.pop(key, None)
    _rename_weights(graph, inner_name)


def _modules_of(parameters: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Return the modules that parameters belong to, each with its class."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    return {name: type(model.get_submodule(name)).__name__ for name in names}


def _module_of(metadata: Any, model: nn.Module) -> dict[str, str]:
    """Return the module that a node without parameters comes from, with its class."""
    scopes, classes = (_names(metadata.get(key)) for key in (_SCOPES, _CLASSES))
    # The last entry of both is the operation itself.
    if len(scopes) < 2 or len(classes) < 2 or (not scopes[-2] and isinstance(model, Pipeline)):
        return {}  # The softmax of a pipeline is not part of the user's model.
    return {scopes[-2]: classes[-2].rpartition(".")[2]}


class _Origins:
    """Finds the parameters that contribute to a value of the graph."""

    def __init__(self, program: Any) -> None:
        exported = program.exported_program
        signature = exported.graph_signature
        self._parameters = dict(signature.inputs_to_parameters)
        self._nodes = {node.name: node for node in exported.graph.nodes}
        # The graph's outputs were renamed; the operations that compute them were not.
        for value, own in zip(program.model.graph.outputs, signature.user_outputs, strict=True):
            self._nodes[value.name] = self._nodes[own]
        self._kept = {
            value.name for node in program.model.graph.all_nodes() for value in node.outputs
        }

    def of(self, values: Iterable[str]) -> set[str]:
        """Return the names of the parameters between these values and those before them."""
        waiting = [self._nodes[name] for name in values if name in self._nodes]
        seen = set(waiting)
        found = set()
        while waiting:
            for before in waiting.pop().all_input_nodes:
                if before.name in self._parameters:
                    found.add(self._parameters[before.name])
                elif before not in seen and before.name not in self._kept:
                    seen.add(before)
                    waiting.append(before)
        return found


def _state(trainable: dict[str, bool]) -> str:
    if all(trainable.values()):
        return "trainable"
    return "partly frozen" if any(trainable.values()) else "frozen"


def _rename_weights(graph: Any, inner_name: str) -> None:
    """Rename the weights to their names in the user's model."""
    if not inner_name:
        return
    taken = {value.name for node in graph.all_nodes() for value in node.outputs}
    taken |= {value.name for value in graph.inputs} | set(graph.initializers)
    for name, value in list(graph.initializers.items()):
        own = user_name(name, inner_name)
        if own != name and own not in taken:
            value.name = own


def _names(text: str | None) -> list[str]:
    try:
        names = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []

"""Finding a model's head: the layer that makes the outputs, by following the data back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parameter import UninitializedParameter

from finetunelib._preserve import modes_preserved, random_state_preserved
from finetunelib.errors import AmbiguousHeadError, HeadNotFoundError, InvalidInputError
from finetunelib.models._example_input import run_on_example

HeadLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
HEAD_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Nodes that multiply by a weight: a head that is no module shows up as one of these.
_PRODUCTS = ("AddmmBackward", "MmBackward", "BmmBackward", "ConvolutionBackward", "LinearBackward")


@dataclass(frozen=True, slots=True)
class Head:
    """The layer of a model that makes its outputs.

    Attributes:
        name: The dotted name of the layer in the model; empty where the model itself is it.
        module: The layer.
        in_features: The width of what it takes.
        out_features: The width of what it makes: the number of classes, for a classifier.
        found_by: How it was found, in a few words.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import find_head
        >>> print(find_head(build_mlp(784, [500], 10)))
        The head is `head`, a Linear from 500 to 10 features, found by following the data.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    found_by: str

    def __str__(self) -> str:
        kind = type(self.module).__name__
        where = f"`{self.name}`, " if self.name else "the model itself, "
        return (
            f"The head is {where}a {kind} from {self.in_features} to {self.out_features} "
            f"features, found by {self.found_by}."
        )


def find_head(model: nn.Module, example_input: Tensor | None = None) -> Head:
    """Find the layer that makes a model's outputs.

    A dry run is followed backwards from the outputs, through the autograd graph, to the first
    Linear or convolution on every path. If that is one layer, if it is used once, and if its
    width is that of the outputs, it is the head. The model is not changed: neither its modes nor
    its gradients, buffers or the random state.

    Args:
        model: Any module whose output is a tensor, or has one in `.logits`.
        example_input: A batch that the model takes, on the model's device. `None` guesses from
            the first layer: `(2, in_features)` for a Linear; two images of 224, 32, 28, 64 or 299
            pixels, whichever works first, for a convolution.

    Returns:
        The head.

    Raises:
        AmbiguousHeadError: Several layers make the outputs, or one makes them more than once.
        HeadNotFoundError: No layer does, or the dry run failed.

    Example:
        >>> from torch import nn
        >>> from finetunelib.finetuning import find_head
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3),
        ...     nn.AdaptiveAvgPool2d(1),
        ...     nn.Flatten(),
        ...     nn.Linear(8, 4),
        ...     nn.Softmax(1),
        ... )
        >>> find_head(model).name
        '3'
    """
    graph = _dry_run(model, example_input)
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, HEAD_LAYERS)
    }
    hits = graph.first_layers(layers)
    if not hits:
        raise HeadNotFoundError(
            "The outputs come from no Linear or convolution, so no head was found. "
            f"{_advice(model)}"
        )
    if len(hits) > 1:
        listed = ", ".join(f"`{name}`" for name in hits)
        raise AmbiguousHeadError(
            f"The outputs come from {len(hits)} layers: {listed}. "
            "Name the one to replace with `at=`."
        )
    name = hits[0]
    uses = graph.uses(name)
    if uses > 1:
        raise AmbiguousHeadError(
            f"The layer that makes the outputs, `{name}`, is used {uses} times in a forward pass, "
            f"so it is more than a head. {_advice(model)}"
        )
    head = describe_head(name, layers[name], "following the data")
    if head.out_features not in (graph.shape[1], graph.shape[-1]):
        raise HeadNotFoundError(
            f"The last layer, `{name}`, makes {head.out_features} features, but the outputs have "
            f"the shape {graph.shape}. {_advice(model)}"
        )
    return head


def describe_head(name: str, module: nn.Module, found_by: str) -> Head:
    """Return a module as a `Head`.

    Raises:
        HeadNotFoundError: The module holds no Linear or convolution to take the width from.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, HEAD_LAYERS)]
    if not layers:
        raise HeadNotFoundError(
            f"`{name}` ({type(module).__name__}) holds no Linear or convolution, so the width of "
            "its input is unknown. Pass the new head as a module: `head=nn.Linear(...)`."
        )
    return Head(name, module, _in_features(layers[0]), _out_features(layers[-1]), found_by)


def _in_features(layer: HeadLayer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _out_features(layer: HeadLayer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _dry_run(model: nn.Module, example_input: Tensor | None) -> _Graph:
    """Return the autograd graph of a forward pass that touches nothing of the model.

    Raises:
        HeadNotFoundError: The model does not run.
    """
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise HeadNotFoundError(
            "A lazy layer of the model has no weights yet. Run the model once on a batch."
        )
    # Detached twins share the storage and have gradients of their own: the user's parameters,
    # frozen ones included, are not touched. Buffers are copied, since a forward may move them.
    twins = {
        name: parameter.detach().requires_grad_(parameter.is_floating_point())
        for name, parameter in model.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    source: list[Node | None] = []

    def forward(inputs: Tensor) -> object:
        if inputs.is_floating_point():
            # A copy, since a first layer that works in place refuses what needs gradients.
            inputs = inputs.detach().requires_grad_().clone()
        source[:] = [inputs.grad_fn]
        return torch.func.functional_call(model, twins | buffers, (inputs,))

    with (
        modes_preserved(model),
        random_state_preserved(),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        model.eval()
        try:
            _, outputs = run_on_example(model, example_input, forward)
        except InvalidInputError as error:
            raise HeadNotFoundError(f"{error} Or name the head with `at=`.") from error
    return _Graph(outputs, source[0], twins)


def _advice(model: nn.Module) -> str:
    """Return what to do about a head that was not found, with the names to choose from."""
    layers = [name for name, part in model.named_modules() if isinstance(part, HEAD_LAYERS)]
    last = ", ".join(f"`{name}`" for name in layers[-5:])
    return (
        f"Name the layer to replace with `at=`; the last ones are {last}."
        if last
        else ("The model has no Linear and no convolution; add one as its last layer.")
    )


class _Graph:
    """The autograd graph of a model's outputs: operations on the data, with their parameters."""

    def __init__(self, outputs: Tensor, source: Node | None, twins: dict[str, Tensor]) -> None:
        self.shape = tuple(outputs.shape)
        self._start = outputs.grad_fn
        self._names = {id(twin): name for name, twin in twins.items()}
        self._shapes = {name: twin.shape for name, twin in twins.items()}
        self._data = self._nodes_of_the_data(source)
        self._operands = {node: self._parameters_of(node) for node in self._data}

    def first_layers(self, layers: Iterable[str]) -> list[str]:
        """Return which of these layers come first on the paths back from the outputs.

        Raises:
            HeadNotFoundError: A parameter that is no layer's makes the outputs.
        """
        known = set(layers)
        found: dict[str, None] = {}
        queue = deque([self._start] if self._start in self._data else [])
        seen = set(queue)
        while queue:
            node = queue.popleft()
            names = self._operands[node]
            hits = [layer for layer in map(_owner, names) if layer in known]
            found.update(dict.fromkeys(hits))
            if hits:
                continue
            self._refuse_raw_parameters(node, names)
            following = [n for n, _ in node.next_functions if n in self._data and n not in seen]
            seen.update(following)
            queue.extend(following)
        return list(found)

    def uses(self, layer: str) -> int:
        """Return how many operations on the data use a layer's weight."""
        return sum(
            any(_owner(name) == layer for name in names) for names in self._operands.values()
        )

    def _refuse_raw_parameters(self, node: Node, names: list[str]) -> None:
        for name in names:
            # A norm's scale or a bias has one size; a matrix makes features of features.
            matrix = sum(size > 1 for size in self._shapes[name]) > 1
            if node.name().startswith(_PRODUCTS) or (
                matrix and not node.name().startswith("AddBackward")
            ):
                raise HeadNotFoundError(
                    f"The outputs are made with the parameter `{name}`, which is not the weight of "
                    "a Linear or convolution. Put a module in its place to have it replaced, or "
                    "name another layer with `at=`."
                )

    def _nodes_of_the_data(self, source: Node | None) -> set[Node]:
        """Return the operations that the inputs flow through, as opposed to those on weights."""
        above: dict[Node, list[Node]] = {}
        data = deque([source] if source is not None else [])
        queue = deque([self._start] if self._start is not None else [])
        seen = set(queue)
        while queue:
            node = queue.popleft()
            following = [n for n, _ in node.next_functions if n is not None]
            # Where whole numbers come in, no gradient leads on.
            if node.name().startswith(("EmbeddingBackward", *_PRODUCTS)) and (
                len(following) < len(node.next_functions) or "Embedding" in node.name()
            ):
                data.append(node)
            for n in following:
                above.setdefault(n, []).append(node)
                if n not in seen:
                    seen.add(n)
                    queue.append(n)
        found = set(data)
        while data:
            for node in above.get(data.popleft(), []):
                if node not in found:
                    found.add(node)
                    data.append(node)
        return found

    def _parameters_of(self, node: Node) -> list[str]:
        """Return the parameters that an operation takes beside the data, however derived."""
        names: dict[str, None] = {}
        queue = deque(n for n, _ in node.next_functions if n is not None and n not in self._data)
        seen = set(queue)
        while queue:
            operand = queue.popleft()
            variable = getattr(operand, "variable", None)
            if variable is not None and id(variable) in self._names:
                names[self._names[id(variable)]] = None
            for n, _ in operand.next_functions:
                if n is not None and n not in seen and n not in self._data:
                    seen.add(n)
                    queue.append(n)
        return list(names)


def _owner(parameter: str) -> str | None:
    """Return the layer whose weight a parameter is or goes into; a bias is no weight."""
    # A reparametrized weight lies one or two levels below its layer.
    layer, _, name = parameter.partition(".parametrizations.weight.")
    if not name:
        layer, _, name = parameter.rpartition(".")
    return None if name == "bias" else layer

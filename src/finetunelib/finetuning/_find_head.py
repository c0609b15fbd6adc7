"""Finding a model's head: the layer that makes the outputs, by following the data back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from finetunelib._preserve import modes_preserved, random_state_preserved
from finetunelib.errors import AmbiguousHeadError, HeadNotFoundError, InvalidInputError
from finetunelib.models._example_input import run_on_example

HeadLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
HEAD_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Nodes of the autograd graph that pass a weight on in another shape.
_VIEWS = ("TBackward", "TransposeBackward", "PermuteBackward", "ViewBackward", "UnsafeView")
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
    outputs, names = _dry_run(model, example_input)
    graph = _Graph(outputs, names)
    owners = {
        f"{name}.weight".lstrip("."): (name, module)
        for name, module in model.named_modules()
        if isinstance(module, HEAD_LAYERS)
    }
    hits = graph.first_weights(set(owners))
    if not hits:
        raise HeadNotFoundError(
            "The outputs come from no Linear or convolution, so no head was found. "
            f"{_advice(model)}"
        )
    name, module = owners[hits[0]]
    if len(hits) > 1:
        listed = ", ".join(f"`{owners[hit][0]}`" for hit in hits)
        raise AmbiguousHeadError(
            f"The outputs come from {len(hits)} layers: {listed}. "
            "Name the one to replace with `at=`."
        )
    if graph.uses[hits[0]] > 1:
        raise AmbiguousHeadError(
            f"The layer that makes the outputs, `{name}`, is used {graph.uses[hits[0]]} times in "
            f"a forward pass, so it is more than a head. {_advice(model)}"
        )
    head = describe_head(name, module, "following the data")
    if head.out_features not in (outputs.shape[1], outputs.shape[-1]):
        raise HeadNotFoundError(
            f"The last layer, `{name}`, makes {head.out_features} features, but the outputs have "
            f"the shape {tuple(outputs.shape)}. {_advice(model)}"
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


def _dry_run(model: nn.Module, example_input: Tensor | None) -> tuple[Tensor, dict[int, str]]:
    """Return outputs with their autograd graph, and the name of each parameter in it by id."""
    # Detached twins share the storage and have gradients of their own: the user's parameters,
    # frozen ones included, are not touched.
    twins = {
        name: parameter.detach().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() or parameter.is_complex()
    }
    with modes_preserved(model), random_state_preserved(), torch.enable_grad():
        model.eval()
        try:
            _, outputs = run_on_example(
                model,
                example_input,
                lambda inputs: torch.func.functional_call(model, twins, (inputs,)),
            )
        except InvalidInputError as error:
            raise HeadNotFoundError(f"{error} Or name the head with `at=`.") from error
    return outputs, {id(twin): name for name, twin in twins.items()}


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
    """The autograd graph of a model's outputs, seen as operations that use named weights."""

    def __init__(self, outputs: Tensor, names: dict[int, str]) -> None:
        self._names = names
        self._start = outputs.grad_fn
        #: How many operations use each weight.
        self.uses: Counter[str] = Counter()
        for node in self._walk(set()):
            self.uses.update(self._weights_of(node))

    def first_weights(self, weights: set[str]) -> list[str]:
        """Return which of these weights come first on the paths back from the outputs.

        Raises:
            HeadNotFoundError: A product by a parameter of another kind comes first.
        """
        found: dict[str, None] = {}
        for node in self._walk(weights):
            used = self._weights_of(node)
            hits = [name for name in used if name in weights]
            found.update(dict.fromkeys(hits))
            if not hits and used and node.name().startswith(_PRODUCTS):
                raise HeadNotFoundError(
                    f"The outputs are made with the parameter `{used[0]}`, which belongs to no "
                    "Linear or convolution. Put a module in its place to have it replaced."
                )
        return list(found)

    def _walk(self, ends: set[str]) -> Iterator[Node]:
        """Yield the nodes back from the outputs, breadth first, not beyond uses of `ends`."""
        if self._start is None:
            return
        queue, seen = deque([self._start]), {self._start}
        while queue:
            node = queue.popleft()
            yield node
            if ends.intersection(self._weights_of(node)):
                continue
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    queue.append(following)

    def _weights_of(self, node: Node) -> list[str]:
        """Return the names of the parameters that an operation takes, directly or as views."""
        if node.name().startswith(_VIEWS):
            return []  # A view of a weight belongs to the operation that uses it.
        names = []
        for following, _ in node.next_functions:
            source = following
            while source is not None and source.name().startswith(_VIEWS):
                source = source.next_functions[0][0]
            variable = getattr(source, "variable", None)
            if variable is not None and id(variable) in self._names:
                names.append(self._names[id(variable)])
        return names

"""The autograd graph of a dry run: which weights the outputs come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from torch.autograd.graph import Node

from finetunelib._forward.dry_run import DryRun

#: Nodes that multiply by a weight. A head that is not a module appears as one of these.
_PRODUCTS = ("AddmmBackward", "MmBackward", "BmmBackward", "ConvolutionBackward", "LinearBackward")

#: Parts of the names of nodes that are activations, in lower case; `elu` is in `relu` and `gelu`.
_ACTIVATIONS = (
    "elu",
    "tanh",
    "silu",
    "swish",
    "mish",
    "glu",
    "softplus",
    "hardsigmoid",
    "logsigmoid",
    "shrink",
    "threshold",
    "absbackward",
    "sinbackward",
)

#: Nodes that turn a head's outputs into probabilities.
_PROBABILITIES = ("SoftmaxBackward", "LogSoftmaxBackward", "SigmoidBackward")


@dataclass(frozen=True, slots=True)
class FirstProducts:
    """What the outputs come from, on every path back from them.

    Attributes:
        parameters: For each operation with a known weight that comes first on a path, the names
            of all parameters that it uses.
        bare: The name of a parameter that is used like a weight, is not a known one, and comes
            before any; or `None`.
    """

    parameters: list[list[str]]
    bare: str | None


class HeadGraph:
    """The operations on the data in a dry run, with the parameters that each uses."""

    def __init__(self, run: DryRun) -> None:
        self.shape = tuple(run.outputs.shape)
        self._start = run.outputs.grad_fn
        self._names = {id(twin): name for name, twin in run.twins.items()}
        self._shapes = {name: twin.shape for name, twin in run.twins.items()}
        self._consumers: dict[Node, list[Node]] = {}
        self._nodes = self._walk()
        self._data = self._reached_from(run.sources + self._data_products(within=False))
        if self._start not in self._data:
            self._data = self._reached_from(run.sources + self._data_products(within=True))
        self._operands = {node: self._parameters_of(node) for node in self._data}

    def first_products(self, weights: Collection[str]) -> FirstProducts:
        """Return what comes first on the paths back from the outputs.

        Args:
            weights: The names of the parameters that are weights of layers.
        """
        found: list[list[str]] = []
        queue = deque([self._start] if self._start in self._data else [])
        seen = set(queue)
        while queue:
            node = queue.popleft()
            names = self._operands[node]
            if any(name in weights for name in names):
                found.append(names)
                continue
            bare = self._bare_weight(node, names)
            if bare is not None:
                return FirstProducts(found, bare)
            following = [n for n, _ in node.next_functions if n in self._data and n not in seen]
            seen.update(following)
            queue.extend(following)
        return FirstProducts(found, None)

    def activation_after(self, weights: Collection[str]) -> str | None:
        """Return an activation between the operation on some weights and the outputs, if any.

        Softmax, log-softmax and sigmoid, and what follows them, do not count.

        Args:
            weights: The names of the parameters that the head's weight is, or is computed from.
        """
        heads = [node for node in self._data if any(n in weights for n in self._operands[node])]
        raw = self._above(heads, stop=_PROBABILITIES)
        after = self._above(heads, stop=())
        for node in raw:
            if _is_activation(node):
                return node.name().partition("Backward")[0]
            operands = [n for n, _ in node.next_functions if n in after or n in heads]
            gates = [n for n in operands if n not in raw and n not in heads]
            gated = node.name().startswith("MulBackward") and 0 < len(gates) < len(operands)
            if gated and any("Sigmoid" in gate.name() for gate in gates):
                return "x * sigmoid(x)"
        return None

    def uses(self, weights: Collection[str]) -> int:
        """Return how many operations on the data use one of some parameters."""
        return sum(any(name in weights for name in names) for names in self._operands.values())

    def _above(self, nodes: list[Node], *, stop: tuple[str, ...]) -> dict[Node, None]:
        """Return the operations between some nodes and the outputs, up to those in `stop`."""
        found: dict[Node, None] = {}
        queue = deque(nodes)
        while queue:
            for node in self._consumers.get(queue.popleft(), []):
                if node not in found and node in self._data and not node.name().startswith(stop):
                    found[node] = None
                    queue.append(node)
        return found

    def _bare_weight(self, node: Node, names: list[str]) -> str | None:
        """Return the parameter that an operation uses as a weight matrix, if any."""
        for name in names:
            # A norm's scale or a bias has one dimension; a weight matrix mixes features.
            matrix = sum(size > 1 for size in self._shapes[name]) > 1
            if node.name().startswith(_PRODUCTS) or (
                matrix and not node.name().startswith("AddBackward")
            ):
                return name
        return None

    def _walk(self) -> list[Node]:
        """Return all operations of the run, and record the consumers of each."""
        queue = deque([self._start] if self._start is not None else [])
        seen = dict.fromkeys(queue)
        while queue:
            node = queue.popleft()
            for n, _ in node.next_functions:
                if n is not None:
                    self._consumers.setdefault(n, []).append(node)
                    if n not in seen:
                        seen[n] = None
                        queue.append(n)
        return list(seen)

    def _data_products(self, *, within: bool) -> list[Node]:
        """Return the operations that take data without a gradient: integers, or a constant input.

        Args:
            within: Whether to include operations on nothing but the parameters of
                parametrizations. Some of these multiply by a buffer.
        """
        return [
            node
            for node in self._nodes
            if "EmbeddingBackward" in node.name()
            or (
                node.name().startswith(_PRODUCTS)
                and any(n is None for n, _ in node.next_functions)
                and (within or not self._is_parametrization(node))
            )
        ]

    def _is_parametrization(self, node: Node) -> bool:
        names = self._parameters_below(node, frozenset())
        return bool(names) and all("parametrizations." in name for name in names)

    def _reached_from(self, sources: list[Node]) -> set[Node]:
        """Return the operations that the inputs flow through, as opposed to those on weights."""
        found = set(sources)
        queue = deque(sources)
        while queue:
            for node in self._consumers.get(queue.popleft(), []):
                if node not in found:
                    found.add(node)
                    queue.append(node)
        return found

    def _parameters_of(self, node: Node) -> list[str]:
        """Return the parameters that an operation uses in addition to the data, however derived."""
        return self._parameters_below(node, self._data)

    def _parameters_below(self, node: Node, data: Collection[Node]) -> list[str]:
        names: dict[str, None] = {}
        queue = deque(n for n, _ in node.next_functions if n is not None and n not in data)
        seen = set(queue)
        while queue:
            operand = queue.popleft()
            variable = getattr(operand, "variable", None)
            if variable is not None and id(variable) in self._names:
                names[self._names[id(variable)]] = None
            for n, _ in operand.next_functions:
                if n is not None and n not in seen and n not in data:
                    seen.add(n)
                    queue.append(n)
        return list(names)


def _is_activation(node: Node) -> bool:
    name = node.name().lower()
    if name.startswith(("clampbackward", "clampminbackward")):
        # The attribute is torch's record of the argument: clamping at 0 is ReLU by another name.
        return getattr(node, "_saved_min", None) == 0
    if name.startswith("maximumbackward"):
        return any(n is None for n, _ in node.next_functions)
    return any(part in name for part in _ACTIVATIONS)

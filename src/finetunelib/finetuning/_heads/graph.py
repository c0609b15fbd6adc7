"""The autograd graph of a dry run: which weights the outputs come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from torch.autograd.graph import Node

from finetunelib._forward.dry_run import DryRun

#: Nodes that multiply by a weight. A head that is not a module appears as one of these.
_PRODUCTS = ("AddmmBackward", "MmBackward", "BmmBackward", "ConvolutionBackward", "LinearBackward")


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
        self._data = self._nodes_of_the_data(run.sources)
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

    def uses(self, weights: Collection[str]) -> int:
        """Return how many operations on the data use one of some parameters."""
        return sum(any(name in weights for name in names) for names in self._operands.values())

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

    def _nodes_of_the_data(self, sources: list[Node]) -> set[Node]:
        """Return the operations that the inputs flow through, as opposed to those on weights."""
        above: dict[Node, list[Node]] = {}
        data = deque(sources)
        queue = deque([self._start] if self._start is not None else [])
        seen = set(queue)
        while queue:
            node = queue.popleft()
            following = [n for n, _ in node.next_functions if n is not None]
            # Integer inputs have no gradient, so the path back ends where they enter.
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
        """Return the parameters that an operation uses in addition to the data, however derived."""
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

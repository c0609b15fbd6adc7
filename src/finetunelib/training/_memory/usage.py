"""Which tensors are alive at the same time while a program runs, and what they are."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from finetunelib._forward.outputs import tensors_in

#: What the memory of a tensor is counted as.
KINDS = ("weights", "gradients", "optimizer_state", "activations", "transient")


class MemoryUse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations create while it is entered.

    The memory that several tensors share is counted once.

    Attributes:
        kind: What new tensors are counted as.
        peak: The bytes of each kind when most bytes were in use.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = "activations"
        self.peak: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._now: Counter[str] = Counter()
        self._most = 0
        self._kinds: dict[int, tuple[str, int]] = {}

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors as another kind from now on."""
        for tensor in tensors:
            self._count(tensor, kind)
        self._look()

    def start(self) -> None:
        """Forget the peak so far."""
        self._most = 0
        self._look()

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # Any: the arguments and the result of any operation
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.untyped_storage()._cdata not in self._kinds:  # noqa: SLF001 - the identity of memory
                self._count(tensor, self.kind)
        self._look()
        return result

    def _count(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 - likewise
        known = self._kinds.get(key)
        if known is None:
            self._kinds[key] = (kind, storage.nbytes())
            weakref.finalize(storage, self._forget, key)
        else:
            self._now[known[0]] -= known[1]
            self._kinds[key] = (kind, known[1])
        self._now[kind] += self._kinds[key][1]

    def _forget(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._now[kind] -= size

    def _look(self) -> None:
        total = self._now.total()
        if total > self._most:
            self._most = total
            self.peak = {kind: self._now[kind] for kind in KINDS}

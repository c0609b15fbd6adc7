"""Restores the tensors that a forward pass writes into, and copies only those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: The namespaces of operations whose schemas say which arguments they write into.
_DECLARED = {"aten", "prim", "prims"}

#: Functions that give access to the memory of a tensor, without an operation.
_ESCAPES = {
    "__array__",
    "__dlpack__",
    "_typed_storage",
    "data_ptr",
    "numpy",
    "share_memory_",
    "storage",
    "untyped_storage",
}


def alias_of(tensor: Tensor) -> Tensor:
    """Return a tensor without gradients that shares the memory of another, or a copy.

    A change of the alias does not change the version counter of the tensor. Tensors without
    memory of their own, such as subclasses, sparse tensors and tensors of inference mode, are
    copied.
    """
    return tensor.data if _has_memory(tensor) else tensor.detach().clone()


class WritesUndone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Saves the memory of tensors before an operation writes into it, and restores it on exit.

    Attributes:
        saved: The number of bytes that were saved.

    Example:
        >>> weight = torch.ones(3)
        >>> with WritesUndone([weight]):
        ...     _ = weight.mul_(2)
        ...     print(weight)
        tensor([2., 2., 2.])
        >>> weight
        tensor([1., 1., 1.])
    """

    supports_higher_order_operators = True  # They run their operations one by one.

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        storages = (tensor.untyped_storage() for tensor in tensors if _has_memory(tensor))
        self._storages = {storage._cdata: storage for storage in storages}  # noqa: SLF001 - the identity of memory
        self._copies: dict[int, UntypedStorage] = {}
        self.saved = 0

    def save(self, *values: object) -> None:
        """Save the memory of all tensors in the values, also in lists, unless it is saved."""
        for tensor in _tensors_in(values):
            if not _has_memory(tensor):
                continue
            with torch._C.DisableTorchFunction():  # noqa: SLF001 - a use of the memory by this class
                key = tensor.untyped_storage()._cdata  # noqa: SLF001
            if key in self._storages and key not in self._copies:
                self._copies[key] = self._storages[key].clone()  # type: ignore[no-untyped-call]
                self.saved += self._copies[key].nbytes()

    def before_function(self, function: Any, args: Iterable[object]) -> None:
        """Save the memory of tensors that a function of torch gives access to.

        Args:
            function: The function, as a `TorchFunctionMode` receives it.
            args: Its arguments.
        """
        if getattr(function, "__name__", "") in _ESCAPES:
            self.save(*args)

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # Any: the arguments and the result of any operation
        kwargs = kwargs or {}
        self.save(*_written(func, args, kwargs))
        return func(*args, **kwargs)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        for key, copy in self._copies.items():
            storage = self._storages[key]
            if storage.nbytes() != copy.nbytes():
                storage.resize_(copy.nbytes())
            storage.copy_(copy)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[object]:
    """Yield the arguments that an operation may write into."""
    schema = getattr(func, "_schema", None)
    if schema is None:  # A higher-order operator.
        return
    if func.namespace not in _DECLARED or "batch_norm" in schema.name:
        # The schemas of batch normalization do not mention the running statistics.
        yield from (*args, *kwargs.values())
        return
    if not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[position] if position < len(args) else kwargs.get(argument.name)


def _tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor is a plain view of memory that can be read and written."""
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_inference()
    )

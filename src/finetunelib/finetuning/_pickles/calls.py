"""The classes and functions that a file of torch.save may call, and the sizes of what they return.

`torch.load(weights_only=True)` allows more calls. Some of these return objects whose size is only
a number in the file.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetunelib.finetuning._pickles.values import (
    BadPickleError,
    Container,
    Global,
    StorageRef,
    TensorRef,
    Text,
    UnsafePickleError,
)

#: The bytes per element of storages, by the names of their classes.
_STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "UntypedStorage": 1,
}

#: The bytes per element of dtypes, by their names.
_DTYPES = {
    f"torch.{name}": dtype.itemsize
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype)
}

#: Values that a pickle passes to functions, besides dtypes and storages.
_CONSTANTS = frozenset(
    f"torch.{name}"
    for name in (
        "per_tensor_affine",
        "per_tensor_symmetric",
        "per_channel_affine",
        "per_channel_symmetric",
        "per_channel_affine_float_qparams",
    )
)

#: The largest number that a size, stride or offset may have.
_LARGEST = 2**62


def check_name(name: str) -> None:
    """Check that a pickle may refer to a class or function.

    Raises:
        UnsafePickleError: If it is not one that weights need.
    """
    known = name in _CALLS or name in _CONSTANTS or name == "torch.Tensor"
    if not (known or storage_item_size(name) is not None or name in _DTYPES):
        raise UnsafePickleError(name.removeprefix("builtins."))


def storage_item_size(name: str) -> int | None:
    """Return the bytes per element of a class of storages, or `None` for another name."""
    module, _, attribute = name.rpartition(".")
    if module not in ("torch", "torch.cuda", "torch.storage"):
        return None
    return _STORAGES.get(attribute)


def call(function: object, arguments: Sequence[Any]) -> object:
    """Return what a call would return, in the abstract.

    Raises:
        BadPickleError: If a file of torch.save does not contain such a call.
        UnsafePickleError: If the function is not one that weights need.
    """
    if not isinstance(function, Global):
        raise BadPickleError("it calls a value that is not a function")
    rule = _CALLS.get(function.name)
    if rule is None:
        raise UnsafePickleError(function.name)
    return rule(arguments)


def _ordered_dict(arguments: Sequence[Any]) -> object:
    if not arguments:
        return Container(OrderedDict)
    (pairs,) = arguments
    if not (isinstance(pairs, Container) and pairs.kind is list):
        raise BadPickleError("an OrderedDict is created from unknown values")
    items: list[Any] = []
    for pair in pairs.items:
        if not (isinstance(pair, Container) and len(pair.items) == 2):
            raise BadPickleError("an OrderedDict is created from unknown values")
        items += pair.items
    return Container(OrderedDict, items)


def _counter(arguments: Sequence[Any]) -> object:
    if not arguments:
        return Container(Counter)
    (counts,) = arguments
    if not (isinstance(counts, Container) and counts.kind is dict):
        raise BadPickleError("a Counter is created from unknown values")
    return Container(Counter, list(counts.items))


def _set(arguments: Sequence[Any]) -> object:
    (members,) = arguments
    if not (isinstance(members, Container) and members.kind is list):
        raise BadPickleError("a set is created from unknown values")
    return Container(set, list(members.items))


def _size(arguments: Sequence[Any]) -> object:
    (sizes,) = arguments
    return Container(tuple, list(_numbers(sizes)))


def _encoded(arguments: Sequence[Any]) -> object:
    """Return bytes. Pickles of protocol 2 contain them as text, to be encoded by this codec."""
    text, codec = arguments
    if codec != "latin1" or not isinstance(text, str | Text):
        raise BadPickleError("it encodes values by another codec than latin1")
    return Text(text.length if isinstance(text, Text) else len(text))


def _small(arguments: Sequence[Any]) -> object:
    """Return a value whose size does not depend on its arguments, such as a device."""
    for argument in arguments:
        if not isinstance(argument, str | int | float | None):
            raise BadPickleError("a device, layout or number is created from unknown values")
    return None


def _tensor(arguments: Sequence[Any]) -> object:
    storage, offset, size, stride = arguments[:4]
    return _view(storage, offset, size, stride, _storage(storage).item_size)


def _tensor_of_dtype(arguments: Sequence[Any]) -> object:
    storage, offset, size, stride, _, _, dtype = arguments[:7]
    return _view(storage, offset, size, stride, _item_size(dtype))


def _parameter(arguments: Sequence[Any]) -> object:
    return _is_tensor(arguments[0])


def _parameter_with_state(arguments: Sequence[Any]) -> object:
    tensor, _, _, state = arguments
    _check_attributes(state)
    return _is_tensor(tensor)


def _tensor_with_state(arguments: Sequence[Any]) -> object:
    function, kind, inner, state = arguments
    if kind not in (Global("torch.Tensor"), Global("torch.nn.parameter.Parameter")):
        raise BadPickleError("it contains a tensor of an unknown class")
    _check_attributes(state)
    if not isinstance(inner, Container):
        raise BadPickleError("a tensor is created from unknown values")
    return _is_tensor(call(function, inner.items))


def _tensor_of_device(arguments: Sequence[Any]) -> object:
    tensor, dtype, _, _ = arguments
    # The number of elements is at most that of bytes.
    return TensorRef(_is_tensor(tensor).size * _item_size(dtype))


def _meta_tensor(arguments: Sequence[Any]) -> object:
    dtype, size, stride, _ = arguments
    _item_size(dtype)
    _numbers(size)
    _numbers(stride)
    return TensorRef(0)


def _sparse_tensor(arguments: Sequence[Any]) -> object:
    _, content = arguments
    if not isinstance(content, Container):
        raise BadPickleError("a sparse tensor is created from unknown values")
    return TensorRef(sum(item.size for item in content.items if isinstance(item, TensorRef)))


def _view(storage: object, offset: object, size: object, stride: object, item_size: int) -> object:
    """Return a tensor in a storage, which torch would enlarge for one that is too large.

    Raises:
        BadPickleError: If the tensor does not fit into the storage.
    """
    sizes, strides = _numbers(size), _numbers(stride)
    (start,) = _numbers(Container(tuple, [offset]))
    if len(sizes) != len(strides):
        raise BadPickleError("a tensor has another number of strides than of dimensions")
    elements = 1
    for number in sizes:
        elements *= number
    last = start + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if elements and (last + 1) * item_size > _storage(storage).size:
        raise BadPickleError("a tensor is larger than its storage")
    return TensorRef(elements * item_size)


def _numbers(values: object) -> list[int]:
    if not (isinstance(values, Container) and values.kind is tuple):
        raise BadPickleError("a size is not a tuple of numbers")
    for value in values.items:
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise BadPickleError("a size is not a tuple of numbers")
    return values.items


def _storage(value: object) -> StorageRef:
    if not isinstance(value, StorageRef):
        raise BadPickleError("a tensor has no storage")
    return value


def _is_tensor(value: object) -> TensorRef:
    if not isinstance(value, TensorRef):
        raise BadPickleError("a parameter is not a tensor")
    return value


def _item_size(dtype: object) -> int:
    size = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if size is None:
        raise BadPickleError("the dtype of a tensor is unknown")
    return size


def _check_attributes(state: object) -> None:
    """Check that attributes set on a tensor are new ones, and do not replace its own."""
    if not (isinstance(state, Container) and state.kind is dict):
        raise BadPickleError("the attributes of a tensor are not a dict")
    for name in state.items[::2]:
        if not isinstance(name, str) or name.startswith("_") or hasattr(torch.Tensor, name):
            raise BadPickleError("a tensor has unknown attributes")


_CALLS: dict[str, Callable[[Sequence[Any]], object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.complex": _small,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch.device": _small,
    "torch.serialization._get_layout": _small,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_qtensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _tensor_of_device,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_state,
}

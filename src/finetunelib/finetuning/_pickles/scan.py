"""Follows a pickle of torch.save without creating its values, and bounds what loading it takes.

Only the instructions that `torch.load(weights_only=True)` understands are accepted. Nothing is
imported or called.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from finetunelib.finetuning._pickles.calls import call, check_name
from finetunelib.finetuning._pickles.values import (
    BadPickleError,
    Container,
    Global,
    Keys,
    StorageRef,
    TensorRef,
    Text,
    check_nesting,
)

#: The longest pickle, without the storages of its tensors.
LONGEST = 64 * 2**20

#: The largest number of instructions, which take microseconds each to scan and to load.
_MOST_INSTRUCTIONS = 2_000_000

#: Estimates of the memory of a value, a container, an entry of the memo, and a tensor, in bytes.
_VALUE, _CONTAINER, _ENTRY, _TENSOR = 40, 256, 100, 1000

#: Longer strings are not kept while scanning.
_SHORT = 256

_DICTS = (dict, OrderedDict, Counter)


class Scanner:
    """Follows pickles, and adds up the memory that loading them takes.

    Args:
        content: The pickles, followed by anything.
        memory: The largest number of bytes that their values may take, storages aside.
        storage: Returns the storage that a persistent id refers to.
    """

    def __init__(
        self, content: bytes, memory: int, storage: Callable[[list[Any]], StorageRef]
    ) -> None:
        self._content = content
        self._memory = memory
        self._storage = storage
        self._instructions = 0
        self._keys = Keys()
        self.position = 0

    def scan(self) -> object:
        """Follow the next pickle, and return what is known about its value.

        Raises:
            BadPickleError: If it is damaged, too large, or contains what torch.save does not write.
            UnsafePickleError: If it refers to a class or function that weights do not need.
        """
        self._stack: list[Any] = []  # Any: what a pickle contains
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        try:
            result = self._run()
        except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
            raise BadPickleError("it is damaged") from error
        check_nesting(result)
        return result

    def _run(self) -> object:
        content, stack, handlers = self._content, self._stack, self._handlers()
        while True:
            code = content[self.position]
            self.position += 1
            if code == pickle.STOP[0]:
                return stack.pop()
            self._instructions += 1
            if self._instructions > _MOST_INSTRUCTIONS:
                raise BadPickleError(f"it contains more than {_MOST_INSTRUCTIONS:,} instructions")
            handle = handlers.get(code)
            if handle is None:
                raise BadPickleError(f"it contains the instruction {bytes([code])!r}")
            handle()

    def _charge(self, size: int) -> None:
        self._memory -= size
        if self._memory < 0:
            raise BadPickleError("its values take far more memory than the file")

    def _push(self, value: object, size: int = _VALUE) -> None:
        self._charge(size)
        self._stack.append(value)

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._content):
            raise BadPickleError("it is truncated")
        taken = self._content[self.position : end]
        self.position = end
        return taken

    def _number(self, layout: str) -> Any:  # Any: an int or a float, by the layout
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self._content.index(b"\n", self.position, self.position + _SHORT)
        line = self._content[self.position : end]
        self.position = end + 1
        return line.decode("utf-8")

    def _pop_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _protocol(self) -> None:
        self._take(1)

    def _global(self) -> None:
        module, name = self._line(), self._line()
        if (module, name) in _compat_pickle.NAME_MAPPING:
            module, name = _compat_pickle.NAME_MAPPING[module, name]
        else:
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        check_name(f"{module}.{name}")
        self._push(Global(f"{module}.{name}"))

    def _reduce(self) -> None:
        arguments = self._stack.pop()
        if not (isinstance(arguments, Container) and arguments.kind is tuple):
            raise BadPickleError("the arguments of a call are not a tuple")
        result = call(self._stack.pop(), arguments.items)
        if isinstance(result, Container) and result.kind is not tuple:
            for key in result.items if result.kind is set else result.items[::2]:
                self._keys.check(key)
        self._push_result(result)

    def _push_result(self, result: object) -> None:
        size = _TENSOR
        if isinstance(result, TensorRef):
            size += result.size
        elif isinstance(result, Container):
            size += _ENTRY * len(result.items)
        elif isinstance(result, Text):
            size += result.length
        self._push(result, size)

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not (isinstance(target, Container) and target.kind is OrderedDict):
            raise BadPickleError("it sets the state of an object")
        if not (isinstance(state, Container) and state.kind in _DICTS):
            raise BadPickleError("the attributes of an OrderedDict are not a dict")
        if not all(isinstance(name, str) for name in state.items[::2]):
            raise BadPickleError("the attributes of an OrderedDict have no names")
        target.items.append(state)
        target.items.append(None)

    def _append(self) -> None:
        item, target = self._stack.pop(), self._stack[-1]
        self._extend_list(target, [item])

    def _appends(self) -> None:
        items = self._pop_mark()
        self._extend_list(self._stack[-1], items)

    def _extend_list(self, target: object, items: list[Any]) -> None:
        if not (isinstance(target, Container) and target.kind is list):
            raise BadPickleError("it appends to a value that is not a list")
        target.items.extend(items)

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._extend_dict(self._stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self._pop_mark()
        self._extend_dict(self._stack[-1], items)

    def _extend_dict(self, target: object, items: list[Any]) -> None:
        if not (isinstance(target, Container) and target.kind in _DICTS) or len(items) % 2:
            raise BadPickleError("it sets an item of a value that is not a dict")
        for key in items[::2]:
            self._keys.check(key)
        self._charge(_ENTRY * (len(items) // 2))
        target.items.extend(items)

    def _mark(self) -> None:
        self._charge(_CONTAINER)
        self._marks.append(len(self._stack))

    def _tuple(self) -> None:
        self._push(Container(tuple, self._pop_mark()), _CONTAINER)

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise BadPickleError("it is damaged")
        items = self._stack[-count:]
        del self._stack[-count:]
        self._push(Container(tuple, items), _CONTAINER)

    def _text(self) -> None:
        data = self._take(self._number("<I"))
        # A string takes up to four bytes per character, each of which is at least one byte here.
        self._charge(4 * len(data))
        self._push(
            data.decode("utf-8", "surrogatepass") if len(data) <= _SHORT else Text(len(data))
        )

    def _short_bytes(self) -> None:
        # Strings of Python 2.
        self._push(self._take(self._number("B")).decode("utf-8"))

    def _long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("B")), "little", signed=True), 300)

    def _persistent(self) -> None:
        key = self._stack.pop()
        if not (isinstance(key, Container) and key.kind is tuple):
            raise BadPickleError("it refers to an unknown storage")
        self._push(self._storage(key.items), _TENSOR)

    def _get(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)], 8)

    def _put(self, layout: str) -> None:
        self._charge(_ENTRY)
        self._memo[self._number(layout)] = self._stack[-1]

    def _handlers(self) -> dict[int, Callable[[], None]]:
        """Return what each instruction does."""
        return {
            pickle.PROTO[0]: self._protocol,
            pickle.GLOBAL[0]: self._global,
            pickle.REDUCE[0]: self._reduce,
            pickle.BUILD[0]: self._build,
            pickle.APPEND[0]: self._append,
            pickle.APPENDS[0]: self._appends,
            pickle.SETITEM[0]: self._setitem,
            pickle.SETITEMS[0]: self._setitems,
            pickle.MARK[0]: self._mark,
            pickle.TUPLE[0]: self._tuple,
            pickle.TUPLE1[0]: lambda: self._tuple_of(1),
            pickle.TUPLE2[0]: lambda: self._tuple_of(2),
            pickle.TUPLE3[0]: lambda: self._tuple_of(3),
            pickle.NONE[0]: lambda: self._push(None),
            pickle.NEWFALSE[0]: lambda: self._push(False),
            pickle.NEWTRUE[0]: lambda: self._push(True),
            pickle.EMPTY_TUPLE[0]: lambda: self._push(Container(tuple), _CONTAINER),
            pickle.EMPTY_LIST[0]: lambda: self._push(Container(list), _CONTAINER),
            pickle.EMPTY_DICT[0]: lambda: self._push(Container(dict), _CONTAINER),
            pickle.BININT[0]: lambda: self._push(self._number("<i")),
            pickle.BININT1[0]: lambda: self._push(self._number("B")),
            pickle.BININT2[0]: lambda: self._push(self._number("<H")),
            pickle.BINFLOAT[0]: lambda: self._push(self._number(">d")),
            pickle.BINUNICODE[0]: self._text,
            pickle.SHORT_BINSTRING[0]: self._short_bytes,
            pickle.LONG1[0]: self._long,
            pickle.BINPERSID[0]: self._persistent,
            pickle.BINGET[0]: lambda: self._get("B"),
            pickle.LONG_BINGET[0]: lambda: self._get("<I"),
            pickle.BINPUT[0]: lambda: self._put("B"),
            pickle.LONG_BINPUT[0]: lambda: self._put("<I"),
        }

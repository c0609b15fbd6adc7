"""One thread at a time works with a model: its modes belong to the whole process."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from finetunelib.errors import InvalidArgumentError

#: How often a thread that waits looks whether another one trains the model, in seconds.
_POLL = 0.1


@dataclass(slots=True)
class _Use:
    """Which thread works with a model."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    trained_by: int | None = None


_USES: weakref.WeakKeyDictionary[nn.Module, _Use] = weakref.WeakKeyDictionary()
_USES_LOCK = threading.Lock()


@contextlib.contextmanager
def exclusive(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Run the block while no other thread evaluates or trains the model.

    Threads that evaluate wait for each other. The thread that trains may evaluate too.

    Args:
        model: The model.
        training: Whether the block trains the model.

    Raises:
        InvalidArgumentError: If another thread trains the model.
    """
    with _USES_LOCK:
        use = _USES.setdefault(model, _Use())
    this = threading.get_ident()
    while not use.lock.acquire(timeout=_POLL):
        if use.trained_by is not None:
            raise InvalidArgumentError(
                f"Another thread trains this {type(model).__name__}, so it cannot be used at the "
                "same time. Wait for its `fit`, or use a copy: `copy.deepcopy(model)`."
            )
    before = use.trained_by
    try:
        if training:
            use.trained_by = this
        yield
    finally:
        use.trained_by = before
        use.lock.release()

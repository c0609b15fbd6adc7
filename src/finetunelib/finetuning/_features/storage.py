"""Room for features: in memory, or in a temporary file if they would take much of it."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetunelib._messages import readable_size
from finetunelib.data._cache.memory import SHARE, available_memory
from finetunelib.finetuning._features.split import NotCacheableError


def room_for(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty tensor, which is mapped to a temporary file if it is large.

    The file is deleted at once on systems that allow it; its space is free when the tensor is.

    Raises:
        NotCacheableError: If neither memory nor the temporary folder has room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size <= SHARE * available_memory():
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NotCacheableError(
            f"The features cannot be cached: they take {readable_size(size)}, but only "
            f"{readable_size(free)} are free in `{folder}`."
        )
    handle, name = tempfile.mkstemp(prefix="finetunelib-features-")
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)  # A full disk is an error now and not later.
        flat = torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype)
    except OSError as error:
        raise NotCacheableError(
            f"The features cannot be cached: `{name}` cannot be written: {error.strerror}."
        ) from error
    finally:
        os.close(handle)
        _remove_if_possible(Path(name))
    return flat.view(tuple(shape))


def _remove_if_possible(file: Path) -> None:
    """Delete a file, unless the system keeps files that are in use."""
    with contextlib.suppress(OSError):  # Of Windows. The folder is temporary.
        file.unlink()

"""Refuses to train in one of several processes that do not know of each other."""

from __future__ import annotations

import os

from torch import distributed

from finetunelib.errors import InvalidArgumentError


def check_single_process() -> None:
    """Raise if this process is one of several that a launcher started.

    Raises:
        InvalidArgumentError: If the environment or the process group shows this. Each process would
            train a copy of its own on all the data, and write to the same folders.
    """
    if distributed.is_available() and distributed.is_initialized():
        count, source = distributed.get_world_size(), "the process group"
    else:
        text = os.environ.get("WORLD_SIZE", "")
        count, source = int(text) if text.strip().isdecimal() else 1, "WORLD_SIZE"
    if count > 1:
        raise InvalidArgumentError(
            f"This process is one of {count} (from {source}), but the Trainer trains in a single "
            "process: each would train its own copy on all the data and write to the same folders. "
            "Start the script with `python` instead of `torchrun`, or unset WORLD_SIZE if the "
            "processes are independent."
        )

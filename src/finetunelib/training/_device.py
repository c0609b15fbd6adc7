"""The device that a training run uses."""

from __future__ import annotations

import torch

from finetunelib.errors import InvalidArgumentError


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device that a user named; `"auto"` is an accelerator where there is one.

    Raises:
        InvalidArgumentError: There is no such device, here or at all.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(
            f"`device` is {str(device)!r}, which cannot be used here: {reason} "
            'Pass "auto", "cpu" or a device of this machine.'
        ) from error
    return chosen

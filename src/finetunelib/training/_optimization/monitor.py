"""The name of a measure that decides something, such as the learning rate or the best epoch."""

from __future__ import annotations

from collections.abc import Sequence

from finetunelib._messages import nearest
from finetunelib.errors import InvalidArgumentError


def check_measured(argument: str, monitor: str, measures: Sequence[str]) -> None:
    """Raise if a training run does not measure what is to be monitored.

    Args:
        argument: The name of the argument, for the message.
        monitor: The name of the measure.
        measures: The columns of the history.

    Raises:
        InvalidArgumentError: If it does not. The message lists what it measures, and the name that
            was probably meant.
    """
    if monitor in measures:
        return
    meant = nearest(monitor, measures)
    if monitor.startswith("val_") and not any(name.startswith("val_") for name in measures):
        hint = " Pass validation data to `fit`."
    else:
        hint = f" Did you mean {meant!r}?" if meant else ""
    raise InvalidArgumentError(
        f"`{argument}` is {monitor!r}, but this run only measures {', '.join(measures)}.{hint}"
    )

"""What callbacks that look for the best epoch need to know about a measured value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from finetunelib._typing import Mode


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the values of a `fit` can be compared, with each other and with those of the one before.

    Attributes:
        columns: The columns of the history, except `"epoch"` and `"step"`.
        directions: Whether a lower (`"min"`) or a higher (`"max"`) value is better, for the columns
            for which it is known.
        same_data: Which of `"train"`, `"val"`, and of several sets such as `"val_clean"`, is the
            same data as in the `fit` before.
        every_n_steps: The number of steps between two rows, or `None` if a row is about an epoch.
    """

    columns: tuple[str, ...]
    directions: Mapping[str, Mode] = field(default_factory=dict)
    same_data: frozenset[str] = frozenset()
    every_n_steps: int | None = None


@dataclass(slots=True)
class MeasuredWeights:
    """The weights that a validation measured, if training continues with others.

    Attributes:
        wanted: Whether a callback asked for them.
        weights: The weights by their name in the model's state dict, or `None`.
        paths: The requested checkpoints that are to contain them.
    """

    wanted: bool = False
    weights: Mapping[str, Tensor] | None = None
    paths: set[Path] = field(default_factory=set)

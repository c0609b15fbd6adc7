"""What became of every tensor when weights were loaded, as a value and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finetunelib._messages import listed
from finetunelib._public import public

_COUNTER = "num_batches_tracked"


@public("finetunelib.finetuning")
@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of every tensor of a weights file and of the model.

    Attributes:
        path: The file that was read; for sharded weights their index.
        loaded: Names of the model's tensors that now hold the file's values.
        missing: Names of the model that the file does not have.
        unexpected: Names of the file that the model does not have, as they stand in the file.
        wrong_shape: Name to (shape in the file, shape in the model), for names that both have.
        wrong_dtype: Name to (dtype in the file, dtype in the model), where the values cannot
            become the model's without changing their kind: float to integer, complex to real.
        cast: Name to (dtype in the file, dtype in the model), for tensors that were loaded and
            whose values were rounded to a narrower dtype.
        suggestions: Sentences on what explains the differences, and what to pass or to do.
        digests: Name to the sha256 of each loaded tensor as it lies in the model. The model
            carries these digests too, so that it can be shown later which bits are the file's.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import load_weights, save_weights
        >>> model = build_mlp(4, [8], 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_weights(model, os.path.join(folder, "mlp.safetensors"))
        ...     report = load_weights(model, path)
        >>> print(report)
        4 of 4 tensors loaded from mlp.safetensors.
        >>> sorted(report.digests)
        ['backbone.1.bias', 'backbone.1.weight', 'head.bias', 'head.weight']
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    wrong_dtype: Mapping[str, tuple[torch.dtype, torch.dtype]] = field(default_factory=dict)
    cast: Mapping[str, tuple[torch.dtype, torch.dtype]] = field(default_factory=dict)
    suggestions: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def match(self) -> float:
        """The share of the model's tensors that were loaded, in [0, 1].

        Counters of batches that an old torch did not write, `num_batches_tracked` beside loaded
        statistics, are not counted: they have no part in what a BatchNorm computes.
        """
        counted = self._tensors - len(self.counters)
        return len(self.loaded) / counted if counted else 1.0

    @property
    def _tensors(self) -> int:
        refused = len(self.missing) + len(self.wrong_shape) + len(self.wrong_dtype)
        return len(self.loaded) + refused

    @property
    def counters(self) -> tuple[str, ...]:
        """Missing names of counters of batches, beside statistics that were loaded."""
        loaded = set(self.loaded)
        return tuple(
            name
            for name in self.missing
            if name.endswith(_COUNTER) and name.removesuffix(_COUNTER) + "running_mean" in loaded
        )

    def __str__(self) -> str:
        return "\n".join(self.lines(f"loaded from {self.path.name}"))

    def lines(self, verb: str) -> list[str]:
        """Return the report line by line, with a word of one's own for "loaded"."""
        lines = [f"{len(self.loaded)} of {self._tensors} tensors {verb}."]
        counters = self.counters
        missing = [name for name in self.missing if name not in set(counters)]
        if missing:
            lines.append(f"Missing in the file: {listed(missing)}.")
        if counters:
            lines.append(
                f"The file is from a torch that did not count batches: {len(counters)} "
                f"{_COUNTER} of BatchNorm stay as they are, which changes no output."
            )
        if self.unexpected:
            lines.append(f"Unknown to the model: {listed(self.unexpected)}.")
        if self.wrong_shape:
            shapes = [
                f"{name} (file {list(theirs)}, model {list(ours)})"
                for name, (theirs, ours) in self.wrong_shape.items()
            ]
            lines.append(f"Of another shape: {listed(shapes)}.")
        if self.wrong_dtype:
            lines.append(
                f"Of another kind: {listed(_dtypes(self.wrong_dtype))}. Convert them in a state "
                "dict of your own, where that makes sense, and save it."
            )
        if self.cast:
            lines.append(f"Rounded to the model's dtype: {listed(_dtypes(self.cast))}.")
        return [*lines, *self.suggestions]


def _dtypes(pairs: Mapping[str, tuple[torch.dtype, torch.dtype]]) -> list[str]:
    return [f"{name} (file {theirs}, model {ours})" for name, (theirs, ours) in pairs.items()]

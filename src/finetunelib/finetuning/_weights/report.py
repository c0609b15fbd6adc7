"""The report on loading a weights file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finetunelib._escapes import one_line
from finetunelib._html import html_table
from finetunelib._messages import listed
from finetunelib._public import public
from finetunelib._tables import wrapped

_COUNTER = "num_batches_tracked"


@public("finetunelib.finetuning")
@dataclass(frozen=True, slots=True, repr=False)
class LoadReport:
    """Lists what happened to every tensor of a weights file and of the model.

    Attributes:
        path: The file that was read; for sharded weights, the index.
        loaded: The names of the model's tensors that were loaded.
        missing: The names of the model's tensors that are not in the file.
        unexpected: The names of the file's tensors that are not in the model.
        wrong_shape: Name to (shape in the file, shape in the model), for tensors in both.
        wrong_dtype: Name to (dtype in the file, dtype in the model), for tensors that cannot be
            converted: float to integer, complex to real.
        cast: Name to (dtype in the file, dtype in the model), for tensors that were loaded and
            rounded to a narrower dtype.
        suggestions: Sentences that explain the differences and say what to do.
        digests: Name to the sha256 of each loaded tensor of the model. The model keeps these
            digests too, for `History.certificate`.
        rename: The suggested renaming, from the file's names to the model's, to pass as `rename`;
            empty if there is none.
        verified: The names of the model's tensors that the file leaves out, because they were
            frozen when it was saved, and that have the digests that it contains.

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
    rename: Mapping[str, str] = field(default_factory=dict)
    verified: tuple[str, ...] = ()

    @property
    def match(self) -> float:
        """The fraction of the model's tensors that were loaded or verified, in [0, 1].

        Missing batch counters (`num_batches_tracked`) of BatchNorms whose statistics were loaded
        are not counted, since they do not affect outputs.
        """
        counted = self._tensors - len(self.counters)
        return (len(self.loaded) + len(self.verified)) / counted if counted else 1.0

    @property
    def _tensors(self) -> int:
        refused = len(self.missing) + len(self.wrong_shape) + len(self.wrong_dtype)
        return len(self.loaded) + len(self.verified) + refused

    @property
    def counters(self) -> tuple[str, ...]:
        """The missing batch counters of BatchNorms whose statistics were loaded."""
        loaded = set(self.loaded)
        return tuple(
            name
            for name in self.missing
            if name.endswith(_COUNTER) and name.removesuffix(_COUNTER) + "running_mean" in loaded
        )

    def __repr__(self) -> str:
        others = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "wrong_shape": self.wrong_shape,
            "wrong_dtype": self.wrong_dtype,
            "cast": self.cast,
            "verified": self.verified,
        }
        counts = "".join(f", {len(names)} {kind}" for kind, names in others.items() if names)
        name = one_line(repr(self.path.name), 30)
        return one_line(f"LoadReport({name}, {len(self.loaded)} loaded{counts})", 99)

    def __str__(self) -> str:
        lines = self.lines(f"loaded from {self.path.name}")
        return "\n".join(part for line in lines for part in wrapped(line))

    def _repr_html_(self) -> str:
        return html_table(
            ("Tensors", "Number", "Names"),
            [
                ("Loaded", f"{len(self.loaded):,}", listed(self.loaded)),
                *((kind, f"{number:,}", names) for kind, number, names in self._others()),
            ],
            title=self._headline(f"loaded from {self.path.name}"),
            notes=[*self._notes(), *self.suggestions],
            numeric=("Number",),
            wide=("Names",),
        )

    def lines(self, verb: str) -> list[str]:
        """Return the lines of the report. `verb` replaces "loaded" in the first."""
        others = [f"{kind}: {names}." for kind, _, names in self._others()]
        return [self._headline(verb), *others, *self._notes(), *self.suggestions]

    def _headline(self, verb: str) -> str:
        return f"{len(self.loaded)} of {self._tensors} tensors {verb}."

    def _others(self) -> Iterator[tuple[str, int, str]]:
        """Yield what is special about some tensors, their number, and their names as text."""
        counters = set(self.counters)
        missing = [name for name in self.missing if name not in counters]
        shapes = [
            f"{name} (file {list(file)}, model {list(model)})"
            for name, (file, model) in self.wrong_shape.items()
        ]
        for kind, number, names in (
            ("Missing in the file", len(missing), listed(missing)),
            ("Not in the model", len(self.unexpected), listed(self.unexpected)),
            ("Different shape", len(shapes), listed(shapes)),
            ("Incompatible dtype", len(self.wrong_dtype), dtype_pairs(self.wrong_dtype)),
            ("Rounded to the model's dtype", len(self.cast), dtype_pairs(self.cast)),
            (
                "Not in the file, but equal to its digests",
                len(self.verified),
                listed(self.verified),
            ),
        ):
            if number:
                yield kind, number, names

    def _notes(self) -> Iterator[str]:
        counters = self.counters
        if counters:
            yield (
                f"The file predates `{_COUNTER}`; {len(counters)} BatchNorm counters keep their "
                "values, which does not affect outputs."
            )
        if self.wrong_dtype:
            yield (
                "If the values of tensors with an incompatible dtype mean the same, convert them "
                "in the state dict and save it again."
            )


def dtype_pairs(pairs: Mapping[str, tuple[torch.dtype, torch.dtype]]) -> str:
    """Return a text with names and their (dtype in the file, dtype in the model)."""
    return listed([f"{name} (file {file}, model {model})" for name, (file, model) in pairs.items()])

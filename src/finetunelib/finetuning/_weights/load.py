"""Loading a weights file into a model. Everything is checked before the first value is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import InvalidArgumentError, InvalidTypeError, WeightsMismatchError
from finetunelib.finetuning._digests import digest, remember_loaded, remember_not_loaded
from finetunelib.finetuning._weights.base import (
    check_same_parts,
    check_way_of_loading,
    trainable_part,
)
from finetunelib.finetuning._weights.compare import WeightsComparison, compare, overflowing
from finetunelib.finetuning._weights.formats import FileTensor
from finetunelib.finetuning._weights.report import LoadReport, dtype_pairs
from finetunelib.finetuning._weights.sources import open_weights
from finetunelib.finetuning._weights.state import (
    check_accepts_values,
    check_leaves_no_meta,
    dtypes_after_loading,
    tensors_of,
    write_values,
)


@public("finetunelib.finetuning")
def load_weights(
    model: nn.Module,
    file: StrPath | Enum,
    *,
    minimum_match: float = 1.0,
    rename: Mapping[str, str] | None = None,
    key: str | None = None,
    trainable_only: bool = False,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Load a weights file into a model, and report every tensor that did not fit.

    No code in the file runs: safetensors files contain none, and files of `torch.save` are read
    with `weights_only=True`. A state dict inside a larger checkpoint is found. Everything is
    checked before the first value is written.

    Names are compared without the parts that wrappers add (`module.` of data parallelism,
    `_orig_mod.` of torch.compile), and with the names that older versions of the model's modules
    used. Any other renaming is only suggested.

    Args:
        model: The model. Its tensors keep their device and dtype and stay the same objects;
            `requires_grad` does not change. Tensors on the meta device are replaced by the file's,
            on the CPU, one after the other without a second copy in memory, and tied ones stay
            tied; build the optimizer afterwards.
        file: The path of a file ending in `.safetensors`, `.pth`, `.pt`, `.bin`, `.ckpt` or
            `.pth.tar`; of the index of a sharded file (`.safetensors.index.json`,
            `.bin.index.json`); or of a folder that contains one of them. Or a member of a
            torchvision weights enum, whose file is read from torch.hub's folder and downloaded if
            it is not there.
        minimum_match: The fraction of the model's tensors that the file must provide, in [0, 1].
            1 requires that names and shapes agree in both directions; with less, what fits is
            loaded and the report lists the rest.
        rename: Renames the file's tensors to the model's: a complete name, or the beginning of
            names up to a dot (`{"fc1": "backbone.1"}` renames `fc1.weight` and `fc1.bias`).
            `{"model.": ""}` removes a beginning, and `{"": "model."}` adds one to every name. The
            suggested renaming of an earlier call is `report.rename` or `error.rename`.
        key: The dotted key of the state dict in the file, such as `"state_dict_ema"`. Required if
            the file contains several, such as the weights and an average of them.
        trainable_only: Whether to load a file that `save_weights(..., trainable_only=True)` wrote.
            It must contain exactly the trainable tensors of the model. The frozen ones must be
            those that the file was saved with, bit for bit; they are not changed.
        dtype: The dtype of the floating-point tensors that are on the meta device, such as
            `torch.bfloat16`. `None` keeps theirs. All other tensors keep their dtype.

    Returns:
        What was loaded, and what was missing, unexpected or of another shape, with suggestions.

    Raises:
        FileMissingError: If the file or a shard of it does not exist, or a download failed.
        CorruptFileError: If the file is damaged, has an unknown format, or contains more than
            weights.
        WeightsMismatchError: If too little fits, or values overflow in the model's dtype; if the
            file leaves out frozen tensors and a tensor of the model differs from one of them, or
            `trainable_only` is not given for it. The model is left unchanged.
        InvalidArgumentError: If `minimum_match` is outside [0, 1], or below 1 together with
            `trainable_only`; if an entry of `rename` matches
            no name, or two names become equal; if `key` is not in the file, or is needed; if the
            model's state contains something other than tensors; if tensors on the meta device
            would get no values, such as buffers that no file contains; or if `dtype` is not a
            floating-point dtype, or no tensor is on the meta device.
        InvalidTypeError: If an argument has a wrong type.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import load_weights, save_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_weights(build_mlp(4, [8], 3), os.path.join(folder, "mlp.safetensors"))
        ...     report = load_weights(build_mlp(4, [8], 5), path, minimum_match=0.5)
        >>> print(report.loaded)
        ('backbone.1.weight', 'backbone.1.bias')
        >>> print(report.suggestions[0])
        `head` has 3 classes in the file and 5 in the model: expected after replacing the head.
    """
    check_model(model)
    if isinstance(minimum_match, bool) or not isinstance(minimum_match, int | float):
        raise InvalidTypeError(
            "`minimum_match` must be a number in [0, 1], got "
            f"{minimum_match!r} ({type(minimum_match).__name__})."
        )
    if not 0.0 <= minimum_match <= 1.0:
        raise InvalidArgumentError(f"`minimum_match` must be in [0, 1], got {minimum_match}.")
    if key is not None and not isinstance(key, str):
        raise InvalidTypeError(f"`key` must be a string, got {key!r} ({type(key).__name__}).")
    fitting = fitting_weights(
        model,
        file,
        minimum_match=minimum_match,
        rename=rename,
        key=key,
        trainable_only=trainable_only,
        dtype=dtype,
    )
    loaded = fitting.write()
    digests = loaded.digests()
    own = unwrapped(model)
    remember_not_loaded(own, digests, loaded.not_loaded(own))
    remember_loaded(own, digests)
    return replace(loaded.report, digests=digests)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A report, and the tensors of the model that were written, by the first of their names."""

    report: LoadReport
    written: Mapping[str, Tensor]
    tied: Sequence[Sequence[str]]

    def digests(self) -> dict[str, str]:
        """Return the digest of each loaded tensor of the model, under all of its names."""
        loaded = set(self.report.loaded)
        digests: dict[str, str] = {}
        for group in self.tied:
            if group[0] in self.written and group[0] in loaded:
                digests |= dict.fromkeys(group, digest(self.written[group[0]]))
        return digests

    def not_loaded(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of the model that the file gave no values, by name."""
        report = self.report
        left = {*report.missing, *report.wrong_shape, *report.wrong_dtype} - set(report.counters)
        return {name: tensor for name, tensor in tensors_of(model).items() if name in left}


@dataclass(frozen=True, slots=True)
class FittingWeights:
    """A weights file that was compared with a model, and fits it. Nothing is written yet.

    Attributes:
        report: The names that fit, and those that do not.
        tied: The names of the model's tensors, grouped by tensor.
    """

    report: LoadReport
    tied: Sequence[Sequence[str]]
    _model: nn.Module
    _state: Mapping[str, Tensor]
    _sources: Sequence[tuple[str, FileTensor]]
    _dtypes: Mapping[str, torch.dtype]

    def left_out(self) -> dict[str, Tensor]:
        """Return the tensors of the model that the file leaves out, by name."""
        return {name: self._state[name] for name in self.report.verified}

    def write(self) -> LoadedWeights:
        """Write the values of the file into the model."""
        written = write_values(self._model, self._state, self._sources, self._dtypes)
        return LoadedWeights(self.report, written, self.tied)


def fitting_weights(
    model: nn.Module,
    file: StrPath | Enum,
    *,
    minimum_match: float = 1.0,
    rename: Mapping[str, str] | None = None,
    key: str | None = None,
    trainable_only: bool = False,
    dtype: torch.dtype | None = None,
) -> FittingWeights:
    """Compare a weights file with a model as `load_weights` does, without changing the model.

    Raises:
        WeightsMismatchError: If too little fits, or values overflow in the model's dtype.
    """
    model = unwrapped(model)
    state = tensors_of(model)
    check_accepts_values(model, trainable_part(model, state) if trainable_only else state)
    dtypes = dtypes_after_loading(state, dtype)
    has_meta = any(tensor.is_meta for tensor in state.values())
    # Tensors that are converted are copied, so those of the file need not all be in memory.
    weights = open_weights(file, mapped=not has_meta or dtype is not None, key=key)
    check_way_of_loading(weights, trainable_only=trainable_only, minimum_match=minimum_match)
    comparison = compare(model, state, weights, rename or {}, dtypes)
    report, sources = comparison.report, dict(comparison.sources)
    if minimum_match == 1.0 and comparison.differs_only_in_base:
        if trainable_only:
            check_same_parts(model, state, comparison.tied, sources, comparison.base)
        comparison.base.check()
    if report.match < minimum_match or (minimum_match == 1.0 and report.unexpected):
        text = _refusal(report, with_hint=not trainable_only)
        raise WeightsMismatchError(text, rename=report.rename, report=report)
    _check_no_overflow(dtypes, comparison)
    for name in report.counters:
        if state[name].is_meta:
            sources[name] = _zero_counter()
    check_leaves_no_meta(model, state, sources)
    firsts = [(group[0], sources[group[0]]) for group in comparison.tied if group[0] in sources]
    return FittingWeights(report, comparison.tied, model, state, firsts, dtypes)


def _refusal(report: LoadReport, *, with_hint: bool) -> str:
    """Return why a file is refused, and with a hint also how to load what fits."""
    lines = report.lines("would fit")
    lines[0] = f"`{report.path}` does not fit the model, which is unchanged. {lines[0]}"
    if report.loaded and with_hint:
        fraction = min(math.floor(report.match * 100.0) / 100.0, 0.99)
        lines.append(
            f"To load what fits and keep the model's values for the rest, pass "
            f"`minimum_match={fraction}`."
        )
    return "\n".join(lines)


def _check_no_overflow(dtypes: Mapping[str, torch.dtype], comparison: WeightsComparison) -> None:
    found = overflowing(dtypes, comparison)
    if found:
        report = comparison.report
        raise WeightsMismatchError(
            f"`{report.path}` contains values beyond the range of the model's dtype: "
            f"{dtype_pairs(found)}. They would become infinite or wrong. The model is unchanged. "
            "Load the file into a model of the file's dtype, or of bfloat16, which has the range "
            "of float32.",
            rename=report.rename,
            report=report,
        )


def _zero_counter() -> FileTensor:
    """Return the value of a batch counter that the file does not contain."""
    return FileTensor((), torch.int64, lambda: torch.zeros((), dtype=torch.int64), is_own=True)

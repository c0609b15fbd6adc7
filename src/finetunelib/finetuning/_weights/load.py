"""Weights into a file and into a model; every step that can fail comes before the first write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._files import atomic_file, check_writable
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
    WeightsMismatchError,
)
from finetunelib.finetuning._digests import digest, remember_loaded
from finetunelib.finetuning._weights.formats import FileTensor
from finetunelib.finetuning._weights.names import (
    NameMatch,
    match_names,
    upgraded_names,
    without_wrappers,
)
from finetunelib.finetuning._weights.report import LoadReport
from finetunelib.finetuning._weights.sources import WeightsFile, open_weights
from finetunelib.finetuning._weights.state import (
    check_has_values,
    check_leaves_no_meta,
    check_takes_values,
    tensors_of,
    tied_names,
    write_values,
)
from finetunelib.finetuning._weights.suggestions import Comparison, suggest


@public("finetunelib.finetuning")
def save_weights(model: nn.Module, path: StrPath) -> Path:
    """Write a model's parameters and buffers to a safetensors file, whole or not at all.

    Tied tensors are written once. A model in torch.compile or data parallelism is saved under
    its own names.

    Args:
        model: The model; where its tensors live does not matter.
        path: The file to write, ending in `.safetensors`. Missing folders are made.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: `path` has another ending, or the model holds state that is no
            tensor, or tensors on the meta device.
        PathNotWritableError: Nothing can be written there; a former file is unchanged.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import save_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(build_mlp(4, [], 2), os.path.join(folder, "mlp.safetensors")).name
        'mlp.safetensors'
    """
    check_model(model)
    file = check_writable(path)
    if file.suffix != ".safetensors":
        raise InvalidArgumentError(
            f"`path` must end in .safetensors, but is `{file}`. That format cannot hold code; "
            f"write `{file.with_suffix('.safetensors').name}`."
        )
    check_has_values(tensors_of(unwrapped(model)))
    with atomic_file(file) as temporary:
        write_weights(model, temporary, place=file)
    return file


def write_weights(model: nn.Module, file: Path, *, place: Path) -> None:
    """Write a model's parameters and buffers to a file that is not in its place yet.

    Args:
        model: The model.
        file: The file to write.
        place: Where it will be, for messages.

    Raises:
        InvalidArgumentError: The model holds state that is no tensor, or that has no values.
        PathNotWritableError: The file cannot be written.
    """
    from safetensors import SafetensorError  # Here: importing the package stays cheap.
    from safetensors.torch import save_file

    state = tensors_of(unwrapped(model))
    check_has_values(state)
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for names in tied_names(state):
        tensor = state[names[0]].detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # A tensor that is a part of another is written as one of its own.
        tensors[names[0]] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise PathNotWritableError(f"`{place}` could not be written: {error}") from error


@public("finetunelib.finetuning")
def load_weights(
    model: nn.Module,
    file: StrPath | Enum,
    *,
    minimum_match: float = 1.0,
    rename: Mapping[str, str] | None = None,
) -> LoadReport:
    """Load a weights file into a model, and report every tensor that did not fit.

    Nothing in a file can run: safetensors hold no code, and what torch.save wrote is read with
    `weights_only=True`. A state dict may lie under a key `state_dict`, `model_state_dict`,
    `model`, `module` or `net`. Everything is checked before the first value is written.

    Names are compared without what only wrapping adds (`module.` of data parallelism,
    `_orig_mod.` of torch.compile), and with what newer versions of the model's own modules call
    a tensor. The report names both. Any other renaming is only suggested.

    Args:
        model: The model. Its tensors keep their device and dtype, and stay the same objects;
            `requires_grad` stays as it is. Tensors on the meta device are replaced by the
            file's, on the CPU, without a second copy in memory; build an optimizer after that.
        file: The path of a `.safetensors`, `.pth`, `.pt` or `.bin` file; of the index of sharded
            safetensors (`.safetensors.index.json`); or of the folder that holds it. Or a member
            of torchvision's weights enums, whose file is taken from torch.hub's folder and
            fetched to it when it is not there.
        minimum_match: The share of the model's tensors that the file must provide, in [0, 1].
            1 demands that names and shapes agree entirely, in both directions; less loads what
            fits and says in the report what did not.
        rename: The file's names to the model's: a whole name, or the beginning of names up to a
            dot (`{"fc1": "backbone.1"}` renames `fc1.weight` and `fc1.bias`). `{"model.": ""}`
            takes a beginning off, and `{"": "model."}` puts one before every name.

    Returns:
        What was loaded, and what was missing, unexpected or of another shape, with suggestions.

    Raises:
        FileMissingError: There is no such file, a shard is missing, or a download failed.
        CorruptFileError: The file is damaged, of another kind, or holds more than weights.
        WeightsMismatchError: Too little fits; the model is unchanged then.
        InvalidArgumentError: `minimum_match` is outside [0, 1]; an entry of `rename` applies to
            nothing, or two names become one; the model holds state that is no tensor; or tensors
            on the meta device would get no values.
        InvalidTypeError: `file` or `rename` is of another kind.

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
            "`minimum_match` must be a number in [0, 1], but is "
            f"{minimum_match!r} ({type(minimum_match).__name__})."
        )
    if not 0.0 <= minimum_match <= 1.0:
        raise InvalidArgumentError(f"`minimum_match` must be in [0, 1], but is {minimum_match}.")
    report, digests = read_weights(model, file, minimum_match=minimum_match, rename=rename or {})
    report = replace(report, digests=digests())
    remember_loaded(unwrapped(model), report.digests)
    return report


def read_weights(
    model: nn.Module, file: StrPath | Enum, *, minimum_match: float, rename: Mapping[str, str]
) -> tuple[LoadReport, Callable[[], dict[str, str]]]:
    """Load a weights file as `load_weights` does, but note nothing of it on the model.

    Returns:
        The report without digests, and what computes them: that reads every byte once more.
    """
    model = unwrapped(model)
    state = tensors_of(model)
    check_takes_values(model, state)
    has_meta = any(tensor.is_meta for tensor in state.values())
    weights = open_weights(file, mapped=not has_meta)
    tied = tied_names(state)
    match = _match(model, state, weights, rename, tied)
    report, sources = _compare(state, weights, match, rename, tied)
    if report.match < minimum_match or (minimum_match == 1.0 and report.unexpected):
        raise WeightsMismatchError(_refusal(report))
    for name in report.counters:
        if state[name].is_meta:
            sources[name] = _zero()
    check_leaves_no_meta(model, state, sources)
    firsts = [(group[0], sources[group[0]]) for group in tied if group[0] in sources]
    written = write_values(model, state, firsts)
    return report, partial(_digests, written, tied, set(report.loaded))


def _refusal(report: LoadReport) -> str:
    """Return what to say of a file that does not fit, and how to load what does."""
    lines = report.lines("would fit")
    lines[0] = f"`{report.path}` does not fit the model, which is unchanged. {lines[0]}"
    if report.loaded:
        share = min(math.floor(report.match * 100.0) / 100.0, 0.99)
        lines.append(
            "To load what fits and leave the rest as the model has it, pass "
            f"`minimum_match={share}`."
        )
    return "\n".join(lines)


def _match(
    model: nn.Module,
    state: Mapping[str, Tensor],
    weights: WeightsFile,
    rename: Mapping[str, str],
    tied: list[list[str]],
) -> NameMatch:
    """Match the names of a file, also those that only older versions of the modules had."""
    match = match_names(state, list(weights.tensors), rename=rename, tied=tied)
    if not match.unexpected or all(name in match.sources for name in state):
        return match
    targets = {without_wrappers(name): name for name in match.unexpected}
    entries = {
        short: (weights.tensors[name].shape, weights.tensors[name].dtype)
        for short, name in targets.items()
    }
    upgraded = {
        ours: targets[theirs]
        for ours, theirs in upgraded_names(model, entries).items()
        if ours in state and ours not in match.sources
    }
    used = set(upgraded.values())
    return NameMatch(
        {**match.sources, **upgraded},
        tuple(name for name in match.unexpected if name not in used),
        match.unwrapped,
    )


def _compare(
    state: Mapping[str, Tensor],
    weights: WeightsFile,
    match: NameMatch,
    rename: Mapping[str, str],
    tied: list[list[str]],
) -> tuple[LoadReport, dict[str, FileTensor]]:
    """Compare shapes and dtypes; return the report before loading, and what is to be loaded."""
    sources = {
        name: weights.tensors[match.sources[name]] for name in state if name in match.sources
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    fitting = {name: source for name, source in sources.items() if source.shape == shapes[name]}
    dtypes = {name: (source.dtype, state[name].dtype) for name, source in fitting.items()}
    wrong_dtype = {name: pair for name, pair in dtypes.items() if not torch.can_cast(*pair)}
    loaded = {name: source for name, source in fitting.items() if name not in wrong_dtype}
    doubled = _different_in_the_file(loaded, match, tied)
    report = LoadReport(
        weights.path,
        loaded=tuple(loaded),
        missing=tuple(name for name in state if name not in sources),
        unexpected=(*match.unexpected, *doubled),
        wrong_shape={
            name: (source.shape, shapes[name])
            for name, source in sources.items()
            if name not in fitting
        },
        wrong_dtype=wrong_dtype,
        cast={name: pair for name, pair in dtypes.items() if name in loaded and _loses(*pair)},
    )
    suggestions = [
        f"`{name}` and `{first}` are one tensor in the model and two different ones in the file; "
        f"`{first}` is taken. Untie them in the model if it needs both."
        for name, first in doubled.items()
    ]
    comparison = Comparison(
        shapes,
        {name: tensor.shape for name, tensor in weights.tensors.items()},
        rename,
        match,
        weights.is_in_order,
        harmless=report.counters,
    )
    return replace(report, suggestions=(*suggestions, *suggest(comparison))), loaded


def _different_in_the_file(
    loaded: Mapping[str, FileTensor], match: NameMatch, tied: list[list[str]]
) -> dict[str, str]:
    """Return names of the file for a tied tensor that differ from the one that is taken."""
    different: dict[str, str] = {}
    for group in tied:
        names = dict.fromkeys(match.sources[name] for name in group if name in loaded)
        if len(names) < 2:
            continue
        by_source = {match.sources[name]: loaded[name] for name in group if name in loaded}
        first, *others = names
        values = by_source[first].read()
        for other in others:
            if not torch.equal(values, by_source[other].read().to(values.dtype)):
                different[other] = first
    return different


def _loses(theirs: torch.dtype, ours: torch.dtype) -> bool:
    """Return whether values of one dtype may be rounded or cut off in another."""
    if theirs in {ours, torch.bool}:
        return False
    if not (ours.is_floating_point or ours.is_complex):
        one, other = torch.iinfo(theirs), torch.iinfo(ours)
        return one.min < other.min or one.max > other.max
    to = torch.finfo(ours)
    if not (theirs.is_floating_point or theirs.is_complex):
        return torch.iinfo(theirs).max > 2 / to.eps
    of = torch.finfo(theirs)
    return of.eps < to.eps or of.max > to.max


def _zero() -> FileTensor:
    """Return the value of a counter of batches that an old torch did not write."""
    return FileTensor((), torch.int64, lambda: torch.zeros((), dtype=torch.int64), is_own=True)


def _digests(
    written: Mapping[str, Tensor], tied: list[list[str]], loaded: set[str]
) -> dict[str, str]:
    """Return the digest of every loaded tensor as it lies in the model, under all its names."""
    digests: dict[str, str] = {}
    for group in tied:
        if group[0] in written and group[0] in loaded:
            digests |= dict.fromkeys(group, digest(written[group[0]]))
    return digests

"""Comparing the tensors of a weights file with those of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetunelib.finetuning._weights.base import Base
from finetunelib.finetuning._weights.formats import FileTensor
from finetunelib.finetuning._weights.names import (
    NameMatch,
    match_names,
    upgraded_names,
    without_wrappers,
)
from finetunelib.finetuning._weights.renaming import NameComparison
from finetunelib.finetuning._weights.report import LoadReport
from finetunelib.finetuning._weights.sources import WeightsFile
from finetunelib.finetuning._weights.state import embedding_names, tied_names
from finetunelib.finetuning._weights.suggestions import suggest


@dataclass(frozen=True, slots=True)
class WeightsComparison:
    """The result of comparing a file with a model.

    Attributes:
        report: The report, without digests.
        sources: The file's tensors that can be loaded, by the model's names.
        tied: The model's names, grouped by tensor.
        base: The tensors that the file leaves out.
    """

    report: LoadReport
    sources: dict[str, FileTensor]
    tied: list[list[str]]
    base: Base

    @property
    def differs_only_in_base(self) -> bool:
        """Whether everything fits, except tensors that the file leaves out."""
        report = self.report
        others = (*report.unexpected, *report.wrong_shape, *report.wrong_dtype)
        missing = {*report.missing} - {*report.counters, *self.base.different}
        return not others and not missing


def compare(
    model: nn.Module,
    state: Mapping[str, Tensor],
    weights: WeightsFile,
    rename: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype],
) -> WeightsComparison:
    """Compare names, shapes and dtypes of a file and a model.

    Args:
        model: The model.
        state: Its tensors by name.
        weights: The file.
        rename: The user's renaming, from the file's names to the model's.
        dtypes: The dtypes that the model's tensors will have, by name.

    Raises:
        InvalidArgumentError: If an entry of `rename` matches no name, or two names become equal.
        InvalidTypeError: If `rename` is not a mapping from strings to strings.
    """
    tied = tied_names(state)
    match = _match(model, state, weights, rename, tied)
    found = {
        name: weights.tensors[match.sources[name]]
        for name in state
        if match.sources.get(name) in weights.tensors
    }
    base = Base(state, weights, match)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    fitting = {name: source for name, source in found.items() if source.shape == shapes[name]}
    pairs = {name: (source.dtype, dtypes[name]) for name, source in fitting.items()}
    wrong_dtype = {name: pair for name, pair in pairs.items() if not torch.can_cast(*pair)}
    loaded = {name: source for name, source in fitting.items() if name not in wrong_dtype}
    present = {*found, *base.same}
    untied = _different_in_the_file(loaded, match, tied)
    report = LoadReport(
        weights.path,
        loaded=tuple(loaded),
        missing=tuple(name for name in state if name not in present),
        unexpected=(*match.unexpected, *untied),
        wrong_shape={
            name: (source.shape, shapes[name])
            for name, source in found.items()
            if name not in fitting
        },
        wrong_dtype=wrong_dtype,
        cast={name: pair for name, pair in pairs.items() if name in loaded and _rounds(*pair)},
        verified=base.same,
    )
    suggested = suggest(
        NameComparison(
            shapes,
            {name: tensor.shape for name, tensor in weights.entries.items()},
            rename,
            match,
            weights.is_in_order,
            may_be_missing=report.counters,
            embeddings=embedding_names(model, state),
        )
    )
    sentences = [
        f"`{name}` and `{first}` are one tensor in the model and differ in the file; `{first}` is "
        "used. Untie them in the model if it needs both."
        for name, first in untied.items()
    ]
    report = replace(
        report,
        suggestions=(*sentences, *base.sentences(), *suggested.sentences),
        rename=suggested.rename,
    )
    return WeightsComparison(report, loaded, tied, base)


def _match(
    model: nn.Module,
    state: Mapping[str, Tensor],
    weights: WeightsFile,
    rename: Mapping[str, str],
    tied: Sequence[Sequence[str]],
) -> NameMatch:
    """Match the names of a file, including those that older versions of the modules used."""
    match = match_names(state, list(weights.entries), rename=rename, tied=tied)
    if not match.unexpected or all(name in match.sources for name in state):
        return match
    targets = {without_wrappers(name): name for name in match.unexpected}
    named = weights.entries
    entries = {short: (named[name].shape, named[name].dtype) for short, name in targets.items()}
    upgraded = {
        name: targets[old_name]
        for name, old_name in upgraded_names(model, entries).items()
        if name in state and name not in match.sources
    }
    used = set(upgraded.values())
    return NameMatch(
        {**match.sources, **upgraded},
        tuple(name for name in match.unexpected if name not in used),
        match.unwrapped,
    )


def _different_in_the_file(
    loaded: Mapping[str, FileTensor], match: NameMatch, tied: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Return the file's names for a tied tensor whose values differ from the one that is used."""
    different: dict[str, str] = {}
    for group in tied:
        by_source = {match.sources[name]: loaded[name] for name in group if name in loaded}
        if len(by_source) < 2:
            continue
        first, *others = by_source
        values = by_source[first].read()
        for other in others:
            if not torch.equal(values, by_source[other].read().to(values.dtype)):
                different[other] = first
    return different


def overflowing(
    dtypes: Mapping[str, torch.dtype], comparison: WeightsComparison
) -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """Return the tensors with values beyond the range of the model's dtype.

    Returns:
        (dtype in the file, dtype in the model) by the model's name.
    """
    sources, found = comparison.sources, {}
    for group in comparison.tied:
        name = group[0]
        if name not in sources:
            continue
        pair = (sources[name].dtype, dtypes[name])
        if _may_overflow(*pair) and _overflows(sources[name].read(), dtypes[name]):
            found[name] = pair
    return found


def _overflows(values: Tensor, dtype: torch.dtype) -> bool:
    converted = values.to(dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        return not torch.equal(converted.to(values.dtype), values)
    if values.is_floating_point() and values.element_size() == 1:
        values = values.float()  # Few operations support the float8 dtypes.
    if converted.element_size() == 1:
        converted = converted.float()
    return bool((values.isfinite() & ~converted.isfinite()).any())


def _may_overflow(source: torch.dtype, target: torch.dtype) -> bool:
    """Return whether the largest value of one dtype is beyond the range of another."""
    if source in {target, torch.bool}:
        return False
    if not (target.is_floating_point or target.is_complex):
        one, other = torch.iinfo(source), torch.iinfo(target)
        return one.min < other.min or one.max > other.max
    is_float = source.is_floating_point or source.is_complex
    largest = torch.finfo(source).max if is_float else torch.iinfo(source).max
    return largest > torch.finfo(target).max


def _rounds(source: torch.dtype, target: torch.dtype) -> bool:
    """Return whether values of one dtype may be rounded or cut off in another."""
    if source in {target, torch.bool}:
        return False
    if not (target.is_floating_point or target.is_complex):
        return _may_overflow(source, target)
    precision = torch.finfo(target)
    if not (source.is_floating_point or source.is_complex):
        return torch.iinfo(source).max > 2 / precision.eps
    return torch.finfo(source).eps < precision.eps or _may_overflow(source, target)

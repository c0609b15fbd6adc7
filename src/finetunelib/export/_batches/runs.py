"""Runs the model on the batches that a file is compared on."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import flat_outputs
from finetunelib._forward.run import run_model
from finetunelib.errors import InvalidInputError
from finetunelib.export._batches.arrays import Array, to_array
from finetunelib.export._batches.samples import Sampler
from finetunelib.export._batches.sizes import (
    BATCH_SIZES,
    BATCH_SIZES_OF_LARGE_MODELS,
    LARGE_MODEL,
    adjacent,
    larger,
    smaller,
    step_of,
)
from finetunelib.export._batches.variation import LEVELS, Level
from finetunelib.export._request.dynamic_axes import BATCH
from finetunelib.export._request.rows import BatchAxes, batch_size

#: The rows of a batch at other sizes than the example's, and of a batch of real samples.
_FEW, _MANY = 2, 64

#: The approximate largest number of values in a batch of real samples with more rows than the
#: example.
_MOST_VALUES = 4_000_000

#: A size far from the example's is tried if it makes the inputs at most this many times larger.
_MOST_TIMES = 16


@dataclass(frozen=True, slots=True)
class Run:
    """A batch and the model's outputs for it.

    Attributes:
        batch: The inputs.
        size: The number of rows.
        sizes: The sizes of all dynamic axes.
        outputs: The outputs of the model.
        note: A sentence to add to the message if the file differs on this batch.
    """

    batch: Inputs
    size: int
    sizes: dict[str, int]
    outputs: list[Array]
    note: str = ""


@dataclass(slots=True)
class Runner:
    """Runs a model on batches of a sampler, and records which sizes it accepts."""

    model: nn.Module
    sampler: Sampler
    name: str
    #: Whether outputs that are not finite mean that a batch left the domain of the model.
    finite: bool = True
    #: Whether the model accepts the sizes that were tried.
    tried: dict[tuple[tuple[str, int], ...], bool] = field(default_factory=dict)

    def run(self, sizes: Mapping[str, int], offset: int) -> Run:
        """Run the model on a batch.

        Raises:
            InvalidInputError: If the model cannot take it.
        """
        batch = self.sampler.make(sizes, offset)
        return run_batch(self.model, batch, self.sampler.batch, sizes, self.name)

    def attempt(self, sizes: Mapping[str, int], offset: int) -> Run | None:
        """Return a run, or `None` if the model cannot take the batch."""
        with contextlib.suppress(InvalidInputError):
            run = self.run(sizes, offset)
            if not self.finite or all(map(_is_finite, run.outputs)):
                return run
        return None

    def attempt_once(self, sizes: Mapping[str, int]) -> Run | None:
        """Return a run at sizes that were not tried before and are allowed, or `None`."""
        key = tuple(sizes.items())
        if key in self.tried or not self.sampler.axes.allows(sizes) or min(sizes.values()) < 1:
            return None
        # Use rows after those of the first batches, because these are variations.
        run = self.attempt(sizes, sum(BATCH_SIZES) + len(self.tried))
        self.tried[key] = run is not None
        return run

    def accepts(self, sizes: Mapping[str, int]) -> bool:
        """Return whether the model ran at these sizes."""
        return self.tried.get(tuple(sizes.items()), False)

    def affordable(self, sizes: Mapping[str, int]) -> bool:
        """Return whether a batch of these sizes is not much larger than the example."""
        example = self.sampler.axes.example
        times = float(np.prod([size / example[name] for name, size in sizes.items()]))
        values = sum(tensor.numel() for tensor in self.sampler.source.tensors)
        rows = max(1, self.sampler.rows)
        if BATCH not in example:
            rows = 1
        return times <= _MOST_TIMES or times * values * example.get(BATCH, 1) / rows <= _MOST_VALUES


def run_batch(
    model: nn.Module, batch: Inputs, axes: BatchAxes, sizes: Mapping[str, int], name: str
) -> Run:
    """Run a model on a batch.

    Raises:
        InvalidInputError: If the model cannot take the batch, which the user knows as `name`.
    """
    # A copy, because a forward may write to its inputs.
    output = run_model(model, batch.map(Tensor.clone), name)
    outputs = [to_array(tensor) for tensor in flat_outputs(output)]
    return Run(batch, batch_size(batch, axes), dict(sizes), outputs)


def first_runs(runner: Runner) -> tuple[Runner, list[Run]]:
    """Return the runs on the example and its variations at the first batch sizes.

    Also return the runner with the level of variation that the model accepts.
    """
    varying, runs = _accepted_runs(runner)
    varying.tried.update({tuple(run.sizes.items()): True for run in runs})
    return varying, runs


def _accepted_runs(runner: Runner) -> tuple[Runner, list[Run]]:
    """Return the runner with the level that the model accepts, and its runs."""
    sizes = _first_sizes(runner)
    varying, runs = _runs_at(runner, LEVELS[0], sizes)
    if len(runs) == len(sizes):
        return varying, runs
    # Find the sizes that the model accepts, whatever the values.
    sizes = _accepted_sizes(runner, sizes)
    for level in LEVELS:
        varying, runs = _runs_at(runner, level, sizes)
        if len(runs) == len(sizes):
            break
    # A model that accepts nothing raises here.
    return varying, runs or [varying.run(runner.sampler.axes.example, 0)]


def _runs_at(runner: Runner, level: Level, sizes: Sequence[int]) -> tuple[Runner, list[Run]]:
    """Return the runs that the model accepts of those at a level of variation."""
    sampler = runner.sampler
    varying = replace(runner, sampler=sampler.at(level, kept=sum(BATCH_SIZES[:2])))
    offsets = itertools.accumulate(sizes, initial=0)
    runs = [
        varying.attempt(_with_batch(sampler.axes.example, size), offset)
        for size, offset in zip(sizes, offsets, strict=False)
    ]
    return varying, [run for run in runs if run is not None]


def _accepted_sizes(runner: Runner, sizes: Sequence[int]) -> list[int]:
    """Return the batch sizes that the model accepts, and others if it accepts only one of them."""
    example = runner.sampler.axes.example
    plain = replace(runner, sampler=runner.sampler.at(LEVELS[-1], kept=0))
    found = [size for size in sizes if plain.attempt(_with_batch(example, size), 0) is not None]
    if BATCH not in example or len(set(found)) > 1:
        return found
    size = example[BATCH]
    for candidate in (size, *adjacent(size), *smaller(size), *larger(size)):
        if len(found) < len(BATCH_SIZES) and candidate > 0 and candidate not in found:
            at = _with_batch(example, candidate)
            if plain.sampler.axes.allows(at) and plain.attempt(at, 0) is not None:
                found.append(candidate)
    return found


def sample_runs(runner: Runner) -> Iterator[Run]:
    """Yield the runs on all real samples, in batches of 1, 2, 7 and then many rows."""
    sampler, example = runner.sampler, runner.sampler.axes.example
    total = sampler.rows
    if BATCH not in example:
        # The batch size is fixed; the last batch starts again with the first samples.
        size = _fixed_rows(sampler)
        for offset in range(0, total, size):
            yield runner.run(example, offset)
        return
    values = sum(tensor.numel() for tensor in sampler.source.tensors) / max(1, total)
    many = max(example[BATCH], min(_MANY, int(_MOST_VALUES / max(1.0, values))), 8)
    offset = 0
    for size in itertools.chain(BATCH_SIZES, itertools.repeat(many)):
        if offset >= max(total, sum(BATCH_SIZES)):
            return
        rows = size if offset < sum(BATCH_SIZES) else min(size, total - offset)
        yield runner.run(_with_batch(example, rows), offset)
        offset += rows


def runs_at_other_sizes(runner: Runner) -> Iterator[Run]:
    """Yield runs with each further dynamic axis smaller and larger than in the example.

    For each axis, these are the sizes next to that of the example, and the first sizes farther away
    that the model accepts. If it accepts none, all further axes change together.
    """
    axes = runner.sampler.axes
    example = dict(axes.example)
    if BATCH in example:
        example[BATCH] = _FEW
    for name in axes.further:
        size, found = axes.example[name], 0
        for candidates in ([adjacent(size)[0]], [adjacent(size)[1]], smaller(size), larger(size)):
            for candidate in candidates:
                if candidate >= 2 and runner.affordable({**example, name: candidate}):
                    run = runner.attempt_once({**example, name: candidate})
                    if run is not None:
                        found += 1
                        yield run
                        break
        if not found and len(axes.further) > 1:
            yield from _together(runner, example)


def runs_at_missing_sizes(runner: Runner, seen: Sequence[Mapping[str, int]]) -> Iterator[Run]:
    """Yield a run at a second size of each dynamic axis that has only one in the runs so far."""
    example = dict(runner.sampler.axes.example)
    for name, size in example.items():
        if len({sizes[name] for sizes in seen}) > 1:
            continue
        for candidate in (_FEW, 1, *adjacent(size), *smaller(size), *larger(size)):
            if candidate != size and runner.affordable({**example, name: candidate}):
                run = runner.attempt_once({**example, name: candidate})
                if run is not None:
                    yield run
                    break


def _together(runner: Runner, example: Mapping[str, int]) -> Iterator[Run]:
    further = runner.sampler.axes.further
    step = min(step_of(example[name]) for name in further)
    for change in (-step, step):
        sizes = {**example, **{name: example[name] + change for name in further}}
        run = runner.attempt_once(sizes)
        if run is not None:
            yield run


def _first_sizes(runner: Runner) -> list[int]:
    sampler, example = runner.sampler, runner.sampler.axes.example
    if BATCH not in example:
        return [_fixed_rows(sampler), _fixed_rows(sampler)]
    parameters = sum(parameter.numel() for parameter in runner.model.parameters())
    first = BATCH_SIZES if parameters < LARGE_MODEL else BATCH_SIZES_OF_LARGE_MODELS
    size = example[BATCH]
    sizes = [*first, *([size + 1] if size >= max(first) else [])]
    return [size for size in sizes if sampler.axes.allows(_with_batch(example, size))]


def _fixed_rows(sampler: Sampler) -> int:
    """Return the number of rows of a batch whose size is fixed."""
    fixed = sampler.axes.fixed
    sizes = [fixed(number, axis) for number, axis in enumerate(sampler.batch) if axis is not None]
    return max(sizes, default=1)


def _with_batch(example: Mapping[str, int], size: int) -> dict[str, int]:
    return {**example, BATCH: size} if BATCH in example else dict(example)


def _is_finite(array: Array) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())

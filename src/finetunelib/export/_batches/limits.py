"""Decides for each assumption of the exporter whether a file is compared or checks it itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from finetunelib.export._batches.runs import Run, Runner
from finetunelib.export._batches.sizes import Axes
from finetunelib.export._request.dynamic_axes import BATCH
from finetunelib.export._tracing.assumptions import Assumptions, holds, violations
from finetunelib.export._tracing.conditions import is_between_axes

#: The sizes that an axis may have, `None` for no limit.
Limits = tuple[int, int | None]

#: The number of sizes to try that contradict an assumption.
_MOST_TRIES = 24

#: A limit holds if the assumption also fails for this many further sizes.
_FURTHER = 16


@dataclass(slots=True)
class SizeLimits:
    """What happens at sizes that contradict an assumption of the exporter.

    Attributes:
        checked: The conditions that the graph checks: the model accepts none of the sizes that
            were tried at which they do not hold, or the user declared the bounds.
        compared: The other conditions.
        sizes: The sizes at which those do not hold and which the model accepts. The file must be
            right there, too.
        start: The sizes of which one is changed.
        limits: The smallest and largest sizes that follow from `checked`, by axis.
    """

    start: dict[str, int]

    checked: list[Any] = field(default_factory=list)
    compared: list[Any] = field(default_factory=list)
    sizes: list[dict[str, int]] = field(default_factory=list)
    limits: dict[str, Limits] = field(default_factory=dict)

    def check_all(self, axes: Axes) -> None:
        """Let the graph check all conditions, if the file cannot be compared."""
        self.checked += self.compared
        self.compared, self.sizes = [], []
        self.limits = _limits(self.checked, self.start, axes)

    def runs(self, runner: Runner) -> Iterator[Run]:
        """Yield the runs at `sizes`."""
        for sizes in self.sizes:
            changed = next(name for name in sizes if sizes[name] != self.start[name])
            run = runner.attempt_once(sizes)
            if run is not None:
                yield replace(run, note=_note(changed, sizes[changed]))


def size_limits(assumptions: Assumptions, runner: Runner) -> SizeLimits:
    """Run the model at sizes that contradict the assumptions of the exporter.

    If the model accepts such a size, the file must be right there too. If it does not, the size is
    a limit of the model itself.
    """
    axes = runner.sampler.axes
    # Two rows are enough, unless a condition is on their number.
    start = {name: 2 if name == BATCH else size for name, size in axes.example.items()}
    if not all(holds(condition, start) for condition in assumptions.conditions):
        start = axes.example
    found = SizeLimits(start)
    for condition in assumptions.conditions:
        accepted = [
            sizes
            for sizes in violations(condition, start)[:_MOST_TRIES]
            if axes.allows(sizes)
            and runner.affordable(sizes)
            and (runner.accepts(sizes) or runner.attempt_once(sizes) is not None)
        ]
        # The memory of a graph may be planned for two axes that are equal.
        if accepted and not is_between_axes(condition):
            found.compared.append(condition)
            found.sizes += [sizes for sizes in accepted if sizes not in found.sizes]
        else:
            found.checked.append(condition)
    found.limits = _limits(found.checked, start, axes)
    return found


def _limits(checked: list[Any], start: Mapping[str, int], axes: Axes) -> dict[str, Limits]:
    found: dict[str, Limits] = {}
    for name in axes.example:
        low, high = axes.declared(name)
        if high is not None or low > 2:
            found[name] = (low, high)
    for condition in checked:
        for sizes in violations(condition, start):
            changed = next(name for name in sizes if sizes[name] != start[name])
            _limit(found, condition, changed, sizes[changed], start)
    return found


def _limit(
    found: dict[str, Limits], condition: Any, name: str, size: int, start: Mapping[str, int]
) -> None:
    """Note a limit, if the condition on one axis holds up to it and fails for all sizes beyond."""
    if len(condition.free_symbols) > 1:
        return
    step = 1 if size > start[name] else -1
    beyond = range(size, size + step * _FURTHER, step) if step > 0 else range(size, 0, -1)
    within = range(size - step, start[name], -step)[:_FURTHER]
    if any(holds(condition, {name: n}) for n in beyond):
        return
    if not all(holds(condition, {name: n}) for n in within):
        return
    low, high = found.get(name, (1, None))
    if step > 0:
        high = size - 1 if high is None else min(high, size - 1)
    else:
        low = max(low, size + 1)
    found[name] = (low, high)


def _note(name: str, size: int) -> str:
    return (
        f"The difference is at size {size} of the axis `{name}`: the forward branches on it, and "
        "the exported graph contains one branch only. Remove the branch, or declare the range of "
        f"the axis with `torch.export.Dim({name!r}, min=..., max=...)` in `dynamic_shapes`."
    )

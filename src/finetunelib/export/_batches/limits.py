"""Compares a file at sizes that the exporter did not assume, and finds the limits of the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from finetunelib.errors import ExportError
from finetunelib.export._batches.runs import Run, Runner
from finetunelib.export._batches.sizes import Axes
from finetunelib.export._request.dynamic_axes import BATCH
from finetunelib.export._tracing.assumptions import Assumptions

#: The sizes that an axis may have, `None` for no limit.
Limits = tuple[int, int | None]

#: The number of sizes to try that contradict an assumption.
_MOST_TRIES = 24

#: A limit holds if the assumption also fails for this many further sizes.
_FURTHER = 16


@dataclass(slots=True)
class BeyondAssumptions:
    """Runs the model at sizes that contradict an assumption of the exporter.

    If the model accepts such a size, the file must be right there too. If it does not, the size is
    a limit of the model itself.
    """

    assumptions: Assumptions
    limits: dict[str, Limits] = field(default_factory=dict)

    def runs(self, runner: Runner) -> Iterator[Run]:
        """Yield the runs that the model accepts, and note the limits."""
        axes = runner.sampler.axes
        example = dict(axes.example)
        if BATCH in example:
            example[BATCH] = max(2, min(2, example[BATCH]))
        for name in example:
            low, high = axes.declared(name)
            if high is not None or low > 2:
                self.limits[name] = (low, high)
        violations = self.assumptions.violations(example) if self.assumptions.symbols else []
        for sizes in violations[:_MOST_TRIES]:
            if not axes.allows(sizes):
                continue
            changed = next(name for name in sizes if sizes[name] != example[name])
            run = runner.attempt_once(sizes) if runner.affordable(sizes) else None
            if run is not None:
                yield replace(run, note=_note(changed, sizes[changed]))
            elif not runner.accepts(sizes):
                self._limit(changed, sizes, example)

    def _limit(self, name: str, sizes: Mapping[str, int], example: Mapping[str, int]) -> None:
        """Note a limit, if the assumption fails for all sizes beyond it."""
        size = sizes[name]
        step = 1 if size > example[name] else -1
        beyond = range(size, size + step * _FURTHER, step) if step > 0 else range(size, 0, -1)
        if not all(self.assumptions.fail({**example, name: other}) for other in beyond):
            return
        low, high = self.limits.get(name, (1, None))
        if step > 0:
            high = size - 1 if high is None else min(high, size - 1)
        else:
            low = max(low, size + 1)
        self.limits[name] = (low, high)


def check_declared(assumptions: Assumptions, axes: Axes) -> None:
    """Check that the exported graph covers the declared bounds of each axis.

    Raises:
        ExportError: If the model fixes a branch for a part of the sizes of an axis.
    """
    for name, (low, high) in assumptions.ranges.items():
        least, most = axes.declared(name)
        if most is None and least <= 1:
            continue
        too_high = high is not None and (most is None or high < most)
        if too_high or low > max(least, 2):
            raise ExportError(
                f"The axis `{name}` is declared from {least} to {most or 'any size'}, but the "
                f"exported graph is right only from {low} to {high or 'any size'}: the forward "
                "branches on the size. Remove the branch, or declare "
                f"`torch.export.Dim({name!r}, min={low}, max={high})`."
            )


def _note(name: str, size: int) -> str:
    return (
        f"The difference is at size {size} of the axis `{name}`: the forward branches on it, and "
        "the exported graph contains one branch only. Remove the branch, or declare the range of "
        f"the axis with `torch.export.Dim({name!r}, min=..., max=...)` in `dynamic_shapes`."
    )

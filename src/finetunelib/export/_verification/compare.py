"""Compares a file, run by ONNX Runtime, with a model on a number of runs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetunelib.errors import ExportMismatchError
from finetunelib.export._batches.arrays import Array
from finetunelib.export._batches.limits import Limits
from finetunelib.export._batches.runs import Run
from finetunelib.export._request.pipeline import inner_name
from finetunelib.export._request.rows import BatchAxes
from finetunelib.export._verification.comparison import Comparison, Finding, examine
from finetunelib.export._verification.dependence import independent_outputs
from finetunelib.export._verification.mismatch import find_location, mismatch_error
from finetunelib.export._verification.outcome import Verification
from finetunelib.export._verification.progress import long_comparison
from finetunelib.export._verification.rounding import outputs_after_rounding
from finetunelib.export._verification.runtime import RunError, run_session

#: Runs are compared in groups with at most this many bytes of outputs.
_GROUP = 1 << 29


@dataclass(slots=True)
class FileComparison:
    """The comparison of a file with a model, run by run, and its findings so far.

    Attributes:
        session: The ONNX Runtime session of the file.
        file: The file.
        model: The model.
        names: The names of the inputs.
        batch: The batch axis of each input.
        tolerance: The largest error allowed, as a fraction of the spread.
        program: Returns the exported program of the model, to locate a mismatch.
        graph: Returns the graph of the file; its weights may be left out.
    """

    session: Any
    file: Path
    model: nn.Module
    names: Sequence[str]
    batch: BatchAxes
    tolerance: float
    program: Callable[[], Any]
    graph: Callable[[], Any]
    seen: _Seen = field(init=False)

    def __post_init__(self) -> None:
        self.seen = _Seen(self.batch)

    def compare(self, runs: Iterable[Run]) -> None:
        """Compare the file with the model on some runs.

        Raises:
            ExportMismatchError: If they compute different outputs.
        """
        with long_comparison() as count:
            for group in _groups(runs, count):
                self._compare_group(group)

    def _compare_group(self, group: Sequence[Run]) -> None:
        actual = [self._run_file(run) for run in group]
        self._check_number_of_outputs(group[0])
        for number, name in enumerate(self.outputs):
            finding = self._examine(number, name, group, actual)
            if finding.problem:
                raise self._mismatch(finding.problem, group[finding.batch])
            self.seen.add_finding(name, finding)
        self.seen.add_runs(group, self.outputs)

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs of the file."""
        return [output.name for output in self.session.get_outputs()]

    def result(
        self, limits: Mapping[str, Limits], axes: Iterable[str], further: Iterable[str] = ()
    ) -> Verification:
        """Return the result of all comparisons.

        Args:
            limits: The sizes for which the file is right.
            axes: The names of all dynamic axes.
            further: Reasons why nothing was proven, other than those found here.
        """
        seen = self.seen
        inputs = {value.name for value in self.session.get_inputs()}
        constant = independent_outputs(self.graph(), inputs)
        still = [name for name in self.outputs if not seen.varies.get(name)]
        constant_inputs = tuple(
            name for number, name in enumerate(self.names) if not seen.inputs.get(number)
        )
        sizes = {name: tuple(sorted(found)) for name, found in seen.sizes.items()}
        reasons = [
            *further,
            *seen.doubts,
            *(f"the input `{name}` never varied" for name in constant_inputs),
            *(f"the axis `{name}` was compared at one size only" for name in axes
              if len(sizes.get(name, ())) < 2),
            *(f"the output `{name}` does not vary over the samples" for name in still
              if name not in constant and not seen.empty(name)),
        ]  # fmt: skip
        if len(still) == len(self.outputs) and not reasons:
            reasons.append("the outputs do not depend on the inputs")
        return Verification(
            status="inconclusive" if reasons else "verified",
            batch_sizes=tuple(seen.batch_sizes),
            tolerance=self.tolerance,
            comparisons=tuple(seen.comparisons),
            samples=sum(seen.batch_sizes),
            sizes=sizes,
            limits=dict(limits),
            reasons=tuple(reasons),
            constant_inputs=constant_inputs,
            constant_outputs=tuple(name for name in still if name in constant),
        )

    def _examine(
        self, number: int, name: str, group: Sequence[Run], actual: Sequence[Sequence[Array]]
    ) -> Finding:
        def rounding(index: int) -> list[Array]:
            alternatives = outputs_after_rounding(self.model, group[index].batch)
            return [outputs[number] for outputs in alternatives]

        return examine(
            name,
            [run.outputs[number] for run in group],
            [outputs[number] for outputs in actual],
            self.tolerance,
            batch_sizes=[run.size for run in group],
            rounding=rounding,
        )

    def _run_file(self, run: Run) -> list[Array]:
        try:
            return run_session(self.session, run.batch)
        except RunError as error:
            raise self._mismatch(str(error), run) from error

    def _check_number_of_outputs(self, run: Run) -> None:
        names = self.outputs
        if len(names) != len(run.outputs):
            raise ExportMismatchError(
                f"The file has {len(names)} outputs ({', '.join(names)}), but the model returns "
                f"{len(run.outputs)}."
            )

    def _mismatch(self, problem: str, run: Run) -> ExportMismatchError:
        location = find_location(
            self.file, self.program, run.batch, inner_name(self.model), self.tolerance
        )
        return mismatch_error(" ".join(filter(None, (problem, run.note))), location)


@dataclass(slots=True)
class _Seen:
    """What was compared so far."""

    batch: BatchAxes
    comparisons: list[Comparison] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    sizes: dict[str, set[int]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    varies: dict[str, bool] = field(default_factory=dict)
    inputs: dict[int, bool] = field(default_factory=dict)
    first: dict[int, Tensor] = field(default_factory=dict)
    shapes: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)

    def add_finding(self, name: str, finding: Finding) -> None:
        """Add the numbers of an output."""
        self.comparisons += finding.comparisons
        self.varies[name] = self.varies.get(name, False) or finding.varies
        if finding.doubt and finding.doubt not in self.doubts:
            self.doubts.append(finding.doubt)

    def add_runs(self, runs: Sequence[Run], names: Sequence[str]) -> None:
        """Add the sizes and output shapes of some runs, and note which inputs vary."""
        for run in runs:
            for name, output in zip(names, run.outputs, strict=True):
                self.shapes.setdefault(name, set()).add(output.shape)
            self.batch_sizes.append(run.size)
            for name, size in run.sizes.items():
                self.sizes.setdefault(name, set()).add(size)
            for number, tensor in enumerate(run.batch.tensors):
                first = self.first.setdefault(number, tensor)
                if not self.inputs.get(number):
                    self.inputs[number] = _varies(tensor, first, self.batch[number])

    def empty(self, name: str) -> bool:
        """Return whether an output was empty in all runs."""
        return any(f"`{name}` was empty" in doubt for doubt in self.doubts)


def _groups(runs: Iterable[Run], count: Callable[[int], None]) -> Iterator[list[Run]]:
    """Yield the runs in groups whose outputs fit into memory together."""
    group: list[Run] = []
    size = 0
    for run in runs:
        group.append(run)
        count(run.size)
        size += sum(output.nbytes for output in run.outputs)
        if size > _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _varies(tensor: Tensor, first: Tensor, axis: int | None) -> bool:
    """Return whether the rows of an input differ, or differ from those of the first batch."""
    rows = tensor[None] if axis is None else tensor.movedim(axis, 0)
    if len(rows) and bool((rows != rows[:1]).any()):
        return True
    others = first[None] if axis is None else first.movedim(axis, 0)
    if not rows.numel() or not others.numel():
        return False
    if rows.shape[1:] == others.shape[1:]:
        return bool((rows[:1] != others[:1]).any())
    return bool(rows.min() != others.min()) or bool(rows.max() != others.max())

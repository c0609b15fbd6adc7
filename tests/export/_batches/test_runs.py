"""The sizes of the batches on which a file is compared."""

from __future__ import annotations

import pytest
from torch import nn

from finetunelib._forward.inputs import Inputs
from finetunelib.export._batches.runs import Runner, first_runs
from finetunelib.export._batches.samples import Sampler
from finetunelib.export._batches.sizes import Axes
from support_models import linear, samples


@pytest.mark.parametrize(
    ("rows", "large", "sizes"),
    [
        (2, False, [1, 2, 7]),
        (7, False, [1, 2, 7, 8]),
        (2, True, [1, 3]),
        (4, True, [1, 3, 5]),
    ],
)
def test_first_batches_are_smaller_and_larger_than_the_example(
    monkeypatch: pytest.MonkeyPatch, rows: int, large: bool, sizes: list[int]
) -> None:
    """Large models get fewer rows, because each is expensive."""
    if large:
        monkeypatch.setattr("finetunelib.export._batches.runs.LARGE_MODEL", 15)
    example = samples(rows, 4)
    axes = Axes([{0: "batch"}], [example])
    sampler = Sampler(Inputs((example,), {}), ["x"], [0], axes)
    model: nn.Module = linear()
    assert [run.size for run in first_runs(Runner(model, sampler, "x"))[1]] == sizes


def test_sizes_of_the_first_batches_are_not_run_again() -> None:
    """The exporter's assumption that a batch is not of one row leads to a batch that was run."""
    example = samples(2, 4)
    sampler = Sampler(Inputs((example,), {}), ["x"], [0], Axes([{0: "batch"}], [example]))
    varying, _ = first_runs(Runner(linear(), sampler, "x"))
    assert varying.attempt_once({"batch": 7}) is None
    assert varying.attempt_once({"batch": 9}) is not None

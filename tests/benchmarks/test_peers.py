"""`benchmarks/peers.py`: all trainers do the same work, and each part returns its rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import peers
from _parts import checkpoint, epoch, growth, head, inference, paired, steps
from _peers.base import Job
from _peers.names import PEERS, peer_of, version_of
from finetunelib import build_mlp

#: Those that CI has installed.
NAMES = ["hand", "finetunelib"]

EVERY = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(version_of(name) is None, reason=f"{name} is not installed"),
            *([] if name in NAMES else [pytest.mark.slow]),
        ],
    )
    for name in PEERS
]


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Random samples of five classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 8, generator=generator)
    return inputs, torch.randint(0, 5, (60,), generator=generator)


def model() -> nn.Module:
    """Return a model with the same weights each time."""
    return build_mlp(8, [6], 5, seed=0)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", EVERY)
def test_a_trainer_does_the_same_work(
    name: str, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """From the same batches, each ends with the weights of the hand-written loop."""
    inputs, targets = data
    batches = list(zip(torch.split(inputs, 20), torch.split(targets, 20), strict=True))
    job = Job(batch_size=20, epochs=2, callbacks=1, folder=tmp_path, classes=5)
    by_hand, other = (peer_of(kind)(model(), job) for kind in ("hand", name))
    by_hand.fit(batches)
    other.fit(batches)
    outputs = other.predict(inputs)
    assert torch.allclose(outputs, by_hand.predict(inputs), atol=1e-6)
    assert other.evaluate(data) == pytest.approx(by_hand.evaluate(data), abs=1e-5)
    other.save(tmp_path)
    other.train(data)
    assert not torch.allclose(other.predict(inputs), outputs)
    other.restore(tmp_path)
    assert torch.equal(other.predict(inputs), outputs)


@pytest.mark.parametrize("mode", steps.MODES)
def test_steps_are_compared_in_blocks(mode: str) -> None:
    """A ratio and the added time of a step come from as many blocks as rounds."""
    metric, bar = steps.MODES[mode]
    found = steps.step("finetunelib", "tiny", Job(metric=metric, bar=bar), 3)
    assert 0.2 < found["ratio"] < 20
    assert len(found["added_us_quartiles"]) == 2


def test_every_part_has_a_row_for_each_trainer(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """No trainer fails, and ratios to itself are 1."""
    job = Job(batch_size=20, folder=tmp_path, classes=5)
    few = {"rows": tuple(growth.Size(rows=rows) for rows in (60, 120, 240))}
    found = {
        "epoch": epoch.epochs(NAMES, 1, data, data, job, tolerance=1.0),
        "head": head.tuned(NAMES, 1, partial(head.mlp, 40), job),
        **inference.measure(NAMES, 1, tmp_path, rows=40),
        **checkpoint.measure(NAMES, 1, tmp_path, width=16),
    }
    for rows in found.values():
        assert set(rows) == {*NAMES, "hand_again"}
        assert rows["hand"]["to_hand"] == rows["finetunelib"]["to_finetunelib"] == 1
        assert rows["hand_again"]["seconds"] >= 0
    assert "accuracy" in found["epoch"]["finetunelib"]
    assert len(growth.measure(NAMES[1:], 1, tmp_path, few)["rows"]["finetunelib"]["seconds"]) == 3


def test_a_trainer_that_fails_is_reported() -> None:
    """The others are measured; ratios are those of the rounds that both have."""

    def refuse() -> paired.Prepared:
        raise ValueError("It cannot do this.")

    found = paired.alternate({"hand": lambda: model, "other": refuse}, 2)
    assert found["other"] == {"error": "ValueError: It cannot do this."}
    assert found["hand"]["to_hand"] == 1


def test_parts_are_merged() -> None:
    """A later run replaces its own rows only."""
    result = {"steps": {"rows": {"tiny": {"hand": 1, "skorch": 2}}, "date": "then"}}
    peers.merge(result, "steps", {"tiny": {"hand": 3}, "mlp": {"hand": 4}}, {"date": "now"})
    rows = {"tiny": {"hand": 3, "skorch": 2}, "mlp": {"hand": 4}}
    assert result == {"steps": {"rows": rows, "date": "now"}}

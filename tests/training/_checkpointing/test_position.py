"""The position of a run in its data, as a typed value and in a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from finetunelib._preserve import set_random_states
from finetunelib.errors import CheckpointError
from finetunelib.training._checkpointing.position import DataSignature, EpochPosition

SIGNATURE = DataSignature(8, 2, 4, 1, ("accuracy",))
POSITION = EpochPosition(
    batch=3,
    random={"torch": torch.get_rng_state()},
    signature=SIGNATURE,
    train_data={"generators": []},
    val_data={},
    train_metrics={"loss": {"sum": 1.0, "weight": 2.0}},
)


def test_position_is_restored_from_its_dict() -> None:
    """Nothing is lost in a checkpoint; the batch is in its manifest."""
    restored = EpochPosition.from_dict(POSITION.to_dict(), batch=3)
    assert restored == POSITION


def test_keys_of_a_position_are_those_of_format_1() -> None:
    """Older versions read what this one writes."""
    saved = POSITION.to_dict()
    assert set(saved) == {"random", "reading", "measured", "train", "val"}
    assert saved["reading"] == {
        "samples": 8,
        "batch_size": 2,
        "batches": 4,
        "gradient_accumulation_steps": 1,
        "metrics": ["accuracy"],
    }


def test_empty_dict_is_a_run_that_has_not_started() -> None:
    """There is one way to say that there is no position."""
    assert EpochPosition.from_dict({}, batch=0) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [({"reading": None}, "reading"), ({"other": {}}, "other")],
    ids=["missing", "unknown"],
)
def test_missing_or_unknown_key_is_named(change: dict[str, Any], named: str) -> None:
    """A position is restored completely or not at all."""
    saved = POSITION.to_dict() | change
    saved = {key: value for key, value in saved.items() if value is not None}
    with pytest.raises(CheckpointError, match=named):
        EpochPosition.from_dict(saved, batch=3)


def test_manifest_inside_an_epoch_needs_a_position() -> None:
    """Without one, the batches that were used would be read again."""
    with pytest.raises(CheckpointError, match="random"):
        EpochPosition.from_dict({}, batch=3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"samples": 9}, "samples 9"),
        ({"batch_size": 4}, "batch_size 4"),
        ({"batches": None}, "batches None"),
        ({"accumulation_steps": 2}, "gradient_accumulation_steps 2"),
        ({"metrics": ()}, "metrics"),
        ({"validate_every_n_steps": 3}, "validate_every_n_steps 3"),
    ],
)
def test_signature_that_differs_is_refused(change: dict[str, Any], named: str) -> None:
    """Each of its fields decides what the rest of an epoch contains."""
    with pytest.raises(CheckpointError, match=named):
        SIGNATURE.check_matches(replace(SIGNATURE, **change))


def test_position_between_two_epochs_is_saved_with_states_that_can_be_set() -> None:
    """The next epoch sets its own, so those of the moment are as good as any others."""
    between = replace(POSITION, batch=0, random=None, train_metrics={})
    saved = between.to_dict()["random"]
    before = torch.get_rng_state()
    set_random_states(saved)
    assert torch.equal(torch.get_rng_state(), before)

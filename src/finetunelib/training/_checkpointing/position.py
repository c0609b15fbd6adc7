"""The position of a run in its data, as a checkpoint stores it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetunelib._messages import listed
from finetunelib._preserve import random_states
from finetunelib.data._batches import Batches
from finetunelib.errors import CheckpointError

#: The keys of an `EpochPosition` in a checkpoint of format 1.
_KEYS = ("random", "reading", "measured", "train", "val")


@dataclass(frozen=True, slots=True)
class DataSignature:
    """How an epoch is split into batches, and which metrics are accumulated over it.

    It must match when a run resumes in the middle of an epoch.

    Attributes:
        samples: The number of samples, or `None` if unknown.
        batch_size: The number of samples in a batch, or `None` if the data yields ready batches.
        batches: The number of batches in an epoch, or `None` if unknown.
        accumulation_steps: The number of micro-batches in an update.
        metrics: The names of the metrics.
        validate_every_n_steps: The number of steps between two rows of the history, or `None` if
            a row is about an epoch.
    """

    samples: int | None
    batch_size: int | None
    batches: int | None
    accumulation_steps: int
    metrics: tuple[str, ...]
    validate_every_n_steps: int | None = None

    @classmethod
    def of(
        cls,
        train: Batches,
        accumulation_steps: int,
        metrics: Iterable[str],
        validate_every_n_steps: int | None = None,
    ) -> DataSignature:
        """Return the signature of training data."""
        return cls(
            train.samples,
            train.batch_size,
            train.steps,
            accumulation_steps,
            tuple(metrics),
            validate_every_n_steps,
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> DataSignature:
        """Return what `to_dict` was called on."""
        return cls(
            saved["samples"],
            saved["batch_size"],
            saved["batches"],
            saved["gradient_accumulation_steps"],
            tuple(saved["metrics"]),
            saved.get("validate_every_n_steps"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the signature under the keys of format 1."""
        signature: dict[str, Any] = {
            "samples": self.samples,
            "batch_size": self.batch_size,
            "batches": self.batches,
            "gradient_accumulation_steps": self.accumulation_steps,
            "metrics": list(self.metrics),
        }
        if self.validate_every_n_steps is not None:
            signature["validate_every_n_steps"] = self.validate_every_n_steps
        return signature

    def check_matches(self, saved: DataSignature) -> None:
        """Raise if an epoch cannot be resumed with this data.

        Raises:
            CheckpointError: If the saved signature differs.
        """
        if self != saved:
            raise CheckpointError(
                f"The checkpoint was written inside an epoch with {saved}, but this run has "
                f"{self}. Pass the same data in the same batches, the same metrics and the same "
                "`validate_every_n_steps`, or resume from the end of an epoch."
            )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_dict().items())


@dataclass(frozen=True, slots=True)
class EpochPosition:
    """Where a run is in its data: everything that no other part keeps in its own state.

    Attributes:
        batch: The number of batches of the epoch that were used; 0 between two epochs.
        random: The random states of torch, numpy and Python, or `None` between two epochs: each
            epoch starts with states of its own.
        signature: How the epoch is split into batches.
        train_data: The state of the training data.
        val_data: The state of the validation data.
        train_metrics: What the metrics have accumulated since the last row; empty if a row was
            written and no step followed.
    """

    batch: int
    random: Mapping[str, Any] | None
    signature: DataSignature
    train_data: Mapping[str, Any]
    val_data: Mapping[str, Any]
    train_metrics: Mapping[str, Any]

    @property
    def is_inside(self) -> bool:
        """Whether it is in the middle of an epoch, or of the steps of a row."""
        return bool(self.batch or self.train_metrics)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], batch: int) -> EpochPosition | None:
        """Return the position in a checkpoint of format 1, or `None` if none was saved.

        Args:
            saved: What `to_dict` returned, or an empty mapping.
            batch: The number of batches that were used, from the manifest.

        Raises:
            CheckpointError: If a key is missing or unknown.
        """
        check_keys(saved, batch)
        if not saved:
            return None
        return cls(
            batch=batch,
            random=saved["random"],
            signature=DataSignature.from_dict(saved["reading"]),
            train_data=saved["train"],
            val_data=saved["val"],
            train_metrics=saved["measured"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the position under the keys of format 1, without `batch`."""
        return {
            "random": random_states() if self.random is None else self.random,
            "reading": self.signature.to_dict(),
            "measured": self.train_metrics,
            "train": self.train_data,
            "val": self.val_data,
        }


def check_keys(saved: Mapping[str, Any], batch: int) -> None:
    """Raise if a saved position is neither complete nor empty.

    Args:
        saved: What `EpochPosition.to_dict` returned, or an empty mapping.
        batch: The number of batches that were used. A position inside an epoch cannot be empty.

    Raises:
        CheckpointError: If a key is missing or unknown.
    """
    wrong = sorted(map(str, set(_KEYS).symmetric_difference(saved)))
    if wrong and (saved or batch):
        raise CheckpointError(
            f"The checkpoint's position in the data must have the keys {', '.join(_KEYS)}; "
            f"missing or unknown: {listed(wrong)}. Use another checkpoint."
        )

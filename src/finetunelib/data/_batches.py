"""The interface of batch sources, and the types of data that users may pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from finetunelib._typing import Batch, SizedDataset
from finetunelib.data._parts import PartLike


class Batches(Protocol):
    """A source of batches that is read once per epoch."""

    @property
    def steps(self) -> int | None:
        """The number of batches in an epoch, or `None` if unknown."""
        ...

    @property
    def samples(self) -> int | None:
        """The number of samples, or `None` if unknown."""
        ...

    @property
    def batch_size(self) -> int | None:
        """The number of samples per batch, or `None` if the source yields ready batches."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether the data can be read more than once."""
        ...

    def why_not_resumable(self, *, inside_epoch: bool) -> str | None:
        """Return why a training run cannot be resumed exactly, or `None` if it can.

        Args:
            inside_epoch: Whether it is resumed in the middle of an epoch.
        """
        ...

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number` in training order, without the first `skip`.

        The remaining batches are the same as without `skip`.
        """
        ...

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, to check it.

        A source that cannot be read twice keeps the batch, and `epoch` continues from there.

        Args:
            number: The number of the epoch that is read next.
            name: The name of the data, for messages.

        Raises:
            EmptyDataError: If there is no batch.
        """
        ...

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the data, each sample once."""
        ...

    def rows(self) -> int | None:
        """Return the number of samples that `in_order` yields, or `None` if it is unknown.

        Raises:
            DataError: If `in_order` does not yield each sample once in the order of the data.
        """
        ...

    @property
    def last_batch_size(self) -> int | None:
        """The number of samples in the last batch, or `None` if unknown."""
        ...

    def has_short_last_batch(self) -> bool:
        """Return whether the last batch is known to be shorter than the others."""
        ...

    def all_targets(self) -> Tensor | None:
        """Return the targets of all samples if they are in memory, or `None`."""
        ...

    def state_dict(self, *, inside_epoch: bool) -> dict[str, Any]:
        """Return the state that, with (seed, epoch), determines the rest of the epoch."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class SeededBatches:
    """Base class of sources whose order depends only on (seed, epoch)."""

    replayable = True

    def rows(self) -> int:
        """Return the number of samples, each of which `in_order` yields once."""
        samples: int = self.samples  # type: ignore[attr-defined]  # of the derived class
        return samples

    @property
    def last_batch_size(self) -> int:
        """The number of samples in the last batch."""
        size: int = self.batch_size  # type: ignore[attr-defined]  # of the derived class
        return self.rows() % size or size

    def has_short_last_batch(self) -> bool:
        """Return whether the last batch is shorter than the others."""
        size: int = self.batch_size  # type: ignore[attr-defined]  # of the derived class
        return self.rows() > size > self.last_batch_size

    def why_not_resumable(self, *, inside_epoch: bool) -> str | None:  # noqa: ARG002 - the signature of the protocol
        """Return `None`: a training run can be resumed from any batch."""
        return None

    def state_dict(self, *, inside_epoch: bool) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty state, because (seed, epoch) determines each epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


#: Data to train on, to evaluate or to predict. A single tensor, array or mapping is inputs only.
Data: TypeAlias = (
    PartLike
    | tuple[PartLike, PartLike]
    | Dataset[Any]
    | SizedDataset[Any]
    | Iterable[Batch]
    | Batches
)

"""What the loop sees of any data: batches in an order that (seed, epoch) alone decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from finetunelib._typing import Batch, SizedDataset, TensorLike


class Batches(Protocol):
    """A source of batches that can be read once an epoch."""

    @property
    def steps(self) -> int | None:
        """The number of batches of an epoch, where it is known."""
        ...

    @property
    def samples(self) -> int | None:
        """The number of samples, where it is known."""
        ...

    @property
    def batch_size(self) -> int | None:
        """The samples of a batch, where they are cut here."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether the data can be read more than once."""
        ...

    def why_not_resumable(self, *, inside_epoch: bool) -> str | None:
        """Return why a training cannot be gone on with exactly, where that is so.

        Args:
            inside_epoch: Whether from the middle of an epoch, or else from its end.
        """
        ...

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number` in training order, without the first `skip`.

        What is left is what reading all of them would have given.
        """
        ...

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the data, every sample once."""
        ...

    def all_targets(self) -> Tensor | None:
        """Return the targets of every sample where they lie in memory, else None."""
        ...

    def state_dict(self, *, inside_epoch: bool) -> dict[str, Any]:
        """Return what besides (seed, epoch) decides the rest of an epoch, or the next one."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""


class SeededBatches:
    """What sources share whose order (seed, epoch) alone decides: any batch can be read again."""

    replayable = True

    def why_not_resumable(self, *, inside_epoch: bool) -> str | None:  # noqa: ARG002 - the protocol's form
        """Return None: a training can be gone on with from any batch."""
        return None

    def state_dict(self, *, inside_epoch: bool) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing, for nothing else decides an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


#: What a user may train on, evaluate on or predict for. A tensor alone is inputs alone.
Data: TypeAlias = (
    TensorLike
    | tuple[TensorLike, TensorLike]
    | Dataset[Any]
    | SizedDataset[Any]
    | Iterable[Batch]
    | Batches
)

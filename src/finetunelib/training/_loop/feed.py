"""The training data as the loop reads it: windows of micro-batches, in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch

from finetunelib._forward.batch import shapes_of
from finetunelib._preserve import derive_seed, random_states, reseed, set_random_states
from finetunelib._progress import choose_progress
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, to_device
from finetunelib.data._batches import Batches, Data
from finetunelib.data._cache.choose import check_can_be_kept, with_cache
from finetunelib.data._identity import DataIdentity
from finetunelib.data._named import NamedBatches, as_validation
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._checkpointing.position import DataSignature, EpochPosition
from finetunelib.training._history import History
from finetunelib.training._loop.first_batch import FirstBatchCheck
from finetunelib.training._loop.interruption import Signals
from finetunelib.training._loop.last_batch import check_last_batch
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._options import TrainerOptions
from finetunelib.training._reporting.interval import Interval
from finetunelib.training._state import TrainState

#: The micro-batches of one update.
Window: TypeAlias = list[Batch]


@dataclass(frozen=True, slots=True)
class FitData:
    """The data of one `fit`.

    Attributes:
        train: The training data.
        val: The validation data, if any, or several sets by name.
        signature: How an epoch is split into batches.
        identity: What the data consists of, by the beginning of the columns that are measured on
            it: `train`, `val`, or `val_` and the name of one of several sets.
    """

    train: Batches
    val: Batches | NamedBatches | None
    signature: DataSignature
    identity: Mapping[str, DataIdentity]

    @classmethod
    def of(
        cls,
        options: TrainerOptions,
        train: Data,
        val: Data | Mapping[str, Data] | None,
        validate_every_n_steps: int | None,
    ) -> FitData:
        """Return the batches of the arguments of a `fit`.

        Raises:
            InvalidTypeError: If data has an unknown form.
            EmptyDataError: If there are no samples.
            DataError: If inputs and targets have different lengths.
            InvalidArgumentError: If samples must be kept in memory and cannot be.
        """
        batches = options.data.batches(train, "train")
        if options.cache_data is True:
            check_can_be_kept(batches, "train")
        validation = None if val is None else as_validation(val, options.data.batches)
        return cls(
            batches,
            validation,
            DataSignature.of(
                batches, options.accumulation_steps, options.metrics, validate_every_n_steps
            ),
            {"train": DataIdentity(train), **_identities(val, validation)},
        )

    def kept_in_memory(
        self,
        passes: int | None,
        options: TrainerOptions,
        history: History,
    ) -> FitData:
        """Return the same data, of which datasets keep the samples that are read in a first pass.

        Args:
            passes: The number of epochs that are left, or `None` if it is unknown.
            options: The options of the Trainer.
            history: Is told whether the training data comes from memory.
        """
        required, once = options.cache_data is True, passes is not None and passes < 2
        if options.cache_data is False or (once and not required and not self._validates_often):
            return self

        def record(cached: bool) -> None:
            history.cached_data = cached

        announce = choose_progress(options.progress).finish
        train, val = self.train, self.val
        if required or not once:
            train = with_cache(train, "train", required=required, announce=announce, record=record)
        each = partial(with_cache, required=False, announce=announce, record=_ignore)
        if isinstance(val, NamedBatches):
            val = NamedBatches({n: each(b, f"val[{n!r}]") for n, b in val.sets.items()})
        elif val is not None:
            val = each(val, "val")
        return replace(self, train=train, val=val)

    @property
    def _validates_often(self) -> bool:
        """Whether validation data is read more than once in an epoch."""
        return self.signature.validate_every_n_steps is not None

    @property
    def val_sets(self) -> tuple[str, ...]:
        """The names of several sets of validation data."""
        return tuple(self.val.sets) if isinstance(self.val, NamedBatches) else ()


@dataclass(slots=True)
class EpochFeed:
    """Reads epochs of training data, from the position of a checkpoint if there is one.

    Attributes:
        data: The data of the `fit`.
        metrics: The metrics that are accumulated over an epoch.
        check: Checks the first batch.
        device: Where the batches are needed.
        seed: The seed of the run, which determines the random state of each epoch together with
            its number.
        saved: The position of a loaded checkpoint, if any.
        signals: The signals of the `fit`.
        interval: The steps that a row of the history is about.
    """

    data: FitData
    metrics: MetricAccumulator
    check: FirstBatchCheck
    device: torch.device
    seed: int
    saved: EpochPosition | None
    signals: Signals
    interval: Interval
    _rest: Iterator[Batch] | None = field(default=None, init=False)

    def restore(self) -> None:
        """Set the data to the saved position, if there is one.

        Raises:
            CheckpointError: If the data cannot continue from there.
        """
        data, saved = self.data, self.saved
        if saved is None:
            return
        if saved.is_inside:
            data.signature.check_matches(saved.signature)
            self.metrics.load_state_dict(saved.train_metrics)
        # Validation data first: a shared generator then gets the state of the training data.
        if data.val is not None:
            data.val.load_state_dict(saved.val_data)
        data.train.load_state_dict(saved.train_data)

    def start(self, state: TrainState) -> None:
        """Check the first batch of a new epoch, or read an unfinished one up to its position."""
        self._reseed(state)
        if self.saved is None or not self.saved.batch:
            train = self.data.train
            first = train.peek(state.epoch, "train")
            self.check.train(first, train, self.metrics)
            check_last_batch(self.check.evaluator.model, first, train, self.device)
            self.check.first_fit.first_batch(first)
            return
        self._rest = self.data.train.epoch(state.epoch, skip=state.batch)
        # Last, since the batches that are skipped may draw random numbers.
        if self.saved.random is not None:
            set_random_states(self.saved.random)

    def windows(self, state: TrainState) -> Iterator[Window]:
        """Yield the windows of a new epoch, or the rest of an unfinished one.

        They end early if a signal stops the reading.
        """
        rest, self._rest = self._rest, None
        size = self.data.signature.accumulation_steps
        try:
            batches = self._new_epoch(state) if rest is None else rest
            window: Window = []
            for batch in batches:
                window.append(to_device(batch, self.device))
                if len(window) == size:
                    yield window
                    window = []
            if window:
                yield window
        except Exception:
            # Ctrl-C in a terminal ends the workers that read the data, too.
            if self.signals.received is None:
                raise

    def position(self, context: TrainContext) -> EpochPosition:
        """Return where the run is in its data."""
        state = context.state
        inside_epoch = state.batch > 0
        is_open = self.interval.is_open(context)
        val = self.data.val
        return EpochPosition(
            batch=state.batch,
            random=random_states() if inside_epoch else None,
            signature=self.data.signature,
            train_data=self.data.train.state_dict(inside_epoch=inside_epoch),
            val_data={} if val is None else val.state_dict(inside_epoch=False),
            train_metrics=self.metrics.state_dict() if inside_epoch or is_open else {},
        )

    def _new_epoch(self, state: TrainState) -> Iterator[Batch]:
        self._reseed(state)
        batches = self.data.train.epoch(state.epoch)
        return chain([first_of(batches, "train")], batches)

    def _reseed(self, state: TrainState) -> None:
        reseed(derive_seed(self.seed, state.epoch))


def place_of(state: TrainState, window: Window) -> str:
    """Return the place of a failed update, for the note of its exception."""
    batches = "; ".join(map(shapes_of, window))
    return f"In epoch {state.epoch + 1}, step {state.step + 1}, on {batches}."


def _ignore(_cached: bool) -> None:
    """Whether validation data comes from memory is not recorded."""


def _identities(val: Any, validation: object) -> dict[str, DataIdentity]:
    """Return what validation data consists of, by the beginning of the names of its columns."""
    if isinstance(validation, NamedBatches):
        return {f"val_{name}": DataIdentity(val[name]) for name in validation.sets}
    return {"val": DataIdentity(val)}

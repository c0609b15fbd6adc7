"""Validation: at the end of an epoch, or in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from finetunelib._preserve import (
    derive_seed,
    random_state_preserved,
    raw_random_states,
    reseed,
    set_raw_random_states,
)
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of
from finetunelib.data._batches import Batches
from finetunelib.data._named import NamedBatches
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._callbacks.hooks import Callbacks
from finetunelib.training._loop.first_batch import FirstBatchCheck
from finetunelib.training._loop.interruption import Interruption
from finetunelib.training._loop.measured import WeightsBefore
from finetunelib.training._loop.moments import ended_by
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._measuring.metrics import Metric
from finetunelib.training._tasks.task import Task


class Validation(Protocol):
    """Measures the model on data that it is not trained on."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        ...

    def check_data(self) -> None:
        """Raise if the data cannot be used. It is called before the first epoch."""
        ...

    def run(self, context: TrainContext) -> dict[str, float]:
        """Return the columns."""
        ...


class NoValidation:
    """Measures nothing."""

    names: tuple[str, ...] = ()

    def check_data(self) -> None: ...

    def run(self, context: TrainContext) -> dict[str, float]:  # noqa: ARG002 - the protocol's form
        """Return no columns."""
        return {}


class _Interrupted(BaseException):
    """A signal was received during validation."""


class Randomness(Protocol):
    """Which random numbers a validation draws."""

    def start(self, step: int) -> None:
        """Prepare the random states for a validation after a step."""
        ...

    def end(self, before: _States) -> None:
        """Leave the random states for what follows, with those from before the validation."""
        ...


class RandomnessOfTraining:
    """Continues the random states of training, which are set again when the next epoch starts."""

    def start(self, step: int) -> None: ...

    def end(self, before: _States) -> None: ...


@dataclass(frozen=True, slots=True)
class RandomnessOfStep:
    """Draws numbers that depend on the seed and the step, and leaves no trace.

    Training continues in the middle of an epoch, and has the same bits as without validation.
    """

    seed: int

    def start(self, step: int) -> None:
        """Set the random states of the step."""
        reseed(derive_seed(self.seed, step, 2))

    def end(self, before: _States) -> None:
        """Set the random states of training."""
        before.restore()


@dataclass(frozen=True, slots=True)
class _States:
    """The random states, and the state of validation data."""

    random: dict[str, Any]
    batches: Batches | NamedBatches
    data: dict[str, Any]

    @classmethod
    def now(cls, batches: Batches | NamedBatches) -> _States:
        """Return the states of now."""
        return cls(raw_random_states(), batches, batches.state_dict(inside_epoch=False))

    def restore(self) -> None:
        """Set the states again."""
        set_raw_random_states(self.random)
        self.batches.load_state_dict(self.data)


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """One set of validation data.

    Attributes:
        batches: Its batches.
        metrics: Accumulates its loss and metrics under the names of its columns.
        name: What messages call it.
    """

    batches: Batches
    metrics: MetricAccumulator
    name: str


@dataclass(frozen=True, slots=True)
class DataValidation:
    """Measures the loss and the metrics on each set of validation data.

    Attributes:
        batches: The validation data as a whole, whose state is saved.
        sets: Its sets, which are evaluated one after the other; often only one.
    """

    evaluator: Evaluator
    batches: Batches | NamedBatches
    sets: tuple[ValidationSet, ...]
    check: FirstBatchCheck
    hooks: Callbacks
    interruption: Interruption
    randomness: Randomness

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(chain.from_iterable(each.metrics.names for each in self.sets))

    def check_data(self) -> None:
        """Check the first batch of each set, unless it can be read only once."""
        for each in self.sets:
            if each.batches.replayable:
                with self.check.randomness(), random_state_preserved(inner=False):
                    self._check_set(each)

    def _check_set(self, each: ValidationSet) -> None:
        batches = each.batches
        state = batches.state_dict(inside_epoch=False)
        first = first_of(batches.in_order(), each.name)
        # A generator that the loaders of training and validation share is set back.
        batches.load_state_dict(state)
        self.check.val(first, batches, each.metrics, each.name)

    def run(self, context: TrainContext) -> dict[str, float]:
        """Return the loss and the metrics over the whole data.

        Raises:
            TrainingInterrupted: If a signal is received.
        """
        before = _States.now(self.batches)
        try:
            self.randomness.start(context.state.step)
            with ended_by(self.hooks.on_validation_end, context):
                weights = WeightsBefore.of(context)
                self.hooks.on_validation_start(context)
                context.measured.weights = weights.replaced_by(context.model)
                values = self._measured()
        except _Interrupted:
            before.restore()  # A resumed run repeats the validation.
            self.interruption.stop_if_signalled(context)
            raise
        self.randomness.end(before)
        return values

    def _measured(self) -> dict[str, float]:
        """Return the columns of all sets."""
        values: dict[str, float] = {}
        for each in self.sets:
            batches = self._until_interrupted(each.batches)
            values |= self.evaluator.evaluate(batches, each.metrics, each.name)
        return values

    def _until_interrupted(self, batches: Batches) -> Iterator[Batch]:
        for batch in batches.in_order():
            if self.interruption.signalled:
                raise _Interrupted
            yield batch


def validation_sets(
    metrics: Mapping[str, Metric], task: Task, val: Batches | NamedBatches
) -> tuple[ValidationSet, ...]:
    """Return the sets of validation data, with columns such as `val_loss` or `val_clean_loss`."""
    if not isinstance(val, NamedBatches):
        return (ValidationSet(val, MetricAccumulator(metrics, task, "val_"), "val"),)
    return tuple(
        ValidationSet(
            batches,
            MetricAccumulator(metrics, task, f"val_{name}_"),
            f"val[{name!r}]",
        )
        for name, batches in val.sets.items()
    )

"""The features of a frozen backbone in place of its inputs, while nothing else is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

from finetunelib._forward.batch import WeightedBatch
from finetunelib._preserve import modes_preserved, random_state_preserved
from finetunelib._progress import Progress, choose_progress
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of
from finetunelib.data._batches import Batches, SeededBatches
from finetunelib.data._named import NamedBatches
from finetunelib.data._tensors import TensorBatches
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._checkpointing.record import RunRecord
from finetunelib.training._loop.feed import FitData
from finetunelib.training._loop.limits import Limits
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._options import TrainerOptions
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.supervised import SupervisedTask


class Work(Protocol):
    """What is trained and measured: the model on its data, or its head on cached features.

    Attributes:
        data: The data of the `fit`.
        trained: Runs what is trained.
        measured: Runs what is measured on the validation data.
        replayed: What a second run of a step calls, to explain a loss that is not finite.
    """

    data: FitData
    trained: Evaluator
    measured: Evaluator
    replayed: nn.Module

    def start_epoch(self, context: TrainContext) -> None:
        """Prepare an epoch, after the callbacks of its start."""

    def after_step(self, context: TrainContext) -> None:
        """Notice what the callbacks after a step have changed."""


@dataclass(slots=True)
class WholeModel:
    """The model on its data."""

    data: FitData
    trained: Evaluator
    measured: Evaluator
    replayed: nn.Module

    def start_epoch(self, context: TrainContext) -> None: ...

    def after_step(self, context: TrainContext) -> None: ...


def choose_work(
    options: TrainerOptions,
    record: RunRecord,
    evaluator: Evaluator,
    data: FitData,
    limits: Limits,
) -> Work:
    """Return what a `fit` trains.

    Args:
        options: The options of the Trainer.
        record: How far the run is, and its history.
        evaluator: The model with its task.
        data: The data of the `fit`.
        limits: When it ends.

    Raises:
        InvalidArgumentError: If features must be cached and cannot be.
    """
    cache, epochs = options.cache_features, _epochs(options, record.state, data, limits)
    data = data.kept_in_memory(epochs, options, record.history)
    whole = WholeModel(data, evaluator, evaluator, evaluator.model)
    if cache is False:
        return whole
    from finetunelib.finetuning._features.split import may_have_split  # Slow to import.

    frozen = may_have_split(evaluator.model)
    if cache == "auto" and (not frozen or (epochs is not None and epochs < 2)):
        return whole  # One pass over the data is all that the run needs.
    reason = _why_not(evaluator)
    if reason is None and _are_pairs(data.train):
        return CachedFeatures(
            evaluator,
            data,
            data.train,
            choose_progress(options.progress),
            required=cache is True,
        )
    if cache == "auto":
        return whole
    reason = reason or (
        "`train` is not in memory, so its samples may change. Pass tensors, or `in_memory(dataset)`"
    )
    raise InvalidArgumentError(f"`cache_features` is True, but {reason}.")


def _epochs(
    options: TrainerOptions, state: TrainState, data: FitData, limits: Limits
) -> int | None:
    """Return the number of epochs that are left, or `None` if unknown."""
    return limits.plan(state, data.train.steps, options.accumulation_steps).epochs


def _are_pairs(batches: Batches) -> TypeIs[TensorBatches]:
    """Return whether batches are pairs of inputs and targets in memory."""
    return isinstance(batches, TensorBatches) and len(batches.tensors) == 2


def _why_not(evaluator: Evaluator) -> str | None:
    """Return why features cannot be cached, as far as that is known without running the model."""
    if not isinstance(evaluator.task, SupervisedTask):
        return "only the default task computes the loss from the outputs of the head alone"
    if evaluator.runner is not evaluator.model:
        return "the model is compiled, and would not compute the same bits"
    return None


class CachedFeatures:
    """The head of a model on the features of its frozen backbone, which are computed once.

    They are computed at the first epoch, after the callbacks of its start. If a callback trains
    or hooks another part of the model later, the model continues on its data from the next batch.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        data: FitData,
        train: TensorBatches,
        progress: Progress,
        *,
        required: bool,
    ) -> None:
        self._evaluator = evaluator
        self._progress = progress
        self._required = required
        self._split: Any = None  # Any: its class is slow to import.
        self._tried = False
        self._first: Any = None  # Any: likewise.
        self._first_features = torch.empty(0)
        self._versions = 0
        self._train = _SwitchingBatches(train)
        self._val = _switching(data.val)
        self._train_runner = _SwitchingModel(evaluator.model)
        self._val_runner = _SwitchingModel(evaluator.model)
        self.data = replace(data, train=self._train, val=_with_sets(data.val, self._val))
        self.trained = replace(evaluator, runner=self._train_runner)
        self.replayed: nn.Module = self._train_runner
        self.measured = replace(evaluator, runner=self._val_runner)

    def start_epoch(self, context: TrainContext) -> None:
        """Compute the features, or notice that they are no longer valid."""
        if not self._tried:
            self._tried = True
            with random_state_preserved():
                self._start(context)
        self.after_step(context)

    def after_step(self, context: TrainContext) -> None:  # noqa: ARG002 - the protocol's form
        """Notice what the callbacks after a step have changed."""
        if self._split is not None:
            reason = self._split.why_broken() or self._why_written()
            if reason is not None:
                self._end(reason)

    def _why_written(self) -> str | None:
        """Return why the features of the first batch have changed, or `None`.

        They are computed again only after something outside the head was written, as callbacks do
        that replace the weights for validation and restore them.
        """
        versions = self._split.versions()
        if versions == self._versions:
            return None
        self._versions = versions
        with random_state_preserved(), self._evaluator.precision.autocast():
            same = torch.equal(self._split.features(self._first), self._first_features)
        return None if same else "a callback has changed what comes before the head"

    def _start(self, context: TrainContext) -> None:
        from finetunelib.finetuning._features.split import NotCacheableError

        try:
            split, train, val = self._features()
        except NotCacheableError as error:
            if self._required:
                raise
            self._progress.finish(f"{error} Each epoch runs the whole model.")
            return
        self._split, self._versions = split, split.versions()
        self._train.use(train, self._features_of)
        self._train_runner.use(split.head)
        for name, batches in self._val.items():
            batches.use(val[name])
            self._val_runner.use(split.head)
        context.history.cached_features = True

    def _features(self) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """Return the model with its head, and the features of the training and validation data."""
        from finetunelib.finetuning._features.compute import batch_inputs, compute_features
        from finetunelib.finetuning._features.split import find_split

        model, device = self._evaluator.model, self._evaluator.device
        autocast = self._evaluator.precision.autocast
        train = self._train.plain
        with autocast():
            first = batch_inputs(first_of(train.in_order(), "train"), device)
            split = find_split(model, first)
        features = compute_features(split, train, device, self._progress, autocast)
        self._first, self._first_features = first, features[: train.batch_size].clone()
        with modes_preserved(model):
            model.eval()
            val = {
                name: compute_features(
                    split, batches.plain, device, self._progress, autocast, full=False
                )
                for name, batches in self._val.items()
            }
        return split, features, val

    def _features_of(self, batch: Batch) -> Tensor:
        """Return the features of a batch that is shorter than those that were computed together."""
        from finetunelib.finetuning._features.compute import batch_inputs

        features: Tensor
        with self._evaluator.precision.autocast():
            features = self._split.features(batch_inputs(batch, self._evaluator.device))
        return features

    def _end(self, reason: str) -> None:
        self._split = None
        self._progress.finish(f"The features are no longer cached: {reason}.")
        self._train.use(None)
        self._train_runner.use(None)
        for batches in self._val.values():
            batches.use(None)
        self._val_runner.use(None)


def _switching(val: Batches | NamedBatches | None) -> dict[str, _SwitchingBatches]:
    """Return the sets of validation data by name, or none if one of them may change."""
    sets = val.sets if isinstance(val, NamedBatches) else {} if val is None else {"": val}
    pairs = {name: batches for name, batches in sets.items() if _are_pairs(batches)}
    if len(pairs) < len(sets):
        return {}
    return {name: _SwitchingBatches(batches) for name, batches in pairs.items()}


def _with_sets(
    val: Batches | NamedBatches | None, sets: Mapping[str, Batches]
) -> Batches | NamedBatches | None:
    """Return validation data with other sets of the same names, or as it is if there are none."""
    if not sets:
        return val
    return NamedBatches(sets) if isinstance(val, NamedBatches) else sets[""]


class _SwitchingBatches(SeededBatches):
    """Batches of tensors, or of features in the same order in their place."""

    def __init__(self, plain: TensorBatches) -> None:
        self.plain = plain
        self.steps, self.samples, self.batch_size = plain.steps, plain.samples, plain.batch_size
        self._features: TensorBatches | None = None
        self._features_of: Callable[[Batch], Tensor] | None = None

    def use(
        self, features: Tensor | None, features_of: Callable[[Batch], Tensor] | None = None
    ) -> None:
        """Use features in place of the inputs from the next batch on, or the inputs again.

        Args:
            features: The features of all samples, or `None` for the inputs.
            features_of: Returns the features of a short last batch of a shuffled epoch, whose
                rounding can differ.
        """
        self._features = None if features is None else self.plain.with_inputs(features)
        self._features_of = features_of

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of an epoch, with the inputs."""
        return self.plain.peek(number, name)

    def all_targets(self) -> Tensor | None:
        """Return the targets of all samples, as the data does."""
        return self.plain.all_targets()

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from what is in use when each is read."""
        done = skip
        while done < self.steps:
            source = self._features
            for batch in self._from(source, number, done):
                yield batch
                done += 1
                if source is not self._features:
                    break  # A callback has ended the cache.
            else:
                return

    def _from(self, source: TensorBatches | None, number: int, skip: int) -> Iterator[Batch]:
        if source is None:
            yield from self.plain.epoch(number, skip=skip)
            return
        batches = source.epoch(number, skip=skip)
        whole = self.steps - int(self.has_short_last_batch())
        yield from islice(batches, max(0, whole - skip))
        for batch in self.plain.epoch(number, skip=whole) if whole < self.steps else ():
            cached = next(batches)
            if self._features_of is not None:
                features = self._features_of(batch)
                weighted = isinstance(cached, WeightedBatch)
                cached = cached._replace(inputs=features) if weighted else (features, *cached[1:])
            yield cached

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the rows."""
        return (self._features or self.plain).in_order()


class _SwitchingModel(nn.Module):
    """Runs a model, or its head in its place. Neither is a submodule of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._plain = self._used = (model,)

    def use(self, head: nn.Module | None) -> None:
        """Run the head from now on, or the model again."""
        self._used = self._plain if head is None else (head,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the one that is in use."""
        return self._used[0](*args, **kwargs)

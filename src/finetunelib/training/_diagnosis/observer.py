"""Collects the findings of a run from what `fit` does anyway, without another pass."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from finetunelib._forward.batch import inputs_of
from finetunelib._typing import Batch
from finetunelib.data._batch import length_of
from finetunelib.data._batches import Batches
from finetunelib.data._named import NamedBatches
from finetunelib.training._diagnosis.duplicates import (
    MOST_SAMPLES,
    Comparison,
    compare_data,
    duplicate_findings,
)
from finetunelib.training._diagnosis.finding import Finding
from finetunelib.training._diagnosis.inputs import InputScale
from finetunelib.training._diagnosis.modes import head_findings, mode_findings, one_sample_findings
from finetunelib.training._diagnosis.outputs import output_findings
from finetunelib.training._diagnosis.targets import all_target_findings, batch_target_findings
from finetunelib.training._diagnosis.updates import (
    Resolution,
    adapter_findings,
    gradient_findings,
)
from finetunelib.training._tasks.modules import TrainedModules
from finetunelib.training._tasks.task import StepOutput


class Report(Protocol):
    """Takes findings."""

    def __call__(self, findings: Iterable[Finding]) -> None:
        """Keep the findings, or warn about them."""
        ...


class Observer:
    """Reports what is wrong with a run. Each method is called once, at its place in the run.

    Args:
        trained: The modules that are trained.
        train: The training data.
        val: The validation data, if any, or several sets of it.
        report: Takes the findings.
        most: The most samples of the training and the validation data that are compared.
    """

    def __init__(
        self,
        trained: TrainedModules,
        train: Batches,
        val: Batches | NamedBatches | None,
        report: Report,
        most: int = MOST_SAMPLES,
    ) -> None:
        self._trained = trained
        self._train = train
        self._val = val
        self._report = report
        self._most = most
        self._scale: InputScale | None = None
        self._resolution: Resolution | None = None
        #: How the validation data compares with the training data, if both are in memory.
        self.compared: Comparison | None = None

    def checking(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context in which the model is called with the first batch, before training."""
        self._scale = InputScale(inputs_of(batch))
        return self._scale.watching(self._trained.model)

    def first_batch(self, batch: Batch) -> None:
        """Examine the first batch and the data, after the batch was checked."""
        model, scale = self._trained.model, self._scale
        if scale is None:
            return
        self._report([] if scale.finding is None else [scale.finding])
        self._report(mode_findings(model))
        self._report(head_findings(model))
        self._report(one_sample_findings(model, length_of(batch)))
        if not scale.is_zero:  # Otherwise the data is a placeholder.
            self._report(all_target_findings(self._trained.task, self._train.all_targets()))
            self.compared = compare_data(self._train, self._val, self._most)
            self._report(duplicate_findings(self.compared))

    def before_step(self, optimizer: torch.optim.Optimizer, *, constant_lr: bool) -> None:
        """Keep what is compared after the first update.

        Args:
            optimizer: The optimizer.
            constant_lr: Whether the learning rate of the first steps is that of later ones.
        """
        self._resolution = Resolution(optimizer) if constant_lr else None

    def outputs(self, output: StepOutput, *, untrained: bool) -> None:
        """Examine the output of the first step, whose weights are not updated yet."""
        task, model, scale = self._trained.task, self._trained.model, self._scale
        # Inputs of another scale explain a high loss.
        initial = untrained and (scale is None or scale.finding is None)
        self._report(output_findings(task, output, model, initial=initial))
        if scale is None or not scale.is_zero:
            self._report(batch_target_findings(task, output.outputs, output.targets))

    def after_first_step(self) -> None:
        """Examine the gradients and the update of the first step."""
        # Not those of the task: a teacher is called without gradients.
        self._report(gradient_findings(list(self._trained.model.named_parameters())))
        if self._resolution is not None:
            self._report(self._resolution.findings())

    def after_steps(self, steps: int) -> None:
        """Examine what several updates have changed."""
        self._report(adapter_findings(self._trained.named_parameters(), steps))

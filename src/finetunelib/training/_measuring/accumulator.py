"""The loss and metrics of a pass over data, accumulated batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from finetunelib._forward.outputs import in_full_precision
from finetunelib.errors import CheckpointError, InvalidArgumentError
from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._measuring.first_batch import FirstBatch, columns, copied, follow_loss
from finetunelib.training._measuring.means import Mean, MeanOf
from finetunelib.training._measuring.metric_state import metric_state
from finetunelib.training._measuring.metrics import Metric
from finetunelib.training._measuring.perplexity import Perplexity
from finetunelib.training._measuring.rows import mapped
from finetunelib.training._measuring.weighted import update_metric
from finetunelib.training._tasks.measured import UNKNOWN
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.task import StepOutput, Task

#: The metrics of which it is known that `compute` changes nothing.
_WITHOUT_EFFECTS = (MeanOf, Accuracy, Perplexity)


class MetricAccumulator:
    """Accumulates the loss and metrics over a pass over data."""

    def __init__(self, metrics: Mapping[str, Metric], task: Task, prefix: str = "") -> None:
        """Create an accumulator.

        Args:
            metrics: The metrics by name.
            task: The task whose outputs are added.
            prefix: The beginning of the names of the results.
        """
        self._loss = Mean()
        self._metrics = metrics
        self._task = task
        self._prefix = prefix
        self._columns: dict[str, tuple[str, ...]] = {}
        self._weight: object = None
        # Whether it is known what the loss is a mean over, which only the first batches tell.
        self._settled = False
        self._equal_sizes = False
        # Whether the weight of the loss is the number of targets that `Accuracy` counts too.
        self._counts = False

    def reset(self) -> None:
        """Start a new pass."""
        self._loss = Mean()
        self._weight = None
        for metric in self._metrics.values():
            metric.reset()
        self._settle()

    def update(self, output: StepOutput) -> None:
        """Add the output of a task for one batch.

        Raises:
            InvalidArgumentError: If its size differs from that of an earlier batch, and it is
                unknown what the loss is a mean over.
        """
        if not self._settled:
            self._settle()
        if self._equal_sizes and output.sample_weight is None:
            self._check_size(output)
        self._loss.add(output.loss, output.weight)
        if self._metrics:
            self._update_metrics(output)

    def _update_metrics(self, output: StepOutput) -> None:
        outputs: Any = None  # Any: as StepOutput.outputs.
        for name, metric in self._metrics.items():
            try:
                if self._counts and output.sample_weight is None and type(metric) is Accuracy:
                    values, targets = output.outputs, output.targets
                    if metric._add_counted(values, targets, output.weight):  # noqa: SLF001
                        continue
                if isinstance(metric, Perplexity):
                    metric.add(output)
                    continue
                if outputs is None:
                    outputs = mapped(_for_metrics, output.outputs)
                update_metric(metric, outputs, output.targets, output.sample_weight)
            except Exception as error:
                error.add_note(f"In the metric {name!r}.")
                raise

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the loss and the metrics, with their prefix."""
        columns = (self._columns.get(name, (name,)) for name in self._metrics)
        return tuple(f"{self._prefix}{name}" for name in ("loss", *chain(*columns)))

    def check(self, output: StepOutput, name: str) -> None:
        """Check that the metrics accept the output for the first batch, with copies of them.

        Args:
            output: The output of the task.
            name: The name of the data, for messages.

        Raises:
            InvalidTargetError: If a metric fails, or would broadcast outputs and targets.
            InvalidTypeError: If the value of a metric is neither a number nor several numbers.
            InvalidArgumentError: If a metric cannot be copied, or two columns have the same name.
        """
        self._columns = {n: (n,) for n, m in self._metrics.items() if _is_known(m, output)}
        if unknown := {n: m for n, m in self._metrics.items() if n not in self._columns}:
            outputs = mapped(_for_metrics, output.outputs)
            batch = FirstBatch(outputs, output.targets, name, output.sample_weight)
            for metric_name, metric in copied(unknown).items():
                metric.reset()
                follow_loss(metric, self._task)
                self._columns[metric_name] = batch.columns_of(metric_name, metric)
        if repeated := [n for n, count in Counter(self.names).items() if count > 1]:
            raise InvalidArgumentError(
                f"Two metrics would write the column {repeated[0]!r}. Give one another name."
            )

    def _settle(self) -> None:
        """Let the metrics follow the loss, as far as it is known what it is a mean over."""
        for metric in self._metrics.values():
            follow_loss(metric, self._task)
        self._equal_sizes = task_needs_equal_sizes(self._task)
        self._counts = isinstance(self._task, SupervisedTask) and self._task.counts_targets
        # A loss that has seen ignored targets only will tell later which ones it ignores.
        self._settled = not isinstance(self._task, SupervisedTask) or self._task.is_measured

    def _check_size(self, output: StepOutput) -> None:
        if self._weight is not None and output.weight != self._weight:
            raise InvalidArgumentError(
                f"A batch has {output.weight} samples and an earlier one {self._weight}, but "
                f"{UNKNOWN}, or drop a short last batch."
            )
        self._weight = output.weight

    def weight(self) -> float:
        """Return what the loss is a mean over: samples, tokens, or the sum of class weights."""
        return self._loss.weight

    def weight_added(self) -> float:
        """Return the weight without the part that was restored from a checkpoint."""
        return self._loss.weight_added

    @property
    def why_not_resumable(self) -> str | None:
        """Why a pass cannot be resumed exactly from its middle, or `None` if it can."""
        without = [name for name, m in self._metrics.items() if metric_state(m) is None]
        if not without:
            return None
        return (
            f"The metric {without[0]!r} has no `state_dict` and `load_state_dict`, so a "
            "checkpoint in the middle of an epoch would lose its sums. Add them, or write "
            "checkpoints at the ends of epochs."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        states = {name: metric_state(metric) for name, metric in self._metrics.items()}
        return {
            "loss": self._loss.state_dict(),
            "metrics": {name: dict(s.state_dict()) for name, s in states.items() if s is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums that `state_dict` returned."""
        self._loss.load_state_dict(state["loss"])
        for name, values in state["metrics"].items():
            if stateful := metric_state(self._metrics[name]):
                stateful.load_state_dict(values)

    def try_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums, and raise any error if they cannot be those of these metrics.

        Metrics of other libraries and of the user are restored, but their values are not computed,
        which could have effects.
        """
        self.load_state_dict(state)
        self._loss.compute()
        for metric in self._metrics.values():
            if type(metric) in _WITHOUT_EFFECTS:
                metric.compute()

    def compute_running(self) -> dict[str, float]:
        """Return the loss and the metrics so far without their prefix, or nothing before a batch.

        Metrics of other libraries and of the user are left out: computing one before the end of
        the pass could have effects, or take long.
        """
        if not self._loss.weight:
            return {}
        values = {"loss": self._loss.compute()}
        for name, metric in self._metrics.items():
            if type(metric) in _WITHOUT_EFFECTS:
                values |= columns(name, metric.compute())
        return values

    def compute(self) -> dict[str, float]:
        """Return the loss and the metrics by name, the loss first.

        Raises:
            InvalidTypeError: If the value of a metric is neither a number nor several numbers.
        """
        values = {"loss": self._loss.compute()}
        for name, metric in self._metrics.items():
            try:
                value = metric.compute()
            except Exception as error:
                error.add_note(f"In `compute` of the metric {name!r}.")
                raise
            values |= columns(name, value)
        return {f"{self._prefix}{name}": value for name, value in values.items()}


def _for_metrics(outputs: Tensor) -> Tensor:
    """Return outputs without their graph, in half precision as float32, which numpy can take."""
    # A metric that stores outputs must not keep the graph of every batch alive.
    return in_full_precision(outputs.detach())


def _is_known(metric: Metric, output: StepOutput) -> bool:
    """Return whether it is known that a metric accepts an output and computes one number."""
    if type(metric) is not Accuracy or output.sample_weight is not None:
        return False
    return metric._accepts(output.outputs, output.targets)  # noqa: SLF001 - not for users to call


def task_needs_equal_sizes(task: Task) -> bool:
    """Return whether only batches of the same size can be averaged, as far as it was measured."""
    return isinstance(task, SupervisedTask) and task.sizes_must_be_equal


def try_saved_sums(metrics: Mapping[str, Metric], task: Task, saved: Mapping[str, Any]) -> None:
    """Load the sums of an unfinished epoch into copies of the metrics.

    Args:
        metrics: The metrics of the run. If a name is not among theirs, nothing is loaded.
        task: The task.
        saved: The saved sums.

    Raises:
        CheckpointError: If a metric refuses them.
    """
    if not saved["metrics"].keys() <= metrics.keys():
        return  # `fit` compares the names.
    try:
        MetricAccumulator(copied(metrics), task).try_state_dict(saved)
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint contains sums of metrics that do not fit: {error!r}. Pass the "
            "same metrics, or use another checkpoint."
        ) from error

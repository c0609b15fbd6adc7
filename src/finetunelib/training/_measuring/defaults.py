"""The metrics that the Trainer measures if it gets none."""

from __future__ import annotations

from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._measuring.metrics import Metric
from finetunelib.training._measuring.perplexity import Perplexity
from finetunelib.training._tasks.supervised import SupervisedTask
from finetunelib.training._tasks.task import Task
from finetunelib.training._tasks.tokens.task import TokenTask


def default_metrics(task: Task) -> dict[str, Metric]:
    """Return the metrics of a task that the user chose no metrics for, by name."""
    if isinstance(task, TokenTask):
        return {"accuracy": Accuracy(), "perplexity": Perplexity()}
    if isinstance(task, SupervisedTask) and task.default_loss:
        return {"accuracy": Accuracy()}
    return {}

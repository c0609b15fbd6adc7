"""The `Trainer` (at the top level), what it is made of and gives back, and what users extend."""

from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._history import History
from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput, Task

__all__ = ["Accuracy", "Callback", "History", "StepOutput", "Task", "TrainContext", "TrainState"]


def __dir__() -> list[str]:
    return __all__

"""The results of a `Trainer` (which is at the top level), and what users extend it with."""

from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._history import History
from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput, Task
from finetunelib.training._tasks.tokens.task import TokenTask

__all__ = [
    "Accuracy",
    "Callback",
    "History",
    "StepOutput",
    "Task",
    "TokenTask",
    "TrainContext",
    "TrainState",
]


def __dir__() -> list[str]:
    return __all__

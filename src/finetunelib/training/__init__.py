"""The `Trainer` (at the top level), what it is made of and gives back, and what users extend."""

from finetunelib.training._callback import Callback
from finetunelib.training._context import TrainContext
from finetunelib.training._history import History
from finetunelib.training._metrics import Accuracy
from finetunelib.training._state import TrainState
from finetunelib.training._task import StepOutput, Task
from finetunelib.training._trainer import Trainer

__all__ = ["Accuracy", "Callback", "History", "StepOutput", "Task", "TrainContext", "TrainState"]

for _public in (Accuracy, Callback, History, StepOutput, Task, TrainContext, TrainState):
    _public.__module__ = __name__
Trainer.__module__ = "finetunelib"

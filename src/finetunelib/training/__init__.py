"""The `Trainer` (at the top level) and the values it is made of and gives back."""

from finetunelib.training._history import History
from finetunelib.training._metrics import Accuracy
from finetunelib.training._state import TrainState
from finetunelib.training._trainer import Trainer

__all__ = ["Accuracy", "History", "TrainState"]

for _public in (Accuracy, History, TrainState):
    _public.__module__ = __name__
Trainer.__module__ = "finetunelib"

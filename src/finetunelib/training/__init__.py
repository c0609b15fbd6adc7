"""The results of a `Trainer` (which is at the top level), and what users extend it with.

Functions that take a Trainer are imported when first used.
"""

from typing import TYPE_CHECKING

from finetunelib._public import lazily
from finetunelib.training._callbacks.callback import Callback
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._diagnosis.finding import Finding
from finetunelib.training._history import History
from finetunelib.training._measuring.accuracy import Accuracy
from finetunelib.training._state import TrainState
from finetunelib.training._tasks.task import StepOutput, Task
from finetunelib.training._tasks.tokens.task import TokenTask

if TYPE_CHECKING:
    from finetunelib.training._diagnose import diagnose
    from finetunelib.training._diagnosis.diagnosis import Diagnosis
    from finetunelib.training._lr_finder.find import find_lr
    from finetunelib.training._lr_finder.result import LRFinderResult
    from finetunelib.training._memory.estimate import MemoryEstimate, estimate_memory

__all__ = [
    "Accuracy",
    "Callback",
    "Diagnosis",
    "Finding",
    "History",
    "LRFinderResult",
    "MemoryEstimate",
    "StepOutput",
    "Task",
    "TokenTask",
    "TrainContext",
    "TrainState",
    "diagnose",
    "estimate_memory",
    "find_lr",
]

if not TYPE_CHECKING:  # Type checkers use the imports above.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "Diagnosis": "_diagnosis.diagnosis",
            "LRFinderResult": "_lr_finder.result",
            "MemoryEstimate": "_memory.estimate",
            "diagnose": "_diagnose",
            "estimate_memory": "_memory.estimate",
            "find_lr": "_lr_finder.find",
        },
    )

"""Ready-made callbacks. Derive your own from `finetunelib.training.Callback`."""

from finetunelib.callbacks._early_stopping import EarlyStopping
from finetunelib.callbacks._ema import EMA
from finetunelib.callbacks._gradual_unfreezing import GradualUnfreezing
from finetunelib.callbacks._loggers import CSVLogger, TensorBoardLogger
from finetunelib.callbacks._model_checkpoint import ModelCheckpoint

__all__ = [
    "EMA",
    "CSVLogger",
    "EarlyStopping",
    "GradualUnfreezing",
    "ModelCheckpoint",
    "TensorBoardLogger",
]


def __dir__() -> list[str]:
    return __all__

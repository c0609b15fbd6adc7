"""How far a training is. The loop owns it; everything else reads it."""

from __future__ import annotations

from dataclasses import dataclass

from finetunelib._public import public


@public("finetunelib.training")
@dataclass(slots=True)
class TrainState:
    """The counters of a training.

    Attributes:
        epoch: The number of epochs that were begun and ended, 0 before the first.
        step: The number of optimizer updates that were done.
        batch: The number of batches of the epoch in progress that were used.

    Example:
        >>> import torch
        >>> from finetunelib import Trainer, build_mlp
        >>> trainer = Trainer(build_mlp(4, [], 2), batch_size=5, progress=False)
        >>> _ = trainer.fit((torch.zeros(10, 4), torch.zeros(10).long()), epochs=3)
        >>> trainer.state
        TrainState(epoch=3, step=6, batch=0)
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0

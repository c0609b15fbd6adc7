"""The counters of a run. The loop and the step write them; everything else reads them."""

from __future__ import annotations

from dataclasses import dataclass

from finetunelib._public import public


@public("finetunelib.training")
@dataclass(slots=True)
class TrainState:
    """The counters of a training run.

    Attributes:
        epoch: The number of completed epochs.
        step: The number of optimizer updates.
        batch: The number of batches used in the current epoch; 0 between two epochs.

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

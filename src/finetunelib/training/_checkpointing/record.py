"""How far a run is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetunelib.data._identity import DataIdentity
from finetunelib.finetuning._freezing.certificate import FreezeAudit
from finetunelib.training._checkpointing.position import EpochPosition
from finetunelib.training._history import History
from finetunelib.training._state import TrainState


@dataclass(slots=True)
class RunRecord:
    """The progress of a run. It exists before the optimizer is built.

    Attributes:
        state: The counters of epochs and steps.
        history: The rows of the epochs so far.
        freeze_audit: The digests of the frozen tensors.
        position: Where the run is in its data, or `None` if it has not started. Set when a
            checkpoint is loaded and when a `fit` ends; `None` while one is running.
        resumed_from: The checkpoint that was loaded and that the next `fit` continues from.
        run_id: The id of the run, which its checkpoints contain. `None` if it was resumed from a
            checkpoint of an early version, which has none.
        hyperparameters: Those in the checkpoint that the run was resumed from and uses, or
            `None`.
        data: The data of the last `fit`, by the name of its argument.
        rows_follow_steps: Whether a `fit` of the run measured rows after steps, rather than epochs.
    """

    state: TrainState = field(default_factory=TrainState)
    history: History = field(default_factory=History)
    freeze_audit: FreezeAudit = field(default_factory=FreezeAudit)
    position: EpochPosition | None = None
    resumed_from: Path | None = None
    run_id: str | None = field(default_factory=lambda: secrets.token_hex(16))
    hyperparameters: Mapping[str, Any] | None = None
    data: Mapping[str, DataIdentity] = field(default_factory=dict)
    rows_follow_steps: bool = False

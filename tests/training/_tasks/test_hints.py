"""Each hint of a message about data solves the problem: following it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from finetunelib import Trainer, build_mlp
from finetunelib.errors import FinetuneLibError
from training.tiny import points

INPUTS, TARGETS = points(12)
BINARY = TARGETS.clamp(max=1)
SEVERAL = (INPUTS[:, :3] > 0).float()
MARKED = TARGETS.masked_fill(TARGETS == 2, 255)
SAMPLES = [(INPUTS[row], int(TARGETS[row])) for row in range(12)]


def fit(data: Any, outputs: int = 3, **options: Any) -> Any:
    """Train for one step, and return the number of steps."""
    trainer = Trainer(build_mlp(6, [], outputs), progress=False, **options)
    return trainer.fit(data, epochs=1)["step"]


BCE: dict[str, Any] = {"loss_fn": nn.BCEWithLogitsLoss()}
HINTS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "indices in a column": (
        lambda: fit((INPUTS, TARGETS[:, None])),
        ".squeeze(1)",
        lambda: fit((INPUTS, TARGETS[:, None].squeeze(1))),
    ),
    "one-hot": (
        lambda: fit((INPUTS, nn.functional.one_hot(TARGETS, 3))),
        ".argmax(1)",
        lambda: fit((INPUTS, nn.functional.one_hot(TARGETS, 3).argmax(1))),
    ),
    "one output": (
        lambda: fit((INPUTS, BINARY), 1),
        "nn.BCEWithLogitsLoss()",
        lambda: fit((INPUTS, BINARY[:, None].float()), 1, **BCE),
    ),
    "one output and a column of floats": (
        lambda: fit((INPUTS, BINARY[:, None].float()), 1),
        "nn.BCEWithLogitsLoss()",
        lambda: fit((INPUTS, BINARY[:, None].float()), 1, **BCE),
    ),
    "several labels": (
        lambda: fit((INPUTS, SEVERAL)),
        "nn.BCEWithLogitsLoss()",
        lambda: fit((INPUTS, SEVERAL), **BCE),
    ),
    "255": (
        lambda: fit((INPUTS, MARKED)),
        "nn.CrossEntropyLoss(ignore_index=255)",
        lambda: fit((INPUTS, MARKED), loss_fn=nn.CrossEntropyLoss(ignore_index=255)),
    ),
    "255 and a loss": (
        lambda: fit((INPUTS, MARKED), loss_fn=nn.CrossEntropyLoss()),
        "nn.CrossEntropyLoss(ignore_index=255)",
        lambda: fit((INPUTS, MARKED), loss_fn=nn.CrossEntropyLoss(ignore_index=255)),
    ),
    "classes from 1": (
        lambda: fit((INPUTS, TARGETS + 1)),
        "subtract 1",
        lambda: fit((INPUTS, TARGETS + 1 - 1)),
    ),
    "int32": (
        lambda: fit((INPUTS, TARGETS.int())),
        ".long()",
        lambda: fit((INPUTS, TARGETS.int().long())),
    ),
    "numbers": (
        lambda: fit((INPUTS, INPUTS[:, 0])),
        "nn.MSELoss()",
        lambda: fit((INPUTS, INPUTS[:, :1]), 1, loss_fn=nn.MSELoss()),
    ),
    "double precision": (
        lambda: fit((INPUTS.double(), TARGETS)),
        ".float()",
        lambda: fit((INPUTS.double().float(), TARGETS)),
    ),
    "targets in double precision": (
        lambda: fit((INPUTS, INPUTS[:, :1].double()), 1, loss_fn=nn.HuberLoss()),
        ".float()",
        lambda: fit((INPUTS, INPUTS[:, :1].double().float()), 1, loss_fn=nn.HuberLoss()),
    ),
    "integers and labels": (
        lambda: fit((INPUTS, SEVERAL.long()), **BCE),
        ".float()",
        lambda: fit((INPUTS, SEVERAL.long().float()), **BCE),
    ),
    "list of samples": (
        lambda: fit(SAMPLES),
        "DataLoader(train, batch_size=64, shuffle=True)",
        lambda: fit(DataLoader(SAMPLES, batch_size=64, shuffle=True)),  # type: ignore[arg-type]
    ),
    "list of samples with tensors": (
        lambda: fit(list(zip(INPUTS, TARGETS, strict=True))),
        "DataLoader(train, batch_size=64, shuffle=True)",
        lambda: fit(DataLoader(list(zip(INPUTS, TARGETS, strict=True)), batch_size=64)),  # type: ignore[arg-type]
    ),
    "shapes that broadcast": (
        lambda: fit((INPUTS, INPUTS[:, 0]), 1, loss_fn=nn.functional.l1_loss),
        "targets.unsqueeze(1)",
        lambda: fit((INPUTS, INPUTS[:, 0].unsqueeze(1)), 1, loss_fn=nn.functional.l1_loss),
    ),
    "numpy": (
        lambda: fit((INPUTS.double().numpy(), TARGETS.numpy())),
        ".float()",
        lambda: fit((torch.from_numpy(INPUTS.double().numpy()).float(), TARGETS.numpy())),
    ),
}


@pytest.mark.parametrize("kind", HINTS)
def test_hint_solves_the_problem(kind: str) -> None:
    """The message contains it, and the data that follows it is trained on."""
    wrong, hint, right = HINTS[kind]
    with pytest.raises(FinetuneLibError) as caught:
        wrong()
    assert hint in str(caught.value)
    assert right() == [1]


def test_hint_for_a_column_does_not_suggest_what_makes_every_label_0() -> None:
    """`argmax(1)` of one column."""
    with pytest.raises(FinetuneLibError) as caught:
        fit((INPUTS, TARGETS[:, None]))
    assert "argmax" not in str(caught.value)


def test_texts_as_targets_are_shown() -> None:
    """They are to be mapped to indices."""
    with pytest.raises(FinetuneLibError, match=r"'cat'.*class indices"):
        fit([(INPUTS, ["cat"] * 12)])

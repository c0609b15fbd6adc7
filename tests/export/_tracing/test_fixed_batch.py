"""The module that fixes the batch size is found by running the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib.export._tracing.fixed_batch import module_that_fixes_the_batch
from support_models import Function, linear, samples


class Around(nn.Module):
    """A model whose own forward fixes the batch size of the input to its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.body(inputs).reshape(2, -1))
        return logits


class ByLength(nn.Module):
    """A model with the batch as the second axis, and with positions that do not depend on it."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.positions = nn.Embedding(6, 4)
        self.rnn = nn.GRU(4, 4)
        self.last = last

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean state."""
        positions = self.positions(torch.arange(inputs.shape[1]))
        states: Tensor = self.rnn((inputs + positions).transpose(0, 1))[0]
        result: Tensor = self.last(states.mean(dim=0))
        return result


FIXING = {
    "a module before the one that raises": (
        nn.Sequential(nn.Linear(4, 4), Function(lambda x: x.reshape(2, -1)), nn.Linear(4, 3)),
        (4,),
        "`1` (Function)",
    ),
    "the parent of the module that raises": (Around(), (4,), "Around"),
    "a module that raises": (
        nn.Sequential(nn.Linear(4, 4), Function(lambda x: x.reshape(2, 4))),
        (4,),
        "`1` (Function)",
    ),
    "a module that slices": (
        nn.Sequential(nn.Linear(4, 4), Function(lambda x: x[:2]), nn.ReLU()),
        (4,),
        "`1` (Function)",
    ),
    "a module after a recurrent layer": (
        ByLength(Function(lambda x: x.reshape(2, -1))),
        (6, 4),
        "`last` (Function)",
    ),
}


@pytest.mark.parametrize(("model", "shape", "named"), FIXING.values(), ids=FIXING.keys())
def test_module_that_fixes_the_batch_is_named(
    model: nn.Module, shape: tuple[int, ...], named: str
) -> None:
    """The result is the module whose forward contains the number, even if another module raises."""
    inputs = Inputs.of(samples(2, *shape), "example_input")
    assert module_that_fixes_the_batch(model, inputs) == named


def test_no_module_is_named_if_none_fixes_the_batch() -> None:
    """For a model that accepts any batch size, the result is `None`."""
    inputs = Inputs.of(samples(2, 4), "example_input")
    assert module_that_fixes_the_batch(nn.Sequential(linear(), nn.ReLU()), inputs) is None

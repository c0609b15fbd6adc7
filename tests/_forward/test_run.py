"""Running a model once: what is restored, and which exceptions become errors of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.run import (
    ANY_ERROR,
    INPUT_ERRORS,
    raised_by_forward,
    run_model,
    run_once,
)
from finetunelib.errors import FreezeError, InvalidInputError

BATCH = Inputs((torch.ones(2, 3),), {})


class Acting(nn.Module):
    """A layer whose forward first calls a function."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(()))
        self.act = act

    def forward(self, inputs: Tensor) -> Tensor:
        self.act()
        self.get_buffer("count").add_(1)
        self.extra = inputs
        output: Tensor = self.layer(inputs)
        return output


def raising(error: BaseException) -> Acting:
    """Return a model whose forward raises an error."""

    def act() -> NoReturn:
        raise error

    return Acting(act)


def test_the_model_runs_in_eval_mode_without_gradients() -> None:
    """The modes of the modules are restored after the run."""
    modes: list[bool] = []
    model = Acting(lambda: modes.append(model.training))
    output = run_once(model, BATCH)
    assert modes == [False]
    assert model.training
    assert isinstance(output, Tensor)
    assert not output.requires_grad


def test_the_random_state_is_restored() -> None:
    """A forward that draws random numbers does not advance the global generator."""
    model = Acting(lambda: torch.rand(3))
    before = torch.get_rng_state()
    run_once(model, BATCH)
    assert torch.equal(torch.get_rng_state(), before)


def test_stand_ins_are_used_in_place_of_the_models_tensors() -> None:
    """The model's own buffers and attributes stay unchanged."""
    model = Acting(lambda: None)
    stand_ins = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    output = run_once(model, BATCH, stand_ins=stand_ins)
    assert isinstance(output, Tensor)
    assert torch.equal(output, torch.zeros(2, 2))
    assert (int(stand_ins["count"]), int(model.get_buffer("count"))) == (1, 0)
    assert not hasattr(model, "extra")


def test_gradients_are_recorded_on_request() -> None:
    """The outputs then have an autograd graph."""
    output = run_once(Acting(lambda: None), BATCH, gradients=True)
    assert isinstance(output, Tensor)
    assert output.requires_grad


@pytest.mark.parametrize("kind", INPUT_ERRORS, ids=lambda kind: kind.__name__)
def test_an_exception_about_the_input_is_explained(kind: type[Exception]) -> None:
    """The message is the caller's, and the forward's own exception is the cause."""
    error = kind("mine")
    with pytest.raises(InvalidInputError, match="explained: mine") as caught:
        run_once(raising(error), BATCH, explain=lambda reason: f"explained: {reason}")
    assert caught.value.__cause__ is error
    assert raised_by_forward(caught.value) is error


def test_an_input_error_of_the_library_is_explained_too() -> None:
    """The caller adds the argument to an error of `MLP`."""
    with pytest.raises(InvalidInputError, match=r"`data`.*mine"):
        run_model(raising(InvalidInputError("mine")), BATCH, "data")


def test_another_error_of_the_library_is_passed_on() -> None:
    """Its message and type are kept."""
    with pytest.raises(FreezeError, match="mine"):
        run_once(raising(FreezeError("mine")), BATCH)


@pytest.mark.parametrize("kind", [KeyError, MemoryError])
def test_any_exception_is_explained_if_the_caller_expects_any(kind: type[Exception]) -> None:
    """Runs without data can fail with any exception."""
    with pytest.raises(InvalidInputError):
        run_once(raising(kind("mine")), BATCH, errors=ANY_ERROR)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_passed_on(kind: type[BaseException]) -> None:
    """Ctrl-C in a forward is not an error of the input."""
    with pytest.raises(kind):
        run_once(raising(kind()), BATCH, errors=ANY_ERROR)


def test_modes_are_restored_after_an_error() -> None:
    """A model that fails is unchanged."""
    model = raising(ValueError("mine"))
    with pytest.raises(InvalidInputError):
        run_once(model, BATCH)
    assert model.training

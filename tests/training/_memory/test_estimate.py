"""Tests of the estimate of the memory that training needs, without values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import freeze
from finetunelib.training import MemoryEstimate, TokenTask, estimate_memory

ROWS, WIDTH = 64, 128


def layers(count: int = 4) -> nn.Sequential:
    """Return equal layers, each of which keeps its input and the mask of its ReLU."""
    blocks = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(count))
    return nn.Sequential(nn.Sequential(*blocks), nn.Linear(WIDTH, 3))


BATCH = (torch.zeros(ROWS, WIDTH), torch.zeros(ROWS).long())


def test_fixed_parts_are_exact() -> None:
    """Weights and gradients take 4 bytes per value, the state of Adam 8, and that of SGD 4."""
    model = layers()
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    adam = estimate_memory(model, BATCH, optimizer=torch.optim.Adam)
    sgd = estimate_memory(model, BATCH)
    assert (adam.weights, adam.gradients) == (size, size)
    assert 2 * size <= adam.optimizer_state <= 2 * size + 100
    assert sgd.optimizer_state == size
    assert adam.total == sum(getattr(adam, name) for name in adam.__dataclass_fields__)
    assert "optimizer state" in str(adam)
    assert repr(adam).startswith("MemoryEstimate(total=")


def test_frozen_parameters_need_no_gradients() -> None:
    """Nor a state of the optimizer."""
    model = layers()
    freeze(model, "0")
    found = estimate_memory(model, BATCH, optimizer=torch.optim.Adam)
    head = 4 * sum(parameter.numel() for parameter in model[1].parameters())
    assert found.gradients <= head
    assert found.optimizer_state <= 2 * head + 100


def test_model_and_randomness_are_unchanged() -> None:
    """No value, gradient, hook or random number of the user's is used, and meta models work."""
    model = layers().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = estimate_memory(model, BATCH)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())
    assert not model.training
    assert estimate_memory(layers().to("meta"), BATCH) == found


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_checkpointing_needs_less(precision: Any) -> None:
    """The activations of one block at a time, at the price of running it again."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 8)) for _ in range(8))
    )
    batch = (torch.zeros(512, 8), torch.zeros(512).long())
    plain = estimate_memory(model, batch, precision=precision)
    checkpointed = estimate_memory(model, batch, precision=precision, gradient_checkpointing=["?"])
    # Each block keeps an output of 512 x 512 in 2 or 4 bytes.
    kept = 8 * 512 * 512 * (4 if precision == "fp32" else 2)
    assert plain.total > kept
    assert checkpointed.total < 0.6 * plain.total


def test_chunks_of_tokens_need_less() -> None:
    """The logits as a whole do not exist."""
    model = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 1000))
    tokens = torch.zeros(4, 64).long()
    whole, chunks = (
        estimate_memory(model, (tokens, tokens), task=TokenTask(chunk_size=size))
        for size in (None, 32)
    )
    assert whole.total - chunks.total > 4 * 64 * 1000 * 4


def test_models_that_depend_on_values_are_refused() -> None:
    """The message says why and what to do instead."""

    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(x if x.sum() > 0 else -x)
            return output

    with pytest.raises(InvalidArgumentError, match=r"Depends.*depends on values"):
        estimate_memory(Depends(), BATCH)


def test_arguments_are_checked() -> None:
    """An optimizer with real parameters, and a model without trainable ones, are refused."""
    model = build_mlp(4, [], 2)
    with pytest.raises(InvalidTypeError, match="SGD"):
        estimate_memory(model, BATCH, optimizer=torch.optim.SGD(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="block"):
        estimate_memory(model, BATCH, gradient_checkpointing=["block"])
    with pytest.raises(InvalidArgumentError, match="precision"):
        estimate_memory(model, BATCH, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"shape \(2, 9\)\. Measure"):
        estimate_memory(model, (torch.zeros(2, 9), torch.zeros(2).long()))
    freeze(model)
    with pytest.raises(InvalidArgumentError):
        estimate_memory(model, BATCH)
    assert MemoryEstimate(1, 2, 3, 4, 5).total == 15

"""Restoring modes and random states, and deriving seeds."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetunelib import _preserve
from finetunelib._preserve import (
    derive_seed,
    evaluating,
    initialising_with,
    modes_preserved,
    random_state_free,
    random_state_preserved,
    raw_random_states,
    reseed,
)


def model_of_mixed_modes() -> nn.Sequential:
    """Return a model whose parts are in different modes."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1].eval()
    model[0].eval()
    model.get_submodule("1.0").train()
    return model


def modes(model: nn.Module) -> dict[str, bool]:
    """Return the mode of every submodule by name."""
    return {name: module.training for name, module in model.named_modules()}


def draw_everywhere() -> tuple[list[float], list[float], float]:
    """Draw from the global generators of torch, numpy and Python."""
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


# modes_preserved and evaluating


def test_modes_preserved_restores_every_submodule() -> None:
    """A model with mixed modes has the same modes after the block."""
    model = model_of_mixed_modes()
    before = modes(model)
    with modes_preserved(model):
        model.train()
    assert modes(model) == before


def test_modes_preserved_restores_after_an_error() -> None:
    """The modes are restored if the block raises, and the error is passed on."""
    model = model_of_mixed_modes()
    before = modes(model)
    with pytest.raises(KeyError), modes_preserved(model):
        raise KeyError(model.train())
    assert modes(model) == before


def test_evaluating_puts_every_submodule_into_eval_mode() -> None:
    """No submodule is in train mode inside the block."""
    model = model_of_mixed_modes()
    with evaluating(model):
        assert not any(modes(model).values())


def test_evaluating_records_no_gradients() -> None:
    """Outputs computed inside the block have no graph."""
    model = model_of_mixed_modes()
    with evaluating(model):
        assert not model(torch.ones(3, 2)).requires_grad


def test_evaluating_restores_modes_and_gradients_after_an_error() -> None:
    """Both are restored if the block raises."""
    model = model_of_mixed_modes()
    before = modes(model)
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert modes(model) == before
    assert torch.is_grad_enabled()


# random_state_preserved and reseed


def test_random_state_preserved_restores_torch_numpy_and_python() -> None:
    """All three generate the same numbers after the block as without it."""
    with random_state_preserved():
        expected = draw_everywhere()
    with random_state_preserved():
        draw_everywhere()
        reseed(123)
    with random_state_preserved():
        assert draw_everywhere() == expected


def test_random_state_preserved_restores_after_an_error() -> None:
    """The random states are restored if the block raises, and the error is passed on."""
    with random_state_preserved():
        expected = draw_everywhere()
    with pytest.raises(KeyError), random_state_preserved():
        raise KeyError(draw_everywhere())
    with random_state_preserved():
        assert draw_everywhere() == expected


def test_random_state_preserved_restores_cuda_if_it_is_initialized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The states of all CUDA devices are read before the block and written after it."""
    restored: list[object] = []
    states = [torch.zeros(1), torch.ones(1)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    with random_state_preserved():
        assert restored == []
    assert restored == [states]


def test_random_state_preserved_restores_mps_if_it_is_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state of Apple's device is read before the block and written after it."""
    restored: list[object] = []
    state = torch.zeros(1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    with random_state_preserved():
        assert restored == []
    assert restored == [state]


def test_reseed_repeats_the_draws_of_torch_numpy_and_python() -> None:
    """The same seed gives the same numbers in all three."""
    with random_state_preserved():
        reseed(7)
        first = draw_everywhere()
        reseed(7)
        assert draw_everywhere() == first


def test_reseed_with_another_seed_changes_all_three() -> None:
    """Each of the three depends on the seed."""
    with random_state_preserved():
        reseed(7)
        first = draw_everywhere()
        reseed(8)
        second = draw_everywhere()
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_reseed_accepts_every_derived_seed() -> None:
    """Seeds have 63 bits, but the global generator of NumPy accepts only 32."""
    with random_state_preserved():
        reseed(2**63 - 1)
        first = draw_everywhere()
        reseed(2**63 - 1)
        assert draw_everywhere() == first


def test_reseed_seeds_the_accelerators_that_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is seeded if it is initialized, and MPS if it is available."""
    seeds: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeds.append(("cuda", seed)))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: seeds.append(("mps", seed)))
    with random_state_preserved():
        # Set here because the context manager above would read the state of the device.
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda _: None)
        reseed(5)
    assert seeds == [("cuda", 5), ("mps", 5)]


# derive_seed


def test_derive_seed_is_distinct_for_neighbouring_seeds_and_epochs() -> None:
    """No two pairs of a seed and an epoch give the same seed."""
    seeds = {derive_seed(seed, epoch) for seed, epoch in product(range(30), range(30))}
    assert len(seeds) == 900


def test_derive_seed_keeps_the_numbers_of_a_path_apart() -> None:
    """Paths whose digits are the same when joined give different seeds."""
    paths = [(1,), (1, 0), (0, 1), (11,), (1, 1), (1, 1, 1), (11, 1), (1, 11), (111,)]
    assert len({derive_seed(*path) for path in paths}) == len(paths)


def test_derive_seed_is_the_same_in_every_process() -> None:
    """A seed depends on its arguments only."""
    assert derive_seed(0, 0) == 6_213_027_144_842_677_344


def test_derive_seed_fits_a_generator() -> None:
    """Every seed is in [0, 2**63)."""
    numbers = [-(2**70), -1, 0, 1, 2**70]
    assert all(0 <= derive_seed(one, other) < 2**63 for one, other in product(numbers, numbers))


# initialising_with


def weights() -> Tensor:
    """Return the initial weights of a new layer."""
    return nn.Linear(3, 3).weight.detach()


def test_initialising_with_repeats_the_weights_of_a_seed() -> None:
    """The same seed gives the same initial weights, bit for bit."""
    with initialising_with(1):
        first = weights()
    torch.rand(1)
    with initialising_with(1):
        assert torch.equal(weights(), first)


def test_initialising_with_another_seed_gives_other_weights() -> None:
    """The weights depend on the seed."""
    with initialising_with(1):
        first = weights()
    with initialising_with(2):
        assert not torch.equal(weights(), first)


def test_initialising_with_leaves_the_global_generator_alone() -> None:
    """The block does not affect the numbers generated after it."""
    before = torch.get_rng_state()
    with initialising_with(1):
        weights()
    assert torch.equal(torch.get_rng_state(), before)


def test_initialising_with_restores_the_generator_after_an_error() -> None:
    """The generator is restored if the block raises, and the error is passed on."""
    before = torch.get_rng_state()
    with pytest.raises(KeyError), initialising_with(1):
        raise KeyError(weights())
    assert torch.equal(torch.get_rng_state(), before)


def test_initialising_with_none_draws_from_the_global_generator() -> None:
    """Without a seed, PyTorch draws the weights and its generator advances."""
    with random_state_preserved():
        torch.manual_seed(3)
        expected, state = weights(), torch.get_rng_state()
        torch.manual_seed(3)
        with initialising_with(None):
            assert torch.equal(weights(), expected)
        assert torch.equal(torch.get_rng_state(), state)


def test_initialising_with_draws_on_the_cpu_under_another_default_device() -> None:
    """A seed gives the same weights on every device."""
    with initialising_with(1):
        expected = weights()
    with torch.device("meta"), initialising_with(1):
        assert torch.equal(weights(), expected)


def test_random_states_are_restored_under_the_meta_device() -> None:
    """Inside `torch.device("meta")` the saved states have data too."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.device("meta"), random_state_preserved():
        torch.rand(3, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_large_models_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a parameter that a forward writes into is saved, and it is restored."""
    monkeypatch.setattr(_preserve, "_LARGE", 0)
    words = nn.Embedding(5, 3, max_norm=0.1)
    model = nn.Sequential(words, nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied: list[Tensor] = []
    clone = Tensor.clone

    def counted(tensor: Tensor) -> Tensor:
        copied.append(tensor)
        return clone(tensor)

    monkeypatch.setattr(Tensor, "clone", counted)
    with _preserve.unchanged(model), torch.no_grad():
        model(torch.arange(5))
        assert not torch.equal(words.weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert copied == []


def states() -> tuple[bytes, bytes, object]:
    """Return the states of the three global generators."""
    now = raw_random_states()
    return now["torch"].numpy().tobytes(), now["numpy"][1].tobytes(), now["python"]


def test_random_state_is_restored_once_if_inner_blocks_do_not_matter() -> None:
    """Blocks inside leave their draws to each other, and the outer one undoes all of them."""
    before = states()
    with random_state_preserved(inner=False):
        with random_state_preserved():
            draw_everywhere()
        inside = states()
    assert inside != before
    assert states() == before


def test_free_random_state_ends_with_its_block_and_only_in_its_thread() -> None:
    """Blocks after it, and those of other threads meanwhile, restore the states again."""

    def preserving() -> bool:
        before = states()
        with random_state_preserved():
            draw_everywhere()
        return states() == before

    with random_state_free():
        assert not preserving()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(preserving).result()
    assert preserving()

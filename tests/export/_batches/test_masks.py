"""Masks are recognized, and varied like those of tokenizers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetunelib.export._batches.masks import mask_form, vary_mask

_LENGTHS = torch.tensor([[8], [3], [5]])
_RIGHT = (torch.arange(8) < _LENGTHS).long()


@pytest.mark.parametrize(
    ("mask", "form"),
    [
        (torch.ones(3, 8, dtype=torch.long), "on_off"),
        (torch.ones(3, 1, 1, 8, dtype=torch.bool), "on_off"),
        (_RIGHT, "on_off"),
        (_RIGHT.flip(1), "off_on"),
        (torch.zeros(3, 8, dtype=torch.bool), "off_on"),
        (torch.tensor([[True, False, True], [False, True, False]]), "bits"),
        (torch.ones(3, 1, dtype=torch.bool), "flag"),
        (torch.ones(3, dtype=torch.bool), "flag"),
    ],
)
def test_a_mask_is_recognized_by_its_values(mask: Tensor, form: str) -> None:
    """The name of the input does not matter."""
    assert mask_form(mask, "anything") == form


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.arange(8).reshape(2, 4), "mask"),
        (torch.ones(2, 4), "images"),
        (torch.full((2, 4), 0.5), "mask"),
        (torch.ones(3, 1, dtype=torch.long), "mask"),
    ],
)
def test_other_tensors_are_not_masks(tensor: Tensor, name: str) -> None:
    """Integers other than 0 and 1 are not a mask, nor are float images of ones."""
    assert mask_form(tensor, name) is None


def test_floats_are_a_mask_only_by_name() -> None:
    """Images are often given as ones too."""
    assert mask_form(torch.ones(2, 4), "attention_mask") == "on_off"


@pytest.mark.parametrize("seed", range(5))
def test_each_row_of_an_attention_mask_keeps_a_position(seed: int) -> None:
    """Trailing positions are set to 0, and the first position stays 1."""
    mask = torch.ones(20, 8, dtype=torch.long)
    varied = vary_mask(mask, "on_off", torch.Generator().manual_seed(seed))
    assert bool((varied[:, 0] == 1).all())
    assert bool((varied.diff(dim=1) <= 0).all())
    assert bool((varied != mask).any())


def test_each_row_of_a_padding_mask_keeps_a_position() -> None:
    """Trailing positions are ignored, and the first position is kept."""
    mask = torch.zeros(20, 8, dtype=torch.bool)
    varied = vary_mask(mask, "off_on", torch.Generator().manual_seed(0))
    assert not bool(varied[:, 0].any())
    assert bool(varied.any())


def test_flags_are_varied_across_the_rows() -> None:
    """Both values occur, even if all flags of the example are the same."""
    varied = vary_mask(torch.ones(7, 1, dtype=torch.bool), "flag", torch.Generator().manual_seed(0))
    assert sorted(set(varied.flatten().tolist())) == [False, True]

"""Whether a layer computes the same as the class of torch that it is derived from."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._preserve import random_state_preserved
from finetunelib.finetuning._heads.head import HEAD_LAYERS, HeadLayer, in_features_of


def kind_of(layer: HeadLayer) -> type[HeadLayer]:
    """Return the class of torch that a layer is, or is derived from."""
    return next(kind for kind in HEAD_LAYERS if isinstance(layer, kind))


def computes_like_its_kind(layer: HeadLayer) -> bool:
    """Return whether a layer has the same outputs as a plain layer with its weights.

    A subclass without its own forward does. Others are run on random numbers, in both modes: many
    libraries have a Linear that only casts its weight, and a cosine classifier is a Linear too.
    """
    if type(layer).forward is kind_of(layer).forward and "forward" not in vars(layer):
        return True
    with random_state_preserved(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        try:
            return all(_same_outputs(layer, training=training) for training in (True, False))
        except Exception:  # noqa: BLE001 - the layer's code may fail in any way
            return False


def _same_outputs(layer: HeadLayer, *, training: bool) -> bool:
    trial = copy.deepcopy(layer).to_empty(device="cpu").train(training)
    for tensor in (*trial.parameters(), *trial.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.copy_(torch.randn(tensor.shape))
        else:
            tensor.zero_()
    inputs = torch.randn(2, in_features_of(layer), *_spatial_size(layer)).to(trial.weight.dtype)
    plain: Any = kind_of(layer).forward  # Any: each kind's forward takes only itself.
    expected: Tensor = plain(trial, inputs)
    outputs: object = trial(inputs)
    return (
        isinstance(outputs, Tensor)
        and outputs.shape == expected.shape
        and outputs.dtype == expected.dtype
        and torch.allclose(outputs, expected)
    )


def _spatial_size(layer: HeadLayer) -> list[int]:
    """Return a size that is a little larger than the kernel."""
    if isinstance(layer, nn.Linear):
        return []
    sizes = zip(layer.kernel_size, layer.dilation, strict=True)
    return [(size - 1) * dilation + 3 for size, dilation in sizes]

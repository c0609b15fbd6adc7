"""Digests of the frozen tensors of a model."""

from __future__ import annotations

from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._public import public
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.finetuning._digests import digest
from finetunelib.finetuning._freezing.hold import held_in_eval_mode


@public("finetunelib.finetuning")
def fingerprint(model: nn.Module) -> dict[str, str]:
    """Compute a digest of every frozen tensor of a model.

    The frozen tensors are all parameters that do not require a gradient, and the buffers of the
    modules that `freeze` holds in eval mode. Two fingerprints are equal if and only if the same
    tensors are frozen and have the same dtypes, shapes and bits; the device does not matter. Every
    frozen byte is read once. Tensors on the meta device have no bits and are left out.

    Args:
        model: The model. A shared tensor is listed once, under its first name.

    Returns:
        The sha256 of each tensor in hexadecimal, by its name in the model without the parts that
        `torch.compile` or DataParallel add.

    Raises:
        InvalidTypeError: If `model` is not an `nn.Module`.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import fingerprint, freeze
        >>> model = build_mlp(4, [8], 3, seed=0)
        >>> before = freeze(model, "backbone")
        >>> list(before)
        ['backbone.1.weight', 'backbone.1.bias']
        >>> fingerprint(model) == before
        True
    """
    own = unwrapped(check_model(model))
    return {own_name(name): digest(tensor) for name, tensor in frozen_tensors(own).items()}


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen tensors of a model by name, except those on the meta device."""
    tensors: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        if held_in_eval_mode(module):
            for buffer_name, buffer in module.named_buffers(name, recurse=False):
                if buffer not in seen:
                    seen.add(buffer)
                    tensors[buffer_name] = buffer
    return {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}

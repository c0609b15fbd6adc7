"""Writing a model's weights to a safetensors file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._files.atomic import atomic_file
from finetunelib._files.paths import check_writable
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib._wrappers import unwrapped
from finetunelib.errors import InvalidArgumentError, PathNotWritableError
from finetunelib.finetuning._freezing.fingerprint import digests_of
from finetunelib.finetuning._freezing.known_digests import computed_digest
from finetunelib.finetuning._weights.partial import (
    LeftOut,
    LeftOutPart,
    frozen_ids,
    groups_left_out,
)
from finetunelib.finetuning._weights.state import (
    check_has_values,
    check_not_meta,
    tensors_of,
    tied_names,
)


@public("finetunelib.finetuning")
def save_weights(model: nn.Module, path: StrPath, *, trainable_only: bool = False) -> Path:
    """Write a model's parameters and buffers to a safetensors file, atomically.

    Tied tensors are written once. A model wrapped by torch.compile or data parallelism is saved
    under the names inside the wrapper.

    Args:
        model: The model, on any device.
        path: The file to write, ending in `.safetensors`. Missing folders are created.
        trainable_only: Whether to leave out the frozen tensors, such as the base model of
            adapters. The file then contains the trainable parameters, the buffers of modules that
            `freeze` does not hold, and the digest of each frozen tensor. Load it with
            `load_weights(model, path, trainable_only=True)`, which checks that the base is the
            same. Keep the base: it is not in the file.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If `path` has another ending, or the model's state contains something
            other than tensors, or tensors on the meta device; or if nothing is trainable, for
            `trainable_only`.
        InvalidTypeError: If `model` is not an `nn.Module`.
        PathNotWritableError: If the file cannot be written. An existing file is unchanged.

    Example:
        >>> import os, tempfile
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import save_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(build_mlp(4, [], 2), os.path.join(folder, "mlp.safetensors")).name
        'mlp.safetensors'
    """
    check_model(model)
    file = check_writable(path)
    if file.suffix != ".safetensors":
        raise InvalidArgumentError(
            f"`path` must end in .safetensors, a format that cannot contain code, got `{file}`. "
            f"Write `{file.with_suffix('.safetensors').name}`."
        )
    own = unwrapped(model)
    frozen: Collection[int] = ()
    if trainable_only:
        _check_trainable(own)
        frozen = frozen_ids(own)
    tensors, left_out = tensors_to_write(own, frozen)
    metadata: dict[str, str] = {}
    if trainable_only:
        digests = digests_of(left_out, computed_digest)
        metadata = left_out_part(left_out, digests).to_metadata()
    with atomic_file(file) as temporary:
        write_tensors(tensors, temporary, place=file, metadata=metadata)
    return file


def _check_trainable(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidArgumentError(
            "The model has no trainable parameter, so `trainable_only=True` would leave out all of "
            "them. Save it before everything is frozen, or without `trainable_only`."
        )


def tensors_to_write(
    model: nn.Module, frozen: Collection[int] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that a file contains and those that it leaves out, by name.

    Those that it contains are on the CPU, tied ones under their first name. Those that it leaves
    out are the model's own, under all of their names.

    Args:
        model: The model.
        frozen: The ids of the tensors that are left out, unless they share memory with others.

    Raises:
        InvalidArgumentError: If a tensor that the file contains has no values.
    """
    state = tensors_of(unwrapped(model))
    tied = tied_names(state)
    left_out = {group[0]: group for group in groups_left_out(state, tied, frozen)}
    kept = [names for names in tied if names[0] not in left_out]
    check_has_values({name: state[name] for names in kept for name in names})
    check_not_meta({name: state[name] for name in left_out})
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for names in kept:
        tensor = state[names[0]].detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        tensors[names[0]] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors, {name: state[name] for group in left_out.values() for name in group}


def left_out_part(
    tensors: Mapping[str, Tensor], digests: Mapping[str, str], *, checkpoint: bool = False
) -> LeftOutPart:
    """Return what a file contains of the tensors that it leaves out.

    Args:
        tensors: The tensors by name.
        digests: Their digests.
        checkpoint: Whether the file is that of a checkpoint.
    """
    return LeftOutPart(
        {
            name: LeftOut(tuple(tensor.shape), tensor.dtype, digests[name])
            for name, tensor in tensors.items()
        },
        checkpoint,
    )


def write_tensors(
    tensors: Mapping[str, Tensor],
    file: Path,
    *,
    place: Path,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write tensors to a temporary safetensors file.

    Args:
        tensors: The tensors on the CPU, which must be contiguous and share no memory.
        file: The file to write.
        place: The final path of the file, for messages.
        metadata: Further metadata of the file.

    Raises:
        PathNotWritableError: If the file cannot be written.
    """
    # Imported here because the package should stay fast to import.
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata={"format": "pt", **metadata})
    except (OSError, SafetensorError) as error:
        raise PathNotWritableError(f"`{place}` could not be written: {error}") from error
